"""Text to tokens, and labels for those of the replies."""

from bisect import bisect_right
from itertools import compress, count, pairwise

from sft.mask.conversation import ROWS_IN_A_CALL, MaskError, Row, Settings, Span, any_of

NEAR = 200  # characters before a reply in which its header's control tokens are


def tokenize(rows: list[Row], settings: Settings) -> None:
    """Tokenizes the texts, many in a call, which takes less time."""
    backend = settings.tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = False
    whole = [row for row in rows if not row.inserted]
    for first in range(0, len(whole), ROWS_IN_A_CALL):
        some = whole[first : first + ROWS_IN_A_CALL]
        encodings = backend.encode_batch_fast([row.text for row in some], add_special_tokens=False)
        for row, encoding in zip(some, encodings, strict=True):
            row.ids = encoding.ids


def label(row: Row, settings: Settings) -> None:
    """Labels the tokens of the replies, if each begins after just the tokens of its prompt.

    Inference gives the model the prompt in tokens of its own. Where the text's tokens cross that
    border, prompt and reply are tokenized apart, or the row is unrolled if it has several.

    Raises:
        MaskError: no token says that the last reply ends.
    """
    spans = [] if row.inserted else _tokens(row, settings)
    if not spans and len(row.replies) > 1:
        row.unroll()
        return
    if not spans or row.forged:
        _tokenize_apart(row, settings)
    else:
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


def _tokens(row: Row, settings: Settings) -> list[Span]:
    """The tokens of each reply; [] where one is not after just the tokens of its prompt.

    A control token in the text is one id, so that control tokens tell which ids are a reply's: it
    begins after what its prompt has since the last of them, and ends with one. [] also where text
    and ids do not have the same of them.
    """
    places = [*compress(count(), map(settings.control_names.__contains__, row.ids))]
    names = [settings.control_names[row.ids[at]] for at in places]
    tokens = [*any_of(frozenset(names)).finditer(row.text)]
    if [token[0] for token in tokens] != names:
        return []
    stops = [token.end() for token in tokens]
    found, ends = [], {len(row.text): len(row.ids) - 1} | dict(zip(stops, places, strict=True))
    for start, stop in row.replies:
        number = bisect_right(stops, start)
        at, place = (tokens[number - 1].start(), places[number - 1]) if number else (0, 0)
        prompt = settings.ids_of(row.text[at:start])
        first = place + len(prompt)
        if row.ids[place:first] != prompt or stop not in ends:
            return []
        found.append((first, ends[stop] + 1))
    return found


def _tokenize_apart(row: Row, settings: Settings) -> None:
    """Tokenizes prompt, reply and what is forged apart, the last in ordinary tokens.

    Raises:
        MaskError: the tokenizer has none for it.
    """
    row.ids, row.labels = [], []
    borders = {0, len(row.text), *(at for span in [*row.replies, *row.forged] for at in span)}
    for start, stop in pairwise(sorted(borders)):
        text, is_forged = row.text[start:stop], (start, stop) in row.forged
        control = settings.control_at_end.search(row.text, max(0, start - NEAR), start)
        is_after = control and control.span(1) not in row.forged and not is_forged
        ids = _continued(
            text, control[0] if is_after else "\n" if start else "", is_forged, settings
        )
        is_spelt = settings.control_ids.isdisjoint(ids)
        if is_forged and not (is_spelt and settings.tokenizer.decode(ids) == text):
            detail = f"the tokenizer cannot spell out {text!r}"
            raise MaskError("control token in the text", detail)
        is_trained = any(first <= start < end for first, end in row.replies)
        row.ids += ids
        row.labels += ids if is_trained else [-100] * len(ids)


def _continued(text: str, after: str, is_forged: bool, settings: Settings) -> list[int]:
    """Tokens of a text that goes on: at a text's start some tokenizers put a space."""
    before = settings.ids_of(after)
    for some in (text[:1], text):  # the first character tells mostly, and is in the cache
        ids = settings.ids_of(after + some, is_forged)
        if ids[: len(before)] != before:
            return settings.ids_of(text, is_forged)
    return ids[len(before) :]
