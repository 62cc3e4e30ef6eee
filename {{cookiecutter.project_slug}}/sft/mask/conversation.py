"""A conversation before it is masked: is it sound, how does it read, what can be left out of it."""

import json
import re
from contextlib import suppress

from transformers import PreTrainedTokenizerBase as Tokenizer

ROLES = ("system", "developer", "user", "assistant", "tool")


class MaskError(ValueError):
    """This conversation cannot be trained on: `reason` in few words, then the detail."""

    def __init__(self, reason: str, detail: str = ""):
        self.reason = reason
        super().__init__(f"{reason}: {detail}" if detail else reason)


def attempt(function, *args, **kwargs):
    """What the function returns, or the ValueError it raises or is given: one row ends no batch."""
    try:
        return next((arg for arg in args if isinstance(arg, ValueError)), None) or function(
            *args, **kwargs
        )
    except ValueError as error:
        return error


def of_sound(function, results: list) -> list:
    """What the function makes of those that are no ValueError, which stay where they are."""
    made = iter(function([result for result in results if not isinstance(result, ValueError)]))
    return [result if isinstance(result, ValueError) else next(made) for result in results]


def check(messages: list[dict], turns: str) -> tuple[list[dict], list[int]]:
    """The conversation through its last reply to train on, and the positions of all of these.

    Raises:
        MaskError: a message without known role or text, a reply that calls tools, or no reply.
    """
    for number, message in enumerate(messages, start=1):
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
    replies = _replies(messages)
    if not replies:
        raise MaskError("no assistant turn to train on")
    trained = replies if turns == "all" else replies[-1:]
    for at in trained:
        if messages[at].get("tool_calls"):
            detail = f"message {at + 1}; only text is trained on"
            raise MaskError("a reply that calls tools", detail)
        if not messages[at]["content"].rpartition("</think>")[2].strip():  # a thought is no reply
            raise MaskError("empty reply", f"message {at + 1}")
    return messages[: replies[-1] + 1], trained


def _replies(messages: list[dict]) -> list[int]:
    """The positions of those to learn; OpenAI's files mark what is only read by a weight of 0."""
    learnt = (m["role"] == "assistant" and m.get("weight") != 0 for m in messages)
    return [at for at, is_learnt in enumerate(learnt) if is_learnt]


def render(tokenizer: Tokenizer, messages: list[dict], **kwargs) -> str:
    """The text that the chat template writes.

    Raises:
        MaskError: the template refuses the conversation, in its own words.
    """
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
    except Exception as error:  # templates raise what they like
        raise MaskError("refused by the chat template", " ".join(str(error).split())) from error


def render_each(
    tokenizer: Tokenizer, conversations: list[list[dict]], **kwargs
) -> list[str | MaskError]:
    """What `render` makes of each conversation, or what it raises."""
    if len(conversations) > 1:
        with suppress(Exception):  # one that is refused ends the call: half of them, then
            return tokenizer.apply_chat_template(conversations, tokenize=False, **kwargs)
        half = len(conversations) // 2
        parts = conversations[:half], conversations[half:]
        return [text for part in parts for text in render_each(tokenizer, part, **kwargs)]
    return [attempt(render, tokenizer, messages, **kwargs) for messages in conversations]


def check_text(text: str, messages: list[dict], tokenizer: Tokenizer, mark: str) -> None:
    """Templates pass over what they do not know, a system message for one.

    Args:
        text: what the template wrote.
        mark: a text that no message holds.

    Raises:
        MaskError: what a message says is not in the text.
    """
    for at, message in enumerate(messages):
        if message["role"] == "assistant":
            continue
        others = [*messages[:at], *messages[at + 1 :]]
        content, times = message["content"].strip(), text.count(message["content"].strip())
        if times > 1 or any(content in (other["content"] or "") for other in others):
            # it may stand there for another message
            marked = {**message, "content": mark}
            times = render(tokenizer, [*messages[:at], marked, *messages[at + 1 :]]).count(mark)
        elif message["role"] == "tool":  # what tools answer is often written as JSON
            spelt = (json.dumps(content, ensure_ascii=is_ascii)[1:-1] for is_ascii in (0, 1))
            times = times or sum(map(text.count, spelt))
        if not times:
            detail = f"message {at + 1} (role {message['role']}) is not in what it writes"
            raise MaskError("the chat template drops a message", detail)


def thinking(message: dict) -> list[str]:
    """What a reply thinks before it answers: at the start of its content, or beside it."""
    thought = message["content"].rpartition("</think>")[0].rpartition("<think>")[2]
    named = (key for key in message if re.search("think|thought|reason", key))
    beside = [message[key] for key in named if isinstance(message[key], str)]
    return [part.strip() for part in (thought, *beside)]


def shorten(
    messages: list[dict], excess: int, tokenizer: Tokenizer, truncation_mode: str
) -> list[dict] | None:
    """The conversation with something left out, or None where nothing more may be left out.

    Whole messages go, or text of a prompt: what is left is rendered anew, so neither a reply nor
    the template's frame is ever cut.

    Args:
        excess: tokens that are too many; the result may still be too long.
        truncation_mode: "truncate_prompt" leaves out the oldest turns, then the start of the prompt
            that is left; system messages stay. "keep_start" leaves out the newest turns. "drop"
            leaves out nothing.
    """
    replies = _replies(messages)
    messages = messages[: replies[-1] + 1]
    if truncation_mode == "keep_start":
        return messages[: replies[-2] + 1] if len(replies) > 1 else None
    if truncation_mode == "truncate_prompt":
        first = next(at for at, message in enumerate(messages) if message["role"] not in ROLES[:2])
        for at in range(first + 1, len(messages)):
            if messages[at]["role"] == "user":
                return messages[:first] + messages[at:]
        prompt = messages[first]
        if prompt["role"] == "user" and (
            text := _without_start(prompt["content"], excess, tokenizer)
        ):
            return [*messages[:first], {**prompt, "content": text}, *messages[first + 1 :]]
    return None


def _without_start(text: str, excess: int, tokenizer: Tokenizer) -> str:
    """The text without its first `excess` tokens, and at least without its first character."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = [start for start, _ in offsets["offset_mapping"][excess:] if start > 0]
    return text[starts[0] :].strip() if starts else ""
