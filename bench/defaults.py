"""Which LoRA should be the default? A real model, three ways, each at three learning rates.

    .venv/bin/python bench/defaults.py --model FOLDER --gsm8k FILE     rewrites bench/defaults.md

FOLDER is SmolLM2-135M-Instruct, as `make demo` leaves it in .venv; FILE has `question`, `answer`.
Everything is done by a generated project's own commands, train.py and evaluate.py. Runs that are
finished are kept in `--work`, and the same command goes on.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from cookiecutter.main import cookiecutter

BENCH = Path(__file__).resolve().parent
RATES = ("2e-4", "6e-4", "2e-3")
WAYS = {  # lora_targets, and options of train.py
    "attention, r 64, alpha 16 (the tutorial's)": ("attention", "--r=64", "--lora_alpha=16"),
    "all_linear, r 16, alpha 32": ("all_linear", "--r=16", "--lora_alpha=32"),
    "attention, r 64, alpha 16, rsLoRA": (
        *("attention", "--r=64", "--lora_alpha=16", "--use_rslora=true"),
    ),
}
SHOWN = ("loss", "score", "ROUGE-L", "stopped by itself")
DATA = {  # answers of cookiecutter, options of train.py, options of evaluate.py, what is shown
    "dialogues": (
        {"dataset": "data/sample.jsonl", "row": "{dialogue} => {summary}"},
        ("--test_size=0.2", "--num_train_epochs=2"),
        (),
        SHOWN,
    ),
    "GSM8K": (
        {"row": "{question} => {answer}"},
        ("--train_split=train[:560]", "--eval_split=train[560:600]", "--max_steps=32"),
        ("--max_new_tokens=1",),  # a model of this size solves none, tuned or not
        SHOWN[:1],
    ),
}
COMMON = (
    *("--per_device_train_batch_size=4", "--gradient_accumulation_steps=1", "--answers=0"),
    *("--per_device_eval_batch_size=10", "--logging_steps=4", "--eval_strategy=no"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--gsm8k", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=BENCH / ".defaults")
    options = parser.parse_args()
    tables = []
    for data, (answers, train, evaluate, shown) in DATA.items():
        dataset = answers.get("dataset") or str(options.gsm8k.resolve())
        found = {}  # (way, rate) -> the metrics of both models
        for way, (targets, *lora) in WAYS.items():
            slug = f"{data}-{targets}".lower()
            project = options.work.resolve() / slug
            if not project.exists():
                cookiecutter(
                    str(BENCH.parent),
                    no_input=True,
                    output_dir=str(options.work),
                    extra_context={
                        **answers,
                        "dataset": dataset,
                        "project_slug": slug,
                        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
                        "base_model_path": str(options.model.resolve()),
                        "lora_targets": targets,
                        "quantization": "none",
                    },
                )
                with (project / "config.yaml").open("a") as config:
                    config.write("use_rslora: false\n")
            for rate in RATES:
                output = f"--output_dir=outputs/{'rs-' * (len(lora) > 2)}{rate}"
                result = project / output.partition("=")[2] / "evaluation.json"
                if not result.exists():
                    print(f"--- {data}: {way}, learning rate {rate}", flush=True)
                    words = (*COMMON, *train, *lora, f"--learning_rate={rate}", output)
                    run(project, "train.py", *words)
                    run(project, "evaluate.py", *evaluate, output)
                found[way, rate] = json.loads(result.read_text())
        tables.append(table(data, found, shown))
    page = BENCH / "defaults.md"
    head = page.read_text(encoding="utf-8").partition("\n## ")[0].rstrip()
    page.write_text("\n\n".join([head, *tables]) + "\n", encoding="utf-8")


def run(project: Path, *words: str) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, *words], cwd=project, check=True, env=environment)


def table(data: str, found: dict, shown: tuple[str, ...]) -> str:
    """Markdown: a row for each run, a column for each metric, with its 95% interval."""
    lines = [f"## {data}", "", f"Asked: {next(iter(found.values()))['rows'].split(' of ')[0]}.", ""]
    lines += ["| LoRA | learning rate | " + " | ".join(shown) + " |"]
    lines += ["|---|---|" + "---|" * len(shown)]
    rows = {("none: the base model", "-"): next(iter(found.values()))["models"]["base"]}
    rows |= {key: one["models"]["final"] for key, one in found.items()}
    for (way, rate), metrics in rows.items():
        cells = [
            "{value:.3f} ({low:.3f} to {high:.3f})".format(**metrics[metric]) for metric in shown
        ]
        lines.append(f"| {way} | {rate} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
