"""One row is one exchange: a prompt written from the row's columns, and its response."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from string import Formatter
from typing import Any, Literal

OPTIONAL_COLUMNS = []  # none is read that a row may lack
IS_CHAT = False  # a response is followed by nothing


@dataclass(kw_only=True)
class DatasetArguments:
    """The keys of config.yaml that say which columns are used, and how."""

    prompt_template: str
    response_column: str
    system_prompt: str = ""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    truncation_mode: Literal["drop", "truncate_prompt"] = "drop"


def columns(args: DatasetArguments) -> list[str]:
    """The columns that every row must have, in order; exits at a wrong `prompt_template`."""
    literal, names = "double the braces that are meant literally.", []
    try:
        for _, name, spec, conversion in Formatter().parse(args.prompt_template):
            if name == "" or spec or conversion:
                raise SystemExit(f"prompt_template: more than a column at {name!r}; {literal}")
            names += [name] if name else []
    except ValueError as error:
        raise SystemExit(f"prompt_template: {error}; {literal}") from None
    if not names:
        raise SystemExit("prompt_template names no column; write one in braces: {question}.")
    if args.response_column in names:
        raise SystemExit(
            f"prompt_template shows the model the column {args.response_column!r}, which it is "
            "trained to write; take it out of prompt_template or response_column."
        )
    return list(dict.fromkeys([*names, args.response_column]))


def mask_options(args: DatasetArguments) -> dict:
    """Keyword arguments of `sft.mask.encode` that these rows can make use of."""
    return {"truncation_mode": args.truncation_mode}


def to_conversation(row: dict, args: DatasetArguments) -> dict:
    """One row as `messages`, `[{"role": ..., "content": ...}, ...]`, and `chat_template_kwargs`.

    A whole number, true and false are text as JSON writes them. A ValueError says which column is
    not text, or that the prompt's are empty.
    """
    names = columns(args)
    row = {column: row.get(column) for column in names}
    for column, value in row.items():
        if isinstance(value, int):
            row[column] = json.dumps(value)
        elif not isinstance(value, str):
            kind = "null" if value is None else type(value).__name__
            raise ValueError(f"column {column!r} is {kind}, not text")
    if not any(row[column].strip() for column in names[:-1]):  # but for the response
        raise ValueError("empty prompt")
    messages = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
    messages.append({"role": "user", "content": write_prompt(row, args)})
    messages.append({"role": "assistant", "content": row[args.response_column]})
    return {"messages": messages, "chat_template_kwargs": args.chat_template_kwargs}


def write_prompt(row: dict, args: DatasetArguments) -> str:
    parts = Formatter().parse(args.prompt_template)
    return "".join(literal + row.get(column, "") for literal, column, _, _ in parts)


def typed_message(read: Callable[[str], str], args: DatasetArguments) -> str:
    """The prompt of what `read` gets for each of its columns: what chat.py asks."""
    return write_prompt({column: read(column) for column in columns(args)[:-1]}, args)
