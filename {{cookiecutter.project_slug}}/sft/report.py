"""What is shown before and after training: tables in the terminal, a plot of the loss."""

import json
import os
from contextlib import suppress
from pathlib import Path

import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from sft.config import ROOT, ProjectArguments
from sft.row_report import RowReport
from sft.trainer import Trainer
from sft.vram import GB, estimate

matplotlib.use("Agg")  # no display is needed
import matplotlib.pyplot as plt  # noqa: E402

console = Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")  # one process speaks


def show_rows(reports: dict[str, RowReport]) -> None:
    """One table of what became of the rows: used, skipped and why, lengths, trained share."""
    table, splits = Table("", *reports, title="Rows", title_justify="left"), reports.values()
    for column in table.columns[1:]:
        column.justify = "right"

    def line(name: str, values: list) -> None:
        table.add_row(name, *map(str, values))

    line("rows", [r.rows for r in splits])
    line("used", [len(r.used) for r in splits])
    for reason in dict.fromkeys(reason for r in splits for reason in r.skipped):
        line(f"skipped: {reason}", [len(r.skipped.get(reason, ())) for r in splits])
    if any(r.shortened for r in splits):
        line("shortened to max_length", [r.shortened for r in splits])
    if not all(len(r.used) for r in splits):
        return console.print(table)
    line("median length, tokens", [np.sort(r.lengths)[len(r.lengths) // 2] for r in splits])
    line("longest, tokens", [r.lengths.max() for r in splits])
    line("trained tokens", [f"{r.trained_tokens:,}" for r in splits])
    line("share of all tokens", [f"{r.trained_tokens / r.tokens:.0%}" for r in splits])
    console.print(table)


def summarize(
    trainer: Trainer,
    args: ProjectArguments,
    reports: dict[str, RowReport],
    metrics: dict[str, float],
    first_step: int,
) -> dict[str, float]:
    """The figures of a finished run.

    Args:
        metrics: those of `Trainer.train`, and of `Trainer.evaluate` if there was an evaluation.
        first_step: that of the checkpoint it went on from; time and speed are those since.
    """
    state, report = trainer.state, reports["train"]
    steps = state.global_step - first_step
    passes = state.epoch * steps / state.global_step if steps else 0.0
    seconds = metrics["train_runtime"]
    summary = {
        "rows_used": len(report.used),
        "rows_skipped": report.rows - len(report.used),
        "trained_tokens_seen": round(state.epoch * report.trained_tokens),
        "steps": state.global_step,
        "seconds": seconds,
        "tokens_per_second": passes * report.tokens / seconds,
    }
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    if losses:
        summary["train_loss"] = losses[-1]
    if "eval_loss" in metrics:
        summary["eval_loss"] = metrics["eval_loss"]
    if trainer.args.device.type == "cuda":
        summary |= peak_memory(trainer, args, report)
    return summary


def peak_memory(trainer: Trainer, args: ProjectArguments, report: RowReport) -> dict[str, float]:
    """The most that was allocated, and reserved for it, on the GPU, and what was estimated, in GB.

    The difference is a share of what was measured; both are left out where there is no estimate.
    """
    allocated = torch.cuda.max_memory_allocated() / GB
    peaks = {
        "peak_memory_gb": allocated,
        "peak_memory_reserved_gb": torch.cuda.max_memory_reserved() / GB,
    }
    with suppress(ValueError):  # a model that the estimate does not cover
        estimated = estimated_peak(trainer, args, report) / GB
        peaks["peak_memory_estimated_gb"] = estimated
        peaks["peak_memory_difference"] = estimated / allocated - 1
    return peaks


def estimated_peak(trainer: Trainer, args: ProjectArguments, report: RowReport) -> int:
    """What sft/vram.py says of this run, in bytes, with the rows as they really are.

    Raises:
        ValueError: the estimate does not cover this model.
    """
    answers = json.loads((ROOT / "answers.json").read_text(encoding="utf-8"))["answers"]
    settings = {**answers, **trainer.args.to_dict(), **vars(args), **args.adapter}
    settings["max_length"] = int(report.lengths.max())
    settings["trained_share"] = report.trained_tokens / report.tokens
    return estimate(trainer.model.config.to_dict(), settings).peak


def show_summary(summary: dict, output_dir: Path) -> None:
    """Print the run's summary as a table and keep it as `summary.json`."""
    (output_dir / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    table = Table(title="Result", title_justify="left", show_header=False)
    for name, value in summary.items():
        shown = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
        table.add_row(name.replace("_", " "), shown)
    console.print(table)


def plot_loss(log_history: list[dict], path: Path) -> None:
    """Draw training and evaluation loss over the steps as a PNG."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for key, label in (("loss", "training"), ("eval_loss", "evaluation")):
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker=".")
    axes.set(xlabel="step", ylabel="loss per trained token")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)
