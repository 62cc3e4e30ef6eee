"""The words of a command line, as values of the types that their keys have."""

import difflib
from collections.abc import Iterable
from contextlib import suppress
from datetime import date
from enum import EnumType
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
NAMES |= {list: "a list", dict: "a mapping"}


def by_key(words: list[str]) -> dict[str, str | list[str]]:
    """`--key=value` and `--key value` as a text; `--key` and `--key one two` as a list of texts.

    Raises:
        SystemExit: the first word is no key.
    """
    texts, key = {}, None
    for word in words:
        if word.startswith("--"):
            key, is_given, value = word[2:].partition("=")
            texts[key] = [value] if is_given else []
        elif key is None:
            raise SystemExit(f"{word!r} belongs to no key; write --key=value.")
        else:
            texts[key].append(word)
    return {key: found[0] if len(found) == 1 else found for key, found in texts.items()}


def refuse_unknown(keys: Iterable[str], known: Iterable[str]) -> None:
    """Name the first key that does not exist, and the nearest one that does."""
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise SystemExit(f"There is no key {key!r}{hint} (see config.yaml).")


def typed(key: str, given: Any, kind: Any) -> Any:
    """What is given for a key, as one of its types: `bool | str` makes `true` True, and `all` text.

    Args:
        given: a value of config.yaml, or what `by_key` made of the command line.

    Raises:
        SystemExit: it is of none of the types.
    """
    kinds = _kinds(kind)
    readings = [given]
    if isinstance(given, str):
        value = _as_yaml(given)
        readings = [given] if value is None and str in kinds else [value, given, [given]]
    elif given == []:
        readings = [True, given]  # a switch, such as --smoke
    elif type(given) in (int, float, date):
        readings = [given, str(given)]
    for value in readings:
        for each in kinds:
            if _is_a(value, each):
                return each(value) if each in (float, Path) else value
    wanted = " or ".join(_name(each) for each in kinds if each is not NoneType)
    raise SystemExit(f"config.yaml or the command line: {key} must be {wanted}, not {given!r}.")


def _kinds(kind: Any) -> list:
    """The types of an annotation; `Enum | str` is the text of one of its members."""
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    kinds = [*get_args(kind)] if get_origin(kind) in (Union, UnionType) else [kind]
    enums = [each for each in kinds if isinstance(each, EnumType)]
    members = [Literal[tuple(member.value for member in enum)] for enum in enums]
    return members + [each for each in kinds if each not in (enums and [*enums, str])]


def _is_a(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(value, bool):  # which Python takes for a number
        return kind is bool
    classes = {float: (int, float), Path: str}
    return isinstance(value, classes.get(kind, get_origin(kind) or kind))


def _name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    kind = get_origin(kind) or kind
    return NAMES.get(kind, kind.__name__)


def _as_yaml(text: str) -> Any:
    for read in (int, float, yaml.safe_load):  # YAML alone takes 1e-4 for text
        with suppress(ValueError, yaml.YAMLError):
            return read(text)
    return text
