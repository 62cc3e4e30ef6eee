"""Control tokens, such as <|im_end|>: they end a turn, and in a row's own words they forge one."""

import re
from itertools import pairwise
from os.path import commonprefix

from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.conversation import MaskError, render

HIDDEN = "\ue000"  # from Unicode's private use area: it means nothing to any template
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
        """What ends the turn of a reply that ends at `end`; "" where plain text or nothing follows.

        That is the first control token behind it, or EOS if control tokens lead up to it.
        """
        run = self.run.match(text, end)
        if run and self.eos and self.eos in run[0]:
            return run[0][: run[0].index(self.eos) + len(self.eos)]
        return run[1] if run else ""

    def last_closing(self, messages: list[dict], text: str, end: int) -> str:
        """The same for the last reply of all, which plain text may close as well.

        That text is the model's to write if it stands there even if another message follows.

        Raises:
            MaskError: the turn has no clear end.
        """
        closing = self.closing(text, end)
        if not closing and text[end:].strip():
            raise MaskError("no end-of-turn token", "the chat template ends turns with plain text")
        if not self._plain(text[end + len(closing) :]):
            return closing
        longer = render(self.tokenizer, [*messages, {"role": "user", "content": HIDDEN}])
        own = commonprefix([text[end:], longer[end:]]).rstrip()
        if longer.startswith(text[:end]) and not self._plain(own):
            return closing  # the text belongs to the next turn
        always_prompts = render(self.tokenizer, messages, add_generation_prompt=True) == text
        if always_prompts or not re.search(f"(?:{self.any.pattern})$", own):
            raise MaskError("no clear end of turn", "the chat template writes text behind a reply")
        return own

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
