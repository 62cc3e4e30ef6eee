"""Where the replies are in the text that the chat template writes.

A reply begins where the generation prompt ends, which inference supplies. What it does not supply
is trained on, such as the empty thought that a template writes before an answer without one.
"""

import re

from sft.mask.conversation import (
    MaskError,
    Row,
    after_instructions,
    mark,
    marker,
    render,
    split_thought,
)
from sft.mask.vocabulary import Settings

MARKER = re.compile("\u2060\\d+\u2060")
SPACES = re.compile(r"\s*")


def locate(row: Row, settings: Settings) -> None:
    """Finds the replies that are trained on, without what ends them.

    Raises:
        MaskError: the template makes something else of a reply, or drops its thought.
    """
    messages, tokenizer = row.safe_messages, settings.vocabulary.tokenizer
    prompted = [  # inference has no prompt for a reply that opens a conversation or follows another
        (number, at)
        for number, at in enumerate(row.trained)
        if at and messages[at - 1]["role"] != "assistant"
    ]
    befores = [_before(row, number) for number, _ in prompted]
    texts = render(befores, tokenizer, add_generation_prompt=True) if befores else []
    prompts = {at: MARKER.split(text)[-1] for (_, at), text in zip(prompted, texts, strict=True)}
    if len(row.trained) > 1 or not prompts or not _follows(row, texts[0]):
        (marked,) = render([mark(messages, row.trained)], tokenizer)
        _compare(row, marked, prompts)


def _before(row: Row, number: int) -> list[dict]:
    """The messages before a reply, with the reply before that marked.

    What was said before the user asked for that one is left out: to render all that precedes each
    of many replies takes too long.
    """
    messages, at = row.safe_messages, row.trained[number]
    if number == 0:
        return messages[:at]
    first, last = after_instructions(messages), row.trained[number - 1]
    start = next((i for i in range(last, first, -1) if messages[i]["role"] == "user"), first)
    return messages[:first] + mark(messages[: last + 1], [last])[start:] + messages[last + 1 : at]


def _follows(row: Row, prompt: str) -> bool:
    """Whether the words of the only reply follow the prompt just once; most do.

    Then the template has made nothing else of them.
    """
    text, reply, start = row.safe_text, row.safe_messages[row.trained[0]], len(prompt)
    is_bare = reply.keys() == {"role", "content"}  # no thought beside the content
    first, last = text.find(reply["content"], start), text.rfind(reply["content"], start)
    if is_bare and text.startswith(prompt) and first == last >= 0:  # they may overlap
        row.replies = [(start, first + len(reply["content"]))]
    return bool(row.replies)


def _compare(row: Row, marked: str, prompts: dict[int, str]) -> None:
    """Finds the replies where the text differs from the rendering with markers for them.

    Raises:
        MaskError: it differs elsewhere, or by something else than a reply.
    """
    text, markers = row.safe_text, [marker(at) for at in row.trained]
    found, literals = MARKER.findall(marked), MARKER.split(marked)
    if found != markers:
        lost = [at for at in row.trained if found.count(marker(at)) != 1]
        raise _unlocated([*lost, *row.trained][0])
    border = 0  # the end of the reply before
    for at, before, after in zip(row.trained, literals, literals[1:], strict=False):
        if not text.startswith(before, border):
            raise _unlocated(at)
        answer = split_thought(row.safe_messages[at])[1].strip()
        first = SPACES.match(text, border + len(before)).end()
        if not text.startswith(answer, first):
            detail = f"message {at + 1}: {answer[:40]!r}"
            raise MaskError("the chat template rewrites the reply", detail)
        # white space after the answer is the reply's, but for what the template writes there
        end = SPACES.match(text, first + len(answer)).end() - SPACES.match(after).end()
        row.replies.append((_start(row, at, border, before, end, prompts.get(at, "")), end))
        border = end
    if text[border:] != literals[-1]:
        raise _unlocated(row.trained[-1])


def _unlocated(at: int) -> MaskError:
    detail = f"message {at + 1} cannot be located"
    return MaskError("the chat template depends on the reply", detail)


def _start(row: Row, at: int, border: int, before: str, end: int, prompt: str) -> int:
    """Where a reply that ends at `end` starts: after its prompt, if the template follows that.

    `before` is what the template writes from `border`, the end of the reply before, to the answer.
    """
    message, text = row.safe_messages[at], row.safe_text
    content, (thought, answer) = message["content"].strip(), split_thought(message)
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
    thoughts = [thought.removesuffix("</think>").rpartition("<think>")[2]]
    thoughts += [message[key] for key in message if re.search("think|thought|reason", key)]
    if not fits or any(isinstance(t, str) and t.strip() not in written for t in thoughts):
        detail = f"message {at + 1}, or does not prompt for it"
        raise MaskError("the chat template drops the thinking", detail)
    return start
