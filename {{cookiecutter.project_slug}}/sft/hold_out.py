"""Which rows are held out for evaluation: rows of the same words stay on one side."""

import hashlib
import string

import numpy as np

from sft.row_report import RowReport

BLANKS = dict.fromkeys(map(ord, string.punctuation), " ")


def hash_words(messages: list[dict]) -> int:
    """A number for what a conversation says, without case, blanks and punctuation."""
    text = " ".join(str(message.get("content")) for message in messages).casefold()
    words = " ".join(text.translate(BLANKS).split()).encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), signed=True)


def choose_held_out(report: RowReport, test_size: float) -> np.ndarray:
    """The positions of about `test_size` of the rows that are used; none where all are the same."""
    _, group_of, sizes = np.unique(report.words, return_inverse=True, return_counts=True)
    if not test_size or len(sizes) < 2:
        return report.used[:0]
    count = min(max(1, round(test_size * len(report.used))), len(report.used) - 1)
    count = max(count, sizes.min())  # at least one group of rows must fit
    seeded = np.random.default_rng(0)  # the same rows whenever the run is started again
    groups = seeded.permutation(np.flatnonzero(sizes <= count))
    groups = groups[np.cumsum(sizes[groups]) <= count]
    return report.used[np.isin(group_of, groups)]
