"""Whether a conversation can be trained on, and whether its chat template writes it as it is."""

import json
import re
from functools import lru_cache
from unicodedata import category

from sft.mask.conversation import INSTRUCTIONS, UNUSED, MaskError, Row, Settings
from sft.mask.template import mark, marker, read_call, render, thought_of

INVISIBLE = "\u115f\u1160\u2800\u3164\uffa0"  # fillers that Unicode counts as letters or symbols
# keys of a message that say whether it is trained on, and what reads like one
SWITCHES = ("weight", "loss", "loss_mask", "train", "training", "trainable")
SWITCH = re.compile(r"(?:^|[\W_])(?:weight|loss|train|mask|learn)", re.IGNORECASE)
reads_like_switch = lru_cache(SWITCH.search)
ROLES = (*INSTRUCTIONS, "user", "assistant", "tool")


def check_messages(row: Row, settings: Settings) -> None:
    """Cuts the conversation after its last reply; says which are trained on, and what a chat asks.

    Raises:
        MaskError: a message without known role or text, a call without a name, or no reply.
    """
    row.messages, replies = list(row.messages), weighted_replies(row.messages)
    row.trained = replies if row.turns == "all" else replies[-1:]
    for at, message in enumerate(row.messages):
        role, content, where = message.get("role"), message.get("content"), f"message {at + 1}"
        if role not in ROLES:
            raise MaskError("unknown role", f"{where} has {role!r}; known are {', '.join(ROLES)}")
        calls = message.get("tool_calls") if role == "assistant" else None
        if calls:
            try:
                row.messages[at] = {**message, "tool_calls": [read_call(one) for one in calls]}
            except (ValueError, TypeError) as error:
                raise MaskError("tool calls that cannot be read", f"{where}: {error}") from None
            content = "" if content is None else content
        if not isinstance(content, str):
            kind = "null" if content is None else type(content).__name__
            raise MaskError("content that is not text", f"{where} holds {kind}")
        answer = content.rpartition("</think>")[2] if at in row.trained else content
        if is_blank(answer) and not calls:
            raise MaskError("empty reply" if role == "assistant" else "empty message", where)
    if not replies:
        raise MaskError("no assistant turn to train on")
    row.messages = row.messages[: replies[-1] + 1]
    row.is_prompted = len(row.messages) > 1 and row.messages[-2]["role"] != "assistant"
    row.thought, row.answer_text = thought_of(row.messages[-1])


def weighted_replies(messages: list[dict]) -> list[int]:
    """The positions of the replies, without those that the data marks as context only.

    `"weight": 0` is OpenAI's mark for it, and other tools have `loss`, `train` or `trainable`.

    Raises:
        MaskError: a mark of that kind that is not understood.
    """
    found = []
    for at, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        marks = {key: value for key, value in message.items() if reads_like_switch(key)}
        for key, value in marks.items():
            if key not in SWITCHES or value not in (0, 1):
                detail = f"message {at + 1} has {key}: {value!r}"
                raise MaskError("a mark of what to train on that is not known", detail)
        if all(marks.values()):
            found.append(at)
    return found


def is_blank(text: str) -> bool:
    """Whether nothing of it can be seen: neither letter, number, punctuation nor symbol."""
    for one in text:
        if category(one)[0] in "LNPS" and one not in INVISIBLE:
            return False
    return True


def check_prompt(row: Row, settings: Settings) -> None:
    """Checks that each message, and each tool, is in the prompt.

    Raises:
        MaskError: one is not, since templates drop what they do not know.
    """
    contents = "\n".join([message.get("content") or "" for message in row.messages])
    text = row.prompt if row.is_prompted else row.full
    unclear, lost = [], []
    for at, message in enumerate(row.messages[:-1]):
        if message["role"] == "assistant":
            continue
        words = message["content"].strip()
        forms = {words}
        if message["role"] == "tool":  # what tools answer is often written as JSON
            forms |= {json.dumps(words, ensure_ascii=flag)[1:-1] for flag in (False, True)}
        times = sum(map(text.count, forms))
        if times == 0:
            lost.append(at)
        elif times > 1 or contents.count(words) > 1:
            unclear.append(at)  # the words may be there for another message
    if unclear:
        markers, marked = {at: marker(at) for at in unclear}, [mark(row.messages[:-1], unclear)]
        (marked,) = render(marked, settings, row, add_generation_prompt=row.is_prompted)
        lost += [at for at in unclear if markers[at] not in marked]
    if lost:
        detail = f"message {lost[0] + 1} (role {row.messages[lost[0]]['role']}) is not in its text"
        raise MaskError("the chat template drops a message", detail)
    for tool in row.extra.get("tools") or []:
        name = tool.get("function", tool).get("name") if isinstance(tool, dict) else None
        if not isinstance(name, str) or name not in text:
            raise MaskError("the chat template does not write the tools", f"{name!r} is not there")


def hide_control_tokens(row: Row, settings: Settings) -> None:
    """Hides the control tokens in a row's own words, which would forge a turn.

    No character moves: each is replaced by one that means nothing.

    Raises:
        MaskError: there are some, and they are to be refused.
    """
    special, found = settings.special, []
    row.safe_messages, row.safe_prompt, row.safe_full = row.messages, row.prompt, row.full
    texts = [text for message in row.messages for text in message.values()]
    if not row.extra and {*map(type, texts)} == {str} and not special.search("\n".join(texts)):
        return  # most rows have none

    def hidden(words):
        """Texts, also those inside lists and mappings, without control tokens."""
        if isinstance(words, str):
            names = special.findall(words)
            found.extend(names)
            return special.sub(lambda name: UNUSED * len(name[0]), words) if names else words
        if isinstance(words, dict):
            return {key: hidden(value) for key, value in words.items()}
        return [hidden(value) for value in words] if isinstance(words, list) else words

    safe = []
    for number, message in enumerate([row.extra, *row.messages]):
        safe.append(hidden(message))
        if found and (number == 0 or settings.control_tokens == "refuse"):
            where = f"message {number}" if number else "tools"
            detail = f"{where} holds {found[0]}, which forges a turn"
            raise MaskError("control token in the text", detail)
    if found:
        row.safe_messages = safe[1:]
        (row.safe_full,) = render([row.safe_messages], settings, row)
        row.safe_prompt = row.safe_full[: len(row.prompt)]
        if row.is_prompted:
            before = [row.safe_messages[:-1]]
            (row.safe_prompt,) = render(before, settings, row, add_generation_prompt=True)
