"""One row is one text, trained on from its first token to its last."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import Any

OPTIONAL_COLUMNS = []  # none is read that a row may lack
IS_CHAT = True  # an answer is followed by the user's next turn


@dataclass(kw_only=True)
class DatasetArguments:
    """The keys of config.yaml that say which column is used, and how chat.py begins."""

    text_column: str
    system_prompt: str = ""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)


def columns(args: DatasetArguments) -> list[str]:
    """The columns that every row must have."""
    return [args.text_column]


def mask_options(args: DatasetArguments) -> dict:
    """Keyword arguments of `encode_batch` that these rows can make use of: none."""
    return {}


def to_conversation(row: dict, args: DatasetArguments) -> dict:
    """One row as one message; a ValueError says what is no text."""
    text = row.get(args.text_column)
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        raise ValueError(f"column {args.text_column!r} is {kind}, not text")
    if not text.strip():
        raise ValueError("empty text")
    return {"messages": [{"role": "assistant", "content": text}]}


def encode_batch(
    conversations: list[dict | ValueError], tokenizer: Any, max_length: int, control_tokens: str
) -> list[list[dict] | ValueError]:
    """Each text as examples of `input_ids` and `labels`, all of which are trained on.

    A text of more than `max_length` tokens is cut into pieces of about the same length. The last
    one ends with the end-of-text token; each begins as the tokenizer begins a text.
    """
    # here, for sft/config.py imports this file and may import no torch
    from sft.mask.conversation import Settings

    settings, found = Settings(tokenizer, control_tokens), []
    begin = [one for one in tokenizer("a")["input_ids"][:1] if one == tokenizer.bos_token_id]
    for conversation in conversations:
        if isinstance(conversation, ValueError):
            found.append(conversation)
            continue
        (message,) = conversation["messages"]
        special = settings.special.search(message["content"])
        if special and control_tokens == "refuse":
            found.append(ValueError(f"control token in the text: it holds {special[0]}"))
            continue
        ids = [*settings.ids_of(message["content"], True), tokenizer.eos_token_id]
        count = ceil(len(ids) / (max_length - len(begin)))
        bounds = [len(ids) * number // count for number in range(count + 1)]
        pieces = [begin + ids[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]
        found.append([{"input_ids": one, "labels": one, "shortened": False} for one in pieces])
    return found


def typed_message(read: Callable[[str], str], args: DatasetArguments) -> str:
    """A user's turn, as it is typed: what chat.py asks."""
    return read("")
