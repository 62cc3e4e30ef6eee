"""Where the replies are in the text that the chat template writes.

A reply begins where the generation prompt ends, which inference supplies. What it does not supply
is trained on, such as the empty thought that a template writes before an answer without one.
"""

import re
from os.path import commonprefix

from sft.mask.conversation import MaskError, Row, Settings, after_instructions

MARKER = re.compile("\u2060\\d+\u2060")
SPACES = re.compile(r"\s*")


def render(conversations: list[list[dict]], settings: Settings, **kwargs) -> list[str]:
    """The texts that the chat template writes.

    Raises:
        MaskError: the template refuses one of them, in its own words.
    """
    try:
        return settings.tokenizer.apply_chat_template(conversations, tokenize=False, **kwargs)
    except Exception as error:  # templates raise what they like
        raise MaskError("refused by the chat template", " ".join(str(error).split())) from error


def locate(row: Row, settings: Settings) -> None:
    """Finds the replies that are trained on, without what ends them.

    Raises:
        MaskError: the template makes something else of a reply, or drops its thought.
    """
    messages, marked = row.safe_messages, mark(row.safe_messages, row.trained)
    first = last = after_instructions(messages)
    befores = {}
    for at in row.trained:
        if at and messages[at - 1]["role"] != "assistant":  # or inference has no prompt for it
            # to render all that precedes each of many replies takes too long: instructions stay,
            # and what follows the user's turn before the last reply
            users = (i for i in range(last, first, -1) if messages[i]["role"] == "user")
            befores[at] = messages[:first] + marked[next(users, first) : at]
        last = at
    before = list(befores.values())
    texts = render(before, settings, add_generation_prompt=True) if before else []
    prompts = dict(zip(befores, (MARKER.split(text)[-1] for text in texts), strict=True))
    if not _follows(row, prompts):
        _compare(row, *render([marked], settings), prompts)


def _follows(row: Row, prompts: dict[int, str]) -> bool:
    """Whether the words of the only reply follow its prompt just once; most do.

    Then the template has made nothing else of them, and `row.replies` is filled in.
    """
    text, reply, prompt = row.safe_text, row.safe_messages[-1], prompts.get(row.trained[-1], "")
    is_bare = reply.keys() == {"role", "content"}  # no thought beside the content
    if len(row.trained) == 1 and prompt and is_bare and text.startswith(prompt):
        words, start = reply["content"], len(prompt)
        first = text.find(words, start)
        if first == text.rfind(words, start) >= 0:  # they may overlap
            row.replies = [(start, first + len(words))]
    return bool(row.replies)


def _compare(row: Row, marked: str, prompts: dict[int, str]) -> None:
    """Finds the replies where the text differs from the rendering with markers for them.

    Raises:
        MaskError: it differs elsewhere, or by something else than a reply.
    """
    text, found, literals = row.safe_text, MARKER.findall(marked), MARKER.split(marked)
    if found != [marker(at) for at in row.trained]:
        lost = [at for at in row.trained if found.count(marker(at)) != 1]
        raise _unlocated([*lost, *row.trained][0])
    row.replies, border = [], 0  # the end of the reply before
    for at, before, after in zip(row.trained, literals, literals[1:], strict=False):
        if not text.startswith(before, border):
            raise _unlocated(at)
        answer = row.safe_messages[at]["content"].rpartition("</think>")[2].strip()
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
    content = message["content"].strip()
    thought, tag, answer = content.rpartition("</think>")
    start, fits = border + len(before), True
    if prompt and before.startswith(prompt):
        start = border + len(prompt)
        is_plain = thought.startswith("<think>") and content.count("think>") == 2
        fits = not tag or is_plain or content in text[start:end]
    elif tag:  # the thought has to be trained on as it is, and nothing of it be supplied
        start = len(text[:end].rstrip()) - len(content)
        supplied = border + len(commonprefix([prompt, before]))
        fits = start >= supplied and text.startswith(content, start)
    written = text[start:end].rstrip().removesuffix(answer.lstrip())
    thoughts = [thought.rpartition("<think>")[2]]
    thoughts += [message[key] for key in message if re.search("think|thought|reason", key)]
    if not fits or any(isinstance(t, str) and t.strip() not in written for t in thoughts):
        detail = f"message {at + 1}, or does not prompt for it"
        raise MaskError("the chat template drops the thinking", detail)
    return start


def mark(messages: list[dict], positions: list[int]) -> list[dict]:
    """The messages with markers for what those at `positions` say, except for thoughts."""
    marked = list(messages)
    for at in positions:
        thought, tag, _ = marked[at]["content"].rpartition("</think>")  # where templates split it
        marked[at] = {**marked[at], "content": thought + tag + marker(at)}
    return marked


def marker(at: int) -> str:
    """The marker of a message: its word joiners keep templates from trimming it."""
    return f"\u2060{at}\u2060"
