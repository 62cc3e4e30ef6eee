"""What this project caches, under names made of all that it depends on."""

import hashlib
import shutil
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow
from datasets import Dataset, Features
from datasets.config import HF_DATASETS_CACHE
from datasets.fingerprint import Hasher

from sft.config import ROOT, say
from sft.files import read_rows

CACHE = Path(HF_DATASETS_CACHE, f"{ROOT.name}-{Hasher.hash(str(ROOT))[:8]}")


def hash_file(file: Path) -> str:
    """The SHA-256 of what a file holds, or "" if it cannot be read."""
    with suppress(OSError), file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
    return ""


def fingerprint(*contents: object) -> str:
    """A name for what is made of these by the code of sft/; the score makes nothing."""
    files = sorted({*(ROOT / "sft").rglob("*.py")} - {ROOT / "sft/score.py"})
    code = [file.read_text(encoding="utf-8") for file in files]
    return Hasher.hash([*contents, code])


def cached_rows(files: list[Path], columns: list[str]) -> Dataset:
    """These columns of the rows of files; what is cached goes by what the files hold."""
    return Dataset.from_generator(
        read_rows,
        gen_kwargs={"files": (*files,), "columns": (*columns,)},  # lists would be shards
        cache_dir=str(CACHE),
        fingerprint=fingerprint([hash_file(file) for file in files], columns),
    )


def to_table(examples: list[dict], features: Features) -> pyarrow.Table:
    """Examples as these columns; `length` and `trained` are counted here."""
    columns = {name: [example[name] for example in examples] for name in examples[0]}
    for name in ("input_ids", "labels"):  # by itself Arrow takes more time for lists of lists
        columns["length"] = [*map(len, columns[name])]
        borders = np.cumsum([0, *columns["length"]], dtype=np.int32)
        tokens = np.fromiter(chain.from_iterable(columns[name]), np.int32)
        columns[name] = pyarrow.ListArray.from_arrays(borders, tokens)
    columns["trained"] = np.diff(np.cumsum(np.append(0, tokens != -100))[borders])  # of the labels
    return pyarrow.table(columns, features.arrow_schema)


def clean_cache() -> None:
    """Delete all that this project has cached, and say what it frees."""
    freed = sum(file.stat().st_size for file in CACHE.rglob("*") if file.is_file())
    shutil.rmtree(CACHE, ignore_errors=True)
    say(f"Freed {freed / 1e6:,.1f} MB in {CACHE}.")
