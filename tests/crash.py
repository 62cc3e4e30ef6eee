"""Runs that are killed, and checkpoints that are damaged: the same command ends as if nothing was.

    .venv/bin/python tests/crash.py                        all, as `make crash` does
    .venv/bin/python tests/crash.py --only saving damage   what has such a word in its name
    .venv/bin/python tests/crash.py --seed 7               at the moments of that run

train.py and merge.py run as a user starts them, each in a process of its own, forked from one that
has imported torch and its like. After a signal nothing looks finished that is not; started again,
the weights are bit for bit those of a run that nobody disturbed. A moment is a share of a stage,
which begins when a line is printed or a file is there, and whose length was measured before.
"""

import argparse
import hashlib
import json
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
from importlib import import_module
from multiprocessing import connection
from pathlib import Path

from matrix import FORK, bake
from test_runs_can_be_trusted import DAMAGES, SMALL, damage, make_twin

from conftest import PRELOAD, TEMPLATE, started

WHOLE, STOPPED = Path("out/whole"), Path("out/stopped")
RUN = [*SMALL, "--save_steps=2", "--dataset=rows.jsonl", "--test_size=0.02"]
# how often, which script, and between which events: a line that it prints, or a file that it writes
STAGES = {
    "preparing": (10, "train.py", "1. Load", "3. Load"),
    "training": (10, "train.py", "6. Train", Path("final.unfinished")),
    "saving the first": (6, "train.py", Path("checkpoint-2"), Path("checkpoint-2/manifest.json")),
    "saving the fourth": (6, "train.py", Path("checkpoint-8"), Path("checkpoint-8/manifest.json")),
    "the final save": (12, "train.py", Path("final.unfinished"), Path("final")),
    "any time": (10, "train.py", "", Path("final")),
    "merging": (6, "merge.py", "", "by itself"),
    "writing what is merged": (10, "merge.py", Path("merged*"), "by itself"),
}
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
WITHOUT_SIGINT = ("any time", "merging")
OTHERS = {  # what else happens to a folder
    "a checkpoint-best with half its weights": lambda out: damage(
        shutil.copytree(newest(out), out / "checkpoint-best") / "adapter_model.safetensors", "half"
    ),
    "an empty folder checkpoint-99": lambda out: (out / "checkpoint-99").mkdir(),
    "a file checkpoint-99": lambda out: (out / "checkpoint-99").touch(),
    "half the weights in every checkpoint": lambda out: [
        damage(file, "half") for file in out.glob("*/adapter_model.safetensors")
    ],
    "a final with half its weights": lambda out: damage(
        shutil.copytree(WHOLE / "final", out / "final") / "adapter_model.safetensors", "half"
    ),
    "a final without a manifest": lambda out: damage(
        shutil.copytree(WHOLE / "final", out / "final") / "manifest.json", "missing"
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD")
    parser.add_argument("--seed", type=int, default=random.randrange(1000))
    options = parser.parse_args()
    cases = [f"{stage} {n}" for stage, (count, *_) in STAGES.items() for n in range(count)]
    cases += [f"damage: {name} {how or 'empty'}" for name, how in DAMAGES]
    cases += [f"damage: {name}" for name in OTHERS]
    cases = [case for case in cases if any(word in case for word in options.only)]
    print(f"{len(cases)} runs, --seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        for name in PRELOAD:
            import_module(name)
        project = bake({"quantization": "none"}, Path(home), TEMPLATE)
        workers = {}
        for n in range(2):
            own = Path(home, f"worker{n}", project.name)
            receiver, child = started(
                FORK, work, shutil.copytree(project, own), cases[n::2], options.seed
            )
            workers[receiver] = child
        kills, done = [], {}
        while workers:
            for receiver in connection.wait(workers):
                try:
                    case, hits, reason = receiver.recv()
                except EOFError:
                    workers.pop(receiver).join()
                    continue
                kills, done[case] = [*kills, *hits], reason
                print(f"{len(done)}: {case}: {reason or 'right'}", flush=True)
    wrong = [case for case in cases if done.get(case, "not run")]
    print(f"\n{len(kills)} kills: {', '.join(f'{kills.count(n)} {n}' for n in sorted({*kills}))}")
    for case in wrong:
        print(f"Not right: {case}. Alone: tests/crash.py --seed {options.seed} --only '{case}'")
    print(f"{len(cases) - len(wrong)} of {len(cases)}")
    return bool(wrong) or not cases


# --- in a worker, whose runs are one after another ------------------------------------------------


def work(sender, project: Path, cases: list[str], seed: int) -> None:
    """Send each case with the signals that hit it and what was wrong, or ""."""
    import datasets

    os.chdir(project)
    sys.path.insert(0, str(project))
    datasets.config.HF_DATASETS_CACHE = project / "cache"
    lengths = undisturbed()
    for case in cases:
        dice, out, hits = random.Random(f"{seed} {case}"), Path("out/case"), []
        shutil.rmtree(out, ignore_errors=True)
        try:
            if case.startswith("damage: "):
                check_damaged(out, case.removeprefix("damage: "))
            else:
                while not hits:  # a moment can come too late
                    hits += check_killed(out, *case.rsplit(" ", 1), dice, lengths)
            sender.send((case, hits, ""))
        except AssertionError as error:
            sender.send((case, hits, str(error)))


def undisturbed() -> dict[str, float]:
    """Train and merge `WHOLE`, kill `STOPPED` for the damages; seconds that each stage takes."""
    sample = Path("data/sample.jsonl").read_text(encoding="utf-8").splitlines()
    with Path("rows.jsonl").open("w", encoding="utf-8") as file:  # preparing them takes a while
        for number in range(20):
            for row in map(json.loads, sample):
                more = {key: f"{text} {number}" for key, text in row.items()}
                file.write(json.dumps(more) + "\n")
    twin = FORK.Process(target=make_twin)
    twin.start()
    twin.join()
    times = {}
    for script in ("train.py", "merge.py"):
        events = {event for _, its, *both in STAGES.values() if its == script for event in both}
        child = start(WHOLE, script)
        while child.is_alive():
            for event in events:
                if (script, event) not in times and happened(event, WHOLE):
                    times[script, event] = time.monotonic()
        assert child.exitcode == 0, log(WHOLE)
    child = start(STOPPED, "train.py")
    while not happened(Path("checkpoint-8/manifest.json"), STOPPED):
        time.sleep(0.001)
    end(child, signal.SIGKILL, STOPPED)
    return {
        stage: times[script, last] - times[script, first]
        for stage, (_, script, first, last) in STAGES.items()
    }


def check_killed(out: Path, stage: str, turn: str, dice, lengths: dict) -> list[str]:
    """Kill the script of that stage, at times twice, and let it end; the signals that hit it."""
    _, script, begin, _ = STAGES[stage]
    choice = SIGNALS[: -1 if stage in WITHOUT_SIGINT else None]
    number, hits = choice[int(turn) % len(choice)], []
    shutil.rmtree(out, ignore_errors=True)
    if script == "merge.py":
        shutil.copytree(WHOLE / "final", out / "final")
    if stage == "preparing":
        shutil.rmtree("cache")
    # not again with SIGINT: while Python imports, any script answers it with a traceback
    for _ in range(1 if number == signal.SIGINT else dice.choice([1, 1, 2])):
        child = start(out, script)
        while child.is_alive() and not happened(begin, out):
            time.sleep(0.0005)
        time.sleep(dice.random() * lengths[stage])
        is_hit = child.is_alive()
        hits += [number.name] if is_hit else []
        end(child, number if is_hit else None, out)
        for name, held in result(out).items():
            assert held == result(WHOLE)[name], f"after {number.name}, {name} is not whole: {held}"
    if hits:
        check_again(out, script)
    return hits


def check_damaged(out: Path, what: str) -> None:
    """Damage a copy of `STOPPED`: it ends as `WHOLE`."""
    shutil.copytree(STOPPED, out)
    if what in OTHERS:
        OTHERS[what](out)
    else:
        name, how = what.split(" ", 1)
        damage(newest(out) / name, "" if how == "empty" else how)
    if what.startswith("a final"):  # is refused, with what to do
        end(start(out, "train.py"), None, out)
        assert "is missing or damaged" in log(out).splitlines()[-1], log(out)[-999:]
        shutil.rmtree(out / "final")
    check_again(out, "train.py")


def check_again(out: Path, script: str) -> None:
    """Started once more, the script ends with what it wrote into `WHOLE`."""
    child = start(out, script)
    end(child, None, out)
    assert child.exitcode == 0, f"exit code {child.exitcode}: {log(out)[-2000:]}"
    for name in ("final", "merged") if script == "merge.py" else ("final",):
        assert result(out).get(name) == result(WHOLE)[name], f"{name} is another: {log(out)[-999:]}"


def newest(out: Path) -> Path:
    return max(out.glob("checkpoint-*/manifest.json"), key=lambda file: file.stat().st_mtime).parent


def result(out: Path) -> dict[str, list]:
    """The files of final/ and merged/, with the hashes of the weights."""
    return {
        name: [
            (file.name, hashlib.sha256(file.read_bytes()).hexdigest())
            if file.suffix == ".safetensors"
            else (file.name, file.stat().st_size > 0)
            for file in sorted((out / name).iterdir())
        ]
        for name in ("final", "merged")
        if (out / name).exists()
    }


def happened(event: str | Path, out: Path) -> bool:
    return any(out.glob(str(event))) if isinstance(event, Path) else event in log(out)


def log(out: Path) -> str:
    file = out.with_suffix(".log")
    return file.read_text(errors="replace") if file.exists() else ""


def start(out: Path, script: str):
    """A process in which the script runs as if a user had started it; it prints into a log."""
    out.parent.mkdir(exist_ok=True)
    out.with_suffix(".log").unlink(missing_ok=True)
    options = [f"--output_dir={out}", *(RUN if script == "train.py" else ["--use_cpu=true"])]
    child = FORK.Process(target=as_script, args=(out.with_suffix(".log"), [script, *options]))
    child.start()
    return child


def as_script(log: Path, words: list[str]) -> None:
    import torch

    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1), os.dup2(file, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    torch.set_num_threads(1)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


def end(child, number: int | None, out: Path) -> None:
    """Send a signal, and wait for the end; no traceback."""
    if number:
        os.kill(child.pid, number)
    child.join(120)
    if child.is_alive():
        child.kill()
        child.join()
        raise AssertionError(f"it did not end: {log(out)[-2000:]}")
    # Python prints and swallows a Ctrl-C in a weak reference's callback: such a run goes on
    assert child.exitcode == 0 or "Traceback" not in log(out), log(out)[-2000:]


if __name__ == "__main__":
    sys.exit(main())
