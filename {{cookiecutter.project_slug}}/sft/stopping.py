"""What ends a run early: a signal, or a loss that is not finite."""

import math
import os
import signal
import time

import torch
from transformers import TrainerCallback, TrainerState

from sft.config import say


class Stopping(TrainerCallback):
    """Ctrl-C, SIGTERM and SLURM's SIGUSR1 save a checkpoint after the step; a second one kills.

    A loss or gradients that are not finite end the run, and nothing is saved.
    """

    received, _bad_gradients = False, 0

    def on_train_begin(self, args, state, control, **kwargs):
        numbers = [one for one in signal.Signals if one.name in ("SIGINT", "SIGTERM", "SIGUSR1")]
        self._before = {number: signal.signal(number, self._receive) for number in numbers}

    def on_train_end(self, args, state, control, **kwargs):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def on_step_end(self, args, state, control, **kwargs):
        """Stop all processes at the same step, whichever got the signal."""
        if args.world_size > 1:
            received = torch.tensor(int(self.received), device=args.device)
            torch.distributed.all_reduce(received)
            self.received = bool(received)
        control.should_save |= self.received

    def on_save(self, args, state, control, **kwargs):
        """Only now, for a checkpoint that says stop is of a run that is at its end."""
        control.should_training_stop |= self.received

    def say_why(self, state: TrainerState) -> None:
        """Exit where a signal stopped the run; evaluations that got no better have finished it."""
        step, last = state.global_step, state.max_steps
        if step < last and self.received:
            raise SystemExit(f"Stopped at step {step} of {last}; the same command resumes.")
        if step < last:
            say(f"   Finished at step {step} of {last}: evaluations got no better.")

    def on_log(self, args, state, control, logs, **kwargs):
        if "grad_norm" in logs:
            self._bad_gradients = 0 if math.isfinite(logs["grad_norm"]) else self._bad_gradients + 1
        losses = [logs[key] for key in ("loss", "eval_loss", "train_loss") if key in logs]
        # float16's scale starts at 2**16, is halved at each bad gradient, and that step is skipped
        skipped = 20 if args.fp16 else 0
        if self._bad_gradients > skipped or not all(map(math.isfinite, losses)):
            raise SystemExit(
                f"Loss or gradients are not finite at step {state.global_step}: a new run, in "
                "another --output_dir, needs a lower learning_rate or more warmup_steps."
            )

    def _receive(self, number: int, frame) -> None:
        if not self.received:
            self.received, self._since = True, time.monotonic()
            os.write(2, b"\nStopping after this step, with a checkpoint; once more ends at once.\n")
        elif time.monotonic() - self._since > 1:  # torchrun sends again what the workers got
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
