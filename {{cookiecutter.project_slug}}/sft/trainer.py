"""transformers' `Trainer`, logits only for trained tokens, an evaluation loss per token."""

from functools import partial
from pathlib import Path

import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import DataCollator, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from sft.checkpoints import delete_older, seal
from sft.machine import keep_exact
from sft.sampler import SameOrder, WithoutRepeats, similar_lengths
from sft.stopping import Stopping

METRICS = ["loss", "score"]  # that an evaluation gives; add yours


class Trainer(transformers.Trainer):
    """`eval_loss` is the mean over trained tokens, not transformers' mean of batches' means."""

    run: dict = {}  # what `describe_run` says; each checkpoint keeps it

    def __init__(self, args: TrainingArguments, data_collator: DataCollator, **kwargs):
        self._sampler = getattr(data_collator, "sampler", None)
        if not args.label_smoothing_factor:  # which needs all logits
            data_collator = LogitsWhereTrained(data_collator, takes_mask=not args.use_liger_kernel)
        super().__init__(args=args, data_collator=data_collator, **kwargs)
        self.model_accepts_loss_kwargs = True  # models with towers deny it
        if smoother := self.label_smoother:  # shifts known classes only
            self.label_smoother = partial(smoother, shift_labels=True)
        keep_exact(self.accelerator, args.label_smoothing_factor)
        self.stopping = Stopping()
        self.add_callback(self.stopping)
        self.add_callback(SameOrder())

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        """The order of the rows: by `train_sampling_strategy`, or the collator's own."""
        strategy = self.args.train_sampling_strategy
        if self._sampler and strategy == "random":
            return self._sampler(self)
        if strategy == "group_by_length":
            return similar_lengths(self)
        return super()._get_train_sampler()

    def evaluation_loop(self, loader, *args, metric_key_prefix="eval", **kwargs) -> EvalLoopOutput:
        """transformers' loop, in which `prediction_step` adds up losses and tokens."""
        self._loss_sum, self._tokens = 0.0, 0
        self._once = WithoutRepeats(self, len(loader.dataset))
        kwargs["metric_key_prefix"] = metric_key_prefix
        output = super().evaluation_loop(loader, *args, **kwargs)
        output.metrics[f"{metric_key_prefix}_loss"] = self._loss_sum / self._tokens
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], *args, **kwargs
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The mean loss of a batch, of shape (); for metrics also its logits and labels.

        Their shapes are (trained tokens, vocabulary) and (trained tokens,), in the same order.
        """
        inputs = self._once(inputs)
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        tokens = int(self._get_num_items_in_batch([inputs], self.args.device))
        self._loss_sum += float(self.accelerator.gather(loss).mean()) * tokens
        self._tokens += tokens
        if isinstance(logits, Tensor) and logits.dim() > labels.dim() + 1:  # one row of all
            logits = logits.flatten(end_dim=-2)
        return loss, logits, labels

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
