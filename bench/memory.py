"""The memory formula against traced training steps: every model of the menu, every kind of project.

    .venv/bin/python bench/memory.py [--seed 1] [--every 1] [--vocabulary 8192] [--only MODEL]

For each base model x quantization x LoRA answer x collator x checkpointing, a batch, a length, a
rank, a share of trained tokens and an optimizer are drawn. sft/vram.py calculates the peak, and
sft/trace.py counts it with that project's own code. `--every 5` takes each fifth. A small
vocabulary makes activations count instead of logits. Results go to results/memory*.json, with a
table on the screen.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from cookiecutter.main import cookiecutter
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

BENCH = Path(__file__).resolve().parent
TEMPLATE = BENCH.parent
MENUS = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="take each so many-th configuration")
    parser.add_argument("--vocabulary", type=int, help="instead of the model's own")
    parser.add_argument("--only", help="one base model; the results of the others are kept")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    every = list(configurations(rng))[:: options.every]
    suffix = f"_{options.vocabulary}" if options.vocabulary else ""
    file = BENCH / "results" / f"memory{suffix}.json"
    results = []
    if options.only:
        every = [one for one in every if one[1]["base_model"] == options.only]
        kept = json.loads(file.read_text(encoding="utf-8"))
        results = [one for one in kept if one["base_model"] != options.only]
    projects = defaultdict(list)
    for answers, given in every:
        projects[answers].append(given)
    workers = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder, Progress() as progress:
        bar = progress.add_task("configurations", total=len(every))
        waiting, running = list(projects.items()), []
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(start(Path(folder), *waiting.pop(), options.vocabulary))
            answers, worker = running.pop(0)
            for line in worker.stdout:
                results.append(dict(answers) | json.loads(line))
                progress.advance(bar)
            if worker.wait():
                raise SystemExit(f"The worker for {dict(answers)} ended with {worker.returncode}.")
    report(results, file)


def configurations(rng: random.Random):
    """(structural answers, settings) for the whole product, with the other values drawn."""
    menus = ("base_model", "quantization", "lora_targets", "collator")
    for model, quantization, lora, collator in itertools.product(*(MENUS[name] for name in menus)):
        if lora == "full" and quantization != "none":
            continue
        for checkpointing in (True, False):
            given = {
                "base_model": model,
                "lora_targets": lora,
                "activation_checkpointing": checkpointing,
                "per_device_train_batch_size": rng.choice([1, 2, 3, 4, 8]),
                "max_length": int(2 ** rng.uniform(7, 13)),
                "gradient_accumulation_steps": rng.choice([1, 8]),
                "trained_share": rng.choice([0.1, 0.25, 0.5, 1.0]),
                "optim": rng.choice(["adamw_torch_fused", "adamw_torch", "paged_adamw_8bit"]),
            }
            if lora == "full":
                given["dtype"] = rng.choice(["float32", "bfloat16"])
            else:
                given["r"] = rng.choice([1, 8, 16, 64, 256])
                given["lora_dropout"] = rng.choice([0.0, 0.1])
            full = "full" if lora == "full" else "attention"
            answers = {"quantization": quantization, "lora_targets": full, "collator": collator}
            yield tuple(answers.items()), given


def start(folder: Path, answers: tuple, given: list[dict], vocabulary: int | None):
    """A process that answers one line for each configuration, in a project of its own."""
    config = folder / "config"
    config.write_text(f"replay_dir: {json.dumps(str(folder / 'replay'))}\n")
    slug = "-".join(answer for _, answer in answers)
    project = cookiecutter(
        str(TEMPLATE),
        no_input=True,
        accept_hooks=False,
        output_dir=str(folder),
        config_file=str(config),
        extra_context={**dict(answers), "project_slug": slug},
    )
    work = folder / f"{slug}.json"
    work.write_text(json.dumps({"configurations": given, "vocabulary": vocabulary}))
    command = [sys.executable, BENCH / "workers" / "with_trace.py", work]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    worker = subprocess.Popen(
        command,
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return answers, worker


def report(results: list[dict], path: Path) -> None:
    """Write the results, and print how far the formula is off, by kind of project and by moment."""
    results.sort(key=lambda one: json.dumps(one, sort_keys=True))
    path.write_text("[\n" + ",\n".join(map(json.dumps, results)) + "\n]\n", encoding="utf-8")
    groups = defaultdict(list)
    for one in results:
        error = abs(one["formula"] / one["trace"] - 1)
        groups[one["quantization"], one["lora_targets"]].append(error)
        groups["moment", one["moment"]].append(error)
        groups["all", ""].append(error)
    table = Table("of", "", "configurations", "mean error", "worst")
    for (first, second), errors in sorted(groups.items()):
        mean = sum(errors) / len(errors)
        table.add_row(first, second, str(len(errors)), f"{mean:.2%}", f"{max(errors):.2%}")
    Console().print(table)
    worst = max(results, key=lambda one: abs(one["formula"] / one["trace"] - 1))
    print("worst:", json.dumps(worst))


if __name__ == "__main__":
    main()
