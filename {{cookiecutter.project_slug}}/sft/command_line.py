"""Command line words as values of the types that their keys have."""

import difflib
from collections.abc import Iterable
from contextlib import suppress
from enum import EnumType
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

NAMES = {bool: "true or false", int: "a whole number", float: "a number"}
NAMES |= {str: "text", list: "a list", dict: "a mapping"}
# the Python classes of a type's values, where they are not the type itself
CLASSES = {Any: object, float: (int, float)}


def by_key(words: list[str]) -> dict[str, str | list[str]]:
    """`--key=value` and `--key value` as a text; `--key` and `--key one two` as a list of texts."""
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
    """Exit at the first key that does not exist, and name the nearest one that does."""
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise SystemExit(f"There is no key {key!r}{hint} (see config.yaml).")


def typed(key: str, given: Any, annotation: Any) -> Any:
    """What is given for a key, as one of its types: for `bool | str`, `true` is True, `all` text.

    Args:
        given: a value of config.yaml, or what `by_key` made of the command line.

    Raises:
        SystemExit: it is of none of the types.
    """
    kinds, readings = _kinds(annotation), [given]
    if isinstance(given, str):
        readings = [_read(given), given, [given]]
    elif given == []:
        readings = [True, given]  # a switch, such as --smoke
    for value in readings:
        for kind in kinds:
            if _is_a(value, kind):
                return float(value) if kind is float else value
    names = [str(name) for kind in kinds for name in get_args(kind) or [NAMES.get(kind, kind)]]
    wanted = " or ".join(names)
    raise SystemExit(f"config.yaml or the command line: {key} must be {wanted}, not {given!r}.")


def _kinds(annotation: Any) -> list:
    """The types that an annotation allows; `Enum | str` is the text of one of its members."""
    kinds = [annotation]
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    for enum in [kind for kind in kinds if isinstance(kind, EnumType)]:
        members = Literal[tuple(member.value for member in enum)]
        kinds = [members, *(kind for kind in kinds if kind not in (enum, str))]
    return [get_origin(kind) if get_origin(kind) in NAMES else kind for kind in kinds]


def _is_a(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(value, bool):  # which Python takes for a number
        return kind in (bool, Any)
    return isinstance(value, CLASSES.get(kind, kind))


def _read(text: str) -> Any:
    """A number, true, a list or a mapping; any other text stays as it is, blanks included."""
    for read in (int, float, yaml.safe_load):  # YAML alone takes 1e-4 for text
        with suppress(ValueError, yaml.YAMLError):
            value = read(text)
            return text if value is None or isinstance(value, str) else value
    return text
