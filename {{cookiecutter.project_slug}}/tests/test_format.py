"""Your rows become conversations."""

import json
from dataclasses import replace

import pytest
from datasets import Dataset

from sft.examples import encode_rows, make_examples
from sft.files import plain_row
from sft.format import columns, to_messages
from sft.row_report import RowReport


def test_rows_become_turns_with_a_reply(args, rows):
    assert set(columns(args)) <= set(rows.column_names)
    replies = 0
    for row in rows:
        try:
            messages = to_messages(plain_row(row), args)
        except ValueError:  # a row that is skipped
            continue
        replies += 1
        assert any(message["role"] == "assistant" for message in messages)
    assert replies, "none of the first rows can be trained on: python preview.py says why"


def test_a_row_with_an_empty_reply_is_skipped_and_counted(args, rows, tokenizer):
    column = columns(args)[-1]
    values = [*map(plain_row, rows)]
    reply = values[0][column]
    empty = [{**turn, "content": ""} for turn in reply] if isinstance(reply, list) else ""
    values[0][column] = empty
    spoiled = Dataset.from_list(
        [{key: json.dumps(value).encode() for key, value in row.items()} for row in values]
    )
    report = RowReport(encode_rows(spoiled, tokenizer, args))
    assert 1 in [row for skipped in report.skipped.values() for row, _ in skipped]
    assert len(report.used) + sum(map(len, report.skipped.values())) == len(rows)
    with pytest.raises(SystemExit, match="row 1: "):
        make_examples({"train": spoiled}, tokenizer, replace(args, max_skipped=0.0))
