"""Your rows become conversations."""

from dataclasses import replace

import pytest

from sft.examples import encode_rows, make_examples
from sft.format import columns, to_messages
from sft.row_report import RowReport


def test_rows_become_turns_with_a_reply(args, rows):
    assert set(columns(args)) <= set(rows.column_names)
    replies = 0
    for row in rows:
        try:
            messages = to_messages(row, args)
        except ValueError:  # a row that is skipped
            continue
        replies += 1
        assert any(message["role"] == "assistant" for message in messages)
    assert replies, "none of the first rows can be trained on: python preview.py says why"


def test_a_row_with_an_empty_reply_is_skipped_and_counted(args, rows, tokenizer):
    column = columns(args)[-1]
    reply = rows[0][column]
    empty = [{**turn, "content": ""} for turn in reply] if isinstance(reply, list) else ""
    spoiled = rows.map(
        lambda row, index: {column: empty if index == 0 else row[column]}, with_indices=True
    )
    report = RowReport(encode_rows(spoiled, tokenizer, args))
    assert 1 in [row for skipped in report.skipped.values() for row, _ in skipped]
    assert len(report.used) + sum(map(len, report.skipped.values())) == len(rows)
    with pytest.raises(SystemExit, match="row 1: "):
        make_examples({"train": spoiled}, tokenizer, replace(args, max_skipped=0.0))


def test_a_missing_column_is_named(args, rows, tokenizer):
    column = columns(args)[0]
    with pytest.raises(SystemExit, match="has no column"):
        encode_rows(rows.rename_column(column, "something else"), tokenizer, args)
