"""One row is one conversation: a list of turns, each with a role and a content."""

import json
from dataclasses import dataclass
from typing import Literal

# the names that ShareGPT's files have for it: {"from": "human", "value": "..."}
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(kw_only=True)
class DatasetArguments:
    """The keys of config.yaml that say which column is used, and how."""

    messages_column: str
    system_prompt: str = ""
    turns: Literal["all", "last"] = "all"  # which replies are trained on
    truncation_mode: Literal["drop", "truncate_prompt", "keep_start"] = "drop"


def columns(args: DatasetArguments) -> list[str]:
    """The columns that every row must have."""
    return [args.messages_column]


def mask_options(args: DatasetArguments) -> dict:
    """Keyword arguments of `sft.mask.encode` that these rows can make use of."""
    return {"turns": args.turns, "truncation_mode": args.truncation_mode}


def to_messages(row: dict, args: DatasetArguments) -> list[dict]:
    """One row as a conversation, `[{"role": ..., "content": ...}, ...]`.

    `system_prompt` is put before conversations that have no system turn of their own. A whole
    number, true and false are text as JSON writes them. A ValueError says that the column is no
    list of turns; what they hold is checked where they are masked.
    """
    turns = row[args.messages_column]
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"column {args.messages_column!r} is not a list of turns")
    messages = []
    for number, turn in enumerate(turns, start=1):
        items = turn.items() if isinstance(turn, dict) else ()
        turn = {key: value for key, value in items if value is not None}
        if "from" in turn and "value" in turn:
            role, content = turn.pop("from"), turn.pop("value")
            turn |= {"role": SHAREGPT_ROLES.get(str(role), role), "content": content}
        if "role" not in turn:
            raise ValueError(f"a turn without role and content: turn {number}")
        if isinstance(turn.get("content"), int):
            turn["content"] = json.dumps(turn["content"])
        if turn["role"] != "system" or turn.get("content") != "":  # an empty one is none
            messages.append(turn)
    if args.system_prompt and messages and messages[0]["role"] not in ("system", "developer"):
        messages.insert(0, {"role": "system", "content": args.system_prompt})
    return messages
