"""Examples as columns, which is how they are cached."""

from itertools import chain

import numpy as np
import pyarrow
from datasets import Dataset, Features, List, Value

FEATURES = Features(
    {
        "row": Value("int32"),  # the position of the row that it is of, from 0
        "title": Value("string"),  # for people: "row 1", or "row 1, example 2 of 3"
        "input_ids": List(Value("int32")),
        "labels": List(Value("int32")),
        "length": Value("int32"),  # of both; 0 where the row is skipped
        "trained": Value("int32"),  # tokens with a label
        "reason": Value("string"),  # why it is skipped, or ""
        "shortened": Value("bool"),
        "source": Value("string"),  # which of several it is from, or ""
        "text_hash": Value("int64"),  # rows that say the same share it
    }
)


def to_table(examples: list[dict]) -> pyarrow.Table:
    """Examples that have `FEATURES` but for `length` and `trained`, which are counted here."""
    columns = {name: [example[name] for example in examples] for name in examples[0]}
    columns["length"] = [*map(len, columns["labels"])]
    borders = np.cumsum([0, *columns["length"]], dtype=np.int32)
    for name in ("input_ids", "labels"):  # Arrow by itself takes twice the time for lists of lists
        tokens = np.fromiter(chain.from_iterable(columns[name]), np.int32, borders[-1])
        columns[name] = pyarrow.ListArray.from_arrays(borders, tokens)
    trained = np.cumsum(np.append(0, tokens != -100))[borders]
    return pyarrow.table(columns | {"trained": np.diff(trained)}, FEATURES.arrow_schema)


def column(examples: Dataset, name: str) -> np.ndarray:
    """A column, read at once and without the tokens: datasets gathers it row by row."""
    values = examples.data.column(name).to_numpy()
    return values if examples._indices is None else values[examples._indices.column(0).to_numpy()]
