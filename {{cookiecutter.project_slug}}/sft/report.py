"""Tables before and after training, and files of what a run is and what came of it."""

import json
import re
import tomllib
from collections import ChainMap, Counter
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from platform import python_version

import torch
from rich.table import Column, Table
from transformers import PreTrainedModel, TrainingArguments
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.checkpoints import all_settings
from sft.config import ROOT, ProjectArguments, read_values, say
from sft.machine import describe, find_card
from sft.mask_view import console
from sft.memory import GB, NoCount, count_for, memory
from sft.row_report import RowReport
from sft.trainer import Trainer


def show_rows(reports: dict[str, RowReport]) -> None:
    """One table of what became of the rows: used, skipped and why, lengths, trained share."""
    splits = [Column(split, justify="right") for split in reports]
    table = Table("", *splits, title="Rows", title_justify="left")
    figures = [report.figures() for report in reports.values()]
    for name in dict.fromkeys(chain(*figures)):
        table.add_row(name, *(of_split.get(name, "0") for of_split in figures))
    console.print(table)


def show_trained(model: PreTrainedModel) -> None:
    """Print how many parameters are trained, in which kinds of layers, and in which none is."""
    trained, parameters = model.num_parameters(only_trainable=True), model.num_parameters()
    say(f"   {trained:,} of {parameters:,} parameters are trained, {trained / parameters:.2%}")
    is_trained = {}
    for name, parameter in model.named_parameters():
        # without what an adapter puts around a layer
        layer = re.split(r"\.(?:base_layer|lora_|original_module|modules_to_save)|\.\w+$", name)[0]
        if parameter.requires_grad or parameter.dim() > 1:  # not of norms
            is_trained[layer] = is_trained.get(layer, False) or parameter.requires_grad
    for words, which in (("in", True), ("not in", False)):
        layers = [layer for layer, is_there in is_trained.items() if is_there == which]
        kinds = Counter(re.sub(r".*\.\d+\.|.*\.", "", layer, count=1) for layer in layers)
        if kinds:
            say(f"   {words}: {', '.join(f'{number} {kind}' for kind, number in kinds.items())}")


def write_run(
    training_args: TrainingArguments, args: ProjectArguments, run: dict, tokenizer: Tokenizer
) -> None:
    """Write run.json, by which compare.py tells runs apart. `run` is what `describe_run` says."""
    if training_args.process_index > 0:
        return
    hashes = {name: digest for name, digest in run.items() if not name.isidentifier()}
    hashes["the chat template"] = sha256(str(tokenizer.chat_template).encode()).hexdigest()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = {"python": python_version()}
    for name in (re.match(r"[\w.-]+", one)[0] for one in project["dependencies"]):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    machine = describe(None if training_args.use_cpu else find_card())
    found = {"settings": all_settings(training_args, args), "hashes": hashes}
    found |= {"versions": versions, "machine": machine}
    file = Path(training_args.output_dir, "run.json")
    file.write_text(json.dumps(found, indent=2, default=str), encoding="utf-8")


def show_summary(trainer: Trainer, report: RowReport, overrides: list[str]) -> None:
    """Print the figures of a finished run as a table and keep them as `summary.json`.

    After a resume, time and speed are those since. `report` is of the training rows.
    """
    state, args = trainer.state, trainer.args
    logged = ChainMap(*reversed(state.log_history))  # the last value of each
    summary = {
        "rows_used": report.rows_used,
        "rows_seen": round(state.epoch * report.rows_used),
        "rows_skipped": report.rows - report.rows_used,
        **{f"skipped: {why}": len(those) for why, those in report.skipped.items()},
        "examples": len(report.used),
        "trained_tokens_seen": round(state.epoch * report.trained.sum()),
        "steps": state.global_step,
        "seconds": logged["train_runtime"],
        "tokens_per_second": logged["train_samples_per_second"] * report.lengths.mean(),
    }
    summary |= {key: logged[key] for key in ("loss", "eval_loss", "eval_score") if key in logged}
    if args.device.type == "cuda":
        summary["peak_memory_gb"] = torch.cuda.max_memory_allocated() / GB
        summary["peak_memory_reserved_gb"] = torch.cuda.max_memory_reserved() / GB
        with suppress(NoCount):
            if not trainer.is_fsdp_enabled:  # the count is of a card that holds all weights
                summary["peak_memory_counted_gb"] = counted_peak(args, report, overrides) / GB
    file = Path(args.output_dir) / "summary.json"
    file.write_text(json.dumps(summary, indent=2), encoding="utf-8")
    table = Table(title="Result", title_justify="left", show_header=False)
    for name, value in summary.items():
        kind = ",.4g" if isinstance(value, float) else ","
        table.add_row(name.replace("_", " "), f"{value:{kind}}")
    console.print(table)


def counted_peak(args: TrainingArguments, report: RowReport, overrides: list[str]) -> int:
    """What sft/memory.py says of this run, in bytes, with the rows as they really are.

    Raises:
        NoCount: the step of this model cannot be counted.
    """
    values = read_values(overrides) | {
        "activation_checkpointing": args.activation_checkpointing,
        "optim": args.optim.value,
        "max_length": int(report.lengths.max()),
        "trained_share": float(report.trained.sum() / report.lengths.sum()),
    }
    return memory(count_for(overrides), values).peak
