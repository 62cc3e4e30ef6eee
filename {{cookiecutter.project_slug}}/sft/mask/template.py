"""What the chat template is asked: prompts, texts, and in which form it reads a reply.

Templates differ in where they read a reply's thought and its tool calls. A thought may be in the
content, as <think>...</think>, or in a field of its own; a call's arguments may be a mapping or
JSON text. The first form is used in which the template writes all of the reply: others lose the
thought, or train on it as if it were the answer.
"""

import json
import re
import signal
import threading
from bisect import bisect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import groupby, product
from pathlib import Path
from typing import Any

from sft.mask.conversation import INSTRUCTIONS, ROWS_IN_A_CALL, MaskError, Row, Settings

FIELDS = ("reasoning_content", "reasoning", "thinking")  # templates have these names for it
FIELD = re.compile("think|thought|reason")  # what such a name has in it
INLINE = re.compile(r"\s*<think>(.*?)</think>\s*(.*)", re.DOTALL)
# tags such as <think>, [THINK], <seed:think> or <|START_THINKING|>, and those that end a thought
OPENING = re.compile(r"[<\[](?!/|\|?END)[^<>\[\]]*think[^<>\[\]]*[>\]]\s*\Z", re.IGNORECASE)
CLOSING = re.compile(r"\s*[<\[](?:/|\|?END)[^<>\[\]]*think[^<>\[\]]*[>\]]\s*", re.IGNORECASE)
TAG = re.compile(r"[<\[][^<>\[\]]*[>\]]")
MOST_SECONDS = 20  # for one call of the template, which takes milliseconds
MOST_BYTES = 4 * 2**30  # that rendering may take; it needs a few MB
CLOCK = getattr(signal, "ITIMER_REAL", 0)
set_clock = getattr(signal, "setitimer", lambda *_: None)  # Windows has none
MARKER = re.compile("\u2060\\d+\u2060")  # as `marker` writes it
# what a template asks for beside the messages, in "... is defined" or "not ..."
KEY = re.compile(
    r"(?<!\.)\b(?:\w*think\w*|reasoning_effort)(?= is defined)|(?<=not )\w+_thinking\b"
)
REASONS = {
    "answer": "the chat template rewrites the reply",
    "thought": "the chat template drops the thinking",
    "place": "the chat template asks for a reply without thinking",
    "calls": "the chat template does not write the tool calls",
}


def render(conversations: list[list[dict]], settings: Settings, row: Row, **kwargs) -> list[str]:
    """The texts that the chat template writes, with what the row gives it beside the messages.

    Raises:
        MaskError: the template refuses one of them, in its own words.
    """
    kwargs |= {"tokenize": False, **row.extra}
    set_clock(CLOCK, MOST_SECONDS)
    try:
        return settings.tokenizer.apply_chat_template(conversations, **kwargs)
    except MemoryError:
        raise
    except Exception as error:  # templates raise what they like
        raise MaskError("refused by the chat template", " ".join(str(error).split())) from error
    finally:
        set_clock(CLOCK, 0)


class TooSlow(SystemExit):
    """A call of the template takes more than `MOST_SECONDS`."""


class Endless(SystemExit, Exception):
    """Ends the program with its text, also from a worker process: only Exceptions leave those."""


@contextmanager
def limited() -> Iterator[None]:
    """Exit where a chat template loops or allocates without end: it is a program of others.

    `render` starts the clock anew. What has no such limits (Windows, a thread) goes without.
    """
    statm = Path("/proc/self/statm")  # Linux
    if not statm.exists() or threading.current_thread() is not threading.main_thread():
        yield
        return
    import resource

    def stop(*_) -> None:
        raise TooSlow(f"{MOST_SECONDS} seconds for a conversation")

    used = int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, hard))
    set_clock(CLOCK, MOST_SECONDS)
    try:
        yield
    except (MemoryError, TooSlow) as ended:
        most = ended if isinstance(ended, TooSlow) else f"{MOST_BYTES / 2**30:g} GB"
        raise Endless(f"The chat template takes over {most}.") from None
    finally:
        set_clock(CLOCK, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def render_rows(rows: list[Row], settings: Settings) -> None:
    """Renders prompt and text in each row's first form: many in a call, which takes less time."""

    def alike(numbered: tuple[int, Row]) -> tuple:
        number, row = numbered
        return number // ROWS_IN_A_CALL, row.is_prompted, repr(row.extra)  # True is no 1 there

    numbered = enumerate(row for row in rows if len(row.messages) > 1)
    for _, these in groupby(numbered, alike):
        some = [row for _, row in these]
        with suppress(ValueError, TooSlow):  # `render_row` finds out whose it is
            found = _render_pairs([next(forms(row)) for row in some], some[0], settings)
            for row, pair in zip(some, found, strict=True):
                row.prompt, row.full = pair


def _render_pairs(
    conversations: list[list[dict]], row: Row, settings: Settings
) -> list[tuple[str, str]]:
    """The prompt for each last reply, and the text with it; of conversations like that of `row`."""
    before = [messages[:-1] for messages in conversations]
    ask = {"add_generation_prompt": row.is_prompted}
    prompts = render(before, settings, row, **ask) if before[0] else [""]
    return [*zip(prompts, render(conversations, settings, row), strict=True)]


def render_row(row: Row, settings: Settings) -> None:
    """Finds the first form in which the text has all of the reply; renders what is not yet.

    Raises:
        MaskError: there is no such form, and the template does not prompt for a thought either.
    """
    refusal, with_thought, prompt, full = None, None, row.prompt, row.full
    for number, messages in enumerate(forms(row)):
        try:
            if number or not full:  # not rendered yet
                ((prompt, full),) = _render_pairs([messages], row, settings)
        except MaskError as error:
            refusal = refusal or error
            continue
        at = diverges_at(prompt, full)
        row.messages, row.full, row.start = messages, full, at
        row.prompt = prompt if row.is_prompted else full[:at]
        thought = row.thought
        missing = missing_part(messages[-1], thought, row.answer_text, full[at:])
        is_open = thought and opening_at_end(row.prompt)
        is_over = thought and prompt[at:].strip() and full[at:].lstrip().startswith(thought)
        if not missing and is_over and row.is_prompted and not is_open:  # the prompt closes it
            raise _refusal("place", messages[-1], len(messages), settings)
        if not missing:
            return
        if missing == "thought" and is_open:
            with_thought = with_thought or (messages, full, at, row.prompt)
        elif refusal is None or "refused" in refusal.reason:
            refusal = _refusal(missing, messages[-1], len(messages), settings)
    if with_thought is None:
        raise refusal
    row.messages, row.full, row.start, row.prompt = with_thought


def _refusal(missing: str, reply: dict, number: int, settings: Settings) -> MaskError:
    """Why the template does not write all of a reply, and what may help."""
    detail = f"message {number}"
    if missing == "answer" and reply.get("tool_calls"):
        detail += ", which calls tools beside its text; take the text out"
    keys = KEY.findall(str(settings.tokenizer.chat_template))
    if missing in ("thought", "place") and keys:
        detail += f"; chat_template_kwargs may help, with {' or '.join(dict.fromkeys(keys))}"
    return MaskError(REASONS[missing], detail)


def diverges_at(prompt: str, full: str) -> int:
    """Where `full` differs from the prompt: after all of it, or before a tag that is another."""
    if full.startswith(prompt):
        return len(prompt)
    at = common_length(prompt, full)
    tags = TAG.finditer(prompt, max(0, at - 40))
    return next((tag.start() for tag in tags if tag.start() < at < tag.end()), at)


def opening_at_end(text: str) -> re.Match | None:
    """The tag that opens a thought, where a text ends with one."""
    return OPENING.match(text, max(text.rfind("<"), text.rfind("["), 0))


def common_length(one: str, other: str) -> int:
    """How many characters both texts begin with."""
    lengths = range(1, 1 + min(len(one), len(other)))
    return bisect(lengths, False, key=lambda length: one[:length] != other[:length])


def forms(row: Row) -> Iterator[list[dict]]:
    """The conversation in each form that its last reply and its calls can have; mostly one.

    Thoughts of earlier replies stay as they are: they are what inference is given.
    """
    messages, thought, answer = row.messages, row.thought, row.answer_text
    *earlier, reply = messages
    has_calls = [message for message in messages if "tool_calls" in message]
    if not thought and not has_calls:
        yield messages
        return
    as_text, empty = ((False, True), ("", None)) if has_calls else ((False,), ("",))
    for how in product(as_text, empty):
        before = [_with_calls(one, *how) for one in earlier]
        if thought:
            in_field = {**reply, "content": answer, **dict.fromkeys(FIELDS, thought)}
            yield [*before, _with_calls(in_field, *how)]
        if answer != reply.get("content", "") or not thought:  # it is in the content
            yield [*before, _with_calls(reply, *how)]


def _with_calls(reply: dict, as_text: bool, empty: str | None) -> dict:
    """The reply with what its calls pass as mappings or as JSON text, and its content if empty."""
    if not reply.get("tool_calls"):
        return reply
    calls = [{**call, "function": dict(call["function"])} for call in reply["tool_calls"]]
    for call in calls if as_text else ():
        call["function"]["arguments"] = _json(call["function"]["arguments"])
    return {**reply, "content": reply.get("content") or empty, "tool_calls": calls}


def thought_of(reply: dict) -> tuple[str, str]:
    """Its thought, or "", and its answer."""
    content = reply.get("content") or ""
    for field in FIELDS:
        if isinstance(reply.get(field), str) and reply[field].strip():
            return reply[field].strip(), content
    found = INLINE.fullmatch(content)
    if found and content.count("think>") == 2:
        return found[1].strip(), found[2]
    return "", content


def read_call(call: dict) -> dict:
    """A call of a tool in OpenAI's form, with its arguments as a mapping.

    Raises:
        ValueError: a call without a name, or arguments that are no mapping.
    """
    function = call.get("function", call) if isinstance(call, dict) else {}
    name, arguments = function.get("name"), function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError("a call needs a name, and arguments that are a mapping")
    others = {key: value for key, value in call.items() if key not in ("name", "arguments")}
    return {"type": "function", **others, "function": {"name": name, "arguments": arguments}}


def missing_part(reply: dict, thought: str, answer: str, text: str) -> str:
    """What of a reply, in one of its forms, is not in the text: "" if all is."""
    if answer.strip() not in text:
        return "thought" if "</think>" in answer else "answer"
    thoughts = [thought, *[reply[key] for key in reply if FIELD.search(key)]]
    if [one for one in thoughts if isinstance(one, str) and one.strip() not in text]:
        return "thought"
    for call in reply.get("tool_calls") or []:
        name, given = call["function"]["name"], call["function"]["arguments"]
        arguments = json.loads(given) if isinstance(given, str) else given
        is_twice = given != arguments and given != _json(given)[1:-1] in text
        if is_twice or not _is_in(text, [name, arguments]):
            return "calls"
    return ""


def after_instructions(messages: list[dict]) -> int:
    """The position of the first message that is no system or developer message."""
    return next(at for at, message in enumerate(messages) if message["role"] not in INSTRUCTIONS)


def mark(messages: list[dict], positions: list[int]) -> list[dict]:
    """The messages with markers for what those at `positions` say, except for thoughts."""
    marked = list(messages)
    for at in positions:
        content = marked[at].get("content") or ""
        before = content.removesuffix(thought_of(marked[at])[1])
        marked[at] = {**marked[at], "content": before + marker(at)}
    return marked


def marker(at: int) -> str:
    """Stands for what a message says: its word joiners keep templates from trimming it."""
    return f"\u2060{at}\u2060"


def _is_in(text: str, value: Any) -> bool:
    """Whether all of a value is in the text, in whatever form it is written."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return all(_is_in(text, part) for part in value)
    written = (json.dumps(value, ensure_ascii=flag).strip('"') for flag in (False, True))
    return any(form in text for form in (str(value), *written))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
