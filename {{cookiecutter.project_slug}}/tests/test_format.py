"""Your rows become conversations."""

from sft.files import plain_row
from sft.format import columns, to_conversation


def test_rows_become_turns_with_a_reply(args, rows):
    assert set(columns(args)) <= set(rows.column_names)
    replies = 0
    for row in rows:
        try:
            messages = to_conversation(plain_row(row), args)["messages"]
        except ValueError:  # a row that is skipped
            continue
        replies += 1
        assert any(message["role"] == "assistant" for message in messages)
    assert replies, "none of the first rows can be trained on: python preview.py says why"
