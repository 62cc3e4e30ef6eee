"""One row is one conversation: a list of turns, each with a role and a content."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

OPTIONAL_COLUMNS = ["tools", "chat_template_kwargs", "system"]  # read where the rows have them
IS_CHAT = True  # a reply is followed by the user's next turn
# other files' names for the roles, such as ShareGPT's {"from": "human", "value": "..."}
ROLES = {"human": "user", "gpt": "assistant"}
ROLES |= dict.fromkeys(("observation", "tool_response", "function"), "tool")
CALLS = ("function_call", "tool_call")  # roles of replies that are JSON of what they call


@dataclass(kw_only=True)
class DatasetArguments:
    """The keys of config.yaml that say which column is used, and how."""

    messages_column: str
    system_prompt: str = ""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    turns: Literal["all", "last"] = "all"  # which replies are trained on
    truncation_mode: Literal["drop", "truncate_prompt", "keep_start"] = "drop"


def columns(args: DatasetArguments) -> list[str]:
    """The columns that every row must have."""
    return [args.messages_column]


def mask_options(args: DatasetArguments) -> dict:
    """Keyword arguments of `sft.mask.encode` that these rows can make use of."""
    return {"turns": args.turns, "truncation_mode": args.truncation_mode}


def to_conversation(row: dict, args: DatasetArguments) -> dict:
    """One row as `messages`, in OpenAI's form, and what the chat template is given beside them.

    That is `tools`, unless a system turn spells them out as Hermes' do, and `chat_template_kwargs`:
    config.yaml's, or the row's where both have a key. A conversation without a system turn begins
    with the column `system`, else with `system_prompt`. A ValueError names the column and the turn
    that are wrong; what turns say is checked where they are masked.
    """
    column, messages, before = args.messages_column, [], None
    turns = read_json(row.get(column))
    if isinstance(turns, str) and turns.strip():
        fix = 'a list of {"role": "user", "content": "..."}, or JSON text of one'
        raise ValueError(f"column {column!r} is not a list of turns but one text: make it {fix}")
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"column {column!r} is not a list of turns")
    for number, turn in enumerate(turns, start=1):
        try:
            message = to_message(turn)
        except ValueError as error:
            raise ValueError(f"{error} in column {column!r}: turn {number}") from None
        role = turn.get("from", turn.get("role"))
        if role == before in CALLS:  # called at once with those before
            messages[-1]["tool_calls"] += message["tool_calls"]
        elif message["role"] != "system" or message.get("content") != "":  # an empty one is none
            messages.append(message)
        before = role
    system = row.get("system") or args.system_prompt
    if not isinstance(system, str):
        raise ValueError(f"column 'system' is {type(system).__name__}, not text")
    if system and messages and messages[0]["role"] not in ("system", "developer"):
        messages.insert(0, {"role": "system", "content": system})
    conversation = {"messages": messages}
    tools = functions(read_json(row.get("tools")) or [], "column 'tools'")
    if tools and "<tools>" not in str([one for one in messages if one["role"] == "system"]):
        conversation["tools"] = tools
    kwargs = read_json(row.get("chat_template_kwargs")) or {}
    if not isinstance(kwargs, dict):
        raise ValueError("column 'chat_template_kwargs' is neither a mapping nor JSON of one")
    return conversation | {"chat_template_kwargs": args.chat_template_kwargs | kwargs}


def to_message(turn: object) -> dict:
    """A turn in OpenAI's form: its role and content, and what a reply calls as `tool_calls`.

    A whole number, true and false are text as JSON writes them.
    """
    message = dict(turn) if isinstance(turn, dict) else {}
    if "from" in message and "value" in message:
        message |= {"role": message.pop("from"), "content": message.pop("value")}
    if "role" not in message:
        raise ValueError("a turn without role and content")
    role, content = message["role"], message.get("content")
    calls = read_json(message.pop("tool_calls", None) or message.pop("function_call", None))
    is_call = role in CALLS
    if is_call:
        is_text = isinstance(content, str)
        thought, tag, calls = content.rpartition("</think>") if is_text else ("", "", content)
        role, content = "assistant", thought + tag
    message["role"] = ROLES.get(str(role), role)
    if content is not None:
        message["content"] = json.dumps(content) if isinstance(content, int) else content
    if is_call or calls:
        message["tool_calls"] = functions(calls, "what a reply calls")
        if not content:
            message.pop("content", None)
    return message


def functions(given: object, name: str) -> list[dict]:
    """Tools or calls in OpenAI's form, `[{"type": "function", "function": {"name": ...}}, ...]`.

    They are given so, or as `function` alone, as one or a list, or as JSON text of these.
    """
    found, given = [], read_json(given)
    for one in map(read_json, given if isinstance(given, list) else [given]):
        one = one if isinstance(one, dict) and "function" in one else {"function": one}
        if not isinstance(one["function"], dict) or "name" not in one["function"]:
            raise ValueError(f"{name} is no list of functions with names, or JSON text of one")
        found.append({"type": "function", **one})
    return found


def read_json(given: object) -> object:
    """What a text says as JSON; any other text or value as it is."""
    with suppress(ValueError, RecursionError):
        return json.loads(given) if isinstance(given, str) else given
    return given


def typed_message(read: Callable[[str], str], args: DatasetArguments) -> str:
    """A user's turn, as it is typed: what chat.py asks."""
    return read("")
