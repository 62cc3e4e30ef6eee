"""One row is one exchange: a prompt written from the row's columns, and its response."""

import json
from dataclasses import dataclass
from string import Formatter
from typing import Literal


@dataclass(kw_only=True)
class DatasetArguments:
    """The keys of config.yaml that say which columns are used, and how."""

    prompt_template: str
    response_column: str
    system_prompt: str = ""
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


def to_messages(row: dict, args: DatasetArguments) -> list[dict]:
    """One row as a conversation, `[{"role": ..., "content": ...}, ...]`.

    A whole number, true and false are text as JSON writes them. A ValueError says which column is
    not text, or that the prompt's are empty.
    """
    names, row = columns(args), dict(row)
    for column in names:
        if isinstance(row[column], int):
            row[column] = json.dumps(row[column])
        if not isinstance(row[column], str):
            kind = "null" if row[column] is None else type(row[column]).__name__
            raise ValueError(f"column {column!r} is {kind}, not text")
    parts = Formatter().parse(args.prompt_template)
    prompt = "".join(literal + row.get(column, "") for literal, column, _, _ in parts)
    if not any(row[column].strip() for column in names[:-1]):  # but for the response
        raise ValueError("empty prompt")
    messages = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
    messages.append({"role": "user", "content": prompt})
    messages.append({"role": "assistant", "content": row[args.response_column]})
    return messages
