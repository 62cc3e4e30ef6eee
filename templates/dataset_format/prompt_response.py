"""One row is one exchange: a prompt written from the row's columns, and its response."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from string import Formatter
from types import UnionType
from typing import Any, Literal

OPTIONAL_COLUMNS = []  # none is read that a row may lack
IS_CHAT = False  # a response is followed by nothing
parse = cache(lambda template: [*Formatter().parse(template)])


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
        for _, name, spec, conversion in parse(args.prompt_template):
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

    Numbers, true and false are text as JSON writes them, but for a response with a fraction. A
    ValueError says which column is not text, or that the prompt's are empty.
    """
    *of_prompt, answer = columns(args)
    texts = {
        column: to_text(row, column, int | float) if column in row else "" for column in of_prompt
    }
    if not any(map(str.strip, texts.values())):
        missing = [column for column in of_prompt if column not in row]
        raise ValueError(f"column {missing[0]!r} is null, not text" if missing else "empty prompt")
    texts[answer] = to_text(row, answer, int)
    messages = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
    messages.append({"role": "user", "content": write_prompt(args.prompt_template, texts)})
    messages.append({"role": "assistant", "content": texts[answer]})
    return {"messages": messages, "chat_template_kwargs": args.chat_template_kwargs}


def to_text(row: dict, column: str, numbers: type | UnionType) -> str:
    value = row.get(column)
    if isinstance(value, numbers):
        return json.dumps(value)
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise ValueError(f"column {column!r} is {kind}, not text")
    return value


def write_prompt(template: str, texts: dict, parts: tuple = ("\n\n", "\n")) -> str:
    """The template filled in, without the paragraphs and lines whose columns are all empty."""
    if not parts or all(map(str.strip, texts.values())):  # none is empty
        fields = parse(template)
        return "".join(literal + texts.get(column, "") for literal, column, _, _ in fields)
    written = []
    for part in template.split(parts[0]):
        names = [column for _, column, _, _ in parse(part) if column]
        if not names or any(texts.get(column, "").strip() for column in names):
            written.append(write_prompt(part, texts, parts[1:]))
    return parts[0].join(written)


def typed_message(read: Callable[[str], str], args: DatasetArguments) -> str:
    """The prompt of what `read` gets for each of its columns: what chat.py asks.

    Raises:
        EOFError: all are empty.
    """
    texts, of_prompt = {}, columns(args)[:-1]
    for column in of_prompt:
        with suppress(EOFError):
            texts[column] = read(column)
    if not texts:
        raise EOFError
    return write_prompt(args.prompt_template, dict.fromkeys(of_prompt, "") | texts)
