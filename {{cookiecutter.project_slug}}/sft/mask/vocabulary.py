"""What the mask needs to know of a tokenizer: its control tokens, and the bytes of each token."""

import json
import re
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase as Tokenizer

UNUSED = "\ue000"  # from Unicode's private use area: it means nothing to any template
Span = tuple[int, int]  # first character or token, end


class Vocabulary:
    """The control tokens of a tokenizer, such as <|im_end|>, and the bytes of all tokens."""

    def __init__(self, tokenizer: Tokenizer):
        added = {i: t for i, t in tokenizer.added_tokens_decoder.items() if t.content.strip()}
        self.tokenizer = tokenizer
        self.eos, self.eos_id = tokenizer.eos_token, tokenizer.eos_token_id
        self.control_ids = {*added, self.eos_id}
        flagged = {token.content for token in added.values() if token.special}
        # others are not flagged, such as DeepSeek's <｜User｜>, but the template writes them
        headers = _headers(tokenizer)
        names = {t.content for t in added.values() if t.content in headers}
        thoughts = {name for name in names if "think" in name}  # a reply may write these
        self.special = _any_of({*flagged, *tokenizer.all_special_tokens, *(names - thoughts)})
        self.control = _any_of(token.content for token in added.values())
        one = self.control.pattern
        self.control_run = re.compile(rf"(\s*(?:{one}))(?:\s*(?:{one}))*")
        self.widths = _widths(tokenizer)


class Settings(NamedTuple):
    """What every step knows; `turns` and `control_tokens` as in `sft.mask.encode`."""

    vocabulary: Vocabulary
    turns: str
    control_tokens: str


def _headers(tokenizer: Tokenizer) -> str:
    """What the template writes around turns; "" if it refuses the conversation."""
    chat = [{"role": role, "content": UNUSED} for role in ("user", "assistant", "user")]
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except Exception:  # templates raise what they like
        return ""


def _any_of(words) -> re.Pattern:
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # (?!) matches nothing


def _widths(tokenizer: Tokenizer) -> list[int] | None:
    """The bytes of each token by its id; None if the tokenizer is not byte-level."""
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
    if not decoder or decoder["type"] != "ByteLevel":
        return None
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    widths = [len(names.get(number, "")) for number in range(max(names) + 1)]  # a character a byte
    for number, token in tokenizer.added_tokens_decoder.items():
        widths[number] = len(token.content.encode())
    return widths
