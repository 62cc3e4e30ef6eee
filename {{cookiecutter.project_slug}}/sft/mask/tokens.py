"""Text to tokens, and which of them a span of the text became.

A tokenizer can say which characters each token is for, but that takes a tenth of its time. Most are
byte-level: their tokens, end to end, are the bytes of the text, so that the widths of the tokens
say the same. Where these do not lead to just the borders of a span, we use its offsets.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from itertools import accumulate, pairwise

from sft.mask.conversation import MaskError, Row, Settings, Span

NEAR = 200  # characters before a reply in which its header's control tokens are


def tokenize(rows: list[Row], settings: Settings) -> None:
    """Tokenizes the texts, many in a call, and finds the tokens of each reply."""
    settings.tokenizer("", add_special_tokens=False)  # sets its backend to neither cut nor pad
    backend = settings.tokenizer.backend_tokenizer
    if settings.widths:  # tokens are bytes of this very text unless a normalizer rewrites it
        quick = [row for row in rows if backend.normalizer is None or row.text.isascii()]
        texts = [row.text for row in quick]
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        for row, encoding in zip(quick, encodings, strict=True):
            row.ids = encoding.ids
            row.spans = _by_width(row, settings.widths)
    rest = [row for row in rows if row.spans is None]
    encodings = backend.encode_batch([row.text for row in rest], add_special_tokens=False)
    for row, encoding in zip(rest, encodings, strict=True):
        row.ids = encoding.ids
        row.spans = _by_offset(row, encoding.token_to_chars, settings)


def _by_width(row: Row, widths: list[int]) -> list[Span] | None:
    """The tokens of each reply; None where a border is none between tokens."""
    ends = list(accumulate(map(widths.__getitem__, row.ids), initial=0))  # in bytes
    borders = [*(border for span in row.replies for border in span), len(row.text)]
    if not row.text.isascii():
        borders = [len(row.text[:border].encode()) for border in borders]
    tokens = [bisect_left(ends, border) for border in borders]  # that begin there
    if borders[-1] != ends[-1] or [ends[token] for token in tokens] != borders:
        return None
    return list(zip(tokens[:-1:2], tokens[1:-1:2], strict=True))


def _by_offset(row: Row, place: Callable[[int], Span], settings: Settings) -> list[Span]:
    """The tokens of each reply; `place` has the characters of a token.

    A token across the border belongs to the reply, unless it is a control token.
    """
    found, numbers = [], range(len(row.ids))
    for start, stop in row.replies:
        first = bisect_right(numbers, start, key=lambda token: place(token)[1])
        end = bisect_left(numbers, stop, key=lambda token: place(token)[0])
        if first < end and place(first)[0] < start and row.ids[first] in settings.control_ids:
            first += 1
        found.append((first, end))
    return found


def label(row: Row, settings: Settings) -> None:
    """Labels the tokens of the replies, if each begins after just the tokens of its prompt.

    Inference gives the model the prompt in tokens of its own. Where the text's tokens cross that
    border, prompt and reply are tokenized apart, or the row is unrolled if it has several.

    Raises:
        MaskError: no token says that the last reply ends.
    """
    is_split = not all(
        _keeps_prompt(row, start, first, settings)
        for (start, _), (first, _) in zip(row.replies, row.spans, strict=True)
    )
    if is_split and len(row.replies) > 1:
        row.unroll()
        return
    if row.forged or is_split:
        row.ids, offsets = _tokenize_apart(row, is_split, settings)
        row.spans = _by_offset(row, offsets.__getitem__, settings)
    row.labels = [-100] * len(row.ids)
    for first, end in row.spans:
        row.labels[first:end] = row.ids[first:end]
    if not row.is_ended:  # the model would never learn to stop
        if settings.eos is None:
            raise MaskError("no end-of-turn token", "neither template nor tokenizer has one")
        row.ids.append(settings.tokenizer.eos_token_id)
        row.labels.append(settings.tokenizer.eos_token_id)
    if next(token for token in reversed(row.labels) if token != -100) not in settings.control_ids:
        raise MaskError("no end-of-turn token", "the tokenizer takes it for plain text")


def _keeps_prompt(row: Row, start: int, first: int, settings: Settings) -> bool:
    """Whether the tokens before a reply are those of its prompt: since the last control token."""
    near = max(0, start - NEAR)
    control = [token.start() for token in settings.control.finditer(row.text, near, start)]
    ids = settings.ids_of(row.text[control[-1] if control else 0 : start])
    return row.ids[max(0, first - len(ids)) : first] == ids


def _tokenize_apart(row: Row, is_split: bool, settings: Settings) -> tuple[list[int], list[Span]]:
    """Ids and offsets of the text, with what is forged spelled out in ordinary tokens.

    Raises:
        MaskError: the tokenizer has no ordinary tokens for it.
    """

    def tokens(text: str, is_forged: bool) -> tuple[list[int], list[Span]]:
        options = {"add_special_tokens": False, "return_offsets_mapping": True}
        encoded = settings.tokenizer(text, split_special_tokens=is_forged, **options)
        return encoded["input_ids"], encoded["offset_mapping"]

    newline = tokens("\n", False)[0]
    all_ids, all_offsets = [], []
    forged = {*row.forged}
    cuts = {0, len(row.text), *(border for span in forged for border in span)}
    cuts |= {row.replies[0][0]} if is_split else set()
    for start, stop in pairwise(sorted(cuts)):
        text, is_forged = row.text[start:stop], (start, stop) in forged
        # at a text's start some tokenizers put a space, but not after a newline
        ids, offsets = tokens("\n" + text, is_forged) if start else ([], [])
        if start and ids[: len(newline)] == newline:
            ids, offsets = ids[len(newline) :], offsets[len(newline) :]
            offsets = [(left - 1, right - 1) for left, right in offsets]
        else:
            ids, offsets = tokens(text, is_forged)
        is_spelt = settings.control_ids.isdisjoint(ids)
        if is_forged and not (is_spelt and settings.tokenizer.decode(ids) == text):
            detail = f"the tokenizer cannot spell out {text!r}"
            raise MaskError("control token in the text", detail)
        all_ids += ids
        all_offsets += [(start + left, start + right) for left, right in offsets]
    return all_ids, all_offsets
