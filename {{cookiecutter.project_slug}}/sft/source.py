"""One source of rows: a dataset on the Hub, a folder of `Dataset.save_to_disk`, or files."""

import json
import os
from pathlib import Path

import datasets
from datasets import Dataset, ReadInstruction, concatenate_datasets, load_dataset_builder
from datasets.fingerprint import Hasher

from sft.cache import CACHE, cached_rows
from sft.files import check_columns, find_files, kind

TEXT = (".jsonl", ".json", ".csv")  # other kinds say of each value what it is: datasets reads them
datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # our own sentences say what is wrong


def load_source(
    dataset: str | list[str], config: str, specs: dict[str, str], columns: list[str]
) -> dict[str, Dataset]:
    """These columns of the rows of each split in `specs`, such as {"train": "train[:50%]"}.

    Without "validation", the default, there is no "evaluation". Exits where a dataset, file, split
    or column cannot be read, with the line of a broken file.
    """
    source, folder = f"dataset {dataset!r}", Path(os.path.expanduser(str(dataset)))
    try:
        if not is_local(dataset):
            splits = load_from_hub(dataset, config, columns)
        elif any((folder / name).exists() for name in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(folder)
            splits = saved if isinstance(saved, dict) else {"train": saved}
        else:
            found = find_files(dataset)
            splits = {split: cached_rows(files, columns) for split, files in found.items()}
        evaluation = specs.get("evaluation", "").partition("[")[0]
        if evaluation == "validation" and evaluation not in splits:
            specs = {name: spec for name, spec in specs.items() if name != "evaluation"}
        rows = {name: _part(splits, spec) for name, spec in specs.items()}
    except Exception as error:  # the readers raise what they like
        why = " ".join((str(error.__cause__ or error) or type(error).__name__).split())[:300]
        if "scripts are no longer supported" in why:
            why += ": download its branch refs/convert/parquet, and name the folder"
        raise SystemExit(f"{source}: {why}") from None
    for name, split in rows.items():
        check_columns(columns, split.column_names, source)
        rows[name] = split.select_columns([one for one in columns if one in split.column_names])
    return rows


def is_local(dataset: str | list) -> bool:
    """Whether this names files or a folder, even missing ones, and no dataset on the Hub."""
    if isinstance(dataset, list):
        return all(is_local(one.get("path", "")) for one in dataset if isinstance(one, dict))
    path = dataset
    is_path = path.startswith((".", "/", "~")) or "*" in path or bool(kind(Path(path)))
    return is_path or os.path.exists(path)


def _part(splits: dict[str, Dataset], spec: str) -> Dataset:
    """The rows that "train", "train[:50%]" or "train+test" stands for."""
    sizes = {split: len(rows) for split, rows in splits.items()}
    parts = ReadInstruction.from_spec(spec).to_absolute(sizes)
    return concatenate_datasets(
        [splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
    )


def load_from_hub(name: str, config: str, columns: list[str]) -> dict[str, Dataset]:
    """The rows of each split; where the Hub cannot be reached, those downloaded before."""
    record = CACHE / f"{Hasher.hash([name, config])}.json"
    try:
        files = _download(load_dataset_builder(name, config or None).config)
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(files), encoding="utf-8")
    except ConnectionError:
        files = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    if not files:
        return datasets.load_dataset(name, config or None)
    return {split: cached_rows([*map(Path, those)], columns) for split, those in files.items()}


def _download(config: datasets.BuilderConfig) -> dict[str, list[str]]:
    """The paths of each split's files; none where datasets has to read them."""
    if config.data_files is None:
        raise ConnectionError("datasets found the rows in its cache")
    urls = [url for those in config.data_files.values() for url in those]
    # the dataset's card may say how to read them: as separated by semicolons, for one
    given = {key: getattr(config, key) for key in ("name", "version", "data_dir", "data_files")}
    is_plain = type(config)(**given, description=config.description) == config
    if urls and is_plain and all(kind(Path(url)) in TEXT for url in urls):
        found = datasets.DownloadManager().download(config.data_files)
        return {str(split): those for split, those in found.items()}
    return {}
