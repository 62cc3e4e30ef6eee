"""Examples to a batch: padded by `DataCollatorForSeq2Seq`, and the first batch shown in colour.

A picture shows at once what is wrong with a mask: tokens that are trained on are green, those that
are only read are grey, and padding is a faint dot. Below it the numbers: -100 is what the loss
ignores.
"""

from transformers import DataCollatorForSeq2Seq, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.mask_view import show, show_numbers

ROWS = 2  # of the first batch are shown


def get_collator(tokenizer: Tokenizer, model: PreTrainedModel) -> "VisualCheckCollator":
    """A function from a list of examples to a batch of tensors of shape (batch, longest)."""
    return VisualCheckCollator(tokenizer, label_pad_token_id=-100)


class VisualCheckCollator(DataCollatorForSeq2Seq):
    """`DataCollatorForSeq2Seq` that draws the first rows of the first batch it makes."""

    shown = False

    def __call__(self, features, return_tensors=None):
        batch = super().__call__(features, return_tensors)
        if not self.shown:
            self.shown = True
            for number, mask in enumerate(batch["attention_mask"][:ROWS]):
                real = int(mask.sum())
                row = {key: batch[key][number, :real].tolist() for key in ("input_ids", "labels")}
                title = f"row {number + 1} of the first batch"
                show(title, row, self.tokenizer, padding=len(mask) - real)
                show_numbers(row)
        return batch
