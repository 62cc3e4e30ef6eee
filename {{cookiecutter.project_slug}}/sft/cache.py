"""Where this project caches rows and examples, under names made of all that they depend on."""

import shutil
from pathlib import Path

from datasets.config import HF_DATASETS_CACHE
from datasets.fingerprint import Hasher

from sft.config import ROOT, say

CACHE = Path(HF_DATASETS_CACHE, f"{ROOT.name}-{Hasher.hash(str(ROOT))[:8]}")


def fingerprint(*contents: object) -> str:
    """A name for what is made of these by the code of sft/."""
    code = [file.read_text(encoding="utf-8") for file in sorted((ROOT / "sft").rglob("*.py"))]
    return Hasher.hash([*contents, code])


def clean_cache() -> None:
    """Delete all that this project has cached, and say what it frees."""
    freed = sum(file.stat().st_size for file in CACHE.rglob("*") if file.is_file())
    shutil.rmtree(CACHE, ignore_errors=True)
    say(f"Freed {freed / 1e6:,.1f} MB in {CACHE}.")
