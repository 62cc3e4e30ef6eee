"""Examples to a batch: transformers' own `DataCollatorForSeq2Seq`.

It pads `input_ids` with the pad token, `attention_mask` with 0 and `labels` with -100, each up to
the longest example of the batch. The name is from translation models; it is the collator that pads
labels that exist already, instead of making them.
"""

from transformers import DataCollatorForSeq2Seq, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer


def get_collator(tokenizer: Tokenizer, model: PreTrainedModel) -> DataCollatorForSeq2Seq:
    """A function from a list of examples to a batch of tensors of shape (batch, longest)."""
    return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
