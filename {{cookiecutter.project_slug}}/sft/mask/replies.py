"""What the model has to write: the text after the prompt with which inference asks for a reply.

That prompt is rendered as inference renders it, from the messages before the reply. Mostly the text
of the conversation continues it. Where it does not, because the prompt begins a thought that the
text lacks, or the template writes an earlier turn in another way, the two are joined.
"""

import re

from sft.mask.conversation import (
    UNUSED,
    MaskError,
    Row,
    Settings,
    Span,
)
from sft.mask.template import (
    CLOSING,
    FIELDS,
    OPENING,
    REASONS,
    TAG,
    after_instructions,
    leaving,
    mark,
    marker,
    render,
    thought_of,
)

MARKER = re.compile("\u2060\\d+\u2060")


def locate(row: Row, settings: Settings) -> None:
    """Finds the words of the last reply, and where the text after the prompt begins.

    Raises:
        MaskError: the template makes something else of the reply.
    """
    reply, prompt, full = row.safe_messages[-1], row.safe_prompt, row.safe_full
    thought, answer = thought_of(reply)
    begun, common = OPENING.search(prompt), leaving(prompt, full)
    row.said = _words(row, answer, common, settings) if answer.strip() else (common, common)
    row.start, is_shown = common, thought and thought in full[common:]
    if not prompt or not full.startswith(prompt) or row.said[0] < common:
        differs = prompt[common:]
        if not answer.strip() and (
            not TAG.match(differs.lstrip() or "<>") or _said(row.safe_messages[-2]) in differs
        ):
            raise MaskError("the chat template depends on the reply", "its prompt is another")
        first = full.find(thought, common) if is_shown else row.said[0]
        tag = OPENING.search(full[:first]) if is_shown and not begun else None
        closed = [end.start() for end in CLOSING.finditer(full, common) if end.end() == first]
        row.start = tag.start() if tag else closed[0] if begun and closed else first
    if not prompt:
        row.prompt, row.safe_prompt = row.full[: row.start], full[: row.start]
    row.between = "" if is_shown else thought
    if begun and not is_shown and not CLOSING.match(full, row.start):
        row.between += _closing(row, begun[0], settings)


def _words(row: Row, answer: str, start: int, settings: Settings) -> Span:
    """Where the answer is in the text, which leaves the prompt at `start`."""
    full = row.safe_full
    if not TAG.sub("", row.safe_prompt[start:]).strip():  # the reply is all that follows
        first = full.find(answer, start)
        if first == full.rfind(answer, start) >= 0:  # once; they may overlap
            return first, first + len(answer)
    last = len(row.safe_messages) - 1
    (marked,) = render([mark(row.safe_messages, [last])], settings, row)
    before, *rest = MARKER.split(marked)
    end = len(full) - len(rest[0]) if rest else 0
    is_same = len(rest) == 1 and full.startswith(before) and full.endswith(rest[0])
    if not is_same or end < len(before):
        detail = f"message {last + 1} cannot be located"
        raise MaskError("the chat template depends on the reply", detail)
    if full[len(before) : end].strip() != answer.strip():
        raise MaskError(REASONS["answer"], f"message {last + 1}: {answer.strip()[:40]!r}")
    return len(before), end


def _closing(row: Row, tag: str, settings: Settings) -> str:
    """What the template writes between a thought and the answer; its tag closed if it drops it."""
    reply = {"role": "assistant", "content": marker(1), **dict.fromkeys(FIELDS, marker(0))}
    (text,) = render([[*row.safe_messages[:-1], reply]], settings, row)
    between = re.search(f"{marker(0)}(.+?){marker(1)}", text, re.DOTALL)
    if between:
        return between[1]
    name = tag.strip()
    end = name.replace("START", "END") if "START" in name else f"{name[0]}/{name[1:]}"
    return f"\n{end}\n\n" if tag.endswith("\n") else end


def join(row: Row, settings: Settings) -> None:
    """Puts the text together, and finds every reply that is trained on in it.

    Where it does not have each after its own prompt and in the same form, the row is unrolled.
    """
    thought = thought_of(row.messages[-1])[0] if row.between else ""
    between = thought + row.between[len(thought) :]
    row.text = row.prompt + between + row.full[row.start :]
    shift = len(row.prompt) + len(between) - row.start
    row.replies = [(len(row.prompt), row.end + shift if row.is_ended else len(row.text))]
    if row.safe_messages is not row.messages:
        safe_text = row.safe_prompt + row.between + row.safe_full[row.start :]
        row.forged = _forged(row, safe_text, settings)
    if len(row.trained) > 1:
        roles = [row.messages[at - 1]["role"] for at in row.trained]
        is_one = row.text == row.full and row.trained[0] > 0 and "assistant" not in roles
        earlier = _earlier(row, settings) if is_one else []
        if len(earlier) < len(row.trained) - 1:
            row.unroll()
        row.replies = [*earlier, *row.replies]


def _forged(row: Row, safe_text: str, settings: Settings) -> list[Span]:
    """Where the control tokens in the row's own words are in its text.

    Raises:
        MaskError: they cannot be told from those of the template.
    """
    runs = [run.span() for run in re.finditer(f"{UNUSED}+", safe_text)]
    shown = re.sub(f"{UNUSED}+", lambda run: row.text[slice(*run.span())], safe_text)
    if shown != row.text:
        raise MaskError("control token in the text", "the chat template hides where it is")
    return [token.span() for run in runs for token in settings.special.finditer(row.text, *run)]


def _earlier(row: Row, settings: Settings) -> list[Span]:
    """The earlier replies in the text, up to the first that is not as inference would have it.

    To render all that precedes each of many replies takes too long: instructions stay, and what
    follows the user's turn before the last reply.
    """
    messages, text = row.safe_messages, row.safe_full
    marked, first = mark(messages, row.trained), after_instructions(messages)
    last, before = first, []
    for at in row.trained[:-1]:
        users = (i for i in range(last, first, -1) if messages[i]["role"] == "user")
        before.append(messages[:first] + marked[next(users, first) : at])
        last = at
    prompts = render(before, settings, row, add_generation_prompt=True)
    content = messages[-1].get("content") or ""  # with its thought, unless that is in a field
    places = (text.find(words, row.start) for words in (content, content.strip()))
    lead = text[row.start : next((at for at in places if at >= 0), row.said[0])]
    end = text[row.said[1] : row.end] or settings.eos or ""
    found, border = [], 0
    for at, prompt in zip(row.trained, prompts, strict=False):
        prompt = MARKER.split(prompt)[-1]
        start = border + len(prompt)
        content = messages[at].get("content") or ""
        for words in (content, content.strip()):
            if words and text.startswith(prompt + lead + words + end, border):
                border = start + len(lead + words)
                found.append((start, border + len(end)))
                break
        else:
            break
    return found


def _said(message: dict) -> str:
    return (message.get("content") or "").strip() or "\0"
