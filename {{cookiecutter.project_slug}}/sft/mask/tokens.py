"""Text to tokens, and labels for those of the replies."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from itertools import pairwise

from sft.mask.conversation import MaskError, Row, Settings, Span

NEAR = 200  # characters before a reply in which its header's control tokens are


def tokenize(rows: list[Row], settings: Settings) -> None:
    """Tokenizes the texts in one call, which takes less time than many."""
    settings.tokenizer("", add_special_tokens=False)  # sets its backend to neither cut nor pad
    backend = settings.tokenizer.backend_tokenizer
    encodings = backend.encode_batch([row.text for row in rows], add_special_tokens=False)
    for row, encoding in zip(rows, encodings, strict=True):
        row.ids, row.characters = encoding.ids, encoding.token_to_chars


def label(row: Row, settings: Settings) -> None:
    """Labels the tokens of the replies, if each begins after just the tokens of its prompt.

    Inference gives the model the prompt in tokens of its own. Where the text's tokens cross that
    border, prompt and reply are tokenized apart, or the row is unrolled if it has several.

    Raises:
        MaskError: no token says that the last reply ends.
    """
    spans = [_reply_tokens(row.ids, row.characters, span, settings) for span in row.replies]
    contexts = [_context(row.text, start, settings) for start, _ in row.replies]
    is_split = any(
        row.ids[max(0, first - len(ids)) : first] != ids
        for (first, _), (_, ids) in zip(spans, contexts, strict=True)
    )
    if is_split and len(spans) > 1:
        row.unroll()
        return
    if row.forged:
        row.ids, offsets = _spell_out(row, is_split, settings)
        spans = [_reply_tokens(row.ids, offsets.__getitem__, at, settings) for at in row.replies]
    elif is_split:
        spans = [_split(row, *contexts[0], spans[0][1], settings)]
    row.labels = [-100] * len(row.ids)
    for first, end in spans:
        row.labels[first:end] = row.ids[first:end]
    if not row.is_ended:  # the model would never learn to stop
        if settings.eos is None:
            raise MaskError("no end-of-turn token", "neither template nor tokenizer has one")
        row.ids.append(settings.tokenizer.eos_token_id)
        row.labels.append(settings.tokenizer.eos_token_id)
    if next(token for token in reversed(row.labels) if token != -100) not in settings.control_ids:
        raise MaskError("no end-of-turn token", "the tokenizer takes it for plain text")


def _reply_tokens(ids: list[int], characters: Callable, span: Span, settings: Settings) -> Span:
    """The tokens of a reply, from its characters.

    A token across the border belongs to the reply, unless it is a control token.
    """
    first, end = _tokens(characters, len(ids), span)
    if first < end and characters(first)[0] < span[0] and ids[first] in settings.control_ids:
        first += 1
    return first, end


def _tokens(characters: Callable[[int], Span], count: int, span: Span) -> Span:
    """Those of `count` tokens that have characters in the span."""
    first = bisect_right(range(count), span[0], key=lambda token: characters(token)[1])
    return first, bisect_left(range(count), span[1], key=lambda token: characters(token)[0])


def _context(text: str, start: int, settings: Settings) -> tuple[int, list[int]]:
    """The last control token before a reply, and the ids of the prompt from there on."""
    control = [one.start() for one in settings.control.finditer(text, max(0, start - NEAR), start)]
    left = control[-1] if control else 0
    return left, settings.tokens_of(text[left:start])[0]


def _split(row: Row, left: int, before: list[int], end: int, settings: Settings) -> Span:
    """Splits tokens at the border of prompt and reply: those between the control tokens around it.

    Args:
        before: ids of the prompt from character `left` on.
        end: token after the reply.

    Returns:
        The tokens of the reply.
    """
    ((start, stop),) = row.replies
    control = settings.control.search(row.text, start)
    right = control.end() if control else stop
    first, after = _tokens(row.characters, len(row.ids), (left, right))
    before = [*row.ids[:first], *before]
    reply = [*_continued(row.text[start:right], settings)[0], *row.ids[after:]]
    span = len(before), len(before) + len(reply) - len(row.ids) + end
    row.ids = before + reply
    return span


def _continued(text: str, settings: Settings, is_forged: bool = False) -> tuple[list, list]:
    """Ids and offsets of a text that goes on: some tokenizers begin one with a space.

    They do not after a newline.
    """
    newline, _ = settings.tokens_of("\n")
    ids, offsets = settings.tokens_of("\n" + text, is_forged)
    if ids[: len(newline)] != newline:
        return settings.tokens_of(text, is_forged)
    return ids[len(newline) :], [(left - 1, right - 1) for left, right in offsets[len(newline) :]]


def _spell_out(row: Row, is_split: bool, settings: Settings) -> tuple[list[int], list[Span]]:
    """Ids and offsets of the text, with what is forged in ordinary tokens.

    Raises:
        MaskError: the tokenizer has none for it.
    """
    borders = {0, len(row.text), *(border for span in row.forged for border in span)}
    borders |= {row.replies[0][0]} if is_split else set()
    all_ids, all_offsets = [], []
    for start, stop in pairwise(sorted(borders)):
        text, is_forged = row.text[start:stop], (start, stop) in row.forged
        how = (text, settings, is_forged)
        ids, offsets = _continued(*how) if start else settings.tokens_of(text, is_forged)
        is_spelt = settings.control_ids.isdisjoint(ids)
        if is_forged and not (is_spelt and settings.tokenizer.decode(ids) == text):
            detail = f"the tokenizer cannot spell out {text!r}"
            raise MaskError("control token in the text", detail)
        all_ids += ids
        all_offsets += [(start + left, start + right) for left, right in offsets]
    return all_ids, all_offsets
