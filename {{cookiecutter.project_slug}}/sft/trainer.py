"""Logits only for trained tokens and an evaluation loss per token: transformers' `Trainer`."""

import math
import os
import signal
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import DataCollator, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from sft.checkpoints import delete_older, seal


def check_evaluation(args: TrainingArguments, examples: dict[str, Dataset]) -> None:
    """Evaluate nothing where no rows are held out; exit where an option needs an evaluation."""
    if "evaluation" not in examples:
        args.eval_strategy = "no"
    for key, values in (
        ("load_best_model_at_end", [True]),
        ("eval_on_start", [True]),
        ("save_strategy", ["best"]),
        ("lr_scheduler_type", ["reduce_lr_on_plateau", "greedy"]),
    ):
        if args.eval_strategy == "no" and getattr(args, key) in values:
            raise SystemExit(
                f"{key} needs an evaluation; set test_size and eval_strategy, or remove {key}."
            )


class Trainer(transformers.Trainer):
    """`eval_loss` is the mean over trained tokens; transformers' is the mean of the batches' means.

    With several processes the last batch is filled up with rows from the start: they count twice.
    """

    run: dict = {}  # what `describe_run` says

    def __init__(self, args: TrainingArguments, data_collator: DataCollator, **kwargs):
        self._bad_gradients, self.signals = 0, Signals()
        self._sampler = getattr(data_collator, "sampler", None)
        if not args.label_smoothing_factor:  # which needs all logits
            data_collator = LogitsWhereTrained(data_collator, takes_mask=not args.use_liger_kernel)
        super().__init__(args=args, data_collator=data_collator, **kwargs)
        self.add_callback(self.signals)

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        """The order of the rows: by `train_sampling_strategy`, or the collator's own."""
        if self._sampler and self.args.train_sampling_strategy == "random":
            return self._sampler(self)
        return super()._get_train_sampler()  # `train_dataset` lacks `length`

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        """transformers' loop, in which `prediction_step` adds up losses and tokens."""
        self._loss_sum, self._tokens = 0.0, 0
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics[f"{metric_key_prefix}_loss"] = self._loss_sum / self._tokens
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], *args, **kwargs
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The mean loss of a batch, of shape (); for metrics also its logits and labels.

        Their shapes are (trained tokens, vocabulary) and (trained tokens,), in the same order.
        """
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        tokens = int(self._get_num_items_in_batch([inputs], self.args.device))
        self._loss_sum += float(self.accelerator.gather(loss).mean()) * tokens
        self._tokens += tokens
        if isinstance(logits, Tensor) and logits.dim() > labels.dim() + 1:  # one row of all
            logits = logits.flatten(end_dim=-2)
        return loss, logits, labels

    def log(self, logs: dict[str, float], *args) -> None:
        """Exit where a loss is not finite, or the gradients are not."""
        super().log(logs, *args)
        if "grad_norm" in logs:
            is_bad = not math.isfinite(logs["grad_norm"])
            self._bad_gradients = self._bad_gradients + 1 if is_bad else 0
        losses = [logs[key] for key in ("loss", "eval_loss", "train_loss") if key in logs]
        # float16's scale starts at 2**16, is halved at each bad gradient, and that step is skipped
        skipped = 20 if self.args.fp16 else 0
        if self._bad_gradients > skipped or not all(map(math.isfinite, losses)):
            raise SystemExit(
                f"Loss or gradients are not finite at step {self.state.global_step}: a new run, in "
                "another --output_dir, needs a lower learning_rate or more warmup_steps."
            )

    def _save_checkpoint(self, model: nn.Module, trial: None) -> None:
        """A checkpoint with its manifest; then older ones go."""
        # transformers deletes before the manifest is there, and by the time of change
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        super()._save_checkpoint(model, trial)
        self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()  # each process saves its random state
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            seal(folder, self.run)
            delete_older(folder, self.state.best_model_checkpoint, limit)

    def close(self) -> None:
        """End the connection between processes."""
        self.model_wrapped = self.model  # DDP's wrapper, if freed later, would wait for the others
        self.accelerator.free_memory()
        self.accelerator.end_training()


class Signals(TrainerCallback):
    """Ctrl-C, SIGTERM and SLURM's SIGUSR1 save a checkpoint after the step; a second one kills."""

    received = False

    def on_train_begin(self, args, state, control, **kwargs):
        names = ("SIGINT", "SIGTERM", "SIGUSR1")  # Windows lacks the last
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
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
        if self.received:
            control.should_save = control.should_training_stop = True

    def _receive(self, number: int, frame) -> None:
        if not self.received:
            self.received, self._since = True, time.monotonic()
            os.write(2, b"\nStopping after this step, with a checkpoint; once more ends at once.\n")
        elif time.monotonic() - self._since > 1:  # torchrun sends again what the workers got
            signal.signal(number, self._before[number])
            signal.raise_signal(number)


class LogitsWhereTrained:
    """A collator whose batches tell the model to compute logits only where a label is.

    Logits are the largest tensor: each is as wide as the vocabulary. The loss ignores those of
    prompts and padding; loss and gradients stay the same.
    """

    def __init__(self, collator: DataCollator, takes_mask: bool = True):
        self.collator, self.takes_mask = collator, takes_mask

    def __call__(self, features: list[dict]) -> dict[str, Tensor]:
        """The batch with `logits_to_keep`, and its labels as a vector of the trained tokens."""
        batch = self.collator(features)
        if len(batch["labels"]) > 1 and not self.takes_mask:  # the model takes positions alone
            return batch
        targets = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)  # each predicts the next one
        keep = targets != -100
        # of a single row the positions: a mask would have a GPU stop and count
        where = keep[0].nonzero().squeeze(1) if len(keep) == 1 else keep
        kept = targets[keep]
        return {**batch, "labels": kept, "shift_labels": kept, "logits_to_keep": where}
