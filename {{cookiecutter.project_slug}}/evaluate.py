"""Ask base and tuned model what was held out: answers and metrics side by side, with intervals.

python evaluate.py                                 the rows that the run held out
python evaluate.py --dataset test.jsonl            all rows of another file
python evaluate.py --models base outputs/merged    base, final, or any folder of a model

  --models            which are asked; base final
  --split             all rows of this split of the dataset, such as test
  --rows              only the first so many
  --max_new_tokens    the most that an answer may have; 0: twice its reference's tokens and 16

Keys of config.yaml that are not given have the values of the run. The score is sft/score.py's.
Stopped, the same command goes on.
"""

import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import send_to_device
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from rich.progress import track
from rich.table import Table
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_chrf
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers import TrainingArguments

from sft.adapter import load_trained
from sft.answers import Question, ask, to_question, write_answers
from sft.cache import fingerprint
from sft.checkpoints import read_manifest
from sft.collator import get_collator
from sft.config import ProjectArguments, load_config, parse, run, say
from sft.examples import make_examples
from sft.mask_view import console
from sft.model import load_model, load_tokenizer
from sft.rows import load_rows
from sft.score import score
from sft.stop_tokens import stop_at, stop_tokens
from sft.trainer import LogitsWhereTrained

MODELS = ["base", "final"]
ROUGE = RougeScorer(["rougeL"])
RESAMPLES = 1000


def main(argv: list[str]) -> Path:
    """Ask, measure, and return the path of evaluation.json."""
    options, overrides = parse(argv, __doc__, models=MODELS, split="", rows=0, max_new_tokens=0)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise SystemExit("One process evaluates: start it by python evaluate.py.")
    args, training_args = load_config(overrides)
    output_dir = Path(training_args.output_dir)
    folders = {"base": None, "final": output_dir / "final"}
    models = {name: folders.get(name, Path(name)) for name in map(str, options.models or MODELS)}
    for folder in models.values():
        if folder and not folder.is_dir():
            fix = "run train.py, or name folders with --models"
            raise SystemExit(f"{folder} does not exist; {fix}.")
    trained = [one for one in (folders["final"], *models.values()) if one and one.is_dir()]
    was = read_manifest(trained[0]).get("run") or {} if trained else {}
    given = {word[2:].partition("=")[0] for word in overrides}
    args = replace(args, **{key: was[key] for key in vars(args).keys() & was.keys() - given})
    tokenizer = load_tokenizer(str(trained[0] if trained else args.base_model_path))

    is_other = "dataset" in given and args.dataset != was.get("dataset")
    if split := options.split or ("train" if is_other else ""):
        args = replace(args, train_split=split, eval_split=split)
    examples = make_examples(load_rows(args), tokenizer, args)[0].get("evaluation")
    if not examples:
        fix = "name others: --dataset test.jsonl, or --split test"
        raise SystemExit(f"{args.dataset!r} has no held-out rows; {fix}.")
    what = f"{len(examples):,} rows of {args.dataset}, {split or 'held out'}"
    if 0 < options.rows < len(examples):
        what = f"the first {options.rows:,} of {what}"
        examples = examples.select(range(options.rows))
    questions = [to_question(example, tokenizer, options.max_new_tokens) for example in examples]

    found = {}
    for name, folder in models.items():
        files = sorted((folder or Path(args.base_model_path)).glob("*"))
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        key = fingerprint(examples._fingerprint, options.max_new_tokens, vars(args), stats)
        file = output_dir / f"evaluation/{Path(name).name}-{key}.jsonl"
        found[name] = answer_all(folder, file, examples, questions, tokenizer, args, training_args)
        clear_device_cache(garbage_collection=True)  # of one model before the next comes

    base = "base" if "base" in found else [*found][0]
    metrics = summarize(questions, found, base)
    table = Table("", *found, title=f"{what} (95% interval, difference to {base})")
    for metric in metrics[base]:
        table.add_row(metric, *(shown(metrics[name][metric], name != base) for name in found))
    console.print(table)
    path = output_dir / "evaluation.json"
    summary = {"rows": what, "differences_to": base, "models": metrics}
    path.write_text(json.dumps(summary, indent=2), encoding="utf-8")
    write_answers(questions, found, output_dir / "evaluation")
    say(f"   {path}; the answers: {path.with_suffix('.html')}, {path.with_suffix('.jsonl')}")
    return path


@torch.no_grad()
def answer_all(
    folder: Path | None,
    file: Path,
    examples: Dataset,
    questions: list[Question],
    tokenizer: Tokenizer,
    args: ProjectArguments,
    training_args: TrainingArguments,
) -> list[dict]:
    """Each row's answer and the loss of its reference; those in `file` are not asked again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    text = file.read_text(encoding="utf-8")
    os.truncate(file, text.rfind("\n") + 1)  # half a line, of a run that was killed
    done = {one["row"]: one for one in map(json.loads, text[: text.rfind("\n") + 1].splitlines())}
    rest = [row for row in range(len(questions)) if row not in done]
    if rest:
        model = load_trained(folder, args) if folder else load_model(args)
        if model.device != training_args.device:  # a quantized model is there already
            model.to(training_args.device)
        stop_at(model.eval(), stop_tokens(tokenizer))
        collate = LogitsWhereTrained(get_collator(tokenizer, model))
        model.set_attn_implementation(args.attn_implementation)  # the collator's can't generate
        size = training_args.per_device_eval_batch_size
        asked = ask(model, tokenizer, [questions[row] for row in rest], size)
        with file.open("a", encoding="utf-8") as out:
            for at, answer in track(asked, file.stem, len(questions), len(done), console=console):
                row = rest[at]
                batch = send_to_device(collate([examples[row]]), model.device)
                trained = len(batch["labels"])
                loss = float(model(**batch).loss) * trained  # the sum of -log p
                done[row] = {"row": row, **asdict(answer), "loss": loss, "trained": trained}
                print(json.dumps(done[row]), file=out, flush=True)
    return [done[row] for row in range(len(questions))]


def measure(question: Question, found: dict) -> dict[str, tuple[float, float]]:
    """What one row adds to each metric: to a sum, and to what the sum is divided by."""
    texts = found["text"], question.reference
    said, wanted = (text.rpartition("</think>")[2].strip() for text in texts)
    has_words = bool(re.search("[a-z0-9]", wanted.lower()))  # rouge-score knows no others
    return {
        "loss": (found["loss"], found["trained"]),
        "perplexity": (found["loss"], found["trained"]),
        "score": (score(found["text"], asdict(question)), 1),
        "exact match": (said == wanted, 1),
        "chrF": (sentence_chrf(said, [wanted]).score / 100, 1),
        "ROUGE-L": (ROUGE.score(wanted, said)["rougeL"].fmeasure, has_words),
        "stopped by itself": (found["stopped"], 1),
        "tokens": (found["tokens"], 1),
        "tokens per second": (found["tokens"], found["seconds"]),
    }


def summarize(questions: list[Question], found: dict[str, list[dict]], base: str) -> dict:
    """By model and metric the `value`, and the bounds of its 95% interval, `low` and `high`.

    The bootstrap draws rows with replacement, the same for every model: `difference`, likewise,
    is paired with the model `base`. None is where there is nothing to divide by.
    """
    measured = [[*map(measure, questions, rows)] for rows in found.values()]
    parts = np.array([[[*row.values()] for row in rows] for rows in measured], dtype=float)
    count = parts.shape[1]  # of (models, rows, metrics, 2)
    draws = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    sums = np.stack([parts[:, drawn].sum(axis=1) for drawn in (np.arange(count), *draws)])
    with np.errstate(invalid="ignore"):
        values = sums[..., 0] / sums[..., 1]  # of shape (1 + RESAMPLES, models, metrics)
    values[..., 1] = np.exp(values[..., 0])  # perplexity
    differences = values - values[:, [[*found].index(base)]]
    return {
        name: {
            metric: interval(values[:, i, j]) | {"difference": interval(differences[:, i, j])}
            for j, metric in enumerate(measured[0][0])
        }
        for i, name in enumerate(found)
    }


def interval(values: np.ndarray) -> dict[str, float | None]:
    """The first value, and the bounds of the middle 95% of the others."""
    numbers = map(float, (values[0], *np.percentile(values[1:], (2.5, 97.5))))
    numbers = numbers if np.isfinite(values).all() else [None] * 3
    return dict(zip(("value", "low", "high"), numbers, strict=True))


def shown(figure: dict, with_difference: bool) -> str:
    """Such as "0.312 (0.250 to 0.371)", and below it the difference."""
    if figure["value"] is None:
        return "-"
    text = "{value:,.4g} ({low:,.4g} to {high:,.4g})".format(**figure)
    difference = "\n{value:+,.4g} ({low:+,.4g} to {high:+,.4g})".format(**figure["difference"])
    return text + difference * with_difference


if __name__ == "__main__":
    run(main, "Interrupted; the same command goes on.")
