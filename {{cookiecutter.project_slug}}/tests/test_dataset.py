"""Your rows become conversations."""

from contextlib import suppress
from dataclasses import replace

import pytest

from sft.examples import Report, encode_rows, prepare
from sft.format import columns, to_messages


def test_every_row_has_the_columns(args, rows):
    assert set(columns(args)) <= set(rows.column_names)


def test_rows_become_turns_with_a_reply(args, rows):
    conversations = []
    for row in rows:
        with suppress(ValueError):
            conversations.append(to_messages(row, args))
    assert conversations, "none of the first rows is a conversation: python preview.py says why"
    for messages in conversations:
        assert any(message["role"] == "assistant" for message in messages)


def test_a_row_with_an_empty_reply_is_set_aside_and_counted(args, rows, tokenizer):
    column = columns(args)[-1]
    filled = rows[0][column]
    empty = [{**turn, "content": ""} for turn in filled] if isinstance(filled, list) else ""
    spoiled = rows.map(
        lambda row, index: {column: empty if index == 0 else row[column]}, with_indices=True
    )
    report = Report.of(encode_rows(spoiled, tokenizer, args))
    assert sum(report.set_aside.values()) >= 1
    assert len(report.lengths) + sum(report.set_aside.values()) == len(rows)
    with pytest.raises(SystemExit, match="row 1: "):
        prepare({"train": spoiled}, tokenizer, replace(args, max_set_aside=0.0))


def test_a_missing_column_is_named(args, rows, tokenizer):
    column = columns(args)[0]
    with pytest.raises(SystemExit, match="has no column"):
        encode_rows(rows.rename_column(column, "something else"), tokenizer, args)
