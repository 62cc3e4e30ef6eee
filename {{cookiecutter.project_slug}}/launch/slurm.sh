#!/usr/bin/env bash
# GPUs of a SLURM cluster: the whole model on each (DDP). Options go to train.py.
#   sbatch launch/slurm.sh --learning_rate 1e-4       two machines: sbatch --nodes=2 launch/slurm.sh
# Out of time or preempted, the run saves a checkpoint, and the job queues again and goes on from there. (Preempted,
# torchrun leaves it 30 seconds; after a longer step it goes on from the last checkpoint of `save_steps`.)
# The rows per step are batch size x accumulation x all GPUs. All machines must see this folder.
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1       # torchrun, which starts a process for each GPU
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300       # to this script, 300 seconds before the end
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail
. .venv/bin/activate

# the exit code of the last command in the background; a signal ends `wait`, but not the command
finish() { while kill -0 $! 2>/dev/null; do wait $! || :; done; wait $! && code=0 || code=$?; }
export -f finish

# on each machine: train.py takes both signals, and USR1 would end torchrun; 75 tells that one came
machine='
  trap "came=75" TERM USR1
  (trap "" USR1; exec torchrun "$@") &
  finish
  exit $((code ? ${came:-code} : 0))'

trap 'scancel --signal=USR1 "$SLURM_JOB_ID"' USR1  # passes it on to all machines
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c "$machine" torchrun \
  --nnodes="$SLURM_NNODES" --nproc_per_node="${SLURM_GPUS_ON_NODE:-1}" --rdzv_id="$SLURM_JOB_ID" \
  --rdzv_backend=c10d --rdzv_endpoint="$SLURMD_NODENAME:$((20000 + SLURM_JOB_ID % 10000))" train.py "$@" &
finish
if [ "$code" = 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
