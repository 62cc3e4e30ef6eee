"""What every step of masking works on: a conversation, and what is known of its tokenizer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from transformers import PreTrainedTokenizerBase as Tokenizer

INSTRUCTIONS = ("system", "developer")
UNUSED = "\ue000"  # from Unicode's private use area: it means nothing to any template
ROWS_IN_A_CALL = 128  # of the template or tokenizer; more take more time
Span = tuple[int, int]  # first character or token, end


class MaskError(ValueError):
    """This conversation cannot be trained on: `reason` in few words, then the detail."""

    def __init__(self, reason: str, detail: str = ""):
        self.reason = reason
        super().__init__(f"{reason}: {detail}" if detail else reason)


@dataclass(slots=True)
class Row:
    """A conversation on its way to labels: each step fills in fields."""

    messages: list[dict]
    turns: str = "all"  # which replies are trained on
    extra: dict = field(default_factory=dict)  # what the template gets beside them, such as `tools`
    error: ValueError | None = None  # why there is no mask
    parts: Sequence["Row"] = ()  # one for each reply, where one text does not serve all
    trained: Sequence[int] = ()  # positions of the replies to train on
    is_prompted: bool = False  # whether a chat prompts for the last reply: not after another
    thought: str = ""  # the last reply's, as `thought_of` tells it from the answer
    answer_text: str = ""
    prompt: str = ""  # as inference asks for it, or the text before it
    full: str = ""  # the conversation with that reply
    # all again, with the control tokens in the row's own words hidden
    safe_messages: Sequence[dict] = ()
    safe_prompt: str = ""
    safe_full: str = ""
    start: int = 0  # where in `full` the text after the prompt begins
    inserted: str = ""  # what the template leaves out there: a thought, or the end of an empty one
    answer: Span = (0, 0)  # where in `full` the last reply's answer is
    end: int = 0  # where in `full` its turn ends
    text: str = ""  # `prompt`, `inserted`, and `full` from `start` on
    forged: Sequence[Span] = ()  # control tokens in the row's own words, in `text`
    replies: Sequence[Span] = ()  # characters of each in `text`, with the end of its turn
    is_ended: bool = False  # whether the template itself ends the last reply
    ids: Sequence[int] = ()
    labels: Sequence[int] = ()

    def of(self, messages: list[dict], turns: str = "") -> "Row":
        """A row of some of its messages."""
        return Row(messages, turns or self.turns, self.extra)

    def unroll(self) -> None:
        """One row for each reply, each with the context in which inference asks for it."""
        self.parts = [self.of(self.messages[: at + 1], "last") for at in self.trained]


class Settings:
    """The tokenizer with its control tokens, such as <|im_end|>, and an option of `encode`."""

    def __init__(self, tokenizer: Tokenizer, control_tokens: str):
        self.tokenizer, self.control_tokens = tokenizer, control_tokens
        self.eos = tokenizer.eos_token
        added = {i: t for i, t in tokenizer.added_tokens_decoder.items() if t.content.strip()}
        self.control_ids = {*added, tokenizer.eos_token_id}
        names = frozenset(token.content for token in added.values())
        unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id}  # stands for any characters
        self.control_names = {i: token.content for i, token in added.items() if i not in unknown}
        self.control = any_of(names)
        one = self.control.pattern
        self.control_at_end = re.compile(rf"({one})\s*\Z")
        self.control_run = re.compile(rf"(\s*(?:{one}))(?:\s*(?:{one}))*")
        chat = [{"role": role, "content": UNUSED} for role in ("user", "assistant", "user")]
        try:
            headers = tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True
            )
        except MemoryError:
            raise
        except Exception:  # templates raise what they like
            headers = ""
        flagged = {token.content for token in added.values() if token.special}
        # others are not flagged, such as DeepSeek's <｜User｜>, but the template writes them;
        # thoughts a reply may write, too
        written = {name for name in names if name in headers and "think" not in name}
        self.special = any_of(frozenset({*flagged, *tokenizer.all_special_tokens, *written}))
        self.ids_of = lru_cache(64)(self._ids_of)

    def _ids_of(self, text: str, is_split: bool = False) -> list[int]:
        """The tokens of a text; `is_split` spells out control tokens in ordinary ones."""
        backend = self.tokenizer.backend_tokenizer
        backend.encode_special_tokens = is_split
        return backend.encode(text, add_special_tokens=False).ids


@lru_cache(64)
def any_of(words: frozenset[str]) -> re.Pattern:
    """What matches each of the words, the longest first."""
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # (?!) matches nothing
