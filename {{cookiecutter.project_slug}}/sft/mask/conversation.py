"""A conversation: is it sound, and does the chat template write all of it."""

import json
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.mask.vocabulary import Settings, Span

INSTRUCTIONS = ("system", "developer")
ROLES = (*INSTRUCTIONS, "user", "assistant", "tool")


class MaskError(ValueError):
    """This conversation cannot be trained on: `reason` in few words, then the detail."""

    def __init__(self, reason: str, detail: str = ""):
        self.reason = reason
        super().__init__(f"{reason}: {detail}" if detail else reason)


@dataclass
class Row:
    """A conversation on its way to labels: each step fills in fields."""

    messages: list[dict]
    error: ValueError | None = None  # why there is no mask
    trained: list[int] = field(default_factory=list)  # positions of the replies to train on
    text: str = ""  # as the chat template writes it
    # both again, with the control tokens in the row's own words hidden; and where these are
    safe_messages: list[dict] = field(default_factory=list)
    safe_text: str = ""
    forged: list[Span] = field(default_factory=list)
    replies: list[Span] = field(default_factory=list)  # characters of each; later with its end
    is_ended: bool = False  # whether the template itself ends the last reply
    ids: list[int] = field(default_factory=list)
    spans: list[Span] | None = None  # tokens of each reply
    labels: list[int] = field(default_factory=list)


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
        if not split_thought(row.messages[at])[1].strip():
            raise MaskError("empty reply", f"message {at + 1}")
    row.messages = row.messages[: replies[-1] + 1]


def weighted_replies(messages: list[dict]) -> list[int]:
    """The positions of the replies, without those of weight 0: in OpenAI's files, only context."""
    weighted = (m["role"] == "assistant" and m.get("weight") != 0 for m in messages)
    return [at for at, is_weighted in enumerate(weighted) if is_weighted]


def after_instructions(messages: list[dict]) -> int:
    """The position of the first message that is no system or developer message."""
    return next(at for at, message in enumerate(messages) if message["role"] not in INSTRUCTIONS)


def split_thought(message: dict) -> tuple[str, str]:
    """A reply's content through </think>, where templates split it, and its answer."""
    thought, tag, answer = message["content"].rpartition("</think>")
    return thought + tag, answer


def mark(messages: list[dict], positions: list[int]) -> list[dict]:
    """The messages with markers for what those at `positions` say, except for thoughts."""
    marked = list(messages)
    for at in positions:
        thought = split_thought(marked[at])[0] if marked[at]["role"] == "assistant" else ""
        marked[at] = {**marked[at], "content": thought + marker(at)}
    return marked


def marker(at: int) -> str:
    """The marker of a message: its word joiners keep templates from trimming it."""
    return f"\u2060{at}\u2060"


def render(conversations: list[list[dict]], tokenizer: Tokenizer, **kwargs) -> list[str]:
    """The texts that the chat template writes.

    Raises:
        MaskError: the template refuses one of them, in its own words.
    """
    try:
        return tokenizer.apply_chat_template(conversations, tokenize=False, **kwargs)
    except Exception as error:  # templates raise what they like
        raise MaskError("refused by the chat template", " ".join(str(error).split())) from error


def render_text(row: Row, settings: Settings) -> None:
    """Renders the conversation, and checks that each message is in it: templates drop some roles.

    Raises:
        MaskError: the template refuses the conversation, or drops a message.
    """
    (row.text,) = render([row.messages], settings.vocabulary.tokenizer)
    contents = (message.get("content") for message in row.messages)
    said = "\n".join(content for content in contents if isinstance(content, str))
    others = [at for at, message in enumerate(row.messages) if message["role"] != "assistant"]
    unclear, lost = [], []
    for at in others:
        words = row.messages[at]["content"].strip()
        times = row.text.count(words)
        if times > 1 or said.count(words) > 1:
            unclear.append(at)  # the words may be there for another message
        elif not times and not _is_json(row.messages[at], row.text):
            lost.append(at)
    if unclear:
        (marked,) = render([mark(row.messages, unclear)], settings.vocabulary.tokenizer)
        lost += [at for at in unclear if marker(at) not in marked]
    if lost:
        detail = f"message {lost[0] + 1} (role {row.messages[lost[0]]['role']}) is not in its text"
        raise MaskError("the chat template drops a message", detail)


def _is_json(message: dict, text: str) -> bool:
    """Whether the text has what a tool answers as JSON, as many templates write it."""
    words = message["content"].strip()
    spelt = [json.dumps(words, ensure_ascii=is_ascii)[1:-1] for is_ascii in (False, True)]
    return message["role"] == "tool" and any(one in text for one in spelt)
