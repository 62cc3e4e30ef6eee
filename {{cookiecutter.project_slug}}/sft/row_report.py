"""How many rows are used, and which are skipped and why."""

import numpy as np
from datasets import Dataset

from sft.config import ProjectArguments

ADVICE = {
    "longer than max_length": "raise max_length, or set truncation_mode",
    "control token in the text": "set control_tokens to escape",
    "the chat template drops a message": "take that role out of the rows",
    "the chat template drops the thinking": "ask for it by chat_template_kwargs, or take it out",
    "the chat template asks for a reply without thinking": "change chat_template_kwargs",
    "the chat template does not write the tool calls": "take a model that calls tools",
    "the chat template does not write the tools": "take a model that calls tools",
}


class RowReport:
    """What became of the rows that `encode_rows` returned, or of some of them."""

    def __init__(self, encoded: Dataset):
        rows, reasons, skipped = column(encoded, "row"), column(encoded, "reason"), {}
        self.used = np.flatnonzero(reasons == "")  # positions, of shape (examples,)
        self.row = rows[self.used]  # the position of its row, of the same shape
        self.lengths = column(encoded, "length")[self.used]  # in tokens, of the same shape
        self.trained = column(encoded, "trained")[self.used]  # tokens with a label
        self.text_hash = column(encoded, "text_hash")[self.used]  # equal for rows that say the same
        self.source = column(encoded, "source")[self.used]  # which of several; "" of one
        self.shortened = int(column(encoded, "shortened")[self.used].sum())  # examples
        self.first = np.unique(self.row, return_index=True)[1]  # each row's, of shape (rows used,)
        bad = np.flatnonzero(reasons).tolist()
        self.rows_used, self.rows = len(self.first), len(self.first) + len(bad)
        self.overlap = None  # how many of the rows to evaluate are also trained on
        for position in bad:
            reason, _, detail = reasons[position].partition(": ")
            skipped.setdefault(reason, []).append((int(rows[position]) + 1, detail))
        # reason -> (number, detail) of each such row, the most frequent first
        self.skipped = dict(sorted(skipped.items(), key=lambda item: -len(item[1])))

    def figures(self) -> dict[str, str]:
        """What to show of it, by name."""
        counts = {"rows": self.rows, "used": self.rows_used}
        for source in np.unique(self.source[self.source != ""]):
            own = self.source == source
            counts[f"from {source}"] = own[self.first].sum()
            tokens = self.trained[own].sum() / self.trained.sum()
            counts[f"% of trained tokens, {source}"] = round(100 * tokens)
        counts |= {f"skipped: {reason}": len(those) for reason, those in self.skipped.items()}
        counts |= {"of these also trained on": self.overlap} if self.overlap is not None else {}
        counts |= {"shortened to max_length": self.shortened} if self.shortened else {}
        if len(self.used) > self.rows_used:  # replies that need prompts of their own
            alone = np.maximum.reduceat(self.lengths, self.first).sum()
            counts["examples made of these"] = len(self.used)
            counts["times the tokens of one a row"] = round(self.lengths.sum() / alone, 2)
        if len(self.used):
            counts["median length, tokens"] = round(np.median(self.lengths))
            counts["longest, tokens"] = self.lengths.max()
            counts["trained tokens"] = self.trained.sum()
            counts["% of all tokens"] = round(100 * self.trained.sum() / self.lengths.sum())
        return {name: f"{count:,}" for name, count in counts.items()}


def column(examples: Dataset, name: str) -> np.ndarray:
    """A column, read at once and without the tokens: datasets gathers it row by row."""
    values = examples.data.column(name).to_numpy()
    return values if examples._indices is None else values[examples._indices.column(0).to_numpy()]


def refuse_too_many(split: str, report: RowReport, args: ProjectArguments) -> None:
    """Exit where no row is left or more than `max_skipped` are skipped; each reason is named."""
    skipped = report.rows - report.rows_used
    if len(report.used) and skipped <= args.max_skipped * report.rows:
        return
    why = f"more than max_skipped = {args.max_skipped:g}" if len(report.used) else "none is left"
    rows = f"{skipped:,} of {report.rows:,} {split} rows of {args.dataset!r}"
    lines = [f"{rows} cannot be trained on, {why}:"]
    for reason, those in report.skipped.items():
        first = ": ".join(filter(None, (f"row {those[0][0]}", those[0][1])))
        advice = f" -> {ADVICE[reason]}" if reason in ADVICE else ""
        lines.append(f"  {len(those):,} {reason} ({first}){advice}")
    raise SystemExit("\n".join([*lines, "python preview.py, with the same options, shows them."]))
