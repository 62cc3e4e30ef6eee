"""Conversations to `input_ids` and `labels`: the loss mask.

The model is trained on the assistant's replies and on where they end, nothing else: a label is the
token itself where it is trained on, and -100 where the loss ignores it.

Only the chat template knows where a reply is in the text that it writes, so we ask it. The prompt
that it renders for inference ends where the reply begins, and most replies follow it word for word.
For the others we render the conversation again with each reply replaced by a marker: what is
between the markers is the template's text, and what is left of the real text is the replies.

Where any of this fails, a `MaskError` says why: a mask is right, or there is none.
"""

from functools import lru_cache

from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.mask.checks import check_messages, check_text, hide_forged
from sft.mask.conversation import MaskError, Row, Settings
from sft.mask.end_of_turn import end_turns
from sft.mask.replies import locate
from sft.mask.shorten import shorten
from sft.mask.tokens import label, tokenize

__all__ = ["MaskError", "encode", "encode_batch"]

STEPS = (
    check_messages,  # is the conversation sound, and which replies are trained on
    check_text,  # the text that the chat template writes: is every message in it
    hide_forged,  # control tokens in the row's own words: refused, or hidden
    locate,  # the replies in the text: after their prompts, or where markers were
    end_turns,  # what ends each reply
    tokenize,  # text to ids, replies to spans of ids
    label,  # spans to labels
)


def encode(
    messages: list[dict],
    tokenizer: Tokenizer,
    max_length: int | None = None,
    turns: str = "all",
    truncation_mode: str = "drop",
    control_tokens: str = "refuse",
    tools: list | None = None,
    chat_template_kwargs: dict | None = None,
) -> dict:
    """One conversation as `input_ids` and `labels`, two lists of equal length.

    Args:
        messages: `[{"role": ..., "content": ...}, ...]`; what follows the last reply is left out.
        max_length: in tokens; None for any length.
        turns: "all" trains on every reply of the assistant, "last" on the last one only.
        truncation_mode: what is left out of a longer conversation: "drop" refuses it,
            "truncate_prompt" leaves out the oldest turns, then the start of the prompt,
            "keep_start" the newest turns. What is left is rendered and masked anew.
        control_tokens: text that reads like a control token: "refuse" it, or "escape" it, which
            spells it out in ordinary tokens.

    Returns:
        `input_ids`, `labels`, and `shortened`: whether something was left out.

    Raises:
        MaskError: there is no mask that is sure to be right.
    """
    how = (max_length, turns, truncation_mode, control_tokens)
    (example,) = _encode_each([messages], tokenizer, *how)
    if isinstance(example, ValueError):
        raise example
    return example


# A stand-in for the door that issue 19 gives this package: it hears neither tools nor
# chat_template_kwargs, and makes one example of each conversation.
def encode_batch(conversations: list, *args, **kwargs) -> list[list[dict] | ValueError]:
    bare = [one["messages"] if isinstance(one, dict) else one for one in conversations]
    found = _encode_each(bare, *args, **kwargs)
    return [one if isinstance(one, ValueError) else [one] for one in found]


def _encode_each(
    conversations: list[list[dict] | ValueError],
    tokenizer: Tokenizer,
    max_length: int | None = None,
    turns: str = "all",
    truncation_mode: str = "drop",
    control_tokens: str = "refuse",
) -> list[dict | ValueError]:
    """What `encode` returns or raises for each conversation; a ValueError among them stays one."""
    changing = (str(tokenizer.chat_template), tokenizer.eos_token, len(tokenizer))
    settings = _settings(tokenizer, turns, control_tokens, *changing)

    def mask(rows: list[Row]) -> None:
        """Takes the rows through all steps; one with an error goes no further."""
        for step in STEPS:
            left = [row for row in rows if row.error is None]
            if step is tokenize:  # one call for many texts takes less time
                tokenize(left, settings)
                continue
            for row in left:
                try:
                    step(row, settings)
                except ValueError as error:
                    row.error = error

    rows = [
        Row([], error=messages) if isinstance(messages, ValueError) else Row(messages)
        for messages in conversations
    ]
    mask(rows)
    examples = []
    for row in rows:
        is_long = row.error is None and max_length is not None and len(row.ids) > max_length
        if is_long:
            row = shorten(row, max_length, truncation_mode, mask, tokenizer)
        example = {"input_ids": row.ids, "labels": row.labels, "shortened": is_long}
        examples.append(row.error or example)
    return examples


@lru_cache(maxsize=4)  # to read a tokenizer's control tokens takes longer than to mask a row
def _settings(tokenizer: Tokenizer, turns: str, control: str, *what_may_change) -> Settings:
    return Settings(tokenizer, turns, control)
