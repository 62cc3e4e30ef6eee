"""Where generation stops: tokens that end a reply, by the mask, and saved with the model."""

from itertools import pairwise

from transformers import GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.mask import encode_examples


def stop_tokens(tokenizer: Tokenizer) -> list[int]:
    """The control tokens that the model is trained to end its turns with, the last turn's first."""
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}] * 2
    labels = encode_examples(chat, tokenizer)[-1]["labels"]
    ends = [last for last, after in pairwise([*labels, -100]) if last != -100 == after]
    control = {*tokenizer.added_tokens_decoder, tokenizer.eos_token_id}
    return [end for end in dict.fromkeys(reversed(ends)) if end in control]


def stop_at(model: PreTrainedModel, token_ids: list[int]) -> GenerationConfig:
    """The model's generation settings, where any of these tokens ends its turn as well.

    A base model's own settings may end at another token than its chat template ends a turn with; an
    adapter's folder holds none at all. Either way the model would learn to stop and yet talk on.
    """
    settings = model.generation_config
    before = settings.eos_token_id
    before = [] if before is None else [before] if isinstance(before, int) else before
    settings.eos_token_id = list(dict.fromkeys([*token_ids, *before]))
    return settings
