"""Examples to a batch: padded by hand in plain Python, to be read.

Three lists grow to the same length, each with the filler that means "nothing is here":

    input_ids       7  8  9  4  5  P     P: the pad token; any id would do, nothing looks at it
    attention_mask  1  1  1  1  1  0     0: no other token may attend to this position
    labels          X  X  X  4  5  X     X: -100, which the loss passes over

Length alone decides where to pad. To look for the pad id instead fails where the pad token is also
the end-of-turn token: its label is lost, and the model never stops.
"""

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer


def get_collator(tokenizer: Tokenizer, model: PreTrainedModel) -> "ManualMaskCollator":
    """A function from a list of examples to a batch of tensors of shape (batch, longest)."""
    return ManualMaskCollator(tokenizer.pad_token_id)


class ManualMaskCollator:
    """Pads on the right up to the longest example of the batch."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        longest = max(len(feature["input_ids"]) for feature in features)
        batch = {"input_ids": [], "attention_mask": [], "labels": []}
        for feature in features:
            length = len(feature["input_ids"])
            missing = longest - length
            batch["input_ids"].append(feature["input_ids"] + [self.pad_token_id] * missing)
            batch["attention_mask"].append([1] * length + [0] * missing)
            batch["labels"].append(feature["labels"] + [-100] * missing)
        return {key: torch.tensor(rows) for key, rows in batch.items()}
