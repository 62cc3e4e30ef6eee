"""Tables before and after training, and a plot of the loss."""

import json
from collections import ChainMap
from contextlib import suppress
from itertools import chain
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.table import Column, Table
from transformers import TrainingArguments

from sft.config import read_values
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


def plot_loss(log_history: list[dict], path: Path) -> None:
    """Draw training and evaluation loss over the steps as a PNG."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")  # pyplot would look for a display
    axes = figure.subplots()
    for key, label in (("loss", "training"), ("eval_loss", "evaluation")):
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker=".")
    axes.set(xlabel="step", ylabel="loss per trained token")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path, dpi=150)
