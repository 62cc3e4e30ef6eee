"""See what is trained on, before anything is: your own rows, their tokens, their masks.

python preview.py                         in the terminal, and as a page: outputs/preview.html
python preview.py --max_length 2048       any key of config.yaml can be tried

  --smoke    with the tokenizer of train.py --smoke, offline
  --clean    first delete what this project has cached: rows, examples, the base's answers

No model is loaded. The examples are cached: training takes them from there.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from jinja2 import Template
from rich.text import Text
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.cache import clean_cache
from sft.config import ROOT, load_config, parse, run, say
from sft.examples import encode_rows
from sft.files import plain_row
from sft.format import to_conversation
from sft.mask_view import console, pieces, share, show
from sft.model import load_tokenizer
from sft.preflight import check_model
from sft.report import show_rows
from sft.row_report import RowReport
from sft.rows import load_rows
from sft.striking import find_striking
from sft.twin import smoke_overrides

SIMPLE = 100  # examples whose labels are held against the simple way's
FIRST, LONGEST, SKIPPED = 5, 2, 5  # how many rows are shown; of those skipped, for each reason
NAMED = 10  # rows of a kind to look at that are named
as_json = partial(json.dumps, ensure_ascii=False, default=str)
PAGE = ROOT / "sft/preview.html.jinja"


def main(argv: list[str]) -> Path:
    """Show the first, the longest and the skipped rows; returns the path of the page."""
    options, overrides = parse(argv, __doc__, smoke=False, clean=False)
    if options.smoke:
        overrides = smoke_overrides(overrides, Path("outputs/smoke_preview"))
    args, training_args = load_config(overrides)
    if options.clean:
        clean_cache()
    check_model(args, attn_implementation="eager")  # the GPU's may be missing here
    rows = load_rows(args)["train"]
    tokenizer = load_tokenizer(args.base_model_path, args.revision, args.chat_template)
    encoded = encode_rows(rows, tokenizer, args)
    report = RowReport(encoded)
    show_rows({"all rows": report})

    longest = report.used[np.argsort(-report.lengths, kind="stable")]
    names = encoded["title"]
    titles = {index: names[index] for index in report.used[:FIRST]}
    titles |= {index: f"{names[index]}, among the longest" for index in longest[:LONGEST]}
    examples = []
    for index, title in titles.items():
        show(title, encoded[index], tokenizer)
        examples.append((title, share(encoded[index]), pieces(encoded[index], tokenizer)))
    skipped = []
    for reason, those in report.skipped.items():
        for number, detail in those[:SKIPPED]:
            row = plain_row(rows[number - 1])
            title = ": ".join(filter(None, (f"row {number} is skipped", reason, detail)))
            skipped.append((title, row))
            console.print(Text(title, "red"))
            for column, value in row.items():
                console.print(Text(f"    {column}: {as_json(value)[:90]}", "bright_black"))

    first = [unlike_simple(encoded[at], rows, tokenizer, args) for at in report.used[:SIMPLE]]
    if wrong := [*filter(None, first)]:
        where = f"{len(wrong)} of {len(first)} rows: {wrong[0]}"
        say(f"These masks are right; three lines for one (LESSONS.md) would err in {where}")

    striking = []
    for what, numbers in find_striking(rows, report, args).items() if len(report.used) else ():
        if numbers:
            first, dots = ", ".join(map(str, numbers[:NAMED])), ", ..." * (len(numbers) > NAMED)
            striking.append(f"{len(numbers):,} with {what}: row {first}{dots}")
    say("\n   ".join(["Look at these:", *(striking or ["nothing is striking"])]))

    sizes = {f"tokens an example (max_length is {args.max_length:,})": report.lengths}
    sizes["trained tokens an example"] = report.trained
    html = Template(PAGE.read_text(encoding="utf-8"), autoescape=True).render(
        args=args,
        figures=report.figures(),
        histograms=[(name, *histogram(values)) for name, values in sizes.items() if values.size],
        examples=examples,
        striking=striking,
        skipped=skipped,
        as_json=as_json,
    )
    path = Path(training_args.output_dir) / "preview.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    say(f"The same as a page to look at or send: {path}")
    return path


def unlike_simple(example: dict, rows: Dataset, tokenizer: Tokenizer, args: Any) -> str:
    """How its labels differ from those of the three lines in LESSONS.md; "" if they do not."""
    conversation = to_conversation(plain_row(rows[example["row"]]), args)
    messages, how = conversation["messages"], {"return_dict": False, "tokenize": True}
    if len(messages) == 1:  # there is no prompt
        return ""
    how |= {key: value for key, value in conversation.items() if key == "tools"}
    how |= conversation["chat_template_kwargs"]
    try:
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **how)
        simple = tokenizer.apply_chat_template(messages, **how)[len(prompt) :]
    except Exception:  # templates raise what they like
        return f"{example['title']}: the chat template refuses"
    right = [label for label in example["labels"] if label != -100]
    if simple == right:
        return ""
    ends = (json.dumps(tokenizer.decode(one)[-30:], ensure_ascii=False) for one in (simple, right))
    return "{}: trained to write ...{}, not ...{}".format(example["title"], *ends)


def histogram(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least, the median and the most; and how many values are in each of up to 40 bars."""
    counts, _ = np.histogram(values, min(40, np.ptp(values) + 1))
    return np.percentile(values, (0, 50, 100)), counts


if __name__ == "__main__":
    run(main)
