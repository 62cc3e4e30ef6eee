"""What may be left out of a conversation that is too long.

Whole turns, or the start of a prompt: what is left is rendered and masked anew, so neither a reply
nor the template's own text is ever cut.
"""

from bisect import bisect_left
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.mask.conversation import ROLES, MaskError, Row, weighted_replies


def shorten(row: Row, max_length: int, mode: str, run_steps: Callable, tokenizer) -> Row:
    """The longest shorter row of at most `max_length` tokens, or one with an error.

    Args:
        row: masked, and too long.
        mode: the `truncation_mode` of `sft.mask.encode`.
        run_steps: masks a list of rows.
    """
    tried, length = {}, len(row.ids)

    def masked(messages: list[dict]) -> Row:
        shorter = Row(messages)
        run_steps([shorter])
        return shorter

    def fits(number: int) -> bool:
        tried[number] = shorter = masked(candidates[number])
        return shorter.error is None and len(shorter.ids) <= max_length

    candidates = _without_turns(row.messages, mode)
    number = bisect_left(range(len(candidates)), True, key=fits)
    if number < len(candidates):
        return tried[number]
    row = tried[number - 1] if candidates else row
    while row.error is None and len(row.ids) > max_length:
        excess = len(row.ids) - max_length
        left = _without_start(row.messages, excess, tokenizer) if mode == "truncate_prompt" else []
        if left:
            row = masked(left)
        else:
            detail = f"{length} tokens, {max_length} allowed"
            row.error = MaskError("longer than max_length", detail)
    return row


def _without_turns(messages: list[dict], mode: str) -> list[list[dict]]:
    """The conversation without its oldest or newest turns, the longest first."""
    if mode == "keep_start":
        return [messages[: at + 1] for at in reversed(weighted_replies(messages)[:-1])]
    if mode == "truncate_prompt":
        first = _after_instructions(messages)
        users = (at for at in range(first + 1, len(messages)) if messages[at]["role"] == "user")
        return [messages[:first] + messages[at:] for at in users]
    return []


def _without_start(messages: list[dict], excess: int, tokenizer: Tokenizer) -> list[dict]:
    """A single turn without the first `excess` tokens of its prompt, and at least a character.

    [] where nothing would be left of it.
    """
    first = _after_instructions(messages)
    text = messages[first]["content"]
    if messages[first]["role"] != "user":
        return []
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = [start for start, _ in offsets["offset_mapping"][excess:] if start > 0]
    left = text[starts[0] :].strip() if starts else ""
    shorter = {**messages[first], "content": left}
    return [*messages[:first], shorter, *messages[first + 1 :]] if left else []


def _after_instructions(messages: list[dict]) -> int:
    """The position of the first message that is no system or developer message."""
    return next(at for at, message in enumerate(messages) if message["role"] not in ROLES[:2])
