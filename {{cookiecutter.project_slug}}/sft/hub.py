"""Datasets on the Hub: files of JSON and CSV are downloaded, and read as local ones are."""

import json
from pathlib import Path

from datasets import BuilderConfig, Dataset, DownloadManager, load_dataset, load_dataset_builder
from datasets.fingerprint import Hasher

from sft.cache import CACHE, cached_rows
from sft.files import kind

TEXT = (".jsonl", ".json", ".csv")  # other kinds say of each value what it is: datasets reads them


def load_from_hub(name: str, config: str, columns: list[str]) -> dict[str, Dataset]:
    """The rows of each split; where the Hub cannot be reached, those downloaded before."""
    record = CACHE / f"{Hasher.hash([name, config])}.json"
    try:
        files = _download(load_dataset_builder(name, config or None).config)
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(files), encoding="utf-8")
    except RuntimeError as error:
        fix = "download its branch refs/convert/parquet, and name the folder"
        raise RuntimeError(f"{error}: {fix}" if "scripts" in f"{error}" else error) from None
    except ConnectionError:
        files = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    if not files:
        return load_dataset(name, config or None)
    return {split: cached_rows([*map(Path, those)], columns) for split, those in files.items()}


def _download(config: BuilderConfig) -> dict[str, list[str]]:
    """The paths of each split's files; none where datasets has to read them."""
    if config.data_files is None:
        raise ConnectionError("datasets found the rows in its cache")
    urls = [url for those in config.data_files.values() for url in those]
    # the dataset's card may say how to read them: as separated by semicolons, for one
    given = {key: getattr(config, key) for key in ("name", "version", "data_dir", "data_files")}
    is_plain = type(config)(**given, description=config.description) == config
    if urls and is_plain and all(kind(Path(url)) in TEXT for url in urls):
        found = DownloadManager().download(config.data_files)
        return {str(split): those for split, those in found.items()}
    return {}
