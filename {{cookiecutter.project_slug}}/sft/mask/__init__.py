"""Conversations to `input_ids` and `labels`: the loss mask.

The model is trained on the assistant's replies and on where they end, nothing else: a label is the
token itself where it is trained on, and -100 where the loss ignores it.

Only the chat template knows where a reply is in the text that it writes, so we ask it. The prompt
that it renders for inference ends where the reply begins, and most replies follow it word for word.
For the others we render the conversation again with each reply replaced by a marker: what is
between the markers is the template's text, and what is left of the real text is the replies. The
real text is tokenized once, and the replies' characters are turned into tokens.

Where any of this fails, a `MaskError` says why: a mask is right, or there is none.
"""

from functools import lru_cache, partial

from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.mask.control_tokens import hide_forged
from sft.mask.conversation import MaskError, Row, check
from sft.mask.end_of_turn import end_turns
from sft.mask.rendering import check_text, locate, render_texts
from sft.mask.shorten import shorten
from sft.mask.tokens import label, tokenize
from sft.mask.vocabulary import Settings, Vocabulary

__all__ = ["MaskError", "encode", "encode_batch"]

STEPS = (
    check,  # is the conversation sound, and which replies are trained on
    render_texts,  # the text that the chat template writes
    check_text,  # is every message in it
    hide_forged,  # control tokens in the row's own words: refused, or hidden
    locate,  # the replies in the text: after their prompts, or where markers were
    end_turns,  # what ends each reply
    tokenize,  # text to ids, replies to spans of ids
    label,  # spans to labels
)
FOR_ALL_ROWS = (render_texts, tokenize)  # one call for many texts takes less time


def encode(
    messages: list[dict],
    tokenizer: Tokenizer,
    max_length: int | None = None,
    turns: str = "all",
    truncation_mode: str = "drop",
    control_tokens: str = "refuse",
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
    (example,) = encode_batch([messages], tokenizer, *how)
    if isinstance(example, ValueError):
        raise example
    return example


def encode_batch(
    conversations: list[list[dict] | ValueError],
    tokenizer: Tokenizer,
    max_length: int | None = None,
    turns: str = "all",
    truncation_mode: str = "drop",
    control_tokens: str = "refuse",
) -> list[dict | ValueError]:
    """What `encode` returns or raises for each conversation; a ValueError among them stays one."""
    changing = (str(tokenizer.chat_template), tokenizer.eos_token, len(tokenizer))
    settings = Settings(_vocabulary(tokenizer, *changing), turns, control_tokens)
    rows = [
        Row([], error=messages) if isinstance(messages, ValueError) else Row(messages)
        for messages in conversations
    ]
    _run_steps(rows, settings)
    examples = []
    for row in rows:
        is_long = row.error is None and max_length is not None and len(row.ids) > max_length
        if is_long:
            run_steps = partial(_run_steps, settings=settings)
            row = shorten(row, max_length, truncation_mode, run_steps, tokenizer)
        example = {"input_ids": row.ids, "labels": row.labels, "shortened": is_long}
        examples.append(row.error or example)
    return examples


def _run_steps(rows: list[Row], settings: Settings) -> None:
    """Takes the rows through all steps; one with an error goes no further."""
    for step in STEPS:
        if step in FOR_ALL_ROWS:
            step([row for row in rows if row.error is None], settings)
            continue
        for row in rows:
            if row.error is None:
                try:
                    step(row, settings)
                except ValueError as error:
                    row.error = error


@lru_cache(maxsize=4)  # to read a vocabulary takes longer than to mask a batch
def _vocabulary(tokenizer: Tokenizer, *what_may_change) -> Vocabulary:
    return Vocabulary(tokenizer)
