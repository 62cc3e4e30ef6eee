"""Examples to a batch: padded by `DataCollatorForSeq2Seq`, and the first batch shown in colour.

What is wrong with a mask is seen at once in a picture: the tokens that are trained on are green,
what is only read is grey, and padding is a faint dot.
"""

from itertools import groupby
from operator import itemgetter

from accelerate import PartialState
from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase


def get_collator(tokenizer: PreTrainedTokenizerBase) -> "VisualCheckCollator":
    """A function from a list of examples to a batch of tensors of shape (batch, longest)."""
    return VisualCheckCollator(tokenizer, label_pad_token_id=-100)


class VisualCheckCollator(DataCollatorForSeq2Seq):
    """`DataCollatorForSeq2Seq` that draws the first batch it makes."""

    shown = False

    def __call__(self, features, return_tensors=None):
        batch = super().__call__(features, return_tensors)
        if not self.shown and PartialState().is_main_process:
            self.shown = True
            show(batch, self.tokenizer)
        return batch


def show(batch: dict, tokenizer: PreTrainedTokenizerBase, rows: int = 2) -> None:
    """Draw the first `rows` rows of a batch in the terminal."""
    console = Console(stderr=True)
    console.print()  # below the progress bar
    for number in range(min(rows, len(batch["input_ids"]))):
        ids, labels, mask = (
            batch[key][number].tolist() for key in ("input_ids", "labels", "attention_mask")
        )
        kinds = [
            "padding" if not real else "read" if label == -100 else "trained"
            for label, real in zip(labels, mask, strict=True)
        ]
        text = Text()
        for kind, run in groupby(zip(kinds, ids, strict=True), key=itemgetter(0)):
            tokens = [token for _, token in run]
            if kind == "padding":
                text.append("·" * len(tokens), style="bright_black")
            elif kind == "read":
                text.append(tokenizer.decode(tokens), style="grey62")
            else:
                text.append("▶", style="bold yellow").append(tokenizer.decode(tokens), "green")
                text.append("◀", style="bold yellow")
        trained, real = kinds.count("trained"), sum(mask)
        title = f"row {number + 1} of the first batch"
        share = f"{trained} of {real} tokens are trained on ({trained / real:.0%})"
        console.print(Panel(text, title=title, subtitle=share))
    console.print(
        Text.assemble(
            ("grey: read only", "grey62"),
            "   ",
            ("▶ green: trained on ◀", "green"),
            "   ",
            ("· padding", "bright_black"),
        )
    )
