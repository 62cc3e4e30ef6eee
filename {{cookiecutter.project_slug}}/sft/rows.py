"""Where the rows come from: the Hub, a local file, or a folder of files."""

import json
from pathlib import Path

from datasets import Dataset, get_dataset_split_names, load_dataset
from datasets.exceptions import DatasetGenerationError

BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}

# pandas would read "NA" and "null" as missing and "007" as the number 7
CSV_AS_TEXT = {"keep_default_na": False, "dtype": str}


def load_rows(args) -> tuple[Dataset, Dataset | None]:
    """The training rows and the evaluation rows (None where `test_size` is 0 and no split is there).

    Raises:
        SystemExit: the dataset, file or split does not exist or cannot be read; the sentence says
            which one, and for a broken file where.
    """
    source = _source(args.dataset)
    train = _load(args.dataset, source, args.train_split)
    splits = get_dataset_split_names(source["path"], **_without_path(source))
    if args.eval_split.partition("[")[0] in splits:
        return train, _load(args.dataset, source, args.eval_split)
    if args.test_size == 0 or len(train) < 2:
        return train, None
    # at least one row on each side, and the same rows whenever the run is started again
    held_out = min(max(1, round(args.test_size * len(train))), len(train) - 1)
    halves = train.train_test_split(test_size=held_out, seed=0)
    return halves["train"], halves["test"]


def _source(dataset: str) -> dict:
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
    elif path.suffix in BUILDERS or dataset.startswith((".", "/", "~")):
        raise SystemExit(f"dataset {dataset!r} does not exist (seen from {Path.cwd()}).")
    else:
        return {"path": dataset}
    builder = BUILDERS[path.suffix]
    return {"path": builder, **files, **(CSV_AS_TEXT if builder == "csv" else {})}


def _without_path(source: dict) -> dict:
    return {key: value for key, value in source.items() if key != "path"}


def _load(dataset: str, source: dict, split: str) -> Dataset:
    try:
        rows = load_dataset(**source, split=split)
    except DatasetGenerationError as error:
        raise SystemExit(_what_is_broken(source) or f"dataset {dataset!r}: {error.__cause__}") from None
    except (ValueError, OSError) as error:
        raise SystemExit(f"dataset {dataset!r}: {str(error).splitlines()[0]}") from None
    if len(rows) == 0:
        raise SystemExit(f"dataset {dataset!r} has no rows in its split {split!r}.")
    return rows


def _what_is_broken(source: dict) -> str | None:
    """Find the line that the reader stumbled over: it names neither the file nor the line."""
    folder = source.get("data_dir")
    files = [source["data_files"]] if folder is None else sorted(map(str, Path(folder).rglob("*")))
    for file in filter(lambda name: Path(name).suffix in BUILDERS, files):
        kinds: dict[str, tuple[str, int]] = {}
        for number, line in enumerate(Path(file).read_bytes().splitlines(), start=1):
            try:
                text = line.decode("utf-8")
                if file.endswith(".jsonl") and text.strip():
                    row = json.loads(text)
                    for key, value in row.items() if isinstance(row, dict) else ():
                        if value is None:
                            continue
                        here = type(value).__name__
                        kind, first = kinds.setdefault(key, (here, number))
                        if here != kind:
                            return (
                                f"{file}, line {number}: {key!r} is a {here} here and a {kind} in "
                                f"line {first}; write it the same way in each row."
                            )
            except UnicodeDecodeError:
                return f"{file}, line {number} is not UTF-8; save the file as UTF-8 and try again."
            except json.JSONDecodeError as error:
                return f"{file}, line {number} is not valid JSON ({error.msg}); mend or delete it."
    return None
