"""Examples to a batch in one row, end to end: no padding is computed, stored or attended to.

    input_ids     7  8  9  4  5 | 7  3  2 | 7  8  6  1
    position_ids  0  1  2  3  4 | 0  1  2 | 0  1  2  3     attention stays inside each example
    shift_labels  .  .  4  5  . | .  2  . | .  6  1  .     what the token to the left has to predict

The model gets `position_ids` and no attention mask: where a position falls back to 0, transformers
starts a new example that sees nothing of the one before. `logits_to_keep` marks the positions that
have a label: only there are logits computed, and a vocabulary of 150,000 makes those the largest
tensor of all. Loss and gradients are those of the padded batch.
"""

import torch
from transformers import PreTrainedTokenizerBase


def get_collator(tokenizer: PreTrainedTokenizerBase) -> "PaddingFreeCollator":
    """A function from a list of examples to a batch of tensors of shape (1, sum of lengths)."""
    return PaddingFreeCollator()


class PaddingFreeCollator:
    """Puts the examples of a batch behind one another."""

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        """Shapes: (1, tokens), but `labels` and `shift_labels` are (1, trained tokens)."""
        input_ids, position_ids, targets = [], [], []
        for feature in features:
            input_ids += feature["input_ids"]
            position_ids += range(len(feature["input_ids"]))
            targets += [*feature["labels"][1:], -100]  # an example's last token predicts nothing
        targets = torch.tensor([targets])
        keep = targets != -100
        kept = targets[keep].unsqueeze(0)
        return {
            "input_ids": torch.tensor([input_ids]),
            "position_ids": torch.tensor([position_ids]),
            "labels": kept,  # asks the model for a loss; that it takes from shift_labels
            "shift_labels": kept,
            "logits_to_keep": keep,
        }
