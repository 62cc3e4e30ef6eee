"""What the model has to write: the text after the prompt with which inference asks for a reply.

That prompt is rendered as inference renders it, from the messages before the reply. Mostly the text
of the conversation continues it. Where it does not, because the prompt begins a thought that the
text lacks, or the template writes an earlier turn in another way, the two are joined.
"""

import re

from sft.mask.conversation import UNUSED, MaskError, Row, Settings, Span
from sft.mask.template import (
    CLOSING,
    FIELDS,
    MARKER,
    REASONS,
    TAG,
    after_instructions,
    diverges_at,
    mark,
    marker,
    opening_at_end,
    render,
    thought_of,
)


def locate_reply(row: Row, settings: Settings) -> None:
    """Finds the last reply's answer, what the text has after the prompt, and what it lacks there.

    Raises:
        MaskError: the template makes something else of the reply.
    """
    prompt, full = row.safe_prompt, row.safe_full
    thought, answer, at = row.thought, row.answer_text, row.start
    if full is not row.full:
        (thought, answer), at = thought_of(row.safe_messages[-1]), diverges_at(prompt, full)
    row.answer = _locate_answer(row, answer, at, settings) if answer.strip() else (at, at)
    shown = thought if thought in full[at:] else ""
    continues = row.is_prompted and full.startswith(prompt) and row.answer[0] >= at
    row.start = at if continues else _own_start(row, at, shown)
    if not row.is_prompted:
        row.prompt, row.safe_prompt = row.full[: row.start], full[: row.start]
    row.inserted = "" if shown else thought
    opened = opening_at_end(prompt)
    if opened and not shown and not CLOSING.match(full, row.start):
        row.inserted += _closing(row, opened[0], settings)


def _locate_answer(row: Row, answer: str, start: int, settings: Settings) -> Span:
    """Where the answer is in the text, which differs from the prompt from `start` on."""
    full, last = row.safe_full, len(row.safe_messages) - 1
    if not TAG.sub("", row.safe_prompt[start:]).strip():  # the reply is all that follows
        first = full.find(answer, start)
        if first == full.rfind(answer, start) >= 0:  # once; they may overlap
            return first, first + len(answer)
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


def _own_start(row: Row, at: int, thought: str) -> int:
    """Where the reply's own text begins that does not continue the prompt: with thought or answer.

    The thought's tags belong to it unless the prompt has them.
    """
    prompt, full = row.safe_prompt, row.safe_full
    if row.answer == (at, at):  # calls alone
        differs, question = prompt[at:], (row.safe_messages[-2:][0].get("content") or "").strip()
        is_tag = TAG.match(differs.lstrip() or "<>") and not (question and question in differs)
        if not row.is_prompted or not is_tag:
            raise MaskError("the chat template depends on the reply", "its prompt is another")
    first = full.find(thought, at) if thought else row.answer[0]
    if opening_at_end(prompt):
        closed = (tag.start() for tag in CLOSING.finditer(full, at) if tag.end() == first)
        return next(closed, first)
    opened = opening_at_end(full[:first]) if thought else None
    return opened.start() if opened else first


def _closing(row: Row, tag: str, settings: Settings) -> str:
    """What the template writes between a thought and the answer; its tag closed if it drops it."""
    reply = {"role": "assistant", "content": marker(1), **dict.fromkeys(FIELDS, marker(0))}
    (text,) = render([[*row.safe_messages[:-1], reply]], settings, row)
    closing = re.search(f"{marker(0)}(.+?){marker(1)}", text, re.DOTALL)
    if closing:
        return closing[1]
    name = tag.strip()
    end = name.replace("START", "END") if "START" in name else f"{name[0]}/{name[1:]}"
    return f"\n{end}\n\n" if tag.endswith("\n") else end


def build_text(row: Row, settings: Settings) -> None:
    """Puts prompt and reply to one text, and finds every reply that is trained on in it.

    Where it does not have each after its own prompt and in the same form, the row is unrolled.
    """
    thought = row.thought if row.inserted else ""
    before = row.prompt + thought + row.inserted[len(thought) :]
    row.text = before + row.full[row.start :]
    end = len(before) + row.end - row.start if row.is_ended else len(row.text)
    row.replies = [(len(row.prompt), end)]
    if row.safe_messages is not row.messages:
        safe_text = row.safe_prompt + row.inserted + row.safe_full[row.start :]
        row.forged = _forged(row, safe_text, settings)
    if len(row.trained) > 1:
        roles = {row.messages[at - 1]["role"] for at in row.trained}
        calls = any(row.messages[at].get("tool_calls") for at in row.trained)
        is_one = row.text == row.full and row.trained[0] > 0 and "assistant" not in roles
        earlier = _earlier(row, settings) if is_one and not calls else []
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
    places = (text.find(words, row.start) for words in _wordings(messages[-1]))
    lead = text[row.start : next((at for at in places if at >= 0), row.answer[0])]
    end = text[row.answer[1] : row.end] or settings.eos or ""
    found, border = [], 0
    for at, prompt in zip(row.trained, prompts, strict=False):
        prompt = MARKER.split(prompt)[-1]
        written = (prompt + lead + words for words in _wordings(messages[at]) if words)
        reply = next((one for one in written if text.startswith(one + end, border)), None)
        if reply is None:
            break
        start, border = border + len(prompt), border + len(reply)
        found.append((start, border + len(end)))
    return found


def _wordings(message: dict) -> tuple[str, str]:
    """What it says as templates may write it; a thought may be in it."""
    content = message.get("content") or ""
    return content, content.strip()
