"""One row, one conversation: a list of turns, each with a role and a content."""

from dataclasses import dataclass

ROLES = ("system", "user", "assistant", "tool")


@dataclass(kw_only=True)
class DatasetArguments:
    """The keys of config.yaml that say which column is used, and how."""

    messages_column: str
    system_prompt: str = ""


def columns(args: DatasetArguments) -> list[str]:
    """The columns that every row must have."""
    return [args.messages_column]


def to_messages(row: dict, args: DatasetArguments) -> list[dict]:
    """One row as a conversation: `[{"role": ..., "content": ...}, ...]`.

    `system_prompt` is put before conversations that have no system turn of their own.

    Raises:
        ValueError: the column is no list of turns, or a turn has no known role or no text.
    """
    turns = row[args.messages_column]
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"column {args.messages_column!r} is no list of turns")
    messages = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise ValueError(f"a turn without role and content: turn {number}")
        # Arrow gives each turn all keys that any turn has; those it did not have are None
        turn = {key: value for key, value in turn.items() if value is not None}
        if turn.get("role") not in ROLES:
            raise ValueError(f"a role that is not one of {', '.join(ROLES)}: turn {number}")
        if not isinstance(turn.get("content"), str) or not turn["content"].strip():
            raise ValueError(f"a turn without text: turn {number}")
        messages.append(turn)
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("the conversation has no assistant turn")
    if args.system_prompt and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": args.system_prompt})
    return messages
