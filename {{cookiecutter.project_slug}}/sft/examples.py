"""Rows to examples: encoded in batches, cached, and what cannot be trained on set aside."""

import gc
import inspect
import os
import random
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow
import tokenizers
import transformers
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.format import DatasetArguments, columns, to_messages
from sft.mask import encode_batch

FEATURES = Features(
    {
        "input_ids": List(Value("int32")),
        "labels": List(Value("int32")),
        "length": Value("int32"),  # of both; 0 where the row is set aside
        "trained": Value("int32"),  # tokens with a label
        "row": Value("int64"),  # its number in the file, from 1
        "reason": Value("string"),  # why it is set aside, or ""
        "shortened": Value("bool"),
    }
)

ROWS_PER_PROCESS = 20_000  # with fewer, its start costs more time than it saves

ADVICE = {
    "longer than max_length": "raise max_length, or set truncation_mode",
    "control token in the text": "set control_tokens to escape",
}


@dataclass
class Report:
    """What became of the rows of one split."""

    rows: int
    set_aside: dict[str, int]  # reason -> rows
    first: dict[str, str]  # reason -> the first such row, with the detail
    shortened: int
    lengths: np.ndarray  # tokens, one number a row that is used
    trained: np.ndarray  # tokens with a label, likewise

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def trained_tokens(self) -> int:
        return int(self.trained.sum())

    @classmethod
    def of(cls, encoded: Dataset, rows: np.ndarray | None = None) -> "Report":
        """The report of what `encode_rows` returned, or of the rows at these positions in it."""
        rows = np.arange(len(encoded)) if rows is None else rows
        used = np.intersect1d(rows, usable(encoded))
        refused = encoded.select(np.setdiff1d(rows, used)).select_columns(["row", "reason"])
        set_aside, first = Counter(), {}
        for batch in refused.iter(1000):
            for row, reason in zip(batch["row"], batch["reason"], strict=True):
                kind, _, detail = reason.partition(": ")
                set_aside[kind] += 1
                first.setdefault(kind, f"row {row}: {detail}" if detail else f"row {row}")
        return cls(
            rows=len(rows),
            set_aside=dict(set_aside.most_common()),
            first=first,
            shortened=int(column(encoded, "shortened")[used].sum()),
            lengths=column(encoded, "length")[used],
            trained=column(encoded, "trained")[used],
        )


def column(examples: Dataset, name: str) -> np.ndarray:
    """A column of numbers, read without the tokens, and at once: datasets gathers row by row."""
    values = examples.data.column(name).to_numpy()
    return values if examples._indices is None else values[examples._indices.column(0).to_numpy()]


def usable(encoded: Dataset) -> np.ndarray:
    """The positions of the rows that can be trained on."""
    return np.flatnonzero(column(encoded, "length"))


def prepare(
    rows: dict[str, Dataset], tokenizer: Tokenizer, args
) -> tuple[dict[str, Dataset], dict[str, Report]]:
    """Examples and a report for each split; without evaluation rows, `test_size` are held out.

    An example is `input_ids`, `labels` and the `length` of both.

    Raises:
        SystemExit: a column is missing, no row is left, or more than `max_set_aside` are set aside.
    """
    encoded = {split: encode_rows(these, tokenizer, args) for split, these in rows.items()}
    reports = {split: Report.of(these) for split, these in encoded.items()}
    for split, report in reports.items():
        _refuse_too_many(split, report, args)
    used = {split: usable(these) for split, these in encoded.items()}
    if "evaluation" not in encoded and args.test_size and len(used["train"]) > 1:
        held_out = _hold_out(used["train"], args.test_size)
        encoded["evaluation"] = whole = encoded["train"]
        rest = np.setdiff1d(np.arange(len(whole)), held_out)
        reports = {"train": Report.of(whole, rest), "evaluation": Report.of(whole, held_out)}
        used = {"train": np.setdiff1d(used["train"], held_out), "evaluation": held_out}
    examples = {
        split: encoded[split].select(positions).select_columns(["input_ids", "labels", "length"])
        for split, positions in used.items()
    }
    return examples, reports


def _hold_out(used: np.ndarray, test_size: float) -> np.ndarray:
    """A share of the usable rows, the same ones whenever the run is started again."""
    count = min(max(1, round(test_size * len(used))), len(used) - 1)
    return np.sort(used[random.Random(0).sample(range(len(used)), count)])


def encode_rows(rows: Dataset, tokenizer: Tokenizer, args) -> Dataset:
    """Every row with the columns of `FEATURES`: either tokens and labels, or the reason why not.

    Raises:
        SystemExit: a column is missing.
    """
    missing = [column for column in columns(args) if column not in rows.column_names]
    if missing:
        raise SystemExit(
            f"dataset {args.dataset!r} has no column {missing[0]!r}; "
            f"it has {', '.join(rows.column_names)}: name the right one in config.yaml."
        )
    processes = args.dataset_num_proc or min(os.cpu_count() or 1, len(rows) // ROWS_PER_PROCESS)
    gc.freeze()  # or Python's collector goes through all that torch has imported, again and again
    try:
        return rows.map(
            _encode_batch,
            batched=True,
            with_indices=True,
            fn_kwargs={"tokenizer": tokenizer, "args": args},
            remove_columns=rows.column_names,
            features=FEATURES,  # not to be guessed from the first rows, which may all be set aside
            desc="Tokenizing and masking",
            num_proc=processes if processes > 1 else None,  # 1 would start one
            # the cache must forget when the tokenizer, the template, a setting or this code changes
            new_fingerprint=_fingerprint(rows, tokenizer, args),
        )
    finally:
        gc.unfreeze()


def _encode_batch(
    batch: dict[str, list], indices: list[int], tokenizer: Tokenizer, args
) -> pyarrow.Table:
    """The columns of `FEATURES` for a batch of rows; `indices` are their numbers from 0."""
    conversations = []
    for values in zip(*batch.values(), strict=True):
        try:
            conversations.append(to_messages(dict(zip(batch, values, strict=True)), args))
        except ValueError as error:
            conversations.append(error)
    how = (args.max_length, args.turns, args.truncation_mode, args.control_tokens)
    examples = []
    for index, example in zip(indices, encode_batch(conversations, tokenizer, *how), strict=True):
        reason = str(example) if isinstance(example, ValueError) else ""
        ids, labels = ([], []) if reason else (example["input_ids"], example["labels"])
        examples.append(
            {
                "input_ids": ids,
                "labels": labels,
                "length": len(ids),
                "trained": len(labels) - labels.count(-100),
                "row": index + 1,
                "reason": reason,
                "shortened": not reason and example["shortened"],
            }
        )
    return pyarrow.Table.from_pylist(examples, FEATURES.arrow_schema)


def _refuse_too_many(split: str, report: Report, args) -> None:
    set_aside = sum(report.set_aside.values())
    if set_aside < report.rows and set_aside <= args.max_set_aside * report.rows:
        return
    share = f"more than max_set_aside = {args.max_set_aside:g}"
    if set_aside == report.rows:
        share = "and none is left"
    rows = f"{set_aside:,} of {report.rows:,} {split} rows of {args.dataset!r}"
    lines = [f"{rows} cannot be trained on, {share}:"]
    for reason, count in report.set_aside.items():
        advice = f" -> {ADVICE[reason]}" if reason in ADVICE else ""
        lines.append(f"  {count:,} {reason} ({report.first[reason]}){advice}")
    raise SystemExit("\n".join([*lines, "python preview.py, with the same options, shows them."]))


# what an example is made of, beside the keys of sft/format.py
_SETTINGS = ("max_length", "turns", "truncation_mode", "control_tokens")


def _fingerprint(rows: Dataset, tokenizer: Tokenizer, args) -> str:
    mask = Path(inspect.getfile(encode_batch)).parent.glob("*.py")
    files = [*sorted(mask), inspect.getfile(to_messages), __file__]
    code = [Path(file).read_text(encoding="utf-8") for file in files]
    code += [transformers.__version__, tokenizers.__version__]
    vocabulary = tokenizer.backend_tokenizer.to_str()
    template = (tokenizer.chat_template, tokenizer.special_tokens_map)  # it can name those
    settings = [getattr(args, name) for name in _SETTINGS]
    settings += [getattr(args, field.name) for field in fields(DatasetArguments)]
    return Hasher.hash([rows._fingerprint, vocabulary, template, settings, code])
