"""Which rows are held out: rows of the same words stay on one side."""

import hashlib
import string

import numpy as np

from sft.row_report import RowReport

SKIPPED = (string.punctuation + string.whitespace).encode()


def hash_text(messages: list[dict]) -> int:
    """A number for what a conversation says, without case and ASCII's blanks and punctuation."""
    text = "".join([str(turn[key]) for turn in messages for key in sorted(turn)])
    letters = text.casefold().encode().translate(None, SKIPPED)
    return int.from_bytes(hashlib.blake2b(letters, digest_size=8).digest(), signed=True)


def choose_held_out(report: RowReport, test_size: float) -> np.ndarray:
    """Positions of the examples of about `test_size` of the rows; none where all are the same."""
    texts, sizes = np.unique(report.text_hash[report.first], return_counts=True)
    if not test_size or len(sizes) < 2:
        return report.used[:0]
    count = min(max(1, round(test_size * sizes.sum())), sizes.sum() - 1)
    count = max(count, sizes.min())  # at least one group of rows must fit
    seeded = np.random.default_rng(0)  # the same rows whenever the run is started again
    groups = seeded.permutation(np.flatnonzero(sizes <= count))
    groups = groups[np.cumsum(sizes[groups]) <= count]
    return report.used[np.isin(report.text_hash, texts[groups])]
