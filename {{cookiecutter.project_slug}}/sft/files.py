"""Local files: which are read, and their rows as they say; a fault is named with file and line."""

import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from glob import glob
from os.path import commonpath, expanduser
from pathlib import Path
from textwrap import shorten

from datasets.data_files import SPLIT_KEYWORDS
from pyarrow.parquet import ParquetFile

from sft.config import say
from sft.format import OPTIONAL_COLUMNS

KINDS = (".jsonl", ".json", ".csv", ".parquet")
FAULTS = (ValueError, TypeError, RecursionError, OSError, EOFError, zlib.error, csv.Error)
ENCODER, PLAIN = json.JSONEncoder(ensure_ascii=False, allow_nan=False), json.JSONDecoder()
csv.field_size_limit(sys.maxsize)  # Python's is 128 KB, less than a long text


def kind(file: Path) -> str:
    """Which of `KINDS` a file is by its name, compressed by gzip or not; "" for none."""
    suffix = Path(file.name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in KINDS else ""


def find_files(dataset: str | list[str]) -> dict[str, list[Path]]:
    """The files of each split, from a path, folder, glob or a list of them; says which.

    The splits are those that all files, or their folders, are named after; else all are "train".
    """
    read, left_out, by_split = [], [], {}
    for given in [dataset] if isinstance(dataset, str) else dataset:
        path = Path(expanduser(given))
        found = path.rglob("*") if path.is_dir() else [path]
        if not path.exists():
            found = [*map(Path, glob(str(path), recursive=True))]
            if not found:
                raise SystemExit(f"dataset {given!r} does not exist (seen from {Path.cwd()}).")
        for file in sorted(found):
            is_hidden = any(part.startswith(".") for part in file.parts[len(path.parts) :])
            if file.is_file() and kind(file) and not is_hidden:
                read.append(file)
            elif not file.is_dir():
                left_out.append(file)
    kinds = {*map(kind, read)} or {file.suffix or file.name for file in left_out}
    if not read or len(kinds) > 1:
        raise SystemExit(
            f"dataset {dataset!r} must name files of one of the kinds {', '.join(KINDS)}, such as "
            f"'folder/*.jsonl'; found {', '.join(sorted(kinds)) or 'none'}."
        )
    top = commonpath([file.parent for file in read])
    for file in read:
        by_split.setdefault(_split(file.relative_to(top)), []).append(file)
    if "" in by_split or len(by_split) == 1:
        by_split = {"train": read}
    for what, files in {**by_split, "left out, hidden or of another kind": left_out}.items():
        if files:
            say(f"   {what}: {shorten(', '.join(file.name for file in files), 2000)}")
    return by_split


def _split(file: Path) -> str:
    """The split that a file or its folder is named after: train-00.jsonl, val/a.jsonl; or ""."""
    words = {re.split(r"[-_.\d]", part.lower())[0] for part in file.parts}
    return next((str(split) for split, names in SPLIT_KEYWORDS.items() if words & {*names}), "")


def read_rows(files: Sequence[Path], columns: Sequence[str]) -> Iterator[dict[str, bytes]]:
    """The columns of each row as JSON, exactly, without nulls; exits at the first fault of a file.

    Arrow's readers would make timestamps of texts, one type of all that a column holds, and nulls
    of the keys that only other rows have.
    """
    for file in files:
        lines, rows, names = Lines(file), 0, {}  # names of all columns that a row has, in order
        try:
            for row in READERS[kind(file)](lines, columns):
                if not isinstance(row, dict):
                    raise ValueError("not a JSON object")
                names |= row
                rows += 1
                yield {one: ENCODER.encode(plain(row.get(one))).encode() for one in columns}
        except FAULTS as error:
            line = f", line {lines.number}" if lines.number else ""
            why = " ".join(str(getattr(error, "msg", error)).split())[:200]
            remedy = "save the file as UTF-8" if "decode byte" in why else "fix or delete it"
            raise SystemExit(f"{file}{line}: {why}; {remedy}.") from None
        if not rows:
            raise SystemExit(f"{file} is empty; it should hold one row a line.")
        check_columns(columns, names, f"{file}")


def check_columns(columns: Sequence[str], names: Iterable[str], source: str) -> None:
    """Exit where a column is missing, and name those that are there."""
    for column in columns:
        if column not in (*names, *OPTIONAL_COLUMNS):
            has = f"no column {column!r}; it has {', '.join(map(str, names))}"
            fix = "name the right one in config.yaml"
            if {"chosen", "rejected"} <= {*names}:
                fix = "these are preferences, of which the column 'chosen' can be trained on"
            raise SystemExit(f"{source} has {has}: {fix}.")


def plain_row(row: dict) -> dict:
    """The columns of a row of `load_rows` that hold something, with the values that are meant."""
    return {column: value for column in row if (value := plain(row[column])) is not None}


def plain(value: object) -> object:
    """A value of a row: JSON is read, and the nulls that Arrow fills in are left out."""
    if isinstance(value, bytes):
        value, _ = PLAIN.raw_decode(value.decode())  # faster than json.loads, which guesses
        return value
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items() if one is not None}
    return [*map(plain, value)] if isinstance(value, list) else value


class Lines:
    """The lines of a text file; `number` is where in it a fault is, 0 for anywhere."""

    def __init__(self, file: Path):
        self.file, self.number = file, 0

    def __iter__(self) -> Iterator[str]:
        opened = gzip.open if self.file.suffix.lower() == ".gz" else open
        with opened(self.file, "rb") as lines:
            for self.number, line in enumerate(lines, start=1):
                yield line.decode("utf-8-sig" if self.number == 1 else "utf-8")


def _once(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name that occurs twice")
    return found


def _jsonl(lines: Lines, columns: Sequence[str]) -> Iterator[object]:
    return (DECODER.decode(line) for line in lines if line.strip())


def _json(lines: Lines, columns: Sequence[str]) -> Iterator[object]:
    """The rows of one list, or one after the other: JSON Lines under another name."""
    text, counted, gap = "".join(lines).rstrip(), 0, re.compile(r"[\s,]*")
    is_list = text.startswith("[")
    if is_list and not text.endswith("]"):
        raise ValueError("a list that does not end")
    at, lines.number = gap.match(text, is_list).end(), 1
    while at < len(text) - is_list:
        lines.number, counted = lines.number + text.count("\n", counted, at), at
        try:
            row, at = DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            lines.number = error.lineno
            raise
        yield row
        at = gap.match(text, at).end()


def _csv(lines: Lines, columns: Sequence[str]) -> Iterator[dict]:
    """Every value as text: "007" is no number, "NA" no missing value."""
    rows, last = csv.DictReader(lines, strict=True), 0
    try:
        _once([(name, "") for name in rows.fieldnames or () if name])
        last = lines.number
        for row in rows:
            if None in row:  # the key of values beyond the last column
                raise ValueError("more values than columns: quote texts with commas")
            yield row
            last = lines.number
    except csv.Error:
        lines.number = last + 1  # where the row starts; its end may be the file's
        raise


def _parquet(lines: Lines, columns: Sequence[str]) -> Iterator[dict]:
    with ParquetFile(lines.file) as file:
        names = dict.fromkeys(file.schema_arrow.names)
        for batch in file.iter_batches(1000, columns=[one for one in columns if one in names]):
            yield from ({**names, **plain(row)} for row in batch.to_pylist())


DECODER = json.JSONDecoder(object_pairs_hook=_once)
READERS = dict(zip(KINDS, (_jsonl, _json, _csv, _parquet), strict=True))
