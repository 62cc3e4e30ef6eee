"""Texts to tokens, and which of the tokens a span of the text became.

A tokenizer can say which characters each token stands for, but that takes a quarter of its time.
Most are byte-level: their tokens, end to end, are the bytes of the text, so that the widths of the
tokens say the same. Where these do not lead to just the borders of a span, the tokenizer is asked.
"""

import json
from bisect import bisect_left, bisect_right

import numpy as np
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.control_tokens import ControlTokens, Span


class Tokens:
    """Tokenizes texts whose spans are of interest."""

    def __init__(self, tokenizer: Tokenizer, control: ControlTokens):
        self.tokenizer, self.control = tokenizer, control
        self.backend = tokenizer.backend_tokenizer
        self.widths = _widths(tokenizer)

    def encode_batch(
        self, texts: list[str], spans: list[list[Span]]
    ) -> list[tuple[list[int], list[Span]]]:
        """For each text its ids, and for each of its spans (first token, end)."""
        self.tokenizer("", add_special_tokens=False)  # sets its backend to neither cut nor pad
        by_width = self.widths is not None
        encode = self.backend.encode_batch_fast if by_width else self.backend.encode_batch
        results = []
        for text, of_it, encoding in zip(
            texts, spans, encode(texts, add_special_tokens=False), strict=True
        ):
            ids = encoding.ids
            found = self._by_width(text, ids, of_it) if by_width else None
            if found is None:
                if by_width:
                    encoding = self.backend.encode(text, add_special_tokens=False)
                found = self.by_offset(ids, encoding.token_to_chars, of_it)
            results.append((ids, found))
        return results

    def _by_width(self, text: str, ids: list[int], spans: list[Span]) -> list[Span] | None:
        """The tokens of each span; None where a border is none between tokens."""
        is_ascii = text.isascii()
        if not is_ascii and self.backend.normalizer is not None:
            return None  # it may have rewritten the text
        ends = np.cumsum(self.widths[ids])
        borders = [at if is_ascii else len(text[:at].encode()) for span in spans for at in span]
        if not ids or ends[-1] != len(text.encode()) or 0 in borders:
            return None
        last = np.searchsorted(ends, borders)  # the token that ends at a border
        if (ends[last] != borders).any():
            return None
        return [(first, end) for first, end in (last + 1).reshape(-1, 2).tolist()]

    def by_offset(self, ids: list[int], place, spans: list[Span]) -> list[Span]:
        """The tokens of each span; `place` has the (first character, end) of a token.

        A token across the border belongs to the span, unless it is a control token.
        """
        found = []
        for start, stop in spans:
            first = bisect_right(range(len(ids)), start, key=lambda token: place(token)[1])
            end = bisect_left(range(len(ids)), stop, key=lambda token: place(token)[0])
            if first < end and place(first)[0] < start and ids[first] in self.control.ids:
                first += 1
            found.append((first, end))
        return found


def _widths(tokenizer: Tokenizer) -> np.ndarray | None:
    """The bytes of each token by its id; None if the tokenizer is not byte-level."""
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
    if not decoder or decoder["type"] != "ByteLevel":
        return None
    vocabulary = tokenizer.get_vocab()
    widths = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
    for token, number in vocabulary.items():
        widths[number] = len(token)  # it is spelt with one character a byte
    for number, token in tokenizer.added_tokens_decoder.items():
        widths[number] = len(token.content.encode())
    return widths
