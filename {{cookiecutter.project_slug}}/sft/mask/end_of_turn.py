"""Where a turn ends: the text after a reply that the model has to write as well.

Mostly that is one control token, the same after every reply. But some templates end the last turn
unlike the ones before, or not at all, or with words between control tokens; some write the next
turn's header at once, which is not for the model to write.
"""

import re
from os.path import commonprefix

from sft.mask.conversation import UNUSED, MaskError, Row, Settings
from sft.mask.template import render

PROBE = {"role": "user", "content": UNUSED}


def end_turn(row: Row, settings: Settings) -> None:
    """Finds where the turn of the last reply ends, if the template ends it.

    Raises:
        MaskError: a turn has no clear end.
    """
    if row.safe_messages[-1].get("tool_calls"):
        row.end = _end_of_calls(row, settings)
    else:
        row.end = row.said[1] + len(_end_of_words(row, settings))
    row.is_ended = row.end > row.said[1]


def _end_of_words(row: Row, settings: Settings) -> str:
    """What ends the turn after the words of the last reply; "" if nothing does."""
    text, control, (start, end) = row.safe_full, settings.control, (row.start, row.said[1])
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
    (longer,) = render([[*row.safe_messages, PROBE]], settings, row)
    shared = len(commonprefix([tail, longer[end:]]))
    shared = min([shared, *(m.start() for m in control.finditer(tail) if m.end() > shared)])
    own = tail[:shared].rstrip()
    if longer.startswith(text[:end]) and not (words and header):
        if not _plain(own, settings) and own.startswith(closing):
            return closing if words or header else own
        if _plain(own, settings) and re.search(f"(?:{control.pattern})$", own):
            return own
    raise MaskError("no clear end of turn", f"{tail[:40]!r} follows the last reply")


def _end_of_calls(row: Row, settings: Settings) -> int:
    """Where the turn ends: what the tools answer would follow; `row.said[1]` if nothing ends it."""
    text, control = row.safe_full, settings.control
    headers = (m.start() for m in control.finditer(text, row.start))
    last = next((at for at in headers if row.safe_prompt.endswith(text[at:])), len(text))
    calls, answer = row.safe_messages[-1]["tool_calls"], {"role": "tool", "content": UNUSED}
    answers = [
        {**answer, "name": call["function"]["name"], "tool_call_id": call.get("id", "")}
        for call in calls
    ]
    try:
        (longer,) = render([[*row.safe_messages, *answers]], settings, row)
        shared = len(commonprefix([text, longer]))
    except MaskError:  # which the template takes for no next message
        shared = last
    eos = text.find(settings.eos, row.start, last) if settings.eos else -1
    if eos >= 0:
        return eos + len(settings.eos)
    for end in (min(shared, last), last):
        own = text[:end].rstrip()
        if len(own) > row.start and re.search(f"(?:{control.pattern})$", own):
            return len(own)
    return row.said[1]


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
