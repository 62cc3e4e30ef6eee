"""Where the rows come from: the Hub, local files, or a folder of `Dataset.save_to_disk`."""

import os
from pathlib import Path

import datasets
from datasets import Dataset, ReadInstruction, concatenate_datasets

from sft.cache import cached_rows
from sft.config import ProjectArguments
from sft.files import check_columns, find_files, kind
from sft.format import OPTIONAL_COLUMNS, columns
from sft.hub import load_from_hub

datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # our own sentences say what is wrong


def load_rows(args: ProjectArguments) -> dict[str, Dataset]:
    """The rows of each split that exists: "train", and perhaps "evaluation".

    They have the columns that sft/format.py needs; `sft.files.plain_row` reads one. Exits where a
    dataset, file, split or column cannot be read, with the line of a broken file.
    """
    source, path = f"dataset {args.dataset!r}", str(args.dataset)
    named = [*columns(args), *OPTIONAL_COLUMNS]
    folder = Path(path).expanduser()
    try:
        if not is_local(args.dataset):
            splits = load_from_hub(path, args.dataset_config, named)
        elif any((folder / name).exists() for name in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(folder)
            splits = saved if isinstance(saved, dict) else {"train": saved}
        else:
            found = find_files(args.dataset)
            splits = {split: cached_rows(files, named) for split, files in found.items()}
        specs = {"train": args.train_split, "evaluation": args.eval_split}
        evaluation = args.eval_split.partition("[")[0]
        if evaluation == "validation" and evaluation not in splits:
            del specs["evaluation"]
        rows = {name: _part(splits, spec) for name, spec in specs.items()}
    except Exception as error:  # the readers raise what they like
        why = " ".join((str(error.__cause__ or error) or type(error).__name__).split())[:300]
        raise SystemExit(f"{source}: {why}") from None
    for name, split in rows.items():
        check_columns(named, split.column_names, source)
        rows[name] = split.select_columns([one for one in named if one in split.column_names])
    return rows


def is_local(dataset: str | list[str]) -> bool:
    """Whether this names files or a folder, even missing ones, and no dataset on the Hub."""
    path = str(dataset)
    is_path = path.startswith((".", "/", "~", "[")) or "*" in path or bool(kind(Path(path)))
    return is_path or os.path.exists(path)


def _part(splits: dict[str, Dataset], spec: str) -> Dataset:
    """The rows that "train", "train[:50%]" or "train+test" stands for."""
    sizes = {split: len(rows) for split, rows in splits.items()}
    parts = ReadInstruction.from_spec(spec).to_absolute(sizes)
    return concatenate_datasets(
        [splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
    )
