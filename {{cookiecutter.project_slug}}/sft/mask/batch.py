"""Many conversations at once, step by step: each is a row on its way to examples."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.mask.checks import check_messages, check_prompt, hide_forged
from sft.mask.conversation import Row, Settings
from sft.mask.end_of_turn import end_turn
from sft.mask.replies import join, locate
from sft.mask.shorten import TOO_LONG, shorten
from sft.mask.template import CLOCK, MOST_SECONDS, ask, set_clock
from sft.mask.tokens import label, tokenize

STEPS = (
    check_messages,  # is the conversation sound, and which replies are trained on
    ask,  # the prompt of the last reply, and the text with it
    check_prompt,  # is every message in the prompt
    hide_forged,  # control tokens in the row's own words: refused, or hidden
    locate,  # the last reply in the text
    end_turn,  # what ends it
    join,  # prompt and reply to one text, with all replies that it serves
    tokenize,  # text to ids, replies to spans of ids
    label,  # spans to labels
)
MOST_BYTES = 4 * 2**30  # that rendering may take; it needs a few MB


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
        raise SystemExit(f"{MOST_SECONDS} seconds for a conversation")

    used = int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, hard))
    set_clock(CLOCK, MOST_SECONDS)
    try:
        yield
    except (MemoryError, SystemExit) as ended:
        most = ended if isinstance(ended, SystemExit) else f"{MOST_BYTES / 2**30:g} GB"
        raise Endless(f"The chat template takes over {most}.") from None
    finally:
        set_clock(CLOCK, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


@limited()
def encode_batch(
    conversations: list[list[dict] | dict | ValueError],
    tokenizer: Tokenizer,
    max_length: int | None = None,
    turns: str = "all",
    truncation_mode: str = "drop",
    control_tokens: str = "refuse",
) -> list[list[dict] | ValueError]:
    """What `encode_examples` returns or raises for each conversation.

    One is a list of messages, or a mapping of `messages`, `tools` and `chat_template_kwargs`; a
    ValueError stays one.
    """
    changing = (str(tokenizer.chat_template), tokenizer.eos_token, len(tokenizer))
    settings = _settings(tokenizer, control_tokens, *changing)

    def mask(rows: list[Row]) -> None:
        """Takes the rows through all steps; one with an error, or with parts, goes no further."""
        for step in STEPS:
            if step is tokenize:  # one call for many texts takes less time
                tokenize([row for row in rows if row.error is None and not row.parts], settings)
                continue
            for row in rows:
                if row.error is None and not row.parts:
                    try:
                        step(row, settings)
                    except ValueError as error:
                        row.error = error

    def fit(row: Row) -> dict | ValueError:
        """The row as an example, shortened if it is too long."""
        is_long = row.error is None and max_length is not None and len(row.ids) > max_length
        if is_long:
            row = shorten(row, max_length, truncation_mode, mask, tokenizer)
        example = {"input_ids": row.ids, "labels": row.labels, "shortened": is_long}
        return row.error or example

    rows = [_row(conversation, turns) for conversation in conversations]
    mask(rows)
    mask([part for row in rows for part in row.parts])
    examples = []
    for row in rows:
        found = [fit(part) for part in row.parts or [row]]
        refusals = [one for one in found if isinstance(one, ValueError)]
        fitting = [one for one in found if not isinstance(one, ValueError)]
        if truncation_mode == "keep_start" and fitting:  # the newest turns are left out
            refusals = [one for one in refusals if TOO_LONG not in str(one)]
        examples.append(refusals[0] if refusals else fitting)
    return examples


def _row(conversation: list[dict] | dict | ValueError, turns: str) -> Row:
    if isinstance(conversation, ValueError):
        return Row([], turns, error=conversation)
    if isinstance(conversation, list):
        return Row(conversation, turns)
    extra = dict(conversation.get("chat_template_kwargs") or {})
    if conversation.get("tools"):
        extra["tools"] = conversation["tools"]
    return Row(conversation["messages"], turns, extra)


@lru_cache(maxsize=4)  # to read a tokenizer's control tokens takes longer than to mask a row
def _settings(tokenizer: Tokenizer, control_tokens: str, *what_may_change) -> Settings:
    return Settings(tokenizer, control_tokens)
