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

    Exits where the dataset, file or split cannot be read, with the line of a broken file.
    """
    path, name = Path(args.dataset).expanduser(), f"dataset {args.dataset!r}"
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    files = [file for file in files if file.suffix in BUILDERS]
    refuse_broken_text(files)
    source = {"path": args.dataset, "name": args.dataset_config or None}
    if is_local(args.dataset):
        source = _local(path, files, name)
    try:
        rows = {"train": load_dataset(**source, split=args.train_split)}
        if args.eval_split.partition("[")[0] in get_dataset_split_names(**source):
            rows["evaluation"] = load_dataset(**source, split=args.eval_split)
    except DatasetGenerationError as error:
        raise SystemExit(broken_line(files) or f"{name}: {error.__cause__}") from None
    except (ValueError, OSError) as error:
        raise SystemExit(f"{name}: {' '.join(str(error).split())[:300]}") from None
    return rows


def is_local(dataset: str) -> bool:
    """Whether this is the path of a file or folder, even of a missing one, and no Hub id."""
    path = Path(dataset).expanduser()
    return path.exists() or path.suffix in BUILDERS or dataset.startswith((".", "/", "~"))


def _local(path: Path, files: list[Path], name: str) -> dict:
    """The arguments of `load_dataset` for a file or folder."""
    if not path.exists():
        raise SystemExit(f"{name} does not exist (seen from {Path.cwd()}).")
    builders = {BUILDERS[file.suffix] for file in files}
    if len(builders) != 1:
        found = ", ".join(sorted({file.suffix for file in files})) or "none"
        raise SystemExit(
            f"{name} must be a file or folder of files of one of the kinds {', '.join(BUILDERS)}; "
            f"found {found}."
        )
    source = {"path": builders.pop(), "data_dir" if path.is_dir() else "data_files": str(path)}
    if source["path"] == "csv":  # as text: pandas takes "NA" for missing, "007" for a number
        first = pandas.read_csv(files[0], nrows=1)
        if not isinstance(first.index, pandas.RangeIndex):  # it made row names of the first values
            line = f"{files[0]}, line 2"
            raise SystemExit(f"{line} has more values than columns; quote texts with commas.")
        source["features"] = Features({column: Value("string") for column in first.columns})
        source["na_filter"] = False
    return source
