"""Runs that are killed, and folders that are damaged: the same command ends as if nothing was.

    .venv/bin/python tests/crash.py                        all, as `make crash` does
    .venv/bin/python tests/crash.py --only saving damage   what has such a word in its name
    .venv/bin/python tests/crash.py --seed 7               at the moments of that run

train.py and export.py run as a user starts them, each in a process of its own, forked from one that
has imported torch and its like. After a signal nothing looks finished that is not; started again,
the weights are bit for bit those of a run that nobody disturbed. A moment is a random share of a
stage, which begins when a line is printed or a file is there, and whose length is measured first.
"""

import argparse
import hashlib
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

WHOLE, STOPPED, OUT = Path("out/whole"), Path("out/stopped"), Path("out/case")
OPTIONS = {"train.py": [*SMALL, "--save_steps=2", "--dataset=rows.jsonl", "--test_size=0.02"]}
# how often, which script, and between which events: a line that it prints, or a file that it writes
STAGES = {
    "preparing": (10, "train.py", "1. Load", "3. Load"),
    "training": (10, "train.py", "6. Train", Path("final.unfinished")),
    "saving the first": (6, "train.py", Path("checkpoint-2"), Path("checkpoint-2/manifest.json")),
    "saving the fourth": (6, "train.py", Path("checkpoint-8"), Path("checkpoint-8/manifest.json")),
    "the final save": (12, "train.py", Path("final.unfinished"), Path("final")),
    "any time": (10, "train.py", "", Path("final")),
    "merging": (6, "export.py", "", "loads by itself"),
    "writing what is merged": (10, "export.py", Path("merged*"), "loads by itself"),
}
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
WEIGHTS = "adapter_model.safetensors"
OTHERS = {  # what else happens to a folder, beside each of DAMAGES to its newest checkpoint
    "a checkpoint-best with half its weights": lambda: damage(
        shutil.copytree(newest(), OUT / "checkpoint-best") / WEIGHTS, "half"
    ),
    "an empty folder checkpoint-99": lambda: (OUT / "checkpoint-99").mkdir(),
    "a file checkpoint-99": lambda: (OUT / "checkpoint-99").touch(),
    "every checkpoint with half its weights": lambda: [
        damage(file, "half") for file in OUT.glob(f"*/{WEIGHTS}")
    ],
    "a final with half its weights": lambda: damage(
        shutil.copytree(WHOLE / "final", OUT / "final") / WEIGHTS, "half"
    ),
    "a final without a manifest": lambda: damage(
        shutil.copytree(WHOLE / "final", OUT / "final") / "manifest.json", "missing"
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
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        for name in PRELOAD:
            import_module(name)
        project = bake({"quantization": "none"}, Path(home), TEMPLATE)
        print(f"\n{len(cases)} runs, --seed {options.seed}", flush=True)
        workers = {}
        for n in range(2):
            own = shutil.copytree(project, Path(home, f"worker{n}", project.name))
            receiver, child = started(FORK, work, own, cases[n::2], options.seed)
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


# --- in a worker: one run after another, in a project of its own ---------------------------------


def work(sender, project: Path, cases: list[str], seed: int) -> None:
    """Send each case with the signals that hit it and what was wrong, or ""."""
    import datasets

    os.chdir(project)
    sys.path.insert(0, str(project))
    datasets.config.HF_DATASETS_CACHE = project / "cache"
    lengths = undisturbed()
    for case in cases:
        dice, hits, reason = random.Random(f"{seed} {case}"), [], ""
        try:
            if case.startswith("damage: "):
                check_damaged(case.removeprefix("damage: "))
            while not hits and not case.startswith("damage: "):  # a moment can come too late
                hits = check_killed(*case.rsplit(" ", 1), dice, lengths)
        except AssertionError as error:
            reason = str(error)
        sender.send((case, hits, reason))


def undisturbed() -> dict[str, float]:
    """Train and merge `WHOLE`, kill `STOPPED` for the damages; seconds that each stage takes."""
    OUT.parent.mkdir()
    sample = Path("data/sample.jsonl").read_text(encoding="utf-8")
    rows = [sample.replace('": "', f'": "{n} ') for n in range(4)]  # to prepare takes a while
    Path("rows.jsonl").write_text("".join(rows), encoding="utf-8")
    twin = FORK.Process(target=make_twin)
    twin.start()
    twin.join()
    times = {}
    for script in ("train.py", "export.py"):
        events = {event for _, its, *both in STAGES.values() if its == script for event in both}
        child = start(script, WHOLE)
        while child.is_alive():
            for event in events:
                if (script, event) not in times and happened(event, WHOLE):
                    times[script, event] = time.monotonic()
        assert child.exitcode == 0, log(WHOLE)
    child = start("train.py", STOPPED)
    while not happened(Path("checkpoint-8/manifest.json"), STOPPED):
        child.join(0.001)
    end(child, STOPPED, signal.SIGKILL)
    return {
        stage: times[script, last] - times[script, first]
        for stage, (_, script, first, last) in STAGES.items()
    }


def check_killed(stage: str, turn: str, dice: random.Random, lengths: dict) -> list[str]:
    """Kill the script of that stage, at times twice, and let it end; the signals that hit it."""
    _, script, begin, _ = STAGES[stage]
    # SIGINT not from the start: while Python imports, any script answers it with a traceback
    choice = [number for number in SIGNALS if begin or number != signal.SIGINT]
    number, hits = choice[int(turn) % len(choice)], []
    shutil.rmtree(OUT, ignore_errors=True)
    if script == "export.py":
        shutil.copytree(WHOLE / "final", OUT / "final")
        for name in ("run.json", "summary.json"):  # for the model card
            shutil.copy(WHOLE / name, OUT)
    if stage == "preparing":
        shutil.rmtree("cache")
    for _ in range(1 if number == signal.SIGINT else dice.choice([1, 1, 2])):
        child = start(script, OUT)
        while child.is_alive() and not happened(begin, OUT):
            child.join(0.0005)
        child.join(dice.random() * lengths[stage])  # the random moment
        is_hit = child.is_alive()
        end(child, OUT, number if is_hit else None)
        hits += [number.name] if is_hit else []
        for name in ("final", "merged"):
            held = files(OUT / name)
            assert held in ({}, files(WHOLE / name)), f"{name} is not whole: {held.keys()}"
    if hits:
        check_again(script)
    return hits


def check_damaged(what: str) -> None:
    """Damage a copy of `STOPPED`: it ends as `WHOLE`; a damaged final is refused before."""
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.copytree(STOPPED, OUT)
    if what in OTHERS:
        OTHERS[what]()
    else:
        name, how = what.split(" ", 1)
        damage(newest() / name, "" if how == "empty" else how)
    if (OUT / "final").exists():
        end(start("train.py", OUT), OUT)
        assert "is missing or damaged" in log(OUT).splitlines()[-1], log(OUT)[-999:]
        shutil.rmtree(OUT / "final")
    check_again("train.py")


def check_again(script: str) -> None:
    """Started once more, the script ends with what it wrote into `WHOLE`."""
    child = start(script, OUT)
    end(child, OUT)
    assert child.exitcode == 0 or "merged is there already" in log(OUT), log(OUT)[-2000:]
    name = "merged" if script == "export.py" else "final"
    assert files(OUT / name) == files(WHOLE / name), f"{name} is another: {log(OUT)[-2000:]}"


def newest() -> Path:
    return max(OUT.glob("checkpoint-*/manifest.json"), key=lambda file: file.stat().st_mtime).parent


def files(folder: Path) -> dict[str, str]:
    """The names of its files, with the hashes of the weights."""
    held = {file.name: b"" for file in folder.glob("*")}
    held |= {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}
    return {name: hashlib.sha256(data).hexdigest() for name, data in held.items()}


def happened(event: str | Path, out: Path) -> bool:
    return any(out.glob(str(event))) if isinstance(event, Path) else event in log(out)


def log(out: Path) -> str:
    return out.with_suffix(".log").read_text(errors="replace")


def start(script: str, out: Path):
    """A process in which the script runs as if a user had started it; it prints into a log."""
    out.with_suffix(".log").write_text("")
    words = [script, f"--output_dir={out}", *OPTIONS.get(script, ["--use_cpu=true"])]
    child = FORK.Process(target=as_script, args=(out.with_suffix(".log"), words))
    child.start()
    return child


def as_script(log: Path, words: list[str]) -> None:
    import_module("torch").set_num_threads(1)
    file = os.open(log, os.O_WRONLY)
    os.dup2(file, 1), os.dup2(file, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


def end(child, out: Path, number: int | None = None) -> None:
    """Send a signal, if any, and wait for the end; no traceback."""
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
