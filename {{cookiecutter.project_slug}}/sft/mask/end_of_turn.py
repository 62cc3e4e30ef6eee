"""Where a turn ends: the text after a reply that the model has to write as well.

Mostly that is one control token, the same after every reply. But some templates end the last turn
unlike the ones before, or not at all, or with words between control tokens; some write the next
turn's header at once, which is not for the model to write.
"""

import re
from os.path import commonprefix

from sft.mask.conversation import UNUSED, MaskError, Row, Settings
from sft.mask.replies import render

PROBE = {"role": "user", "content": UNUSED}


def end_turns(row: Row, settings: Settings) -> None:
    """Extends each reply by what ends its turn.

    Raises:
        MaskError: a turn has no clear end.
    """
    *earlier, (start, end) = row.replies
    last = _end_of_last(row, start, end, settings)
    row.is_ended = bool(last)
    row.replies = [
        (begin, stop + len(_end_of_earlier(row, at, stop, last, settings)))
        for at, (begin, stop) in zip(row.trained[:-1], earlier, strict=True)
    ]
    # where nothing ends the last reply, it ends with the text, white space included
    row.replies.append((start, end + len(last) if last else len(row.text)))


def _end_of_last(row: Row, start: int, end: int, settings: Settings) -> str:
    """What ends the turn of the last reply, from character `start` to `end`; "" if nothing does."""
    text, control = row.safe_text, settings.control
    closing, tail = _closing(text, end, settings), text[end:]
    if not closing and tail.strip():
        raise MaskError("no end-of-turn token", "the chat template ends turns with plain text")
    if not closing or _is_eos(closing, settings):
        return closing
    words = _plain(tail, settings)
    header = any(text[:start].endswith(tail[m.start() :]) for m in control.finditer(tail))
    if not header and tail.strip() == closing.strip():
        return closing
    # what belongs to the turn is there even where another message follows
    (longer,) = render([[*row.safe_messages, PROBE]], settings)
    shared = len(commonprefix([tail, longer[end:]]))
    shared = min([shared, *(m.start() for m in control.finditer(tail) if m.end() > shared)])
    own = tail[:shared].rstrip()
    if longer.startswith(text[:end]) and not (words and header):
        if not _plain(own, settings) and own.startswith(closing):
            return closing if words or header else own
        if _plain(own, settings) and re.search(f"(?:{control.pattern})$", own):
            return own
    raise MaskError("no clear end of turn", f"{tail[:40]!r} follows the last reply")


def _end_of_earlier(row: Row, at: int, end: int, last: str, settings: Settings) -> str:
    """What ends the turn of the reply `row.messages[at]`, which ends at character `end`.

    That is what ends the last reply or a user's turn, or EOS.
    """
    text, following = row.safe_text, row.safe_messages[at + 1]
    if last and text.startswith(last, end):
        return last
    closing = _closing(text, end, settings)
    if _is_eos(closing, settings) or not closing and following["role"] != "user":
        return closing
    header, _, users = render([[PROBE]], settings)[0].partition(UNUSED)
    if closing and any(
        known.startswith(closing) and not _plain(known, settings) for known in (last, users)
    ):
        return closing
    if following["role"] == "user":
        between = text[end : text.find(following["content"].strip(), end)].lstrip()
        if header.endswith(between):
            return ""  # a header is not for the model to write
    raise MaskError("no clear end of turn", f"{text[end : end + 40]!r} follows an earlier reply")


def _closing(text: str, end: int, settings: Settings) -> str:
    """The first control token after `end`, or through EOS if control tokens lead up to it.

    "" where plain text or nothing follows.
    """
    run = settings.control_run.match(text, end)
    if run and settings.eos and settings.eos in run[0]:
        return run[0][: run[0].index(settings.eos) + len(settings.eos)]
    return run[1] if run else ""


def _is_eos(closing: str, settings: Settings) -> bool:
    return settings.eos is not None and closing.endswith(settings.eos)


def _plain(text: str, settings: Settings) -> str:
    """The words between the control tokens of a text."""
    return settings.control.sub("", text).strip()
