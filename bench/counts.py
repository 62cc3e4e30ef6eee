"""Count the memory of a training step for every base model and structure of the menus.

    make memory                                  all of them, on every core: a quarter of an hour
    .venv/bin/python bench/counts.py --only Qwen/Qwen3-8B

A project of each structure counts its own code (sft/count.py) with the config.json of each base
model. The counts of a model go to templates/base_model/<model>.counts.json, and a project receives
its own. Collators that make the same batches share a count; they are asked.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cookiecutter.main import cookiecutter
from rich.progress import Progress

TEMPLATE = Path(__file__).resolve().parent.parent
MODELS = TEMPLATE / "templates" / "base_model"
MENUS = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
BASE_MODELS = [model for model in MENUS["base_model"] if model != "other"]  # which is no model
COUNT = """
import sys
from sft import count
for folder in sys.argv[1:]:
    count.main([f"--base_model_path={folder}"])
"""
BATCH = """
from transformers import AutoModelForCausalLM
from pathlib import Path
from sft.collator import get_collator
from sft.twin import build_tokenizer, build_twin
build_twin(Path("twin"), "base_model")
model = AutoModelForCausalLM.from_pretrained("twin")
rows = [{"input_ids": [*range(n)], "labels": [-100] * 3 + [*range(3, n)]} for n in (5, 7)]
batch = get_collator(build_tokenizer(), model)(rows)
print(sorted((key, str(value)) for key, value in batch.items()), model.config._attn_implementation)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="base models; those of the others are kept")
    models = parser.parse_args().only or BASE_MODELS
    pairs = [
        (quantization, lora_targets)
        for quantization in MENUS["quantization"]
        for lora_targets in MENUS["lora_targets"]
        if lora_targets != "full" or quantization == "none"
    ]
    counts = defaultdict(dict)  # model -> structures -> count
    with tempfile.TemporaryDirectory() as name, Progress() as progress:
        folder, alike = Path(name), defaultdict(list)
        for collator in MENUS["collator"]:
            project = bake(folder, collator=collator, quantization="none")
            alike[run(project, BATCH)[-1]].append(collator)
        for model in models:
            (folder / model).mkdir(parents=True)
            config = (MODELS / f"{model}.json").read_text(encoding="utf-8")
            (folder / model / "config.json").write_text(config, encoding="utf-8")
        jobs = {}
        for (quantization, lora_targets), collators in itertools.product(pairs, alike.values()):
            answers = {"quantization": quantization, "lora_targets": lora_targets}
            key = " | ".join(f"{quantization} {lora_targets} {one}" for one in collators)
            jobs[key] = bake(folder, **answers, collator=collators[0])
        bar = progress.add_task("Counting", total=len(jobs))

        def count(key: str) -> None:
            found = run(jobs[key], COUNT, *(str(folder / model) for model in models))
            for model, line in zip(models, found, strict=True):
                counts[model][key] = line
            progress.advance(bar)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            [*pool.map(count, jobs)]
    for model, by_structure in counts.items():
        lines = (f'" {names} ": {by_structure[names]}' for names in sorted(by_structure))
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        (MODELS / f"{model}.counts.json").write_text(text, encoding="utf-8")


def bake(folder: Path, **answers: str) -> Path:
    """A project of that kind; without hooks, which would show a count."""
    config = folder / "config"
    config.write_text(f"replay_dir: {json.dumps(str(folder / 'replay'))}\n")
    slug = "-".join([*answers.values()])
    return Path(
        cookiecutter(
            str(TEMPLATE),
            no_input=True,
            accept_hooks=False,
            overwrite_if_exists=True,
            output_dir=str(folder),
            config_file=str(config),
            extra_context={**answers, "project_slug": slug},
        )
    )


def run(project: Path, code: str, *words: str) -> list[str]:
    """The lines that Python code prints in a project."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=project,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{project.name}: {done.stderr[-3000:]}")
    return [line for line in done.stdout.splitlines() if line.strip()]


if __name__ == "__main__":
    main()
