"""Many conversations at once, step by step: each is a row on its way to examples."""

from collections.abc import Callable
from functools import lru_cache, partial

from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.mask.checks import check_messages, check_prompt, hide_control_tokens
from sft.mask.conversation import Row, Settings
from sft.mask.end_of_turn import find_end
from sft.mask.replies import build_text, locate_reply
from sft.mask.shorten import shorten
from sft.mask.template import limited, render_row, render_rows
from sft.mask.tokens import label, tokenize

STEPS = (
    check_messages,  # can it be trained on, and which of its replies are
    render_rows,  # the prompt of the last reply, and the text with it
    render_row,  # both in another form if the text lacks part of the reply
    check_prompt,  # is every message in the prompt
    hide_control_tokens,  # control tokens in the row's own words: refused, or hidden
    locate_reply,  # the last reply in the text
    find_end,  # what ends it
    build_text,  # prompt and reply to one text, with all replies that it serves
    tokenize,  # text to ids
    label,  # ids to labels
)


@limited()
def encode_batch(
    conversations: list[list[dict] | dict | ValueError],
    tokenizer: Tokenizer,
    max_length: int | None = None,
    turns: str = "all",
    truncation_mode: str = "drop",
    control_tokens: str = "refuse",
) -> list[list[dict] | ValueError]:
    """What `encode_examples` returns or raises for each conversation.

    One is a list of messages, or a mapping of `messages`, `tools` and `chat_template_kwargs`; a
    ValueError stays one.
    """
    changing = (str(tokenizer.chat_template), tokenizer.eos_token, len(tokenizer))
    settings = _settings(tokenizer, control_tokens, *changing)
    mask = partial(_mask, settings=settings)
    rows = [_row(conversation, turns) for conversation in conversations]
    mask(rows)
    mask([row.parts[-1] for row in rows if row.parts])
    # the last part is the longest: where it is too long, most others are not worth the work
    mask([part for row in rows for part in row.parts if _fits(row.parts[-1], max_length)])
    return [_examples(row, max_length, truncation_mode, mask, tokenizer) for row in rows]


def _fits(row: Row, max_length: int | None) -> bool:
    return bool(row.labels) and (max_length is None or len(row.ids) <= max_length)


def _mask(rows: list[Row], settings: Settings) -> None:
    """Takes rows through all steps; one that is masked, has parts or an error goes no further."""
    rows = [row for row in rows if not (row.error or row.parts or row.labels)]
    for step in STEPS if rows else ():
        if step in (render_rows, tokenize):  # one call for many texts takes less time
            step(rows, settings)
            continue
        left = []
        for row in rows:
            try:
                step(row, settings)
            except ValueError as error:
                row.error = error
            if not (row.error or row.parts):
                left.append(row)
        rows = left


def _examples(
    row: Row, max_length: int | None, mode: str, mask: Callable, tokenizer: Tokenizer
) -> list[dict] | ValueError:
    """A row's examples, shortened where they are too long, or why there are none."""
    parts, examples, left_out = row.parts or [row], [], 0
    if parts[-1].error or mode == "drop" and not _fits(parts[-1], max_length):
        parts = parts[-1:]
    for part in parts:
        if not (left_out or part.labels):
            mask([part])
        is_long = not (part.error or _fits(part, max_length))
        if is_long and mode == "keep_start" and examples:  # the newest turns are left out
            examples[-1]["shortened"] = True
            break
        if is_long:
            part, left_out = shorten(part, max_length, mode, mask, tokenizer, left_out)
        if part.error:
            return part.error
        examples.append({"input_ids": part.ids, "labels": part.labels, "shortened": is_long})
    return examples


def _row(conversation: list[dict] | dict | ValueError, turns: str) -> Row:
    if isinstance(conversation, ValueError):
        return Row([], turns, error=conversation)
    if isinstance(conversation, list):
        return Row(conversation, turns)
    extra = dict(conversation.get("chat_template_kwargs") or {})
    if conversation.get("tools"):
        extra["tools"] = conversation["tools"]
    return Row(conversation["messages"], turns, extra)


@lru_cache(maxsize=4)  # to read a tokenizer's control tokens takes longer than to mask a row
def _settings(tokenizer: Tokenizer, control_tokens: str, *what_may_change) -> Settings:
    return Settings(tokenizer, control_tokens)
