"""A mask, drawn: its tokens in the terminal and on a web page."""

import json
from html import escape
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.config import ProjectArguments
from sft.row_report import RowReport

PAGE = Path(__file__).with_name("mask_view.html")
SHOWN = 600  # characters of a long prompt that the terminal shows


class Piece(NamedTuple):
    """One token, or the few that make up one character."""

    text: str
    ids: list[int]
    trained: bool


def pieces(input_ids: list[int], labels: list[int], tokenizer: Tokenizer) -> list[Piece]:
    """The tokens of an example, each with its text."""
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]  # some decoders strip
    before = tokenizer.decode(anchor)  # the space from a first token
    found, ids = [], []
    for position, (token, label) in enumerate(zip(input_ids, labels, strict=True)):
        ids.append(token)
        text = tokenizer.decode(anchor + ids).removeprefix(before)
        whole = not text.endswith("\ufffd") or len(ids) == 4  # a character has up to four bytes
        if whole or position == len(input_ids) - 1:
            found.append(Piece(text, ids, label != -100))
            ids = []
    return found


def show(title: str, input_ids, labels, tokenizer: Tokenizer, padding: int = 0) -> None:
    """Draw one example in the terminal: green is trained on, grey is only read."""
    text = Text()
    for trained, run in groupby(pieces(input_ids, labels, tokenizer), key=attrgetter("trained")):
        words = "".join(piece.text for piece in run)
        if trained:
            text.append("▶", "bold yellow").append(words, "green").append("◀", "bold yellow")
            continue
        if len(words) > SHOWN:
            left_out = f" [... {len(words) - SHOWN:,} characters ...] "
            words = words[: SHOWN // 2] + left_out + words[-SHOWN // 2 :]
        text.append(words, "grey62")
    text.append("·" * padding, "bright_black")
    Console(stderr=True).print(Panel(text, title=title, subtitle=share(labels)))


def share(labels: list[int]) -> str:
    """How many of the tokens are trained on."""
    trained = len(labels) - labels.count(-100)
    return f"{trained:,} of {len(labels):,} tokens are trained on ({trained / len(labels):.1%})"


def legend(padding: bool = False) -> None:
    text = Text.assemble(("grey: only read", "grey62"), "   ", ("▶green: trained on◀", "green"))
    if padding:
        text.append("   · padding", "bright_black")
    Console(stderr=True).print(text)


def show_skipped(rows: list[tuple[int, str, dict]], count: int) -> None:
    """List some of the `count` rows that are skipped: number, reason and columns."""
    console = Console(stderr=True)
    for number, reason, row in rows:
        console.print(Text.assemble((f"row {number}", "red"), f" skipped: {reason}"))
        for column, value in row.items():
            console.print(Text(f"    {column}: {_raw(value)[:90]}", "bright_black"))
    if count > len(rows):
        console.print(f"... and {count - len(rows):,} more")


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
    count = report.rows - len(report.used)
    figures = {
        "rows": report.rows,
        "used": len(report.used),
        "skipped": count,
        "shortened": report.shortened,
        "tokens": report.tokens,
        "trained tokens": report.trained_tokens,
    }
    reasons = [f"<li>{len(those):,} {escape(why)}" for why, those in report.skipped.items()]
    some = [
        f"<h3>row {n}: {escape(why)}</h3><pre>{escape(_raw(row))}</pre>" for n, why, row in skipped
    ]
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        dataset=escape(args.dataset),
        base_model=escape(args.base_model_path),
        figures="".join(f"<td><b>{n:,}</b><br>{name}</td>" for name, n in figures.items()),
        lengths=histogram(report.lengths, f"tokens a row (max_length is {args.max_length:,})"),
        trained=histogram(report.trained, "trained tokens a row"),
        examples="".join(_example(title, example, tokenizer) for title, example in shown.items()),
        reasons="".join(reasons) or "<li>none",
        some=f"<p>The first {len(skipped)}:</p>" if count > len(skipped) else "",
        skipped="".join(some),
    )


def histogram(values: np.ndarray, unit: str) -> str:
    """How often each size occurs, as HTML bars."""
    if not values.size:
        return ""
    low, high, median = values.min(), values.max(), np.sort(values)[len(values) // 2]
    counts, _ = np.histogram(values, min(40, high - low + 1))
    heights = [(count, 100 * count / counts.max()) for count in counts]
    bars = "".join(f'<i style="height:{h:.1f}%" title="{n:,} rows"></i>' for n, h in heights)
    note = f"{unit}: {low:,} to {high:,}, half of them up to {median:,}"
    return f'<figure><div class="bars">{bars}</div><figcaption>{note}</figcaption></figure>'


def _example(title: str, example: dict, tokenizer: Tokenizer) -> str:
    drawing = pieces(example["input_ids"], example["labels"], tokenizer)
    tokens = "".join(map(_token, drawing))
    return (
        f"<h3>{escape(title)}</h3><p>{share(example['labels'])}</p>"
        f'<div class="tokens">{tokens}</div>'
    )


def _token(piece: Piece) -> str:
    about = [*map(str, piece.ids), json.dumps(piece.text, ensure_ascii=False)]
    about.append("trained on" if piece.trained else "only read")
    kind = ' class="on"' if piece.trained else ""
    text = escape(piece.text).replace("\n", "⏎\n")
    return f'<i{kind} data-is="{escape(" ".join(about))}">{text}</i>'


def _raw(value) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
