"""A conversation: is it sound, and does the chat template write all of it."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.mask.vocabulary import Settings, Span

ROLES = ("system", "developer", "user", "assistant", "tool")
MARK = re.compile("\u2060\\d+\u2060")  # word joiners: a template that trims text leaves it whole


class MaskError(ValueError):
    """This conversation cannot be trained on: `reason` in few words, then the detail."""

    def __init__(self, reason: str, detail: str = ""):
        self.reason = reason
        super().__init__(f"{reason}: {detail}" if detail else reason)


@dataclass
class Row:
    """A conversation on its way to labels; each step fills in fields. Replies: those trained on."""

    messages: list[dict]
    error: ValueError | None = None  # why there is no mask
    trained: list[int] = field(default_factory=list)  # the replies' positions in `messages`
    text: str = ""  # the rendering
    # both again, with the control tokens in the row's own words hidden; and where these are
    safe_messages: list[dict] = field(default_factory=list)
    safe_text: str = ""
    forged: list[Span] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)  # of each reply, "" for none
    marked: str = ""  # the rendering with markers for replies
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
        calls = role == "assistant" and message.get("tool_calls")
        if role not in ROLES:
            detail = f"message {number} has {role!r}; known are {', '.join(ROLES)}"
            raise MaskError("unknown role", detail)
        if not isinstance(content, str) and not calls:
            kind = "null" if content is None else type(content).__name__
            raise MaskError("content that is not text", f"message {number} holds {kind}")
        if not (content or "").strip() and not calls:
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
    """The positions of the replies but for those of weight 0: OpenAI's files mark context so."""
    weighted = (m["role"] == "assistant" and m.get("weight") != 0 for m in messages)
    return [at for at, is_weighted in enumerate(weighted) if is_weighted]


def split_thought(message: dict) -> tuple[str, str]:
    """A reply's content through </think>, where templates split it, and its answer."""
    thought, tag, answer = message["content"].rpartition("</think>")
    return thought + tag, answer


def mark(messages: list[dict], positions: list[int]) -> list[dict]:
    """The messages with markers for what those at `positions` say, thoughts excepted."""
    marked = list(messages)
    for at in positions:
        thought = split_thought(marked[at])[0] if marked[at]["role"] == "assistant" else ""
        marked[at] = {**marked[at], "content": thought + marker(at)}
    return marked


def marker(at: int) -> str:
    """A text that matches `MARK`."""
    return f"\u2060{at}\u2060"


def render_one(messages: list[dict], tokenizer: Tokenizer, **kwargs) -> str:
    """The text that the chat template writes.

    Raises:
        MaskError: the template refuses the conversation, in its own words.
    """
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
    except Exception as error:  # templates raise what they like
        raise MaskError("refused by the chat template", " ".join(str(error).split())) from error


def render_each(
    conversations: list[list[dict]], rows: list[Row], tokenizer: Tokenizer, **kwargs
) -> list[str]:
    """The text of each conversation; where the template refuses one, its row gets the error."""
    if len(conversations) > 1:
        with suppress(Exception):  # one that is refused ends the call: half of them, then
            return tokenizer.apply_chat_template(conversations, tokenize=False, **kwargs)
        half = len(conversations) // 2
        first = render_each(conversations[:half], rows[:half], tokenizer, **kwargs)
        return first + render_each(conversations[half:], rows[half:], tokenizer, **kwargs)
    texts = []
    for messages, row in zip(conversations, rows, strict=True):  # one, or none
        try:
            texts.append(render_one(messages, tokenizer, **kwargs))
        except MaskError as error:
            row.error = error
            texts.append("")
    return texts


def render(rows: list[Row], settings: Settings) -> None:
    """Renders the conversations."""
    texts = render_each([row.messages for row in rows], rows, settings.vocabulary.tokenizer)
    for row, text in zip(rows, texts, strict=True):
        row.text = text


def check_text(row: Row, settings: Settings) -> None:
    """Checks that each message is in the text: templates ignore roles that they do not know.

    Raises:
        MaskError: what a message says is not in the text.
    """
    said = "\n".join(message["content"] or "" for message in row.messages)
    unclear = []  # the same words may be there for another message
    for at, message in enumerate(row.messages):
        if message["role"] == "assistant":
            continue
        content = message["content"].strip()
        times = row.text.count(content)
        if times > 1 or said.count(content) > 1:
            unclear.append(at)
            continue
        if message["role"] == "tool":  # what tools answer is often written as JSON
            spelt = (json.dumps(content, ensure_ascii=is_ascii)[1:-1] for is_ascii in (0, 1))
            times = times or sum(map(row.text.count, spelt))
        if not times:
            raise _dropped(at, message)
    if unclear:
        marked = render_one(mark(row.messages, unclear), settings.vocabulary.tokenizer)
        for at in unclear:
            if marker(at) not in marked:
                raise _dropped(at, row.messages[at])


def _dropped(at: int, message: dict) -> MaskError:
    detail = f"message {at + 1} (role {message['role']}) is not in what it writes"
    return MaskError("the chat template drops a message", detail)
