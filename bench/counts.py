"""Count the memory of a training step for every base model and structure of the menus.

    make memory                                  all of them, on every core
    .venv/bin/python bench/counts.py --only Qwen/Qwen3-8B

Each structure is generated and counts itself (sft/count.py), for each base model of the menu. The
counts of one model go to templates/base_model/<model>.counts.json; a project receives its own line.
Structures whose counts are equal share a line.
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
from rich.progress import track

TEMPLATE = Path(__file__).resolve().parent.parent
MENUS = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
STRUCTURE = ("quantization", "lora_targets", "collator")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="base models; those of the others are kept")
    models = parser.parse_args().only or MENUS["base_model"]
    structures = [
        dict(zip(STRUCTURE, answers, strict=True))
        for answers in itertools.product(*(MENUS[name] for name in STRUCTURE))
        if answers[1] != "full" or answers[0] == "none"
    ]
    counts = defaultdict(lambda: defaultdict(list))  # model -> count -> structures
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            (bake(Path(folder), structure, model), structure, model)
            for structure in structures
            for model in models
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(lambda job: count(job[0]), jobs)
            found = track(found, "Counting", len(jobs))
            for (_, structure, model), text in zip(jobs, found, strict=True):
                counts[model][text].append(" ".join(structure.values()))
    for model, by_text in counts.items():
        lines = (f'" {" | ".join(names)} ": {text}' for text, names in by_text.items())
        file = TEMPLATE / "templates" / "base_model" / f"{model}.counts.json"
        file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def bake(folder: Path, structure: dict, model: str) -> Path:
    """A project of that kind; without hooks, which would show a count."""
    config = folder / "config"
    config.write_text(f"replay_dir: {json.dumps(str(folder / 'replay'))}\n")
    slug = "-".join([*structure.values(), model.split("/")[-1]])
    return Path(
        cookiecutter(
            str(TEMPLATE),
            no_input=True,
            accept_hooks=False,
            output_dir=str(folder),
            config_file=str(config),
            extra_context={**structure, "base_model": model, "project_slug": slug},
        )
    )


def count(project: Path) -> str:
    """What the project counts of itself, as JSON in one line."""
    run = subprocess.run(
        [sys.executable, "-m", "sft.count"],
        cwd=project,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if run.returncode:
        raise SystemExit(f"{project.name}: {run.stderr[-3000:]}")
    return run.stdout.splitlines()[-1]


if __name__ == "__main__":
    main()
