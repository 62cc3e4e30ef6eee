"""Your rows become conversations."""

import pytest

from sft.dataset import columns, to_messages
from sft.preprocess import preprocess


def test_every_row_has_the_columns(args, rows):
    assert set(columns(args)) <= set(rows.column_names)


def test_rows_become_turns_that_end_with_the_assistant(args, rows):
    for row in rows:
        messages = to_messages(row, args)
        assert messages[-1]["role"] == "assistant"
        assert all(message["content"].strip() for message in messages)


def test_a_row_with_an_empty_reply_is_set_aside_and_counted(args, rows, tokenizer):
    column = columns(args)[-1]
    filled = rows[0][column]
    empty = [{**turn, "content": ""} for turn in filled] if isinstance(filled, list) else ""
    spoiled = rows.map(
        lambda row, index: {column: empty if index == 0 else row[column]}, with_indices=True
    )
    dataset, report = preprocess(spoiled, tokenizer, args)
    assert sum(report.set_aside.values()) >= 1
    assert len(dataset) + sum(report.set_aside.values()) == len(rows)


def test_a_missing_column_is_named(args, rows, tokenizer):
    column = columns(args)[0]
    with pytest.raises(SystemExit, match="has no column"):
        preprocess(rows.rename_column(column, "something else"), tokenizer, args)
