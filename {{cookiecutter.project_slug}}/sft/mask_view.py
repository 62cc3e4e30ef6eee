"""A mask, drawn: its tokens in the terminal and on a web page."""

import json
from html import escape
from itertools import groupby
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.config import ProjectArguments
from sft.examples import RowReport

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
    drawing = pieces(input_ids, labels, tokenizer)
    text = Text()
    for trained, run in groupby(drawing, key=lambda piece: piece.trained):
        words = "".join(piece.text for piece in run)
        if trained:
            text.append("▶", "bold yellow").append(words, "green").append("◀", "bold yellow")
        elif len(words) > SHOWN:
            text.append(words[: SHOWN // 2], "grey62")
            text.append(f" [... {len(words) - SHOWN:,} characters ...] ", "italic bright_black")
            text.append(words[-SHOWN // 2 :], "grey62")
        else:
            text.append(words, "grey62")
    text.append("·" * padding, "bright_black")
    trained = len(labels) - labels.count(-100)
    share = f"{trained} of {len(labels)} tokens are trained on ({trained / len(labels):.1%})"
    console = Console(stderr=True)
    console.print(Panel(text, title=title, subtitle=share))


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
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        dataset=escape(args.dataset),
        base_model=escape(args.base_model_path),
        figures="".join(f"<td><b>{n:,}</b><br>{name}</td>" for name, n in figures.items()),
        lengths=histogram(report.lengths, "tokens a row", args.max_length),
        trained=histogram(report.trained, "trained tokens a row"),
        examples="".join(_example(title, example, tokenizer) for title, example in shown.items()),
        reasons="".join(
            f"<li>{len(those):,} {escape(why)}" for why, those in report.skipped.items()
        )
        or "<li>none",
        some=f"<p>The first {len(skipped)}:</p>" if count > len(skipped) else "",
        skipped="".join(
            f"<h3>row {number}: {escape(reason)}</h3><pre>{escape(_raw(row))}</pre>"
            for number, reason, row in skipped
        ),
    )


def histogram(values: np.ndarray, unit: str, limit: int | None = None, bins: int = 40) -> str:
    """How often each size occurs, as an SVG; its caption names `limit`."""
    if not values.size:
        return ""
    low, high = int(values.min()), int(values.max())
    bins = min(bins, high - low + 1)
    counts, _ = np.histogram(values, bins)
    width, height, tallest = 480, 120, max(counts)
    bars = "".join(
        f'<rect x="{number * width / bins:.1f}" width="{width / bins - 1:.1f}" '
        f'y="{height * (1 - count / tallest):.1f}" height="{height * count / tallest:.1f}">'
        f"<title>{count:,} rows</title></rect>"
        for number, count in enumerate(counts)
    )
    median = np.sort(values)[len(values) // 2]
    note = f"{unit}: {low:,} to {high:,}, half of them up to {median:,}"
    if limit:
        note += f"; max_length is {limit:,}"
    return (
        f'<figure><svg viewBox="0 0 {width} {height + 16}" role="img">{bars}'
        f'<text x="0" y="{height + 14}">{low:,}</text>'
        f'<text x="{width}" y="{height + 14}" text-anchor="end">{high:,}</text></svg>'
        f"<figcaption>{note}</figcaption></figure>"
    )


def _example(title: str, example: dict, tokenizer: Tokenizer) -> str:
    ids, labels = example["input_ids"], example["labels"]
    trained = len(labels) - labels.count(-100)
    tokens = "".join(map(_token, pieces(ids, labels, tokenizer)))
    share = f"{trained:,} of {len(ids):,} tokens are trained on"
    return (
        f"<h3>{escape(title)}</h3><p>{share} "
        f'<meter value="{trained / len(ids):.3f}"></meter> {trained / len(ids):.1%}</p>'
        f'<div class="tokens">{tokens}</div>'
    )


def _token(piece: Piece) -> str:
    ids = " ".join(map(str, piece.ids))
    state = "trained on" if piece.trained else "only read"
    visible = json.dumps(piece.text, ensure_ascii=False)
    text = escape(piece.text).replace("\n", "⏎\n")
    kind = ' class="on"' if piece.trained else ""
    return f'<i{kind} data-is="{ids} {escape(visible)} {state}">{text}</i>'


def _raw(value) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
