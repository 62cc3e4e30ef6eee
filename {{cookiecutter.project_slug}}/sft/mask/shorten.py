"""What may be left out of a conversation that is too long.

Whole turns, or the start of a prompt: what is left is rendered and masked anew, so neither a reply
nor the template's own text is ever cut.
"""

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.mask.checks import weighted_replies
from sft.mask.conversation import MaskError, Row
from sft.mask.template import after_instructions


def shorten(
    row: Row, max_length: int, mode: str, mask: Callable, tokenizer: Tokenizer, guess: int = 0
) -> tuple[Row, int]:
    """The longest row of some of the turns with at most `max_length` tokens, or one with an error.

    What is left and cannot be masked counts as too long.

    Args:
        row: if it is masked, it is too long.
        mode: the `truncation_mode` of `sft.mask.encode`.
        mask: masks a list of rows.
        guess: how many turns may have to go; where the row is masked, all but one are tried.

    Returns:
        Also how many turns are left out.
    """
    always, parts = _parts(row.messages, mode)
    rows = {0: row}

    def is_enough(number: int) -> bool:
        one = rows.setdefault(number, row.of(always + row.messages[parts[number]]))
        mask([one])
        return bool(one.labels) and len(one.ids) <= max_length

    guess = len(parts) - 1 if row.ids else guess
    number = min(_first(len(parts), guess, is_enough), len(parts) - 1)
    shorter = rows[number]
    while not shorter.error and (shorter.parts or len(shorter.ids) > max_length):
        excess = len(shorter.ids) - max_length
        can_go = mode == "truncate_prompt" and not shorter.parts
        messages = _without_start(shorter.messages, excess, tokenizer) if can_go else []
        if messages:
            shorter = row.of(messages)
            mask([shorter])
        else:
            detail = f"{len(row.ids or shorter.ids)} tokens, {max_length} allowed"
            shorter.error = MaskError("longer than max_length", detail)
    return shorter, number


def _first(count: int, guess: int, is_enough: Callable[[int], bool]) -> int:
    """The first of `count` that is enough, or `count`: sought in doubling steps from `guess` on."""
    low, high, number, step = -1, count, guess, 1
    while high - low > 1:
        if not low < number < high:
            number = (low + high) // 2
        if is_enough(number):
            high, number = number, number - step
        else:
            low, number = number, number + step
        step *= 2
    return high


def _parts(messages: list[dict], mode: str) -> tuple[list[dict], list[slice]]:
    """The messages that stay, and what may be left of the others: all, one turn less, and so on."""
    if mode == "keep_start":
        return [], [slice(at + 1) for at in reversed(weighted_replies(messages))]
    first = after_instructions(messages)
    later = range(first + 1, len(messages)) if mode == "truncate_prompt" else ()
    starts = [first, *(at for at in later if messages[at]["role"] == "user")]
    return messages[:first], [slice(at, None) for at in starts]


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
