"""Examples to a batch where every token is trained on: prompt, headers, reply.

This is continued pretraining, not supervised fine-tuning: the model is trained to write prompts as
much as to answer them. It is for raw text in a new language or field. For questions and answers,
train on the mask of sft/mask/, which this collator throws away.
"""

from transformers import DataCollatorForSeq2Seq, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.config import say


def get_collator(tokenizer: Tokenizer, model: PreTrainedModel) -> "LanguageModelingCollator":
    """A function from a list of examples to a batch of tensors of shape (batch, longest)."""
    say("Every token is trained on: this is continued pretraining, not supervised fine-tuning.")
    return LanguageModelingCollator(tokenizer, label_pad_token_id=-100)


class LanguageModelingCollator(DataCollatorForSeq2Seq):
    """Labels are the input itself, set before padding.

    transformers' `DataCollatorForLanguageModeling` sets them after, by looking for the pad id;
    where that is also the end-of-turn token, the model would never learn to stop.
    """

    def __call__(self, features, return_tensors=None):
        features = [{**feature, "labels": list(feature["input_ids"])} for feature in features]
        return super().__call__(features, return_tensors)
