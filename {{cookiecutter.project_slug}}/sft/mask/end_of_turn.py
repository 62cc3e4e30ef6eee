"""Where a turn ends: the text behind a reply that the model has to write as well.

Mostly that is one control token, and it is the same behind every reply. But some templates end the
last turn otherwise than the ones before, or not at all, or with words between control tokens; some
write the next turn's header at once, which is not for the model to write.
"""

import re
from os.path import commonprefix

from sft.mask.control_tokens import UNUSED, ControlTokens
from sft.mask.conversation import MaskError, render

PROBE = {"role": "user", "content": UNUSED}


def end_of_last(
    messages: list[dict], text: str, start: int, end: int, control: ControlTokens
) -> str:
    """What ends the turn of the last reply, `text[start:end]`; "" if nothing does.

    Raises:
        MaskError: the turn has no clear end.
    """
    closing, tail = control.closing(text, end), text[end:]
    if not closing and tail.strip():
        raise MaskError("no end-of-turn token", "the chat template ends turns with plain text")
    if not closing or control.is_eos(closing):
        return closing
    words = control.plain(tail)
    header = any(text[:start].endswith(tail[m.start() :]) for m in control.any.finditer(tail))
    if not words and not header and tail.strip() == closing.strip():
        return closing
    # what is the turn's own stands there even where another message follows
    longer = render(control.tokenizer, [*messages, PROBE])
    shared = len(commonprefix([tail, longer[end:]]))
    shared = min([shared, *(m.start() for m in control.any.finditer(tail) if m.end() > shared)])
    own = tail[:shared].rstrip()
    if longer.startswith(text[:end]) and not (words and header):
        if not control.plain(own) and own.startswith(closing):
            return closing if words or header else own
        if control.plain(own) and re.search(f"(?:{control.any.pattern})$", own):
            return own
    raise MaskError("no clear end of turn", f"behind the last reply stands {tail[:40]!r}")


def end_of_earlier(following: dict, text: str, end: int, last: str, control: ControlTokens) -> str:
    """What ends the turn of an earlier reply: what ends the last one or a user's turn, or EOS.

    Args:
        following: the next message.
        end: where the reply ends in `text`.
        last: what ends the last reply.

    Raises:
        MaskError: something else stands there, and it is no user's header.
    """
    if last and text.startswith(last, end):
        return last
    closing = control.closing(text, end)
    if control.is_eos(closing) or not closing and following["role"] != "user":
        return closing
    header, _, users = render(control.tokenizer, [PROBE]).partition(UNUSED)
    if closing and any(
        known.startswith(closing) and not control.plain(known) for known in (last, users)
    ):
        return closing
    between = text[end : text.find(following["content"].strip(), end)].lstrip()
    if following["role"] == "user" and header.endswith(between):
        return ""  # a header is not for the model to write
    raise MaskError("no clear end of turn", f"{between[:40]!r} follows an earlier reply")
