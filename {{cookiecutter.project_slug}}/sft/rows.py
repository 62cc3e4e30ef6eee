"""Where the rows come from: the Hub, a local file, or a folder of files."""

import csv
import json
from pathlib import Path

import datasets
import pandas
from datasets import Dataset, Features, Value, get_dataset_split_names, load_dataset
from datasets.exceptions import DatasetGenerationError

from sft.config import ProjectArguments

datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # our own sentences say what is wrong

BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def load_rows(args: ProjectArguments) -> dict[str, Dataset]:
    """The rows of each split that exists: "train", and perhaps "evaluation".

    Raises:
        SystemExit: the dataset, file or split does not exist or cannot be read; the sentence names
            it, and the line of a broken file.
    """
    _refuse_broken_text(args.dataset)
    source = _source(args.dataset, args.dataset_config)
    rows = {"train": _load(args.dataset, source, args.train_split)}
    if args.eval_split.partition("[")[0] in get_dataset_split_names(**source):
        rows["evaluation"] = _load(args.dataset, source, args.eval_split)
    return rows


def is_local(dataset: str) -> bool:
    """Whether this is the path of a file or folder, even of a missing one, and no Hub id."""
    path = Path(dataset).expanduser()
    return path.exists() or path.suffix in BUILDERS or dataset.startswith((".", "/", "~"))


def _source(dataset: str, config: str) -> dict:
    """The arguments of `load_dataset` for a Hub id, a local file or a folder."""
    path = Path(dataset).expanduser()
    if path.is_file():
        if path.suffix not in BUILDERS:
            raise SystemExit(f"dataset {dataset!r} is not one of {', '.join(BUILDERS)}.")
        files = {"data_files": str(path)}
    elif path.is_dir():
        suffixes = {file.suffix for file in path.rglob("*")} & set(BUILDERS)
        builders = {BUILDERS[suffix] for suffix in suffixes}
        if len(builders) != 1:
            found = ", ".join(sorted(suffixes)) or "none"
            raise SystemExit(
                f"dataset folder {dataset!r} must hold files of one kind out of "
                f"{', '.join(BUILDERS)}; it holds {found}."
            )
        path, files = path / f"rows{min(suffixes)}", {"data_dir": str(path)}
    elif is_local(dataset):
        raise SystemExit(f"dataset {dataset!r} does not exist (seen from {Path.cwd()}).")
    else:
        return {"path": dataset, "name": config or None}
    builder = BUILDERS[path.suffix]
    return {"path": builder, **files, **(_as_text(dataset) if builder == "csv" else {})}


def _files(dataset: str) -> list[Path]:
    path = Path(dataset).expanduser()
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return [file for file in files if file.suffix in BUILDERS]


def _as_text(dataset: str) -> dict:
    """A CSV's columns as text: pandas takes "NA" and "null" for missing, "007" for a number."""
    file = _files(dataset)[0]
    first = pandas.read_csv(file, nrows=1)
    if not isinstance(first.index, pandas.RangeIndex):  # pandas made row names of the first values
        raise SystemExit(f"{file}, line 2 has more values than columns; quote texts with commas.")
    names = first.columns
    return {"features": Features({name: Value("string") for name in names}), "na_filter": False}


def _load(dataset: str, source: dict, split: str) -> Dataset:
    try:
        rows = load_dataset(**source, split=split)
    except DatasetGenerationError as error:
        raise SystemExit(
            _broken_line(dataset) or f"dataset {dataset!r}: {error.__cause__}"
        ) from None
    except (ValueError, OSError) as error:
        if "no data" in str(error):
            raise SystemExit(f"dataset {dataset!r} has no rows.") from None
        raise SystemExit(f"dataset {dataset!r}: {' '.join(str(error).split())[:300]}") from None
    if len(rows) == 0:
        raise SystemExit(f"dataset {dataset!r} has no rows in its split {split!r}.")
    return rows


def _refuse_broken_text(dataset: str) -> None:
    """The reader accepts what is not UTF-8, which fails much later, without file or line."""
    for file in _files(dataset):
        if file.stat().st_size == 0:
            raise SystemExit(f"{file} is empty; it should hold one row a line.")
        if file.suffix != ".parquet":
            with file.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    try:
                        line.decode("utf-8")
                    except UnicodeDecodeError:
                        raise SystemExit(
                            f"{file}, line {number} is not UTF-8; save the file as UTF-8."
                        ) from None


def _broken_line(dataset: str) -> str | None:
    """The file and line that the reader failed at: it names neither."""
    for file in filter(lambda file: file.suffix != ".parquet", _files(dataset)):
        line, why = _first_fault(file)
        if line:
            return f"{file}, line {line} {why}; fix or delete it."
    return None


def _first_fault(file: Path) -> tuple[int, str]:
    """The line and what is wrong with it; line 0 where nothing is."""
    line = 0
    try:
        if file.suffix == ".csv":
            with file.open(encoding="utf-8", newline="") as lines:
                reader = csv.reader(lines, strict=True)
                names = next(reader, [])
                for row in reader:
                    line = reader.line_num
                    if len(row) > len(names):
                        why = f"has {len(row)} values for {len(names)} columns"
                        return line, f"{why} (quote texts with commas)"
            return 0, ""
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".json":
            json.loads(text)
            return 0, ""
        for line, row in enumerate(text.split("\n"), start=1):
            if row.strip() and not isinstance(json.loads(row), dict):
                return line, "is not a JSON object"
        return 0, ""
    except csv.Error as error:
        return line + 1, f"begins a row that does not end ({error})"
    except json.JSONDecodeError as error:
        return max(line, error.lineno), f"is not JSON ({error.msg})"
