"""Where the rows come from: the Hub, a local file, or a folder of files."""

from pathlib import Path

import datasets
import pandas
from datasets import Dataset, Features, Value, get_dataset_split_names, load_dataset
from datasets.exceptions import DatasetGenerationError

from sft.broken_files import broken_line, refuse_broken_text
from sft.config import ProjectArguments

datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # our own sentences say what is wrong

BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def load_rows(args: ProjectArguments) -> dict[str, Dataset]:
    """The rows of each split that exists: "train", and perhaps "evaluation".

    Raises:
        SystemExit: the dataset, file or split does not exist or cannot be read; the sentence names
            it, and the line of a broken file.
    """
    path = Path(args.dataset).expanduser()
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    files = [file for file in files if file.suffix in BUILDERS]
    refuse_broken_text(files)
    source = _source(args, files)
    rows = {"train": _load(source, args.train_split, args.dataset, files)}
    if args.eval_split.partition("[")[0] in get_dataset_split_names(**source):
        rows["evaluation"] = _load(source, args.eval_split, args.dataset, files)
    return rows


def is_local(dataset: str) -> bool:
    """Whether this is the path of a file or folder, even of a missing one, and no Hub id."""
    path = Path(dataset).expanduser()
    return path.exists() or path.suffix in BUILDERS or dataset.startswith((".", "/", "~"))


def _source(args: ProjectArguments, files: list[Path]) -> dict:
    """The arguments of `load_dataset`."""
    if not is_local(args.dataset):
        return {"path": args.dataset, "name": args.dataset_config or None}
    path = Path(args.dataset).expanduser()
    if not path.exists():
        raise SystemExit(f"dataset {args.dataset!r} does not exist (seen from {Path.cwd()}).")
    builders = {BUILDERS[file.suffix] for file in files}
    if len(builders) != 1:
        found = ", ".join(sorted({file.suffix for file in files})) or "none"
        raise SystemExit(
            f"dataset {args.dataset!r} must be a file of one of the kinds {', '.join(BUILDERS)}, "
            f"or a folder with files of one kind; found {found}."
        )
    builder = builders.pop()
    source = {"path": builder, "data_dir" if path.is_dir() else "data_files": str(path)}
    return source | (_as_text(files[0]) if builder == "csv" else {})


def _as_text(file: Path) -> dict:
    """A CSV's columns as text: pandas takes "NA" and "null" for missing, "007" for a number."""
    first = pandas.read_csv(file, nrows=1)
    if not isinstance(first.index, pandas.RangeIndex):  # pandas made row names of the first values
        raise SystemExit(f"{file}, line 2 has more values than columns; quote texts with commas.")
    features = Features({name: Value("string") for name in first.columns})
    return {"features": features, "na_filter": False}


def _load(source: dict, split: str, dataset: str, files: list[Path]) -> Dataset:
    try:
        rows = load_dataset(**source, split=split)
    except DatasetGenerationError as error:
        raise SystemExit(broken_line(files) or f"dataset {dataset!r}: {error.__cause__}") from None
    except (ValueError, OSError) as error:
        if "no data" in str(error):
            raise SystemExit(f"dataset {dataset!r} has no rows.") from None
        raise SystemExit(f"dataset {dataset!r}: {' '.join(str(error).split())[:300]}") from None
    if len(rows) == 0:
        raise SystemExit(f"dataset {dataset!r} has no rows in its split {split!r}.")
    return rows
