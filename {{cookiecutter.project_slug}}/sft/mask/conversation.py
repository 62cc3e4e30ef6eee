"""A conversation on its way to labels, and whether it can be trained on at all."""

from collections.abc import Sequence
from dataclasses import dataclass

from sft.mask.vocabulary import Settings, Span

INSTRUCTIONS = ("system", "developer")
ROLES = (*INSTRUCTIONS, "user", "assistant", "tool")


class MaskError(ValueError):
    """This conversation cannot be trained on: `reason` in few words, then the detail."""

    def __init__(self, reason: str, detail: str = ""):
        self.reason = reason
        super().__init__(f"{reason}: {detail}" if detail else reason)


@dataclass(slots=True)
class Row:
    """A conversation on its way to labels: each step fills in fields."""

    messages: list[dict]
    error: ValueError | None = None  # why there is no mask
    trained: Sequence[int] = ()  # positions of the replies to train on
    text: str = ""  # as the chat template writes it
    # both again, with the control tokens in the row's own words hidden; and where these are
    safe_messages: Sequence[dict] = ()
    safe_text: str = ""
    forged: Sequence[Span] = ()
    replies: Sequence[Span] = ()  # characters of each; later with its end
    is_ended: bool = False  # whether the template itself ends the last reply
    ids: Sequence[int] = ()
    spans: Sequence[Span] | None = None  # tokens of each reply
    labels: Sequence[int] = ()


def check(row: Row, settings: Settings) -> None:
    """Cuts the conversation after its last reply, and says which replies are trained on.

    Raises:
        MaskError: a message without known role or text, a reply that calls tools, or no reply.
    """
    for number, message in enumerate(row.messages, start=1):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            detail = f"message {number} has {role!r}; known are {', '.join(ROLES)}"
            raise MaskError("unknown role", detail)
        if role == "assistant" and message.get("tool_calls"):
            continue
        if not isinstance(content, str):
            kind = "null" if content is None else type(content).__name__
            raise MaskError("content that is not text", f"message {number} holds {kind}")
        if not content.strip():
            kind = "empty reply" if role == "assistant" else "empty message"
            raise MaskError(kind, f"message {number}")
    replies = weighted_replies(row.messages)
    if not replies:
        raise MaskError("no assistant turn to train on")
    row.trained = replies if settings.turns == "all" else replies[-1:]
    for at in row.trained:
        if row.messages[at].get("tool_calls"):
            detail = f"message {at + 1}; only text is trained on"
            raise MaskError("a reply that calls tools", detail)
        if not row.messages[at]["content"].rpartition("</think>")[2].strip():
            raise MaskError("empty reply", f"message {at + 1}")
    row.messages = row.messages[: replies[-1] + 1]


def weighted_replies(messages: list[dict]) -> list[int]:
    """The positions of the replies, without those of weight 0: in OpenAI's files, only context."""
    weighted = (m["role"] == "assistant" and m.get("weight") != 0 for m in messages)
    return [at for at, is_weighted in enumerate(weighted) if is_weighted]


def after_instructions(messages: list[dict]) -> int:
    """The position of the first message that is no system or developer message."""
    return next(at for at, message in enumerate(messages) if message["role"] not in INSTRUCTIONS)
