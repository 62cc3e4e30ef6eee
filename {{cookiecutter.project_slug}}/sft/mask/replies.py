"""Where the replies are in the text that the chat template writes.

A reply begins where the generation prompt ends, which inference supplies. What it does not supply
is trained on, such as the empty thought that a template writes before an answer without one.
"""

import re

from sft.mask.conversation import (
    MARK,
    ROLES,
    MaskError,
    Row,
    mark,
    marker,
    render_each,
    split_thought,
)
from sft.mask.vocabulary import Settings

SPACES = re.compile(r"\s*")


def render_prompts(rows: list[Row], settings: Settings) -> None:
    """Renders what inference would prompt each reply with, as far as it follows the one before."""
    prompts = [
        (row, number, _before(row, number))
        for row in rows
        for number, at in enumerate(row.trained)
        if at and row.messages[at - 1]["role"] != "assistant"  # or nothing would prompt for it
    ]
    for row in rows:
        row.prompts = [""] * len(row.trained)
    texts = render_each(
        [messages for _, _, messages in prompts],
        [row for row, _, _ in prompts],
        settings.vocabulary.tokenizer,
        add_generation_prompt=True,
    )
    for (row, number, _), text in zip(prompts, texts, strict=True):
        row.prompts[number] = MARK.split(text)[-1] if number else text


def _before(row: Row, number: int) -> list[dict]:
    """The messages before a reply, with the reply before it marked.

    What was said before the user asked for that one is left out: to render all that precedes each
    of many replies takes too long.
    """
    messages, at = row.safe_messages, row.trained[number]
    if number == 0:
        return messages[:at]
    last = row.trained[number - 1]
    first = next(i for i, message in enumerate(messages) if message["role"] not in ROLES[:2])
    start = next((i for i in range(last, first, -1) if messages[i]["role"] == "user"), first)
    return messages[:first] + mark(messages[start:at], {last - start})


def find_by_prompt(row: Row, settings: Settings) -> None:
    """Finds a single reply that ends the conversation, if the prompt is followed by its words.

    Where they follow just once, the template has made nothing else of them. Most rows are so.
    """
    *_, reply = row.safe_messages
    prompt, words = row.prompts[-1], reply["content"]
    is_bare = reply.keys() == {"role", "content"}  # no thought beside the content
    if len(row.trained) == 1 and prompt and is_bare and row.safe_text.startswith(prompt):
        start = len(prompt)
        first, last = row.safe_text.find(words, start), row.safe_text.rfind(words, start)
        if first == last >= 0:  # they may overlap
            row.replies = [(start, first + len(words))]


def render_marked(rows: list[Row], settings: Settings) -> None:
    """Renders the other conversations with markers for replies."""
    rows = [row for row in rows if not row.replies]
    marked = [mark(row.safe_messages, row.trained) for row in rows]
    texts = render_each(marked, rows, settings.vocabulary.tokenizer)
    for row, text in zip(rows, texts, strict=True):
        row.marked = text


def locate(row: Row, settings: Settings) -> None:
    """Finds the replies: what the text has in place of the markers, from the prompt's end on.

    Raises:
        MaskError: the template makes something else of a reply, or drops its thought.
    """
    if row.replies:
        return
    text, marks = row.safe_text, [marker(at) for at in row.trained]
    found, literals = MARK.findall(row.marked), MARK.split(row.marked)
    if found != marks:
        lost = (at for at, one in zip(row.trained, marks, strict=True) if found.count(one) != 1)
        raise _unlocated(next(lost, row.trained[-1]))
    border = 0  # the end of the reply before
    for number, at in enumerate(row.trained):
        before, after = literals[number : number + 2]
        if not text.startswith(before, border):
            raise _unlocated(at)
        answer = split_thought(row.safe_messages[at])[1].strip()
        first = SPACES.match(text, border + len(before)).end()
        if not text.startswith(answer, first):
            detail = f"message {at + 1}: {answer[:40]!r}"
            raise MaskError("the chat template rewrites the reply", detail)
        # white space after the answer is the reply's, but for what `after` begins with
        end = SPACES.match(text, first + len(answer)).end() - SPACES.match(after).end()
        start = _start(row, number, border, before, end)
        row.replies.append((start, end))
        border = end
    if text[border:] != literals[-1]:
        raise _unlocated(row.trained[-1])


def _unlocated(at: int) -> MaskError:
    detail = f"message {at + 1} cannot be located"
    return MaskError("the chat template depends on the reply", detail)


def _start(row: Row, number: int, border: int, before: str, end: int) -> int:
    """Where a reply that ends at `end` starts: after its prompt, if the template follows that.

    Args:
        number: the reply's, in `row.trained`.
        border: the end of the reply before.
        before: what the template writes between that one's answer and this one's.

    Raises:
        MaskError: a thought is not in the reply, or not all of it.
    """
    at, prompt, text = row.trained[number], row.prompts[number], row.safe_text
    content = row.safe_messages[at]["content"].strip()
    thought, answer = split_thought(row.safe_messages[at])
    start, fits = border + len(before), True
    if prompt and before.startswith(prompt):
        start = border + len(prompt)
    elif thought:  # it has to be trained on as it is
        start = len(text[:end].rstrip()) - len(content)
        ahead = start - border
        is_supplied = len(prompt) > ahead and before.startswith(prompt[: ahead + 1])
        fits = ahead >= 0 and text.startswith(content, start) and not is_supplied
    is_plain = thought.lstrip().startswith("<think>") and content.count("think>") == 2
    fits &= not thought or is_plain or content in text[start:end]
    written = text[start:end].rstrip().removesuffix(answer.strip())
    if not fits or any(part not in written for part in _thinking(row.safe_messages[at])):
        detail = f"message {at + 1}, or does not prompt for it"
        raise MaskError("the chat template drops the thinking", detail)
    return start


def _thinking(message: dict) -> list[str]:
    """What a reply thinks before it answers: at the start of its content, or beside it."""
    thought = message["content"].rpartition("</think>")[0].rpartition("<think>")[2]
    named = (key for key in message if re.search("think|thought|reason", key))
    beside = [message[key] for key in named if isinstance(message[key], str)]
    return [part.strip() for part in (thought, *beside)]
