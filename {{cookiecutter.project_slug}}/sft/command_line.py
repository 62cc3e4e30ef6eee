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

    It is a value of config.yaml, or what `by_key` made of the command line; exits where it is of
    none of the types.
    """
    allowed, readings = _allowed(annotation), [given]
    if isinstance(given, str):
        readings = [_read(given), given, [given]]
    elif given == []:
        readings = [True, given]  # a switch, such as --smoke
    for value in readings:
        if Any in allowed or type(value) in allowed or value in allowed:
            return value
        if type(value) is int and float in allowed:
            return float(value)
    wanted = " or ".join(str(NAMES.get(one, one)) for one in allowed)
    raise SystemExit(f"config.yaml or the command line: {key} must be {wanted}, not {given!r}.")


def _allowed(annotation: Any) -> list:
    """The types and single values that it names: for `bool | Literal["a"]`, [bool, "a"]."""
    is_union = get_origin(annotation) in (Union, UnionType)
    kinds, allowed = get_args(annotation) if is_union else [annotation], []
    is_enum = EnumType in map(type, kinds)
    for kind in kinds:
        if isinstance(kind, EnumType):
            allowed += [member.value for member in kind]
        elif get_origin(kind) is Literal:
            allowed += get_args(kind)
        elif kind is not NoneType and not (is_enum and kind is str):  # which means a member's text
            allowed.append(get_origin(kind) or kind)
    return allowed


def _read(text: str) -> Any:
    """A number, true, a list or a mapping; any other text stays as it is, blanks included."""
    for read in (int, float, yaml.safe_load):  # YAML alone takes 1e-4 for text
        with suppress(ValueError, yaml.YAMLError):
            value = read(text)
            return text if value is None or isinstance(value, str) else value
    return text
