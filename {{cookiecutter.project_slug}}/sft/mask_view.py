"""The mask, drawn as coloured tokens."""

import os
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter

from rich.console import Console
from rich.panel import Panel
from rich.segment import Segment
from rich.text import Text
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.config import harmless

SHOWN = 600  # characters of a long prompt that the terminal shows
ENDS = 12  # numbers of a long list that it shows at each end


class SafeConsole(Console):
    """Prints every text as it is, without markup, and what would command the terminal as U+FFFD."""

    def print(self, *args, **kwargs) -> None:
        with tqdm.external_write_mode(self.file):  # a progress bar would be broken in two
            super().print(*args, **kwargs)

    def render(self, *args, **kwargs) -> Iterable[Segment]:
        for part in super().render(*args, **kwargs):
            yield part if part.control else part._replace(text=harmless(part.text))


quiet = os.environ.get("RANK", "0") != "0"  # one process speaks
console = SafeConsole(stderr=True, quiet=quiet, markup=False, emoji=False)


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
    """Draw one example: green is trained on, grey only read, ▌ ends the prompt, · is padding."""
    text, opening = Text(), "▌▶"
    for trained, run in groupby(pieces(example, tokenizer), key=itemgetter(2)):
        words = harmless("".join(words for words, _, _ in run))
        if trained:
            text.append(opening, "bold yellow").append(words, "green").append("◀", "bold yellow")
            opening = "▶"
            continue
        if len(words) > SHOWN:
            left_out = f" [... {len(words) - SHOWN:,} characters ...] "
            words = words[: SHOWN // 2] + left_out + words[-SHOWN // 2 :]
        text.append(words, "grey62")
    text.append("·" * padding, "bright_black")
    console.print(
        Panel(text, title=title, subtitle=f"prompt▌▶green◀, -100 elsewhere: {share(example)}")
    )


def show_numbers(example: dict) -> None:
    """Print `input_ids` and `labels` as the model gets them, and where the first reply begins."""
    ids, labels = [str(token) for token in example["input_ids"]], []
    for ignored, run in groupby(example["labels"], key=lambda label: label == -100):
        run = [*run]
        labels += [f"-100 x {len(run)}"] if ignored else map(str, run)
    for name, values in (("input_ids", ids), ("labels", labels)):
        middle = ["..."] if len(values) > 2 * ENDS else []
        words = ", ".join([*values[:ENDS], *middle, *values[-ENDS:]] if middle else values)
        console.print(f"{name:<10}[{words}]")
    trained = [at for at, label in enumerate(example["labels"]) if label != -100]
    console.print(f"the first reply begins at token {trained[0]} of {len(ids)}")


def share(example: dict) -> str:
    """How many of the tokens are trained on."""
    tokens, read = len(example["labels"]), example["labels"].count(-100)
    return f"{tokens - read:,} of {tokens:,} tokens are trained on ({1 - read / tokens:.1%})"
