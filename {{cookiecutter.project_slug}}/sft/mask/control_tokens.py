"""Control tokens, such as <|im_end|>, in text: the template's own, and those that a row forges."""

import re
from itertools import pairwise

from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.mask.conversation import MaskError, render

UNUSED = "\ue000"  # from Unicode's private use area: it means nothing to any template
Span = tuple[int, int]  # first character, end


class ControlTokens:
    """The control tokens of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        added = {i: t for i, t in tokenizer.added_tokens_decoder.items() if t.content.strip()}
        self.tokenizer = tokenizer
        self.eos, self.eos_id = tokenizer.eos_token, tokenizer.eos_token_id
        self.ids = {*added, self.eos_id}
        flagged = {token.content for token in added.values() if token.special}
        # others are not flagged, such as DeepSeek's <｜User｜>, but the template writes them
        headers = _headers(tokenizer)
        names = {t.content for t in added.values() if t.content in headers}
        thoughts = {name for name in names if "think" in name}  # a reply may write these
        self.special = _any_of({*flagged, *tokenizer.all_special_tokens, *(names - thoughts)})
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

    def is_eos(self, closing: str) -> bool:
        """Whether that ends with EOS."""
        return self.eos is not None and closing.endswith(self.eos)

    def plain(self, text: str) -> str:
        """What words there are between the control tokens of a text."""
        return self.any.sub("", text).strip()


def hide_forged(
    messages: list[dict], text: str, control: ControlTokens, policy: str
) -> tuple[list[dict], str, list[Span]]:
    """Messages and text with the control tokens in a row's own words hidden, and where they are.

    No character moves: each is swapped for one that means nothing.

    Raises:
        MaskError: there are some, and `policy` is "refuse"; or they cannot be told from the
            template's.
    """
    hidden = []
    for number, message in enumerate(messages, start=1):
        hide, found = _hide({k: v for k, v in message.items() if k != "role"}, control)
        if found and policy == "refuse":
            detail = f"message {number} holds {found[0]}, which forges a turn"
            raise MaskError("control token in the text", detail)
        hidden.append({**message, **hide})
    if hidden == messages:
        return messages, text, []
    swapped = render(control.tokenizer, hidden)
    if re.sub(f"{UNUSED}+", lambda m: text[slice(*m.span())], swapped) != text:
        raise MaskError("control token in the text", "the chat template hides where it stands")
    runs = [run.span() for run in re.finditer(f"{UNUSED}+", swapped)]
    forged = [token.span() for run in runs for token in control.special.finditer(text, *run)]
    return hidden, swapped, forged


def _hide(words, control: ControlTokens) -> tuple:
    """Texts, also those inside lists and mappings, with the control tokens hidden; and these."""
    if isinstance(words, str):
        found = control.special.findall(words)
        if not found:
            return words, []
        return control.special.sub(lambda m: UNUSED * len(m[0]), words), found
    if isinstance(words, dict):
        parts = [_hide(value, control) for value in words.values()]
        hidden = dict(zip(words, (part for part, _ in parts), strict=True))
    elif isinstance(words, list):
        parts = [_hide(value, control) for value in words]
        hidden = [part for part, _ in parts]
    else:
        return words, []
    return hidden, [token for _, found in parts for token in found]


def _headers(tokenizer: Tokenizer) -> str:
    """What the template writes around turns."""
    chat = [{"role": role, "content": UNUSED} for role in ("user", "assistant", "user")]
    try:
        return render(tokenizer, chat, add_generation_prompt=True)
    except MaskError:
        return ""


def tokenize_escaped(
    text: str, forged: list[Span], control: ControlTokens
) -> tuple[list[int], list[Span]]:
    """Ids and offsets of `text`, with what is forged spelled out in ordinary tokens.

    Raises:
        MaskError: the tokenizer has no ordinary tokens for it.
    """
    ids, offsets = [], []
    borders = [0, *(border for span in forged for border in span), len(text)]
    for number, (start, stop) in enumerate(pairwise(borders)):
        is_forged = number % 2 == 1
        piece, places = _tokenize(text[start:stop], start > 0, is_forged, control.tokenizer)
        spelt = (
            control.ids.isdisjoint(piece) and control.tokenizer.decode(piece) == text[start:stop]
        )
        if is_forged and not spelt:
            detail = f"the tokenizer cannot spell out {text[start:stop]!r}"
            raise MaskError("control token in the text", detail)
        ids += piece
        offsets += [(start + left, start + right) for left, right in places]
    return ids, offsets


def _tokenize(text: str, inside: bool, as_text: bool, tokenizer: Tokenizer) -> tuple[list, list]:
    """Ids and offsets of a piece from the start or the inside of a text.

    At a text's start some tokenizers put a space; behind a newline, which is then taken off, none.
    """

    def tokens(text: str) -> tuple[list[int], list[Span]]:
        options = {"add_special_tokens": False, "return_offsets_mapping": True}
        encoded = tokenizer(text, split_special_tokens=as_text, **options)
        return encoded["input_ids"], encoded["offset_mapping"]

    newline, (ids, offsets) = tokens("\n")[0], tokens("\n" + text)
    if not inside or ids[: len(newline)] != newline:
        return tokens(text)
    skip = len(newline)
    return ids[skip:], [(left - 1, right - 1) for left, right in offsets[skip:]]


def _any_of(words) -> re.Pattern:
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # (?!) matches nothing
