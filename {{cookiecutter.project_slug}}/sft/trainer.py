"""transformers' `Trainer`: logits only where they teach, an honest evaluation loss, a way back."""

import json
import re
import shutil
from pathlib import Path

import torch.nn.functional as F
import transformers
from transformers import DataCollator, PreTrainedModel, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from sft.config import say
from sft.examples import column


class Trainer(transformers.Trainer):
    """`eval_loss` is the mean over trained tokens, whatever the batch size.

    On several processes the last batch is filled up with rows from the start, which count twice.

    transformers averages the batches' means, which gives a token in a short batch more weight.
    """

    first_step = 0  # the step this start went on from

    def __init__(self, args: TrainingArguments, data_collator: DataCollator, **kwargs):
        self._sampler = getattr(data_collator, "sampler", None)
        if not args.label_smoothing_factor:  # which wants them all
            data_collator = LogitsWhereTrained(data_collator, takes_mask=not args.use_liger_kernel)
        super().__init__(args=args, data_collator=data_collator, **kwargs)

    def _get_train_sampler(self, train_dataset=None):
        """The order that the collator wants the rows in, if it has a `sampler`; else a random one.

        The sampler sees the column `length`, which is taken off before rows reach the collator.
        """
        if not self._sampler:
            return super()._get_train_sampler()
        batch, args = self.args.train_batch_size, self.args
        step = batch * args.gradient_accumulation_steps * args.world_size
        return self._sampler(column(self.train_dataset, "length"), step, batch, args.seed)

    def train(self, resume_from_checkpoint=None, **kwargs):
        if resume_from_checkpoint:
            self.first_step = _step(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs) -> EvalLoopOutput:
        self._loss_sum, self._tokens = 0.0, 0
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics[f"{metric_key_prefix}_loss"] = self._loss_sum / self._tokens
        return output

    def prediction_step(self, model, inputs, *args, **kwargs):
        loss, *rest = super().prediction_step(model, inputs, *args, **kwargs)
        tokens = int(self._get_num_items_in_batch([inputs], self.args.device))
        self._loss_sum += float(self.accelerator.gather(loss).mean()) * tokens
        self._tokens += tokens
        return loss, *rest

    def close(self) -> None:
        """End the processes' connection.

        DDP's wrapper goes first: freed after it, the wrapper waits for a thread that waits for it.
        """
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        self.accelerator.end_training()


class LogitsWhereTrained:
    """A collator's batch, with the model told to compute logits only where a label is.

    A row of logits is as wide as the vocabulary, which makes them the largest tensor of all; those
    of prompts and padding are thrown away by the loss. Loss and gradients stay the same.
    """

    def __init__(self, collator: DataCollator, takes_mask: bool = True):
        self.collator, self.takes_mask = collator, takes_mask

    def __call__(self, features: list[dict]) -> dict:
        """The batch with `logits_to_keep`; `labels` and `shift_labels` of shape (trained,).

        A model that takes no mask gets a batch of several rows as it is.
        """
        batch = self.collator(features)
        if len(batch["labels"]) > 1 and not self.takes_mask:
            return batch
        targets = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)  # each predicts the next one
        keep = targets != -100
        # of a single row the positions: a mask would have a GPU stop and count
        where = keep[0].nonzero().squeeze(1) if len(keep) == 1 else keep
        kept = targets[keep]
        return {**batch, "labels": kept, "shift_labels": kept, "logits_to_keep": where}


def checkpoint_to_resume(training_args: TrainingArguments, args) -> str | None:
    """The newest complete checkpoint in `output_dir`: the same command goes on after a crash.

    A run that was killed while saving leaves a folder without `trainer_state.json`, which is
    written last, or with the Trainer's own marker in it; both are passed over.

    Raises:
        SystemExit: the checkpoints are of a run with other settings, or of one that is finished.
    """
    if training_args.resume_from_checkpoint:
        return training_args.resume_from_checkpoint
    output_dir = Path(training_args.output_dir)
    settings_file, summary = output_dir / "settings.json", output_dir / "summary.json"
    settings = {**vars(args), **{key: getattr(training_args, key) for key in _DECISIVE}}
    del settings["dataset_num_proc"]  # it changes nothing
    settings = json.loads(json.dumps(settings, default=str))
    checkpoints = _complete_checkpoints(output_dir)
    if not checkpoints:
        if training_args.process_index == 0:
            output_dir.mkdir(parents=True, exist_ok=True)
            settings_file.write_text(json.dumps(settings, indent=2), encoding="utf-8")
            summary.unlink(missing_ok=True)
        return None
    before = json.loads(settings_file.read_text(encoding="utf-8")) if settings_file.exists() else {}
    changed = [key for key in settings if key in before and settings[key] != before[key]]
    if changed:
        raise SystemExit(
            f"{output_dir} holds a run with {changed[0]} = {before[changed[0]]!r}, and now it is "
            f"{settings[changed[0]]!r}: give the new run its own --output_dir, or delete it."
        )
    if summary.exists():  # written last
        say(
            f"{output_dir} holds a finished run: talk to it with python chat.py; "
            "a new run wants its own --output_dir."
        )
        raise SystemExit(0)
    # from its very last step the Trainer would take one more; killed there, it repeats a few
    unfinished = [folder for folder in checkpoints if not _is_at_the_end(folder)]
    if not unfinished:
        say(f"{output_dir} has no checkpoint before the last step: starting over.")
        return None
    say(f"Going on from {unfinished[-1]}.")
    return str(unfinished[-1])


def _complete_checkpoints(output_dir: Path) -> list[Path]:
    return [
        folder
        for folder in sorted(output_dir.glob("checkpoint-*"), key=_step)
        if (folder / "trainer_state.json").exists()
        and not (folder / "checkpoint-is-incomplete.txt").exists()
    ]


def _is_at_the_end(checkpoint: Path) -> bool:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return state["global_step"] >= state["max_steps"]


# what makes a run another run, beside our own keys: the steps before would have been others
_DECISIVE = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "optim",
    "seed",
    "world_size",
)


def _step(folder: Path) -> int:
    number = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(number[1]) if number else -1


def check_disk(model: PreTrainedModel, training_args: TrainingArguments) -> None:
    """Refuse to start where the checkpoints will not fit: a full disk leaves a broken one behind.

    A checkpoint holds each trained parameter and two numbers of optimizer state beside it.

    Raises:
        SystemExit: too little space is free under `output_dir`.
    """
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    kept = (training_args.save_total_limit or 2) + 1  # a new one is written before an old one goes
    there = len(_complete_checkpoints(Path(training_args.output_dir)))
    needed = 3 * trained * max(kept - there, 1)
    free = shutil.disk_usage(training_args.output_dir).free
    if free < needed:
        raise SystemExit(
            f"output_dir {training_args.output_dir!r} has {free / 2**30:.1f} GB free and the "
            f"checkpoints need {needed / 2**30:.1f} GB; lower save_total_limit or use another disk."
        )
