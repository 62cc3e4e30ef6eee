"""Texts to tokens, and which of the tokens a span of the text became.

A tokenizer can say which characters each token stands for, but that takes a quarter of its time.
Most are byte-level: their tokens, end to end, are the bytes of the text, so that the widths of the
tokens say the same. Where these do not lead to just the borders of a span, the tokenizer is asked.
"""

import json
from bisect import bisect_left, bisect_right
from itertools import accumulate

from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.mask.control_tokens import ControlTokens, Span


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
        told = [self._tells_by_width(text) for text in texts]
        quick = iter(
            self.backend.encode_batch_fast(
                [text for text, is_told in zip(texts, told, strict=True) if is_told],
                add_special_tokens=False,
            )
        )
        results = []
        for text, of_it, is_told in zip(texts, spans, told, strict=True):
            ids = next(quick).ids if is_told else []
            results.append((ids, self._by_width(text, ids, of_it) if is_told else None))
        asked = [number for number, (_, found) in enumerate(results) if found is None]
        encodings = self.backend.encode_batch(
            [texts[number] for number in asked], add_special_tokens=False
        )
        for number, encoding in zip(asked, encodings, strict=True):
            found = self.by_offset(encoding.ids, encoding.token_to_chars, spans[number])
            results[number] = encoding.ids, found
        return results

    def _tells_by_width(self, text: str) -> bool:
        """Whether the tokens are bytes, and of this text: a normalizer may rewrite others."""
        return self.widths is not None and (text.isascii() or self.backend.normalizer is None)

    def _by_width(self, text: str, ids: list[int], spans: list[Span]) -> list[Span] | None:
        """The tokens of each span; None where a border is none between tokens."""
        is_ascii = text.isascii()
        ends = [0, *accumulate(map(self.widths.__getitem__, ids))]  # in bytes
        borders = [at if is_ascii else len(text[:at].encode()) for span in spans for at in span]
        if ends[-1] != len(text.encode()):
            return None
        tokens = [bisect_left(ends, border) for border in borders]  # that begin there
        if [ends[token] for token in tokens] != borders:
            return None
        return list(zip(tokens[::2], tokens[1::2], strict=True))

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


def _widths(tokenizer: Tokenizer) -> list[int] | None:
    """The bytes of each token by its id; None if the tokenizer is not byte-level."""
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
    if not decoder or decoder["type"] != "ByteLevel":
        return None
    vocabulary = tokenizer.get_vocab()
    widths = [0] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        widths[number] = len(token)  # it is spelt with one character a byte
    for number, token in tokenizer.added_tokens_decoder.items():
        widths[number] = len(token.content.encode())
    return widths
