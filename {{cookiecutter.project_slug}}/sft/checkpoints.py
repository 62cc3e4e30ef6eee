"""Which checkpoint a run resumes, whether it is the same run, and the disk space for more."""

import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from reprlib import repr as short

from accelerate import PartialState
from datasets import Dataset
from filelock import FileLock, Timeout
from transformers import AutoConfig, PreTrainedModel, TrainingArguments

from sft.cache import hash_file
from sft.config import ROOT, ProjectArguments, say, spread_by
from sft.model import load

MANIFEST = "manifest.json"  # of which run a folder is, and the hash of each file; written last
UNSEALED = (MANIFEST, f"{MANIFEST}.new", "README.md")  # the last is there to be edited
LENGTHS = ("max_steps", "num_train_epochs")
LOCKS: list[FileLock] = []  # held until the process ends, in whatever way
# keys that begin so can't change what is learnt; with another value of any other key, it is
# another run
HARMLESS = """
accept_changed_code activation_checkpointing adapter dataloader_multiprocessing dataloader_num
dataloader_p dataset_num_proc ddp_ debug disable_tqdm do_ enable_jit gradient_checkpointing hub_
include_num local_rank log max_skipped output_dir project push_to_hub report_to resume_from
run_name save_ skip_memory torch_empty_cache track use_cache
""".split()
EVALUATION = """
answers batch_eval eval_accumulation eval_delay eval_do eval_on eval_steps eval_strategy eval_use
include_for per_device_eval prediction_loss
""".split()  # not eval_split: evaluate.py has to know what was held out


def describe_run(
    training_args: TrainingArguments, args: ProjectArguments, examples: dict[str, Dataset]
) -> dict:
    """All that decides what is learnt: values by key; hashes of the code, base model and rows."""
    # an evaluation changes nothing, unless the best model or the learning rate follow it
    harmless = (*HARMLESS, *(() if training_args.metric_for_best_model else EVALUATION))
    values = all_settings(training_args, args)
    run = {key: value for key, value in values.items() if not key.startswith(harmless)}
    for file in (ROOT / "train.py", *ROOT.glob("sft/**/*.py")):
        run[file.relative_to(ROOT).as_posix()] = hash_file(file)
    base = Path(args.base_model_path)
    for file in base.glob("*"):
        if file.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt"):
            run[f"the base model's {file.name}"] = hash_file(file)
    if not base.is_dir():
        config = load(AutoConfig, args.base_model_path, revision=args.revision)
        run["the base model's commit"] = config._commit_hash
    if path := args.adapter.get("adapter_path"):
        run["the adapter it starts from"] = hash_file(Path(path) / "adapter_model.safetensors")
    for split, rows in examples.items():
        digest = hashlib.sha256()
        for table in rows.with_format("arrow").iter(10_000):
            for column in ("input_ids", "labels"):
                cells = table[column].combine_chunks()
                digest.update(cells.value_lengths().to_numpy())
                digest.update(cells.flatten().to_numpy())
        run[f"the {split} rows"] = digest.hexdigest()
    return json.loads(json.dumps(run, default=str))


def all_settings(training_args: TrainingArguments, args: ProjectArguments) -> dict:
    """Each key with its value, and the number of processes; no token, for the library hides it."""
    values = vars(args) | args.adapter | training_args.to_dict()
    if spread_by() == "FSDP":  # its checkpoints have files of their own
        values["fsdp"] = True
    return values | {"world_size": training_args.world_size}


def checkpoint_to_resume(
    training_args: TrainingArguments, args: ProjectArguments, run: dict
) -> str | None:
    """The newest whole checkpoint in `output_dir`: the same command goes on after a crash.

    Exits where `output_dir` holds another run, or one that is finished or at work.
    """
    output_dir, given = Path(training_args.output_dir), training_args.resume_from_checkpoint
    if training_args.process_index == 0:
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            LOCKS.append(FileLock(output_dir / ".lock", is_singleton=True))
            LOCKS[-1].acquire(blocking=False)
        except Timeout:
            at_work = f"A run is at work in {output_dir}; give this one its own --output_dir."
            raise SystemExit(at_work) from None
        shutil.rmtree(output_dir / "final.unfinished", ignore_errors=True)
    final = output_dir / "final"
    if final.exists():
        if damage := _damage(final):
            raise SystemExit(f"{final}: {damage}. Delete it; the same command makes it again.")
        if not _refuse_another_run(final, run, args.accept_changed_code):
            fix = "give a new one its --output_dir"
            say(f"{output_dir} holds a finished run (python chat.py); {fix}.")
            raise SystemExit(0)
        if not checkpoints(output_dir):
            raise SystemExit(f"{final} has no checkpoint beside it to go on from.")
        before = output_dir / f"final-{_step(checkpoints(output_dir)[-1])}"
        PartialState().wait_for_everyone()  # all have looked at it
        if training_args.process_index == 0:
            final.rename(before)
        say(f"A longer run than in {final}, which is {before} from now on.")
    folders = [Path(given)] if given else checkpoints(output_dir)
    for folder in reversed(folders):
        damage = _damage(folder)
        if not damage:
            is_longer = _refuse_another_run(folder, run, args.accept_changed_code)
            state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            best = training_args.load_best_model_at_end and state["best_model_checkpoint"]
            control = state["stateful_callbacks"]["TrainerControl"]["args"]
            if control["should_training_stop"] and not is_longer:
                # from its last step the Trainer would take one more: a few are repeated
                damage = "it is of the last step"
            elif best and _damage(Path(best)):
                damage = f"the best model so far, {best}, is damaged"
            else:
                say(f"Going on from {folder}.")
                return str(folder)
        say(f"{folder} is passed over: {damage}.")
    if given:
        raise SystemExit(f"resume_from_checkpoint {given!r} is no checkpoint to go on from.")
    if folders:
        say(f"{output_dir} has no other checkpoint: starting over.")
    return None


def seal(folder: Path, run: dict | None) -> None:
    """Write the manifest of a folder in which all else is saved; a kill leaves none or all."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in UNSEALED]
    hashes = {file.relative_to(folder).as_posix(): hash_file(file) for file in sorted(files)}
    new = folder / f"{MANIFEST}.new"
    new.write_text(json.dumps({"run": run, "files": hashes}, indent=2), encoding="utf-8")
    os.replace(new, folder / MANIFEST)


def share_files(folder: Path) -> None:
    """Give each file in `folder` the mode that the umask says; safetensors writes for one user."""
    umask = os.umask(0)
    os.umask(umask)
    for file in filter(Path.is_file, folder.iterdir()):
        file.chmod(0o666 & ~umask)


def checkpoints(output_dir: Path) -> list[Path]:
    """The folders of checkpoints, by step; a user's own checkpoint-best is none."""
    return sorted(filter(_step, output_dir.glob("checkpoint-*")), key=_step)


def delete_older(newest: Path, best: str | None, limit: int | None) -> None:
    """Keep `limit` checkpoints up to `newest`; by step, since a clock may go back."""
    older = [one for one in checkpoints(newest.parent) if _step(one) < _step(newest)]
    for folder in older[: max(len(older) - limit + 1, 0)] if limit and limit > 0 else []:
        if not best or folder != Path(best):
            shutil.rmtree(folder, ignore_errors=True)


def check_disk(model: PreTrainedModel, training_args: TrainingArguments) -> None:
    """Exit where the disk has no room for the checkpoints: a full one leaves broken ones."""
    # each holds the trained parameters, and two numbers of optimizer state for each of them;
    # weights that are spread over GPUs are saved twice: each GPU's part, and the whole
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    copies = 4 if spread_by() else 3
    kept = (training_args.save_total_limit or 2) + 1  # a new one is written before an old one goes
    needed = copies * trained * max(kept - len(checkpoints(Path(training_args.output_dir))), 1)
    free = shutil.disk_usage(training_args.output_dir).free
    if free < needed:
        raise SystemExit(
            f"output_dir {training_args.output_dir!r} has {free / 2**30:.1f} GB free and the "
            f"checkpoints need {needed / 2**30:.1f} GB; lower save_total_limit or use another disk."
        )


def _refuse_another_run(folder: Path, run: dict, accept_changed_code: bool) -> bool:
    """Exit at another run than that; returns whether this is the same, but longer."""
    was = read_manifest(folder).get("run") or {}
    keys = sorted(key for key in was.keys() | run if was.get(key) != run.get(key))
    longer = [key for key in keys if key in LENGTHS and run[key] > was.get(key, 0) > 0]
    keys = [key for key in keys if key not in longer]
    if accept_changed_code:
        keys = [key for key in keys if not key.endswith(".py")]
    changes = [
        f"{key} was {short(was.get(key))}, and now it is {short(run.get(key))}"
        if key.isidentifier()
        else f"{key} changed"
        for key in keys[:8]
    ]
    if changes:
        raise SystemExit(
            f"{folder} is of another run: {'; '.join(changes)}. Undo that, or give the new run its "
            "own --output_dir; code that learns the same needs --accept_changed_code true."
        )
    return bool(longer)


def read_manifest(folder: Path) -> dict:
    """What `seal` wrote, or {}."""
    with suppress(OSError, ValueError):
        return dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    return {}


def _damage(folder: Path) -> str:
    """What keeps a checkpoint from being resumed, or ""."""
    hashes = read_manifest(folder).get("files")
    if not hashes:
        return f"{MANIFEST} is missing or damaged, as after a kill while saving"
    broken = [name for name, found in hashes.items() if hash_file(folder / name) != found]
    return f"{broken[0]} is missing or damaged" if broken else ""


def _step(checkpoint: Path) -> int:
    number = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(number[1]) if number else 0
