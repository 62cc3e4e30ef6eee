"""Break the template on purpose, in hundreds of ways: does anything but lint notice it?

    .venv/bin/python tests/mutants.py                   150 faults, drawn from all
    .venv/bin/python tests/mutants.py --all             every one
    .venv/bin/python tests/mutants.py --file adapter --kind "keyword dropped" --show

Each fault (tests/support/faults.py makes them) is given, until something fails, to
    matrix    one combination of answers that has the file, as tests/matrix.py runs it
    opposite  a second one, of which all other answers are different
    project   the generated project's own tests, for that combination
    template  the tests of this folder that run the broken function, likeliest first
Results are kept in .mutants/: started again, it goes on. A fault that was noticed counts until the
template changes; one that was not is tried again when a test does. Those that change nothing are
listed, with the reason, in tests/support/mutants_that_change_nothing.md.

mutmut breaks functions of an importable package and its pytest alone, and cosmic-ray starts a
Python for each fault: neither knows files that Jinja includes, YAML, keywords, or a forked process
that has torch already, which is most of the time.
"""

import argparse
import ast
import cProfile
import difflib
import hashlib
import json
import marshal
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from multiprocessing import connection
from pathlib import Path

import matrix
import yaml

from conftest import MENUS, PROJECT, is_valid, started
from support.faults import Fault, all_faults

TESTS = Path(__file__).resolve().parent
TEMPLATE = TESTS.parent
KEPT = TEMPLATE / ".mutants"
EXPLAINED = TESTS / "support" / "mutants_that_change_nothing.md"
FORK = multiprocessing.get_context("fork")
STAGES = ("matrix", "opposite", "project", "template")
SOURCES = ("cookiecutter.json", "hooks", "templates", PROJECT.name)
LIMIT = 600  # seconds for a stage; one that hangs is noticed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--number", type=int, default=150, help="how many are drawn")
    parser.add_argument("--all", action="store_true", help="every fault instead")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--file", default="", help="a part of the file's name")
    parser.add_argument("--without", nargs="*", default=[], help="parts of names of files to skip")
    parser.add_argument("--kind", default="", help="a part of the kind of fault, e.g. planted")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument(
        "--tests", default="", help="of the template: a pattern of their file's name"
    )
    parser.add_argument(
        "--budget", type=int, default=120, help="seconds of the template's tests for a fault"
    )
    parser.add_argument("--show", action="store_true", help="list the faults and stop")
    parser.add_argument("--fresh", action="store_true", help="forget what was found before")
    options = parser.parse_args()
    matrix.warm_up(candidates(), TEMPLATE)
    KEPT.mkdir(exist_ok=True)
    if options.fresh:
        (KEPT / "results.jsonl").unlink(missing_ok=True)

    faults = [
        fault
        for fault in all_faults(TEMPLATE, PROJECT.name, keys_of_config())
        if options.file in fault.file
        and options.kind in fault.kind
        and not any(part in fault.file for part in options.without)
    ]
    print(f"{len(faults)} faults can be made.", flush=True)
    faults.sort(key=lambda fault: place_in_draw(fault, options.seed))
    chosen, number = [], len(faults) if options.all else options.number
    for fault in faults:
        if len(chosen) < number and changes_something(fault):
            chosen.append(fault)
    if options.show:
        for fault in sorted(chosen, key=lambda fault: (fault.file, fault.start)):
            print(f"{describe(fault)}\n{difference(fault)}")
        return 0
    run = Run(options)
    results = run.all(chosen)
    return report(results)


def place_in_draw(fault: Fault, seed: int) -> str:
    """By its line (and the next, where a key is dropped): other edits leave the draw as it is."""
    text = (TEMPLATE / fault.file).read_bytes()
    start, end = text.rfind(b"\n", 0, fault.start) + 1, text.find(b"\n", fault.end)
    before, after = text[start : fault.start], text[fault.start : end]
    what = [seed, fault.file, before, after, fault.end - fault.start, fault.new]
    return hashlib.sha256(repr(what).encode()).hexdigest()


# --- which combination has it --------------------------------------------------------------------


def changed(answers: dict, prompt: str, answer: str) -> dict:
    """With another answer, and what it needs of the others."""
    other = {**answers, prompt: answer}
    needs = ({}, {"quantization": "none"}, {"collator": "language_modeling"})
    return next(other | need for need in needs if is_valid(other | need))


def candidates() -> list[dict]:
    """The first answer of each menu, and each other answer in its place."""
    first = {prompt: menu[0] for prompt, menu in MENUS.items()}
    others = [changed(first, prompt, one) for prompt, menu in MENUS.items() for one in menu[1:]]
    return [first, *others]


@cache
def all_baked() -> list[dict[str, str]]:
    """The files of each candidate's project, by name."""
    note = KEPT / f"baked-{digest(*(TEMPLATE / name for name in SOURCES))}.json"
    if not note.exists():
        jobs = [(number, bake_texts, (answers,)) for number, answers in enumerate(candidates())]
        print(f"{len(jobs)} combinations are baked.", flush=True)
        found = dict(side_by_side(jobs))
        for number, (ok, why) in found.items():
            if not ok:
                raise SystemExit(f"{candidates()[number]} cannot be baked: {why}")
        note.write_text(json.dumps([found[number][1] for number in range(len(jobs))]))
    return json.loads(note.read_text())


def bake_texts(answers: dict, home: Path, template: Path) -> dict[str, str]:
    return texts_of(matrix.bake(answers, home, template))


def texts_of(project: Path) -> dict[str, str]:
    files = [path for path in project.rglob("*") if path.suffix in (".py", ".yaml")]
    return {
        path.relative_to(project).as_posix(): path.read_text(encoding="utf-8") for path in files
    }


def keys_of_config() -> dict:
    """All keys that a config.yaml has, with a value."""
    keys = {}
    for files in all_baked():
        keys = yaml.safe_load(files["config.yaml"]) | keys
    return keys


def is_python(file: str) -> bool:
    return file.endswith((".py", ".py{% endif %}"))


def plain_name(file: str) -> str:
    """The name without the condition on which the file is generated."""
    return re.sub(r"\{%.*?%\}", "", file)


def has(fault: Fault, files: dict[str, str]) -> bool:
    """Whether a project with these files has the file of the fault, and the key."""
    if fault.key and fault.key not in yaml.safe_load(files["config.yaml"]):
        return False
    if is_python(fault.file):  # whatever its name is there
        whole = (TEMPLATE / fault.file).read_text(encoding="utf-8").strip()
        return any(text.strip().endswith(whole) for text in files.values())
    return plain_name(fault.file).removeprefix(f"{PROJECT.name}/") in files


@cache
def combination_for(fault: Fault) -> dict | None:
    """The first candidate whose project has the fault; None if it is in none."""
    for answers, files in zip(candidates(), all_baked(), strict=True):
        if has(fault, files) and (is_python(fault.file) or differs(fault, answers, files)):
            return answers
    return None


def differs(fault: Fault, answers: dict, files: dict[str, str]) -> bool:
    """Whether the fault changes the values of that project's YAML, which is rendered."""
    with tempfile.TemporaryDirectory() as home:
        copy = copy_of_template(Path(home), {fault.file: fault.broken(TEMPLATE)})
        ok, found = forked(bake_texts, answers, Path(home), copy, log=os.devnull)
    return not ok or loaded(found) != loaded(files)


def opposite(fault: Fault, answers: dict) -> dict:
    """The second answer of each menu, but where the project would then lack the fault."""
    first, other = candidates()[0], dict(answers)
    for prompt, menu in MENUS.items():
        with_second = candidates().index(changed(first, prompt, menu[1]))
        there = answers != first or has(fault, all_baked()[with_second])
        if answers[prompt] == first[prompt] and there:
            other[prompt] = menu[1]
    return changed(other, "lora_targets", other["lora_targets"])


def loaded(files: dict[str, str]) -> dict:
    return {name: yaml.safe_load(text) for name, text in files.items() if name.endswith(".yaml")}


def changes_something(fault: Fault) -> bool:
    """Whether it parses, and is another program than before, in some project."""
    broken = fault.broken(TEMPLATE)
    if is_python(fault.file):
        whole = (TEMPLATE / fault.file).read_text(encoding="utf-8")
        try:
            if ast.dump(ast.parse(broken)) == ast.dump(ast.parse(whole)) or not broken:
                return False
        except SyntaxError:
            return False
    return combination_for(fault) is not None


def copy_of_template(home: Path, broken: dict[str, str]) -> Path:
    """The template in `home`, with other texts for some files."""
    copy = home / "template"
    kept = {".gitignore", ".github"}

    def left_out(folder: str, names: list[str]) -> set[str]:
        hidden = {name for name in names if name.startswith(".") and name not in kept}
        return hidden | {"__pycache__", "demo"}

    shutil.copytree(TEMPLATE, copy, ignore=left_out)
    for name, text in broken.items():
        (copy / name).write_text(text, encoding="utf-8")
    return copy


# --- forked processes ----------------------------------------------------------------------------


def forked(function, *args, log, limit: float = LIMIT) -> tuple[bool, object]:
    """`(True, value)` of `function(*args)` in a process of its own, or `(False, why not)`."""
    receiver, child = started(FORK, answer, log, function, args)
    try:
        return receiver.recv() if receiver.poll(limit) else (False, f"nothing after {limit} s")
    except EOFError:
        return False, "the process died"
    finally:
        end(child)


def end(child) -> None:
    """With all that it has started: its own forks by itself, the rest is in its group."""
    child.terminate()
    child.join(10)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.join()


def answer(sender, log, function, args) -> None:
    import torch

    torch.set_num_threads(1)  # a fork would wait for threads that it has not
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # by way of each `finally`
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
    os.environ["HF_HUB_OFFLINE"], os.environ["TOKENIZERS_PARALLELISM"] = "1", "false"
    try:
        found = True, function(*args)
    except BaseException as error:
        lines = traceback.format_exception_only(error)
        found = False, " ".join(" ".join(lines).split())[:300]
    with suppress(BrokenPipeError):
        sender.send(found)


# --- the stages ----------------------------------------------------------------------------------


def in_matrix(answers: dict, home: Path, template: Path) -> None:
    matrix.check_render = lambda *_: None  # what a file looks like is no behaviour
    matrix.run_one(answers, home, template)


def in_project_tests(answers: dict, home: Path, template: Path) -> None:
    """The generated project's own tests, in this process."""
    import pytest

    project = matrix.bake(answers, home, template)
    os.environ["HF_DATASETS_CACHE"] = str(home / "cache")
    os.chdir(project)
    sys.path.insert(0, str(project))
    forget_our_modules()
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    words = ["-q", "-x", "-p", "no:cacheprovider"]
    seen = Failures()
    assert pytest.main(words, plugins=[seen]) == 0, seen.first


def in_template_tests(tests: list[str], home: Path, template: Path) -> None:
    """Those tests of the template, in this process; what they start is forked from it."""
    import pytest

    os.chdir(template)
    forget_our_modules()
    seen = Failures()
    assert pytest.main([*pytest_words(home), "-x", *tests], plugins=[seen]) == 0, seen.first


def pytest_words(home: Path) -> list[str]:
    # -s: what a fork of this process says goes to its own log, not to what pytest has captured
    words = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts="]
    tools = tomllib.loads((TEMPLATE / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    usual = shlex.split(tools["pytest"]["ini_options"]["addopts"])
    return [*words, "-m", usual[usual.index("-m") + 1], f"--basetemp={home / 'pytest'}"]


def forget_our_modules() -> None:
    """The tests' own modules: another copy of them is about to be imported."""
    sys.dont_write_bytecode = True
    for path in TESTS.rglob("*.py"):
        name = path.relative_to(TESTS).with_suffix("").as_posix().replace("/", ".")
        sys.modules.pop(name.removesuffix(".__init__"), None)
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != TESTS]


class Failures:
    """A pytest plugin: the first failure, and forks instead of a server that has to import."""

    first = ""

    def pytest_collection_finish(self, session):
        if "conftest" in sys.modules and hasattr(sys.modules["conftest"], "FORKS"):
            sys.modules["conftest"].FORKS = FORK

    def pytest_runtest_logreport(self, report):
        if report.failed and not self.first:
            lines = str(report.longreprtext).strip().splitlines()
            why = [line for line in lines if line.startswith("E ")] or lines
            self.first = f"{report.nodeid}: {why[0][:200] if why else ''}"

    def pytest_collectreport(self, report):
        if report.failed and not self.first:
            self.first = f"{report.nodeid} cannot be collected"


STARTED = """
import atexit, cProfile, os, time
profile = cProfile.Profile()
note = os.path.join({notes!r}, f"{{os.getpid()}}.{{time.time_ns()}}.stats")
atexit.register(lambda: profile.dump_stats(note))
profile.enable()
"""


class Recorder(Failures):
    """Which functions of a generated project each test runs, and for how many seconds.

    These are the CPU's, or those on the clock where the test waits.

    Scripts that a test starts as commands count as well: each Python records itself.
    """

    def __init__(self, home: Path, files: dict[str, str]):
        self.home, self.files, self.seen = home / "notes", files, {}
        self.home.mkdir()
        (home / "site").mkdir()
        code = STARTED.format(notes=str(self.home))
        (home / "site" / "sitecustomize.py").write_text(code)
        os.environ["PYTHONPATH"] = str(home / "site")

    def pytest_collection_finish(self, session):
        super().pytest_collection_finish(session)
        conftest = sys.modules["conftest"]
        inner = conftest._child

        def child(*args):
            with recorded(self.home / f"{os.getpid()}.{time.time_ns()}", self.files):
                inner(*args)

        conftest._child = child

    def pytest_runtest_setup(self, item):
        self.began = sum(os.times()[:4]), time.monotonic()
        self.profile = cProfile.Profile()
        self.profile.enable()

    def pytest_runtest_logfinish(self, nodeid):
        self.profile.disable()
        functions = functions_of(self.profile, self.files)
        for note in self.home.iterdir():
            if note.suffix == ".stats":
                functions |= in_template(marshal.loads(note.read_bytes()), self.files)
            else:
                functions |= {tuple(pair) for pair in json.loads(note.read_text())}
            note.unlink()
        entry = self.seen.setdefault(nodeid, {"passed": True})
        spent, waited = sum(os.times()[:4]) - self.began[0], time.monotonic() - self.began[1]
        entry |= {"seconds": max(spent, waited), "functions": sorted(functions)}

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.seen.setdefault(report.nodeid, {})["passed"] = False


class recorded:
    """Writes the functions that ran, to `note`."""

    def __init__(self, note: Path, files: dict[str, str]):
        self.note, self.files = note, files

    def __enter__(self):
        sys.setprofile(None)  # the one that this process was forked with
        self.profile = cProfile.Profile()
        self.profile.enable()

    def __exit__(self, *_):
        self.profile.disable()
        self.note.write_text(json.dumps(sorted(functions_of(self.profile, self.files))))


def functions_of(profile: cProfile.Profile, files: dict[str, str]) -> set[tuple[str, int]]:
    """File in the template and first line of what ran there; line 0 is the module itself."""
    codes = [entry.code for entry in profile.getstats() if not isinstance(entry.code, str)]
    return in_template(
        [(code.co_filename, code.co_firstlineno, code.co_name) for code in codes], files
    )


def in_template(places: Iterable[tuple], files: dict[str, str]) -> set[tuple[str, int]]:
    """The same for (file, line, name) of functions anywhere."""
    found = set()
    for path, line, name in places:
        if path.endswith(".py"):
            file, before = template_file(path, tuple(files.items()))
            if file:
                found.add((file, 0 if name == "<module>" else line - before))
    return found


@cache
def template_file(path: str, files: tuple) -> tuple[str, int]:
    """The file of the template that this one ends with, and the lines before; else "" and 0."""
    if "site-packages" in path or "/lib/python" in path:
        return "", 0
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return "", 0
    own = max((part for part, _ in files if text.endswith(part)), key=len, default="")
    return dict(files).get(own, ""), text.count("\n") - own.count("\n")


def record(test_file: str, home: Path, template: Path) -> dict:
    import pytest

    os.chdir(copy_of_template(home, {}))
    forget_our_modules()
    files = {}
    for folder in ("templates", PROJECT.name):
        for path in (TEMPLATE / folder).rglob("*.py*"):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(TEMPLATE).as_posix()
                files[path.read_text(encoding="utf-8").strip()] = name
    recorder = Recorder(home, files)
    pytest.main([*pytest_words(home), f"tests/{test_file}"], plugins=[recorder])
    return recorder.seen


# --- running them --------------------------------------------------------------------------------


def digest(*paths: Path, instead: dict[str, str] | None = None) -> str:
    """Of the content of files and folders, some of them replaced."""
    found = hashlib.sha256()
    for top in paths:
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(TEMPLATE).as_posix()
                text = (instead or {}).get(name)
                found.update(name.encode() + (text.encode() if text else path.read_bytes()))
    return found.hexdigest()[:20]


def run_fault(fault: Fault, stages: list[tuple], home: Path, template: Path) -> tuple[str, str]:
    """The first stage that notices it, and how; two empty texts if none does."""
    copy = copy_of_template(home, {fault.file: fault.broken(template)})
    for name, function, what in stages:
        folder = home / "stages" / name
        folder.mkdir(parents=True)
        ok, why = forked(function, what, folder, copy, log=folder / "log")
        if not ok:
            return name, str(why)
        shutil.rmtree(folder, ignore_errors=True)
    return "", ""


class Run:
    """All that is tried in one go, side by side."""

    def __init__(self, options):
        self.options = options
        self.sources = [TEMPLATE / name for name in SOURCES]
        self.file = KEPT / "results.jsonl"
        self.known = {}
        if self.file.exists():
            for line in self.file.read_text(encoding="utf-8").splitlines():
                self.known.update([json.loads(line)])
        self.tests = self.recorded_tests() if "template" in options.stages else {}

    def recorded_tests(self) -> dict[str, dict]:
        """What each of the template's tests runs; noted for each file of tests, and kept."""
        notes = {
            path.name: KEPT / f"{path.name}-{digest(*self.sources, path, TESTS / 'conftest.py')}"
            for path in sorted(TESTS.glob("test_*.py"))
            if re.search(self.options.tests, path.name)
        }
        jobs = [(note, record, (name,)) for name, note in notes.items() if not note.exists()]
        if jobs:
            print(f"Which tests run which functions? {len(jobs)} files of tests.", flush=True)
        for note, (ok, seen) in side_by_side(jobs, limit=3600):
            if not ok:
                raise SystemExit(f"{note.name} could not be recorded: {seen}")
            note.write_text(json.dumps(seen))
        tests = {}
        for note in notes.values():
            tests |= json.loads(note.read_text())
        failing = [test for test, what in tests.items() if not what["passed"]]
        for test in failing:
            print(f"fails without a fault, and is left out: {test}", flush=True)
        return {test: what for test, what in tests.items() if what["passed"]}

    def tests_for(self, fault: Fault) -> list[str]:
        """The template's tests that run the broken function, the likeliest first, in the budget."""
        texts = {path.name: path.read_text(encoding="utf-8") for path in TESTS.glob("test_*")}
        file_of = {test: test.split("::")[0].split("/")[-1] for test in self.tests}
        if is_python(fault.file):
            place = [fault.file, fault.scope]
            found = [test for test, what in self.tests.items() if place in what["functions"]]
        else:  # those that speak of the file
            name = Path(plain_name(fault.file)).name
            about = {file for file, text in texts.items() if name.split(".")[0] in text}
            found = [test for test in self.tests if file_of[test] in about]
        # by how much their file speaks of what is broken, for each second that they take: all
        # trainings run most functions, and the budget pays for many quick tests
        words = {word for line in changed_lines(fault) for word in re.findall(r"\w{5,}", line)}
        rare = {word: 1 / (1 + sum(word in text for text in texts.values())) for word in words}
        said = {file: sum(rare[w] for w in words if w in text) for file, text in texts.items()}
        found.sort(key=lambda test: self.tests[test]["seconds"] / (0.01 + said[file_of[test]]))
        spent, chosen = 0.0, []
        for test in found:
            spent += self.tests[test]["seconds"]
            if spent > self.options.budget and chosen:
                break
            chosen.append(test)
        return chosen

    def stages_for(self, fault: Fault) -> list[tuple]:
        """Name, function, and what it is given, of each stage that this fault goes through."""
        answers, tests = combination_for(fault), self.tests_for(fault)
        stages = [
            ("matrix", in_matrix, answers),
            ("opposite", in_matrix, opposite(fault, answers)),
            ("project", in_project_tests, answers),
            *([("template", in_template_tests, tests)] if tests else []),
        ]
        return [stage for stage in stages if stage[0] in self.options.stages]

    def all(self, chosen: list[Fault]) -> list[tuple[Fault, str, str]]:
        """Each fault with the stage that noticed it, or "", and how."""
        ours = {"mutants.py", "faults.py"}
        tests = digest(*(path for path in sorted(TESTS.rglob("*.py")) if path.name not in ours))
        jobs, results = [], []
        for fault in chosen:
            key = digest(*self.sources, instead={fault.file: fault.broken(TEMPLATE)})
            untouched = f"{key}-{tests}-{'-'.join(self.options.stages)}-{self.options.tests}"
            known = self.known.get(key) or self.known.get(untouched)
            if known:
                results.append((fault, *known))
            else:
                stages = self.stages_for(fault)
                jobs.append(((fault, key, untouched), run_fault, (fault, stages)))
        if results:
            print(f"{len(results)} are known from before.", flush=True)
        if jobs:
            self.check_whole([stage for job in jobs for stage in job[2][1]])
        for (fault, key, untouched), (ok, found) in side_by_side(jobs, limit=4 * LIMIT):
            if not ok:
                raise SystemExit(f"{describe(fault)}: {found}")
            stage, why = found
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key if stage else untouched, [stage, why]]) + "\n")
            results.append((fault, stage, why))
            if not stage:
                clear_line()
                print(f"SURVIVED {describe(fault)}\n{difference(fault)}", flush=True)
        return results

    def check_whole(self, stages: list[tuple]) -> None:
        """Nothing is noticed where nothing is broken."""
        unique = {
            f"{function.__name__} {answers}": (function, answers)
            for name, function, answers in stages
            if name != "template"  # seen when they were recorded
        }
        print(f"{len(unique)} runs without a fault.", flush=True)
        jobs = [(what, function, (answers,)) for what, (function, answers) in unique.items()]
        for what, (ok, why) in side_by_side(jobs):
            if not ok:
                raise SystemExit(f"{what} fails without any fault: {why}")


def side_by_side(jobs: list[tuple], limit: float = (len(STAGES) + 1) * LIMIT) -> Iterator[tuple]:
    """Yields `(what, (ok, value))` of jobs `(what, function, args)`, with a line of progress.

    Each function is given `args`, a folder of its own, and the template.
    """
    waiting, running, done, began = list(reversed(jobs)), {}, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or running:
                while waiting and len(running) < (os.cpu_count() or 1):
                    what, function, args = waiting.pop()
                    home = Path(tempfile.mkdtemp(dir=folder))
                    receiver, child = started(
                        FORK, answer, home / "log", function, (*args, home, TEMPLATE)
                    )
                    running[receiver] = what, child, home, time.monotonic() + limit
                ready = set(connection.wait(running, timeout=5))
                late = {one for one, job in running.items() if time.monotonic() > job[3]}
                for receiver in ready | late:
                    what, child, home, _ = running.pop(receiver)
                    try:
                        found = receiver.recv() if receiver in ready else (False, "too slow")
                    except EOFError:
                        found = (False, "the process died")
                    end(child)
                    shutil.rmtree(home, ignore_errors=True)
                    done += 1
                    progress(done, len(jobs), began)
                    yield what, found
        finally:
            for _, child, _, _ in running.values():
                end(child)


def progress(done: int, total: int, began: float) -> None:
    terminal = sys.stdout.isatty()
    if terminal or done % 10 == 0 or done == total:
        left = (time.monotonic() - began) / done * (total - done)
        line = f"{done} of {total}, {left / 60:.1f} min left"
        print(line, end="\r" if terminal else "\n", flush=True)


def clear_line() -> None:
    if sys.stdout.isatty():
        print(" " * 60, end="\r")


# --- what is said of it --------------------------------------------------------------------------


def describe(fault: Fault) -> str:
    return f"{plain_name(fault.file)}:{fault.line}: {fault.kind}"


def changed_lines(fault: Fault) -> list[str]:
    before = (TEMPLATE / fault.file).read_text(encoding="utf-8").splitlines()
    after = fault.broken(TEMPLATE).splitlines()
    lines = list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:]
    return [line for line in lines if not line.startswith("@@")]


def difference(fault: Fault) -> str:
    return "\n".join(f"    {line}" for line in changed_lines(fault))


def identity(fault: Fault) -> tuple[str, str, str]:
    """File, and what stood and stands there: no line numbers, which move."""
    lines = changed_lines(fault)
    before, after = (
        " ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+"
    )
    return plain_name(fault.file), before, after


def explained() -> dict[tuple, str]:
    """What mutants_that_change_nothing.md says: by file, and by the line before and after."""
    reasons, file = {}, ""
    if not EXPLAINED.exists():
        return reasons
    for line in EXPLAINED.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            file = line[3:].strip()
        if found := re.fullmatch(r"- `(.*?)` → `(.*?)`: (.+)", line):
            reasons[file, found[1], found[2]] = found[3]
    return reasons


def report(results: list[tuple[Fault, str, str]]) -> int:
    kinds = sorted({fault.kind.split(":")[0] for fault, _, _ in results})
    stages = [*STAGES, ""]
    table = Counter((fault.kind.split(":")[0], stage) for fault, stage, _ in results)
    head = f"{'kind of fault':28}" + "".join(f"{stage or 'survived':>10}" for stage in stages)
    print(f"\n{head}\n{'-' * len(head)}")
    for kind in kinds:
        print(f"{kind:28}" + "".join(f"{table[kind, stage] or '':>10}" for stage in stages))
    for fault, stage, why in results:
        if fault.kind.startswith("planted"):
            print(f"{fault.kind}: {stage or 'SURVIVED'} {why[:90]}")
    reasons = explained()
    survived = [fault for fault, stage, _ in results if not stage]
    unexplained = [fault for fault in survived if identity(fault) not in reasons]
    for fault in survived:
        if identity(fault) in reasons:
            print(f"\nchanges nothing, {reasons[identity(fault)]}: {describe(fault)}")
    for fault in unexplained:
        file, before, after = identity(fault)
        print(f"\nSURVIVED {describe(fault)}\n{difference(fault)}\n    - `{before}` → `{after}`: ")
    noticed = len(results) - len(survived)
    share = noticed / len(results) if results else 0
    print(
        f"\n{noticed} of {len(results)} faults were noticed ({share:.0%}), {len(survived)} were "
        f"not, {len(unexplained)} of them without a reason in {EXPLAINED.name}."
    )
    return share < 0.9 or bool(unexplained)


if __name__ == "__main__":
    sys.exit(main())
