"""Rows to look at: copies, replies that their prompts tell, scripts and lengths unlike others."""

import re
import unicodedata
from collections import Counter
from zlib import crc32

import numpy as np
from datasets import Dataset

from sft.config import ProjectArguments
from sft.files import plain_row
from sft.format import to_conversation
from sft.mixture import content
from sft.row_report import RowReport

MOST = 50_000  # rows that are looked at
RARE = 8  # how many times longer or shorter than the median
TOLD = 20  # characters of a reply that cannot be in the prompt by chance
ALIKE = 0.8  # share of the runs of three words that near copies have in common
COMMON = 0.2  # share of the rows that a run is in which tells none from another
BANDS, IN_BAND = 16, 4  # near copies share one of so many groups of hashes, each of so many

# odd, one for each hash
FACTORS = np.random.default_rng(0).integers(2**63, size=BANDS * IN_BAND, dtype=np.uint64) * 2 + 1


def find_striking(rows: Dataset, report: RowReport, args: ProjectArguments) -> dict[str, list[int]]:
    """The numbers, from 1, of rows that are used, by what is to be seen there."""
    used, seen = report.row[report.first], set()
    copies, in_prompt, runs, scripts = [], [], [], []
    for position, row in enumerate(rows.select(used[:MOST])):
        messages = to_conversation(plain_row(row), args)["messages"]
        texts = [str(turn.get("content", "")) for turn in messages]
        if (same := content(row)) in seen:
            copies.append(position)
        seen.add(same)
        last = max(at for at, turn in enumerate(messages) if turn["role"] == "assistant")
        if len(reply := texts[last].strip()) >= TOLD and reply in "\n".join(texts[:last]):
            in_prompt.append(position)
        runs.append(_runs(" ".join(texts)))
        scripts.append(_script(reply))
    lengths = np.maximum.reduceat(report.lengths, report.first)[:MOST]
    median = np.median(lengths)
    odd = np.flatnonzero((lengths >= RARE * median) | (lengths <= median / RARE))
    most = Counter(filter(None, scripts)).most_common(1)
    others = [at for at, script in enumerate(scripts) if script not in ("", *dict(most))]
    found = {
        "exactly what an earlier row says; dedupe: true drops them": copies,
        "nearly what an earlier row says": sorted(_near(runs) - {*copies}),
        "a reply that is in the prompt": in_prompt,
        "a reply in another script than most": others if len(others) < COMMON * len(runs) else [],
        f"{RARE} times the median length and more, or an {RARE}th and less": odd,
    }
    found[f"no such search, which ends after {MOST:,} rows"] = range(MOST, len(used))
    return {what: [int(used[at]) + 1 for at in those] for what, those in found.items()}


def _script(text: str) -> str:
    """What most letters at its start are: LATIN, CYRILLIC, CJK; "" without letters."""
    names = (unicodedata.name(one, "").split(" ")[0] for one in text[:200] if one.isalpha())
    found = Counter(re.sub("HIRAGANA|KATAKANA.*", "CJK", name) for name in names).most_common(1)
    return found[0][0] if found else ""


def _runs(text: str) -> np.ndarray:
    """A number for each run of three words."""
    words = re.findall(r"\w+", text.casefold())
    runs = {" ".join(words[at : at + 3]) for at in range(max(1, len(words) - 2))}
    return np.array([crc32(run.encode()) for run in runs], dtype=np.uint64)


def _near(runs: list[np.ndarray]) -> set[int]:
    """Positions of the rows that have `ALIKE` of their runs from an earlier one, by MinHash."""
    every, counts = np.unique(np.concatenate(runs), return_counts=True)
    common = every[counts > max(COMMON * len(runs), 20)]  # of an instruction that many rows share
    signatures, found = [], set()
    for each in runs:
        own = np.setdiff1d(each, common)
        own = own if len(own) else each
        hashes = own[:, None] * FACTORS >> np.uint64(32)  # of shape (runs, hashes)
        signatures.append(hashes.min(axis=0))
    signatures = np.stack(signatures)
    for band in np.split(signatures, BANDS, axis=1):
        _, first, group = np.unique(band, axis=0, return_index=True, return_inverse=True)
        earlier = first[group.ravel()]
        alike = (signatures == signatures[earlier]).mean(axis=1) >= ALIKE
        found |= {*np.flatnonzero(alike & (earlier < np.arange(len(runs)))).tolist()}
    return found
