"""The mask drawn as coloured tokens: in the terminal and on a web page."""

import json
from html import escape
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from string import Template

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.config import ProjectArguments
from sft.row_report import RowReport

PAGE = Path(__file__).with_name("mask_view.html")
SHOWN = 600  # characters of a long prompt that the terminal shows
console = Console(stderr=True)


def pieces(example: dict, tokenizer: Tokenizer) -> list[tuple[str, list[int], bool]]:
    """An example's text piece by piece, each with its ids and whether it is trained on.

    A piece is a token, or the few that make up one character.
    """
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]  # some decoders strip
    before = tokenizer.decode(anchor)  # the space from a first token
    found, ids = [], []
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        ids = [*ids, token]
        text = tokenizer.decode(anchor + ids).removeprefix(before)
        if not text.endswith("\ufffd") or len(ids) == 4:  # a character has up to four bytes
            found.append((text, ids, label != -100))
            ids = []
    return found + ([(text, ids, label != -100)] if ids else [])


def show(title: str, example: dict, tokenizer: Tokenizer, padding: int = 0) -> None:
    """Draw one example in the terminal: green is trained on, grey is only read, · is padding."""
    text = Text()
    for trained, run in groupby(pieces(example, tokenizer), key=itemgetter(2)):
        words = "".join(words for words, _, _ in run)
        if trained:
            text.append("▶", "bold yellow").append(words, "green").append("◀", "bold yellow")
            continue
        if len(words) > SHOWN:
            left_out = f" [... {len(words) - SHOWN:,} characters ...] "
            words = words[: SHOWN // 2] + left_out + words[-SHOWN // 2 :]
        text.append(words, "grey62")
    text.append("·" * padding, "bright_black")
    console.print(Panel(text, title=title, subtitle=f"▶green◀: {share(example['labels'])}"))


def share(labels: list[int]) -> str:
    """How many of the tokens are trained on."""
    trained = len(labels) - labels.count(-100)
    return f"{trained:,} of {len(labels):,} tokens are trained on ({trained / len(labels):.1%})"


def show_skipped(rows: list[tuple[int, str, dict]]) -> None:
    """List rows that are skipped: number, reason and columns."""
    for number, reason, row in rows:
        console.print(Text.assemble((f"row {number}", "red"), f" skipped: {reason}"))
        for column, value in row.items():
            console.print(Text(f"    {column}: {_raw(value)[:90]}", "bright_black"))


def page(
    args: ProjectArguments,
    report: RowReport,
    shown: dict[str, dict],
    skipped: list[tuple[int, str, dict]],
    tokenizer: Tokenizer,
) -> str:
    """One self-contained HTML page: figures, histograms, tokens to hover over, skipped rows.

    Args:
        shown: title -> example.
        skipped: number, reason and columns of rows that are skipped.
    """
    figures = [f"<p><b>{n}</b><br>{escape(name)}</p>" for name, n in report.figures().items()]
    examples = [_example(title, example, tokenizer) for title, example in shown.items()]
    some = [
        f"<h3>row {n}: {escape(why)}</h3><pre>{escape(_raw(row))}</pre>" for n, why, row in skipped
    ]
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        dataset=escape(args.dataset),
        base_model=escape(args.base_model_path),
        figures="".join(figures),
        lengths=histogram(report.lengths, f"tokens a row (max_length is {args.max_length:,})"),
        trained=histogram(report.trained, "trained tokens a row"),
        examples="".join(examples),
        skipped="".join(some) or "<p>none</p>",
    )


def histogram(values: np.ndarray, unit: str) -> str:
    """How often each size occurs, as HTML bars."""
    if not values.size:
        return ""
    low, high = values.min(), values.max()
    counts, _ = np.histogram(values, min(40, high - low + 1))
    heights = [(count, 100 * count / counts.max()) for count in counts]
    bars = "".join(f'<i style="height:{h:.1f}%" title="{n:,} rows"></i>' for n, h in heights)
    note = f"{unit}: {low:,} to {high:,}, half of them up to {np.median(values):,.0f}"
    return f'<figure><div class="bars">{bars}</div><figcaption>{note}</figcaption></figure>'


def _example(title: str, example: dict, tokenizer: Tokenizer) -> str:
    tokens = ""
    for text, ids, trained in pieces(example, tokenizer):
        about = f"{ids} {_raw(text)} {'trained on' if trained else 'only read'}"
        kind = ' class="on"' if trained else ""
        shown = escape(text).replace("\n", "⏎\n")
        tokens += f'<i{kind} data-is="{escape(about)}">{shown}</i>'
    about = f"<h3>{escape(title)}</h3><p>{share(example['labels'])}</p>"
    return f'{about}<div class="tokens">{tokens}</div>'


def _raw(value) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
