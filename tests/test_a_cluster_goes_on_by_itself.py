"""launch/slurm.sh under a real SLURM: preempted or out of time, it ends as if undisturbed.

It needs slurmctld, slurmd and sbatch (Debian: apt install slurmctld slurmd slurm-client), starts
daemons of its own with two nodes of two "GPUs", both on this machine, and takes some minutes: make
cluster.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster
CONFIG = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port=16818 CPUs=2 Gres=gpu:2
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 Port=16819 CPUs=2 Gres=gpu:2
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=60
PartitionName=both Nodes=ALL PriorityTier=1 GraceTime=60
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF
"""
STEPS = 300
RUN = [
    *("--base_model_path=twin", "--dataset=data/sample.jsonl", "--use_cpu=true", "--answers=0"),
    *(f"--max_steps={STEPS}", "--num_train_epochs=1000", "--logging_steps=1"),
    *("--per_device_train_batch_size=2", "--gradient_accumulation_steps=1"),
    *("--learning_rate=1e-2", "--eval_strategy=no", "--save_strategy=no"),
]
TWO = ["--gpus-per-node=2", "--cpus-per-task=2"]
MACHINES = ["--partition=both", "--nodes=2", "--gpus-per-node=1", "--cpus-per-task=1"]


def call(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def wait_for(what, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"nothing after {seconds} s"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if not all(map(shutil.which, ("slurmctld", "slurmd", "sbatch"))):
        pytest.fail("SLURM is not here: apt install slurmctld slurmd slurm-client")
    home, host = tmp_path_factory.mktemp("slurm"), call("hostname", "-s")
    nodes = (host, "localhost")
    for name in ("state", *nodes):
        (home / name).mkdir()
    values = {"home": home, "host": host, "user": call("id", "-un")}
    file = home / "slurm.conf"
    file.write_text(CONFIG.format(**values))
    (home / "gres.conf").write_text("Name=gpu File=/dev/tty[0-1]\n")
    os.environ["SLURM_CONF"] = str(file)
    commands = [["slurmctld"], *(["slurmd", "-N", node] for node in nodes)]
    daemons = [
        subprocess.Popen([*command, "-D", "-f", str(file)], stderr=subprocess.DEVNULL)
        for command in commands
    ]
    idle = "sinfo --noheader --Node --partition=both --states=idle"
    wait_for(lambda: subprocess.getoutput(idle).count(" idle") == len(nodes), 60)
    yield
    subprocess.run(["scancel", "--user", values["user"]])
    for daemon in daemons:
        daemon.terminate()
        daemon.wait()
    del os.environ["SLURM_CONF"]


@pytest.fixture(scope="module")
def project(bake_once):
    project = bake_once.project(project_slug="clustered", quantization="none")
    (project / ".venv").symlink_to(sys.prefix)
    build = (
        "from pathlib import Path; from sft.twin import build_twin; build_twin(Path('twin'), '')"
    )
    subprocess.run([sys.executable, "-c", build], cwd=project, check=True)
    return project


def submit(project: Path, name: str, where: list[str] = TWO) -> str:
    words = [*where, f"--output={name}.log", "launch/slurm.sh", *RUN]
    os.chdir(project)
    return call("sbatch", "--parsable", *words, f"--output_dir={name}")


def has_begun(project: Path, name: str) -> bool:
    log = project / f"{name}.log"
    return log.exists() and f" 30/{STEPS}" in log.read_text(errors="replace")


def is_over(job: str) -> bool:
    return job not in subprocess.getoutput("squeue --noheader --format=%i").split()


def go_on(job: str) -> None:
    """Wait until it queues again and is over, without SLURM's pause of two minutes."""
    wait_for(lambda: f"{job} PENDING" in call("squeue", "--noheader", "--format=%i %T"))
    call("scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_for(lambda: is_over(job))


def losses(project: Path, name: str) -> list[tuple[int, float]]:
    assert (project / name / "final").exists(), (project / f"{name}.log").read_text(
        errors="replace"
    )[-3000:]
    log = json.loads((project / name / "trainer_state.json").read_text())["log_history"]
    return [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]


@pytest.fixture(scope="module")
def undisturbed(cluster, project):
    job = submit(project, "undisturbed")
    wait_for(lambda: is_over(job))
    return losses(project, "undisturbed")


@pytest.mark.parametrize("name, where", [("one_machine", TWO), ("two_machines", MACHINES)])
def test_a_preempted_job_ends_at_the_undisturbed_loss(undisturbed, project, name, where):
    job = submit(project, name, where)
    wait_for(lambda: has_begun(project, name))
    nodes = call("squeue", "--noheader", f"--job={job}", "--format=%D")
    assert nodes == ("1" if where is TWO else "2")
    call("sbatch", "--partition=high", *TWO, "--output=/dev/null", "--wrap", "true")
    go_on(job)
    log = (project / f"{name}.log").read_text(errors="replace")
    assert f"Going on from {name}/checkpoint-" in log
    assert losses(project, name) == undisturbed


def test_a_job_that_is_out_of_time_queues_again_and_ends_at_the_undisturbed_loss(
    undisturbed, project
):
    job = submit(project, "timed")
    wait_for(lambda: has_begun(project, "timed"))
    call("scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@300 sends
    go_on(job)
    assert losses(project, "timed") == undisturbed


def test_a_job_that_fails_does_not_queue_again(undisturbed, project):
    os.chdir(project)
    words = [*TWO, "--output=wrong.log", "launch/slurm.sh", "--no_such_key=1"]
    job = call("sbatch", "--parsable", *words)
    wait_for(lambda: is_over(job))
    assert "no_such_key" in (project / "wrong.log").read_text(errors="replace")
