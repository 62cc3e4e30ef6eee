"""Which checkpoint a run resumes, whether it is the same run, and the disk space for more."""

import json
import re
import shutil
from pathlib import Path

from transformers import PreTrainedModel, TrainingArguments

from sft.config import ProjectArguments, say

# with other values of these, or of our own keys, the steps so far would have been others
_DECISIVE = (
    "num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps "
    "learning_rate lr_scheduler_type warmup_steps optim seed world_size"
).split()


def checkpoint_to_resume(training_args: TrainingArguments, args: ProjectArguments) -> str | None:
    """The newest complete checkpoint in `output_dir`: the same command goes on after a crash.

    Exits where the checkpoints are of a run with other settings, or of one that is finished.
    """
    if training_args.resume_from_checkpoint:
        return training_args.resume_from_checkpoint
    output_dir = Path(training_args.output_dir)
    settings_file, summary = output_dir / "settings.json", output_dir / "summary.json"
    settings = vars(args) | args.adapter | {key: getattr(training_args, key) for key in _DECISIVE}
    del settings["adapter"], settings["dataset_num_proc"]  # the latter changes nothing
    text = json.dumps(settings, indent=2, default=str)
    checkpoints = _complete_checkpoints(output_dir)
    if not checkpoints:
        if training_args.process_index == 0:
            output_dir.mkdir(parents=True, exist_ok=True)
            settings_file.write_text(text, encoding="utf-8")
            summary.unlink(missing_ok=True)
        return None
    before = json.loads(settings_file.read_text(encoding="utf-8")) if settings_file.exists() else {}
    for key, now in json.loads(text).items():
        if before.get(key, now) != now:
            raise SystemExit(
                f"{output_dir} holds a run with {key} = {before[key]!r}, and now it is {now!r}: "
                "give the new run its own --output_dir, or delete it."
            )
    if summary.exists():  # written last
        say(f"{output_dir} holds a finished run (python chat.py); give a new one its --output_dir.")
        raise SystemExit(0)
    # from its very last step the Trainer would take one more; killed there, it repeats a few
    unfinished = [folder for folder, goes_on in checkpoints.items() if goes_on]
    if not unfinished:
        say(f"{output_dir} has no checkpoint before the last step: starting over.")
        return None
    say(f"Going on from {unfinished[-1]}.")
    return str(unfinished[-1])


def step_of(checkpoint: str | Path | None) -> int:
    """The step in a checkpoint's name, or 0."""
    number = re.search(r"checkpoint-(\d+)/?$", str(checkpoint))
    return int(number[1]) if number else 0


def check_disk(model: PreTrainedModel, training_args: TrainingArguments) -> None:
    """Exit where the disk has no room for the checkpoints: a full one leaves broken ones."""
    # each holds the trained parameters, and two numbers of optimizer state for each of them
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


def _complete_checkpoints(output_dir: Path) -> dict[Path, bool]:
    """Each, the oldest first, and whether steps of its run are left."""
    # a run that is killed while saving leaves a folder without this file, which is written last
    found, files = {}, output_dir.glob("checkpoint-*/trainer_state.json")
    for file in sorted(files, key=lambda file: step_of(file.parent)):
        if not file.with_name("checkpoint-is-incomplete.txt").exists():  # the Trainer's own marker
            state = json.loads(file.read_text(encoding="utf-8"))
            found[file.parent] = state["global_step"] < state["max_steps"]
    return found
