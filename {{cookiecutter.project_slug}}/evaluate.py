"""Ask base and tuned model what was held out: answers and metrics side by side, with intervals.

python evaluate.py                                 the rows that the run held out
python evaluate.py --dataset test.jsonl            all rows of another file
python evaluate.py --models base outputs/merged    base, final, or any folder of a model

  --models            which are asked; base final
  --split             all rows of this split of the dataset, such as test
  --rows              only the first so many
  --max_new_tokens    the most that an answer may have; 0: twice its reference's tokens and 16

Keys of config.yaml have the run's values, unless given. Stopped, the same command goes on.
"""

import json
import os
import re
from dataclasses import replace
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
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.adapter import load_trained
from sft.answers import Question, ask, score_of, to_question, without_thought, write_answers
from sft.cache import CACHE, fingerprint
from sft.card import write_card
from sft.chat_template import make_room
from sft.checkpoints import UNSEALED, read_manifest
from sft.collator import get_collator
from sft.config import ProjectArguments, load_config, parse, run, say
from sft.examples import make_examples
from sft.mask_view import console
from sft.model import load_model, load_tokenizer
from sft.rows import load_rows
from sft.stop_tokens import stop_at, stop_tokens
from sft.trainer import LogitsWhereTrained

MODELS = ["base", "final"]
ROUGE = RougeScorer(["rougeL"])
RESAMPLES = 1000
FIGURES = ("value", "low", "high", "difference", "difference_low", "difference_high")
SHOWN = "{value:,.4g} [{low:,.4g}, {high:,.4g}]"
DIFFERENCE = "{difference:+,.4g} [{difference_low:+,.4g}, {difference_high:+,.4g}]"


def main(argv: list[str]) -> Path:
    """Evaluate; where memory does not suffice, say what would help."""
    try:
        return evaluate(argv)
    except torch.OutOfMemoryError:
        raise SystemExit("Out of memory: lower per_device_eval_batch_size; it goes on.") from None


@torch.no_grad()
def evaluate(argv: list[str]) -> Path:
    """Ask, measure, and return the path of evaluation.json."""
    options, overrides = parse(argv, __doc__, models=MODELS, split="", rows=0, max_new_tokens=0)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise SystemExit("One process evaluates: start it by python evaluate.py.")
    args, training_args = load_config(overrides)
    output_dir = Path(training_args.output_dir)
    models = find_models(options.models or MODELS, output_dir / "final")
    folders = [folder for folder in (output_dir / "final", *models.values()) if folder]
    source = next(filter(Path.is_dir, folders), None)  # of tokenizer and settings
    was = read_manifest(source).get("run") or {} if source else {}
    given = {word[2:].partition("=")[0] for word in overrides}
    args = replace(args, **{key: was[key] for key in vars(args).keys() & was.keys() - given})
    template = "" if source else args.chat_template  # a run has saved its own
    tokenizer = load_tokenizer(str(source or args.base_model_path), args.revision, template)

    is_other = "dataset" in given and args.dataset != was.get("dataset")
    split = options.split or ("train" if is_other else "")
    examples, title = select_examples(args, tokenizer, split, options.rows)
    questions = [to_question(example, tokenizer, options.max_new_tokens) for example in examples]
    found = {}
    for name, folder in models.items():
        files = sorted((folder or Path(args.base_model_path)).glob("*"))
        files = [(file.name, file.stat()) for file in files if file.name not in UNSEALED]
        stats = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in files]
        loaded = vars(replace(args, adapter={}))  # an adapter's own settings are in its folder
        key = fingerprint(examples._fingerprint, options.max_new_tokens, loaded, stats)
        # all runs share what the base says
        home = output_dir / "evaluation" if folder else CACHE
        file = home / f"{Path(name).name}-{key}.jsonl"
        done = kept(file)
        if rest := [row for row in range(len(questions)) if row not in done]:
            model = load_trained(folder, args) if folder else load_model(args)
            make_room(model, [len(tokenizer) - 1] if args.chat_template else [])
            if model.device != training_args.device:  # a quantized model is there already
                model.to(training_args.device)
            stop_at(model.eval(), stop_tokens(tokenizer))
            collate = LogitsWhereTrained(get_collator(tokenizer, model))
            model.set_attn_implementation(args.attn_implementation)  # the collator's can't generate
            size = training_args.per_device_eval_batch_size
            answers = ask(model, tokenizer, [questions[row] for row in rest], size)
            for at, answer in track(answers, name, len(questions), len(done), console=console):
                loss = measure_loss(model, collate([examples[rest[at]]]))
                done[rest[at]] = {"row": rest[at], **answer, **loss}
                with file.open("a", encoding="utf-8", newline="\n") as lines:
                    print(json.dumps(done[rest[at]]), file=lines)
            del model
            clear_device_cache(garbage_collection=True)  # the next model needs the memory
        found[name] = [done[row] for row in range(len(questions))]

    base = "base" if "base" in found else [*found][0]
    metrics = summarize(questions, found, base)
    show_metrics(metrics, base, title)
    path = output_dir / "evaluation.json"
    path.parent.mkdir(parents=True, exist_ok=True)  # there may be no run, only a base
    summary = {"rows": title, "differences_to": base, "models": metrics}
    path.write_text(json.dumps(summary, indent=2), encoding="utf-8")
    write_answers(questions, found, output_dir / "evaluation")
    if (output_dir / "final").is_dir():
        write_card(output_dir / "final", output_dir, tokenizer, only_scores=True)
    say(f"   {path}; the answers: {path.with_suffix('.html')}, {path.with_suffix('.jsonl')}")
    return path


def find_models(names: list[str], final: Path) -> dict[str, Path | None]:
    """The folder of each model, None for the base; exits where one does not exist."""
    folders = {"base": None, "final": final}
    models = {name: folders.get(name, Path(name)) for name in map(str, names)}
    for folder in filter(None, models.values()):
        if not folder.is_dir():
            raise SystemExit(f"{folder} does not exist; run train.py, or name others by --models.")
    return models


def select_examples(
    args: ProjectArguments, tokenizer: Tokenizer, split: str, rows: int
) -> tuple[Dataset, str]:
    """The first `rows` examples of a split, or of what was held out, and which they are.

    0 and "" are for all rows, and for those that training holds out.
    """
    if split:
        args = replace(args, train_split=split, eval_split=split, eval_dataset="")
    examples = make_examples(load_rows(args), tokenizer, args)[0].get("evaluation")
    if not examples:
        raise SystemExit(f"{args.dataset!r} holds out no rows; name others: --dataset, --split.")
    what = f"{len(examples):,} rows of {args.dataset}, {split or 'held out'}"
    if 0 < rows < len(examples):
        return examples.select(range(rows)), f"the first {rows:,} of {what}"
    return examples, what


def measure_loss(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, float]:
    """The `loss` of a batch, the sum over its `trained` tokens."""
    loss = float(model(**send_to_device(batch, model.device)).loss)  # the mean
    return {"loss": loss * len(batch["labels"]), "trained": len(batch["labels"])}


def kept(file: Path) -> dict[int, dict]:
    """What `file` has already, by row; takes half a line out of it, as a kill leaves one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    whole = "".join(file.read_text(encoding="utf-8").rpartition("\n")[:2])
    os.truncate(file, len(whole))
    return {found["row"]: found for found in map(json.loads, whole.splitlines())}


def measure(question: Question, found: dict) -> dict[str, tuple[float, float]]:
    """What one row adds to each metric: to a sum, and to what the sum is divided by."""
    answer, wanted = without_thought(found["text"]), without_thought(question.reference)
    has_words = bool(re.search("[a-z0-9]", wanted.lower()))  # rouge-score knows no others
    return {
        "loss": (found["loss"], found["trained"]),
        "perplexity": (found["loss"], found["trained"]),
        "score": (score_of(found["text"], question), 1),
        "exact match": (answer == wanted, 1),
        "chrF": (sentence_chrf(answer, [wanted]).score / 100, 1),
        "ROUGE-L": (ROUGE.score(wanted, answer)["rougeL"].fmeasure, has_words),
        "stopped by itself": (found["stopped"], 1),
        "tokens": (found["tokens"], 1),
        "tokens per second": (found["tokens"], found["seconds"]),
    }


def summarize(questions: list[Question], found: dict[str, list[dict]], base: str) -> dict:
    """`FIGURES` by model and metric, as floats; as None where there is nothing to divide by.

    An interval is the bootstrap's, over rows that are drawn with replacement. They are the same for
    all models, so that differences, to the model `base`, are paired.
    """
    measured = [[*map(measure, questions, rows)] for rows in found.values()]
    parts = np.array([[[*row.values()] for row in rows] for rows in measured], dtype=float)
    draws = np.random.default_rng(0).integers(len(questions), size=(RESAMPLES, len(questions)))
    # each of shape (models, metrics, 2); first those of the rows as they are
    sums = np.stack([parts[:, rows].sum(axis=1) for rows in (slice(None), *draws)])
    with np.errstate(invalid="ignore"):
        values = sums[..., 0] / sums[..., 1]  # of shape (1 + RESAMPLES, models, metrics)
    values[..., 1] = np.exp(values[..., 0])  # perplexity
    figures = []
    for these in (values, values - values[:, [[*found].index(base)]]):
        figures += [these[0], *np.percentile(these[1:], (2.5, 97.5), axis=0)]
    figures = np.where(np.isfinite(figures).all(axis=0), figures, None)
    return {
        name: {
            metric: dict(zip(FIGURES, figures[:, i, j], strict=True))
            for j, metric in enumerate(measured[0][0])
        }
        for i, name in enumerate(found)
    }


def show_metrics(metrics: dict, base: str, title: str) -> None:
    """Print what `summarize` found as a table."""
    table = Table("", "", "[95% interval]", f"difference to {base}", title=title)
    for metric in metrics[base]:
        for name, found in metrics.items():
            one = {key: value and round(value, 3) for key, value in found[metric].items()}
            forms = ["-"] if one["value"] is None else [SHOWN, DIFFERENCE][: 1 + (name != base)]
            table.add_row(metric, name, *(form.format(**one) for form in forms))
    console.print(table)


if __name__ == "__main__":
    run(main, "Interrupted; the same command goes on.")
