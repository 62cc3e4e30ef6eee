"""See what is trained on, before anything is: your own rows, their tokens, their masks.

python preview.py                         in the terminal, and as a page: outputs/preview.html
python preview.py --max_length 2048       any key of config.yaml can be tried

  --smoke    with the tiny twin's tokenizer, offline

No model is loaded. The examples are cached: training takes them from there.
"""

from pathlib import Path

import numpy as np

from sft.config import load_config, parse, run, say
from sft.examples import encode_rows
from sft.mask_view import page, show, show_skipped
from sft.model import load_tokenizer
from sft.report import show_rows
from sft.row_report import RowReport
from sft.rows import load_rows
from sft.twin import smoke_overrides

FIRST, LONGEST, SKIPPED = 5, 2, 5  # how many rows are shown; of those skipped, for each reason


def main(argv: list[str]) -> Path:
    """Show the first, the longest and the skipped rows; returns the path of the page."""
    options, overrides = parse(argv, __doc__, smoke=False)
    if options.smoke:
        overrides = smoke_overrides(overrides, Path("outputs/smoke_preview"))
    args, training_args = load_config(overrides)
    rows = load_rows(args)["train"]
    tokenizer = load_tokenizer(args.base_model_path, args.revision)
    encoded = encode_rows(rows, tokenizer, args)
    report = RowReport(encoded)
    show_rows({"all rows": report})

    by_length = report.used[np.argsort(-report.lengths, kind="stable")]
    titles = {index: f"row {index + 1}" for index in report.used[:FIRST].tolist()}
    for index in by_length[:LONGEST].tolist():
        titles[index] = f"row {index + 1}, among the longest"
    shown = {title: encoded[index] for index, title in titles.items()}
    for title, example in shown.items():
        show(title, example, tokenizer)
    numbers = [number for those in report.skipped.values() for number, _ in those[:SKIPPED]]
    skipped = [(number, encoded[number - 1]["reason"], rows[number - 1]) for number in numbers]
    show_skipped(skipped)

    path = Path(training_args.output_dir) / "preview.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(args, report, shown, skipped, tokenizer), encoding="utf-8")
    say(f"The same as a page to look at or send: {path}")
    return path


if __name__ == "__main__":
    run(main)
