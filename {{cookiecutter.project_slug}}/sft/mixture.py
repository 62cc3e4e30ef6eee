"""Several sources as one: each has its share, and no row is used twice."""

import json
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value, concatenate_datasets

from sft.cache import CACHE, fingerprint
from sft.config import ProjectArguments, refuse_unknown, say
from sft.files import plain, plain_row
from sft.source import load_source

SOURCE = "(source)"  # the column that says of a row of several sources which one it is from
SPLITS = {"train": "train_split", "evaluation": "eval_split"}
KEYS = ("path", "weight", "dataset_config", *SPLITS.values())


def load_mixture(
    dataset: str | list, specs: dict[str, str], columns: list[str], args: ProjectArguments
) -> dict[str, Dataset]:
    """What `load_source` returns of one source; of several, the rows of each split mixed.

    They are given as `[{path: ..., weight: 0.7}, {path: ..., weight: 0.3}]`. There are evaluation
    rows where each source has some. Exits at a wrong key or weight, too.
    """
    if not isinstance(dataset, list) or not any(isinstance(one, dict) for one in dataset):
        return _deduped(load_source(dataset, args.dataset_config, specs, columns), args)
    sources = [one if isinstance(one, dict) else {"path": one} for one in dataset]
    loaded = []
    for source in sources:
        refuse_unknown(source, KEYS)
        if not isinstance(source.get("path"), str):
            raise SystemExit(f"dataset: {source} names no path, a file or a Hub id.")
        own = {split: source.get(SPLITS[split], spec) for split, spec in specs.items()}
        config = source.get("dataset_config", args.dataset_config)
        loaded.append(load_source(source["path"], config, own, columns))
    mixed = {}
    for split in specs:
        if all(split in rows for rows in loaded):
            parts = [_alike(rows[split], columns) for rows in loaded]
            parts = choose(parts, [source.get("weight") for source in sources])
            names = np.repeat([source["path"] for source in sources], [*map(len, parts)])
            mixed[split] = concatenate_datasets(parts).add_column(SOURCE, names.tolist())
    return _deduped(mixed, args)


def _deduped(rows: dict[str, Dataset], args: ProjectArguments) -> dict[str, Dataset]:
    """With `dedupe`, the first of the training rows that are the same in all columns."""
    if args.dedupe and "train" in rows:
        first = {}
        for at, row in enumerate(rows["train"]):
            first.setdefault(content(row), at)
        say(f"   dedupe: {len(rows['train']) - len(first):,} rows are copies of others")
        rows["train"] = rows["train"].select([*first.values()])
    return rows


def content(row: dict) -> int:
    """The same number for rows that are copies: all columns but the source's name are the same."""
    values = {key: one for key, one in plain_row(row).items() if key != SOURCE}
    return hash(json.dumps(values, sort_keys=True, default=str))


def choose(parts: list[Dataset], weights: list[Any]) -> list[Dataset]:
    """As many rows of each part as its weight says; the part with the fewest for it is used up.

    Without weights all rows are.
    """
    if weights == [None] * len(parts):
        return parts
    for weight in weights:
        if type(weight) not in (int, float) or not weight > 0:
            raise SystemExit(
                f"dataset: each source has a weight above 0, or none; one is {weight}."
            )
    unit = min(len(part) / weight for part, weight in zip(parts, weights, strict=True))
    rng = np.random.default_rng(0)  # the same rows in each process, and when the run goes on
    chosen = []
    for part, weight in zip(parts, weights, strict=True):
        rows = rng.permutation(len(part))[: max(1, round(unit * weight))]
        chosen.append(part.select(np.sort(rows)))
    return chosen


def _alike(rows: Dataset, columns: list[str]) -> Dataset:
    """The rows with columns of the same type for all sources: JSON, as sft/files.py reads them."""
    features = Features({column: Value("binary") for column in columns})
    if rows.features == features:
        return rows
    name = fingerprint(rows._fingerprint, columns)
    CACHE.mkdir(parents=True, exist_ok=True)

    def to_json(row: dict) -> dict:
        values = {column: plain(row.get(column)) for column in columns}
        return {key: json.dumps(one, default=str).encode() for key, one in values.items()}

    return rows.map(
        to_json,
        remove_columns=rows.column_names,
        features=features,
        new_fingerprint=name,
        cache_file_name=str(CACHE / f"{name}.arrow"),
    )
