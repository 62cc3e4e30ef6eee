"""Compare runs: settings that differ, losses, scores, time, memory, and a plot of all losses.

python compare.py                          all runs in output_dir, but for the smoke run
python compare.py outputs/a outputs/b      these, finished or not

It writes compare.png into the folder that holds them. Of code, rows and the base model's files it
shows the first digits of their SHA-256. A loop of the shell makes runs to compare:

for lr in 1e-4 2e-4 5e-4; do python train.py --learning_rate $lr --output_dir outputs/lr-$lr; done
"""

import json
import os
import re
from collections import ChainMap
from collections.abc import Callable
from glob import glob
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sft.config import ROOT, harmless, parse, read_values, run, say
from sft.plot import plot_loss

PLACES = ("output_dir", "run_name", "logging_dir")  # each run has its own, and learns the same
LOSSES = ("loss", "eval_loss", "eval_score")  # in the Trainer's log


def main(argv: list[str]) -> None:
    """Print the table and draw the plot; exits where there is no run."""
    words = [*takewhile(lambda word: not word.startswith("-"), argv)]
    _, overrides = parse(argv[len(words) :], __doc__)
    if words:  # Windows leaves it to us to find what outputs/* means
        folders = [Path(name) for word in words for name in sorted(glob(word)) or [word]]
        folders = [run_of(folder) for folder in folders]
    else:
        files = (ROOT / str(read_values(overrides)["output_dir"])).rglob("run.json")
        folders = sorted(file.parent for file in files if file.parent.name != "smoke")
    runs, logs, results = {}, {}, {}
    for folder in folders:
        if not folder.is_file() and (found := read(folder / "run.json", identity, "is not there")):
            name = os.path.relpath(folder)
            runs[name], logs[name] = found, newest_log(folder)
            last = ChainMap(*reversed(logs[name]))
            results[name] = {"steps": last.get("step")}
            results[name] |= {key: last[key] for key in LOSSES if key in last}
            results[name] |= read(folder / "summary.json", dict)
            results[name] |= read(folder / "evaluation.json", scores)
    if not runs:
        raise SystemExit("There is no run to compare; name folders of runs, such as outputs/a.")
    table = Table("", *map(harmless, runs))
    for parts, with_equal in ((runs, False), (results, True)):
        for name in dict.fromkeys(chain(*parts.values())):
            cells = [shown(one.get(name)) for one in parts.values()]
            if with_equal or len({*cells}) > 1:
                table.add_row(*map(harmless, (name, *cells)))
        table.add_section()
    Console(highlight=False, markup=False).print(table)
    plot = Path(os.path.commonpath([*map(os.path.abspath, runs)]), "compare.png")
    plot_loss(logs, plot)
    say(f"All losses: {plot}")


def run_of(path: Path) -> Path:
    """A run's folder; of outputs/final and the like, where outputs is a run, that."""
    is_part = path.exists() and not (path / "run.json").exists()
    return path.parent if is_part and (path.parent / "run.json").exists() else path


def read(file: Path, extract: Callable[[Any], Any], missing: str = "") -> Any:
    """What `extract` takes from a JSON file; where that fails, {} and a word on it."""
    try:
        return extract(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        why = missing
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        why = "is damaged"
    if why:
        say(f"{file} {why}; it is left out.")
    return {}


def identity(run: dict) -> dict[str, Any]:
    """All that may differ, by name: settings, machine, versions, and the start of each hash."""
    settings = {key: value for key, value in run["settings"].items() if key not in PLACES}
    hashes = {name: digest[:8] for name, digest in run["hashes"].items()}
    return settings | {"machine": run["machine"]} | run["versions"] | hashes


def newest_log(folder: Path) -> list[dict[str, float]]:
    """Steps and losses that a run logged, or its newest checkpoint that can be read."""
    files = folder.glob("checkpoint-*/trainer_state.json")
    files = sorted(files, key=lambda file: int(re.sub(r"\D", "", file.parent.name) or 0))
    states = (read(file, losses) for file in (*files, folder / "trainer_state.json")[::-1])
    return next(filter(None, states), [])


def losses(state: dict) -> list[dict[str, float]]:
    keys = ("step", *LOSSES)
    return [{k: float(entry[k]) for k in keys if k in entry} for entry in state["log_history"]]


def scores(evaluation: dict) -> dict[str, Any]:
    """The metrics of each model that evaluate.py asked, and which rows they are of."""
    models = evaluation["models"].items()
    metrics = {f"{name}: {key}": one for name, found in models for key, one in found.items()}
    return {"evaluated": evaluation["rows"]} | metrics


def shown(value: Any) -> str:
    """The text of a cell; a metric comes with its interval."""
    if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
        return "{} ({} to {})".format(*(shown(value[key]) for key in ("value", "low", "high")))
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    run(main)
