"""Control tokens, such as <|im_end|>: they end a turn, and in a row's own words they forge one."""

import re
from itertools import pairwise
from os.path import commonprefix

from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.conversation import MaskError, render

HIDDEN = "\ue000"  # from Unicode's private use area: it means nothing to any template
PROBE = {"role": "user", "content": HIDDEN}
Span = tuple[int, int]  # first character, end


class ControlTokens:
    """The control tokens of a tokenizer, as they are found in text."""

    def __init__(self, tokenizer: Tokenizer):
        added = {i: t for i, t in tokenizer.added_tokens_decoder.items() if t.content.strip()}
        self.tokenizer = tokenizer
        self.eos, self.eos_id = tokenizer.eos_token, tokenizer.eos_token_id
        self.ids = {*added, self.eos_id}
        self.special = _any_of(token.content for token in added.values() if token.special)
        self.any = _any_of(token.content for token in added.values())
        self.run = re.compile(rf"(\s*(?:{self.any.pattern}))(?:\s*(?:{self.any.pattern}))*")

    def closing(self, text: str, end: int) -> str:
        """The first control token behind `end`, or through EOS if control tokens lead up to it.

        "" where plain text or nothing follows.
        """
        run = self.run.match(text, end)
        if run and self.eos and self.eos in run[0]:
            return run[0][: run[0].index(self.eos) + len(self.eos)]
        return run[1] if run else ""

    def last_end(self, messages: list[dict], text: str, start: int, end: int) -> str:
        """What ends the turn of the last reply, `text[start:end]`; "" if nothing does.

        Raises:
            MaskError: the turn has no clear end.
        """
        closing, tail = self.closing(text, end), text[end:]
        if not closing and tail.strip():
            raise MaskError("no end-of-turn token", "the chat template ends turns with plain text")
        if not closing or (self.eos and closing.endswith(self.eos)):
            return closing
        plain = self._plain(tail)
        header = any(text[:start].endswith(tail[m.start() :]) for m in self.any.finditer(tail))
        if not plain and not header:
            return closing
        # the turn's own end stands there even where another message follows
        longer = render(self.tokenizer, [*messages, PROBE])
        own = len(commonprefix([tail, longer[end:]]))
        own = min([own, *(m.start() for m in self.any.finditer(tail) if m.end() > own)])
        own = tail[:own].rstrip()
        if longer.startswith(text[:end]) and not (plain and header):
            if not self._plain(own) and own.startswith(closing):
                return closing
            if self._plain(own) and re.search(f"(?:{self.any.pattern})$", own):
                return own
        raise MaskError("no clear end of turn", f"behind the last reply stands {tail[:40]!r}")

    def earlier_end(self, text: str, end: int, last: str, following: dict) -> str:
        """What ends the turn of an earlier reply: what ends the last one or a user's, or EOS.

        Args:
            last: what ends the last reply.
            following: the next message.

        Raises:
            MaskError: something else follows, and it is no user's header.
        """
        if last and text.startswith(last, end):
            return last
        closing = self.closing(text, end)
        if not closing or (self.eos and closing.endswith(self.eos)):
            return closing
        after_user = render(self.tokenizer, [PROBE]).partition(HIDDEN)[2]
        for known in (last, after_user):
            if known.startswith(closing) and not self._plain(known):
                return closing
        behind = text[end + len(closing) :].lstrip()
        if following["role"] == "user" and behind.startswith(following["content"].strip()):
            return ""  # a header is not for the model to write
        raise MaskError("no clear end of turn", f"{closing.strip()!r} follows an earlier reply")

    def forged(self, messages: list[dict], text: str, policy: str) -> list[Span]:
        """Where in `text` the messages' own words look like control tokens.

        Raises:
            MaskError: somewhere, and `policy` is "refuse"; or they cannot be told apart from the
                template's own.
        """
        hidden = []
        for number, message in enumerate(messages, start=1):
            words = {k: v for k, v in message.items() if k != "role" and isinstance(v, str)}
            for found in filter(None, map(self.special.search, words.values())):
                if policy == "refuse":
                    detail = f"message {number} holds {found[0]}, which forges a turn"
                    raise MaskError("control token in the text", detail)
            hide = {k: self.special.sub(lambda m: HIDDEN * len(m[0]), v) for k, v in words.items()}
            hidden.append({**message, **hide})
        if hidden == messages:
            return []
        swapped = render(self.tokenizer, hidden)
        if re.sub(f"{HIDDEN}+", lambda m: text[slice(*m.span())], swapped) != text:
            raise MaskError("control token in the text", "the chat template hides where it stands")
        runs = [run.span() for run in re.finditer(f"{HIDDEN}+", swapped)]
        return [token.span() for run in runs for token in self.special.finditer(text, *run)]

    def tokenize(self, text: str, forged: list[Span]) -> tuple[list[int], list[Span]]:
        """Ids and offsets of `text`, with what is forged spelled out in ordinary tokens.

        Raises:
            MaskError: the tokenizer has no ordinary tokens for it.
        """
        ids, offsets = [], []
        borders = [0, *(border for span in forged for border in span), len(text)]
        for number, (start, stop) in enumerate(pairwise(borders)):
            piece, options = text[start:stop], {"split_special_tokens": number % 2 == 1}
            encoded, skip = self._encode(piece, **options), 0
            if start:  # at a text's start some tokenizers put a space: put a newline there, drop it
                newline, behind = (
                    self._encode("\n", **options),
                    self._encode("\n" + piece, **options),
                )
                if behind["input_ids"][: len(newline["input_ids"])] == newline["input_ids"]:
                    encoded, skip = behind, len(newline["input_ids"])
                    start -= 1
            piece_ids = encoded["input_ids"][skip:]
            spelt = self.ids.isdisjoint(piece_ids) and self.tokenizer.decode(piece_ids) == piece
            if number % 2 == 1 and not spelt:
                detail = f"the tokenizer cannot spell out {piece!r}"
                raise MaskError("control token in the text", detail)
            ids += piece_ids
            offsets += [(start + a, start + b) for a, b in encoded["offset_mapping"][skip:]]
        return ids, offsets

    def _encode(self, text: str, **options) -> dict:
        return self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, **options
        )

    def _plain(self, text: str) -> str:
        return self.any.sub("", text).strip()


def _any_of(words) -> re.Pattern:
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # (?!) matches nothing
