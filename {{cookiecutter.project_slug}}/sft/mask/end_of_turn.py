"""Where a turn ends: the text after a reply that the model has to write as well.

Mostly that is one control token, the same after every reply. But some templates end the last turn
unlike the ones before, or not at all, or with words between control tokens; some write the next
turn's header at once, which is not for the model to write.
"""

from sft.mask.conversation import UNUSED, MaskError, Row, Settings
from sft.mask.template import common_length, render


def find_end(row: Row, settings: Settings) -> None:
    """Finds where the turn of the last reply ends, if the template ends it.

    Raises:
        MaskError: a turn has no clear end.
    """
    text, calls = row.safe_full, row.safe_messages[-1].get("tool_calls")
    header = len(text)
    for token in settings.control.finditer(text, row.start if calls else row.answer[1]):
        if row.safe_prompt.endswith(text[token.start() :]):
            header = token.start()
            break
    run = settings.control_run.match(text, header)
    if run and run.end(1) < run.end():  # of several tokens the first ends the turn before it
        header = run.end(1)
    row.end = (_end_of_calls if calls else _end_of_words)(row, header, settings)
    row.is_ended = row.end > row.answer[1]


def _end_of_words(row: Row, header: int, settings: Settings) -> int:
    """Where the turn ends after the answer; at the answer's end if nothing ends it.

    Args:
        header: where the next turn's begins; the text's length if there is none.
    """
    text, end = row.safe_full, row.answer[1]
    closing, tail = _closing(text, end, settings), text[end:]
    if not closing and tail.strip():
        raise MaskError("no end-of-turn token", "the chat template ends turns with plain text")
    is_eos = settings.eos is not None and closing.endswith(settings.eos)
    has_header = header < len(text)
    if not closing or is_eos or not has_header and tail.strip() == closing.strip():
        return end + len(closing)
    user = {"role": "user", "content": UNUSED}
    shared, words = _shared(row, [user], settings), _plain(tail, settings)
    if shared >= end and not (words and has_header):
        cut = (m.start() for m in settings.control.finditer(tail) if m.end() > shared - end)
        own = tail[: min([shared - end, *cut])].rstrip()
        if not _plain(own, settings) and own.startswith(closing):
            return end + len(closing if words or has_header else own)
        if _plain(own, settings) and settings.control_at_end.search(own):
            return end + len(own)
    raise MaskError("no clear end of turn", f"{tail[:40]!r} follows the last reply")


def _end_of_calls(row: Row, header: int, settings: Settings) -> int:
    """The same after calls of tools: at EOS, or where what the tools answer would follow."""
    text, calls = row.safe_full, row.safe_messages[-1]["tool_calls"]
    eos = text.find(settings.eos, row.start, header) if settings.eos else -1
    if eos >= 0:
        return eos + len(settings.eos)
    answer = {"role": "tool", "content": UNUSED}
    answers = [
        {**answer, "name": call["function"]["name"], "tool_call_id": call.get("id", "")}
        for call in calls
    ]
    try:
        shared = min(header, _shared(row, answers, settings))
    except MaskError:  # which the template takes for no next message
        shared = header
    for end in (shared, header):
        own = text[:end].rstrip()
        tokens = [token.end() for token in settings.special.finditer(own, row.start)]
        if tokens[-1:] == [len(own)]:  # not </tool_call>, which only closes the call
            return len(own)
    return row.answer[1]


def _shared(row: Row, following: list[dict], settings: Settings) -> int:
    """To where the text is the same if other messages follow: that belongs to the turn."""
    (longer,) = render([[*row.safe_messages, *following]], settings, row)
    return common_length(row.safe_full, longer)


def _closing(text: str, end: int, settings: Settings) -> str:
    """The first control token after `end`, or through EOS if control tokens lead up to it.

    "" where plain text or nothing follows.
    """
    run = settings.control_run.match(text, end)
    if run and settings.eos and settings.eos in run[0]:
        return run[0][: run[0].index(settings.eos) + len(settings.eos)]
    return run[1] if run else ""


def _plain(text: str, settings: Settings) -> str:
    """The words between the control tokens of a text."""
    return settings.control.sub("", text).strip()
