"""What may be left out of a conversation that is too long.

Whole turns, or the start of a prompt: what is left is rendered and masked anew, so neither a reply
nor the template's own text is ever cut.
"""

from bisect import bisect_left
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.mask.checks import weighted_replies
from sft.mask.conversation import MaskError, Row
from sft.mask.template import after_instructions

TOO_LONG = "longer than max_length"


def shorten(row: Row, max_length: int, mode: str, mask: Callable, tokenizer: Tokenizer) -> Row:
    """The longest shorter row of at most `max_length` tokens, or one with an error.

    What is left and cannot be masked counts as too long.

    Args:
        row: masked, and too long.
        mode: the `truncation_mode` of `sft.mask.encode`.
        mask: masks a list of rows.
    """
    length = len(row.ids)
    shorter = [row.without(messages) for messages in _without_turns(row.messages, mode)]

    def fits(number: int) -> bool:
        one = shorter[number]
        mask([one])
        return one.error is None and not one.parts and len(one.ids) <= max_length

    most = _size(row.messages) * max_length / length  # characters that should fit
    guess = bisect_left(shorter, True, key=lambda one: _size(one.messages) <= most)
    number = _first(len(shorter), guess, fits)
    if shorter:
        row = shorter[min(number, len(shorter) - 1)]
    while row.error is None and len(row.ids) > max_length:
        excess = len(row.ids) - max_length
        left = _without_start(row.messages, excess, tokenizer) if mode == "truncate_prompt" else []
        if left:
            row = row.without(left)
            mask([row])
        else:
            detail = f"{length} tokens, {max_length} allowed"
            row.error = MaskError(TOO_LONG, detail)
    return row


def _size(messages: list[dict]) -> int:
    return sum(len(message.get("content") or "") for message in messages)


def _first(count: int, guess: int, fits: Callable[[int], bool]) -> int:
    """The first of `count` that fits, or `count`: sought in doubling steps from `guess` on."""
    low, high, number, step = -1, count, guess, 1
    while high - low > 1:
        if not low < number < high:
            number = (low + high) // 2
        if fits(number):
            high, number = number, number - step
        else:
            low, number = number, number + step
        step *= 2
    return high


def _without_turns(messages: list[dict], mode: str) -> list[list[dict]]:
    """The conversation without its oldest or newest turns, the longest first."""
    if mode == "keep_start":
        return [messages[: at + 1] for at in reversed(weighted_replies(messages)[:-1])]
    if mode == "truncate_prompt":
        first = after_instructions(messages)
        users = (at for at in range(first + 1, len(messages)) if messages[at]["role"] == "user")
        return [messages[:first] + messages[at:] for at in users]
    return []


def _without_start(messages: list[dict], excess: int, tokenizer: Tokenizer) -> list[dict]:
    """A single turn without the first `excess` tokens of its prompt, and at least a character.

    [] where nothing would be left of it.
    """
    first = after_instructions(messages)
    text = messages[first]["content"]
    if messages[first]["role"] != "user":
        return []
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = [start for start, _ in offsets["offset_mapping"][excess:] if start > 0]
    left = text[starts[0] :].strip() if starts else ""
    shorter = {**messages[first], "content": left}
    return [*messages[:first], shorter, *messages[first + 1 :]] if left else []
