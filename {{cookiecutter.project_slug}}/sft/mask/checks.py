"""Whether a conversation can be trained on, and whether its chat template writes it as it is."""

import json
import re
from unicodedata import category

from sft.mask.conversation import INSTRUCTIONS, UNUSED, MaskError, Row, Settings
from sft.mask.replies import mark, marker, render

INVISIBLE = "\u115f\u1160\u2800\u3164\uffa0"  # fillers that Unicode counts as letters or symbols
# keys of a message that say whether it is trained on, and what reads like one
SWITCHES = ("weight", "loss", "loss_mask", "train", "training", "trainable")
SWITCH = re.compile("weight|loss|train|mask|learn")
ROLES = (*INSTRUCTIONS, "user", "assistant", "tool")


def check_messages(row: Row, settings: Settings) -> None:
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
        if is_blank(content):
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
        if is_blank(row.messages[at]["content"].rpartition("</think>")[2]):
            raise MaskError("empty reply", f"message {at + 1}")
    row.messages = row.messages[: replies[-1] + 1]


def weighted_replies(messages: list[dict]) -> list[int]:
    """The positions of the replies, without those that the data marks as context only.

    `"weight": 0` is OpenAI's mark for it, and other tools have `loss`, `train` or `trainable`.

    Raises:
        MaskError: a mark of that kind that is not understood.
    """
    found = []
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        marks = {key: value for key, value in message.items() if SWITCH.search(key)}
        for key, value in marks.items():
            if key not in SWITCHES or value not in (0, 1):
                detail = f"message {at + 1} has {key}: {value!r}"
                raise MaskError("a mark of what to train on that is not known", detail)
        if all(marks.values()):
            found.append(at)
    return found


def is_blank(text: str) -> bool:
    """Whether nothing of it can be seen: neither letter, number, punctuation nor symbol."""
    return not any(category(one)[0] in "LNPS" and one not in INVISIBLE for one in text)


def check_text(row: Row, settings: Settings) -> None:
    """Renders the conversation, and checks that each message is in the text.

    Raises:
        MaskError: one is not, since templates drop roles that they do not know.
    """
    (row.text,) = render([row.messages], settings)
    contents = (message.get("content") for message in row.messages)
    said = "\n".join(content for content in contents if isinstance(content, str))
    unclear, lost = [], []
    for at, message in enumerate(row.messages):
        if message["role"] == "assistant":
            continue
        words = message["content"].strip()
        forms = {words}
        if message["role"] == "tool":  # what tools answer is often written as JSON
            forms |= {json.dumps(words, ensure_ascii=flag)[1:-1] for flag in (False, True)}
        times = sum(map(row.text.count, forms))
        if times == 0:
            lost.append(at)
        elif times > 1 or said.count(words) > 1:
            unclear.append(at)  # the words may be there for another message
    if unclear:
        (marked,) = render([mark(row.messages, unclear)], settings)
        lost += [at for at in unclear if marker(at) not in marked]
    if lost:
        detail = f"message {lost[0] + 1} (role {row.messages[lost[0]]['role']}) is not in its text"
        raise MaskError("the chat template drops a message", detail)


def hide_forged(row: Row, settings: Settings) -> None:
    """Hides the control tokens in a row's own words, which would forge a turn.

    No character moves: each is replaced by one that means nothing.

    Raises:
        MaskError: there are some, and they are to be refused or cannot be told from the template's.
    """
    special, found = settings.special, []

    def hidden(words):
        """Texts, also those inside lists and mappings, without control tokens."""
        if isinstance(words, str):
            names = special.findall(words)
            found.extend(names)
            return special.sub(lambda name: UNUSED * len(name[0]), words) if names else words
        if isinstance(words, dict):
            return {key: hidden(value) for key, value in words.items()}
        return [hidden(value) for value in words] if isinstance(words, list) else words

    row.safe_text, row.safe_messages = row.text, []
    for number, message in enumerate(row.messages, start=1):
        row.safe_messages.append(hidden(message))
        if found and settings.control_tokens == "refuse":
            detail = f"message {number} holds {found[0]}, which forges a turn"
            raise MaskError("control token in the text", detail)
    if found:
        (row.safe_text,) = render([row.safe_messages], settings)
        runs = [run.span() for run in re.finditer(f"{UNUSED}+", row.safe_text)]
        shown = re.sub(f"{UNUSED}+", lambda run: row.text[slice(*run.span())], row.safe_text)
        if shown != row.text:
            raise MaskError("control token in the text", "the chat template hides where it is")
        row.forged = [token.span() for run in runs for token in special.finditer(row.text, *run)]
