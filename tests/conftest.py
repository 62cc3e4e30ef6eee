"""What the tests share: the menus, the valid combinations, baking, and running a baked project."""

import itertools
import json
import multiprocessing
import os
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from cookiecutter import generate
from cookiecutter.environment import StrictEnvironment

TEMPLATE = Path(__file__).resolve().parent.parent
PROJECT = TEMPLATE / "{{cookiecutter.project_slug}}"
CONTEXT = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
MENUS = {
    name: [answer for answer in answers if answer != "other"]  # which is no model by itself
    for name, answers in CONTEXT.items()
    if isinstance(answers, list) and not name.startswith("_")
}
TEXTS = [
    name
    for name, default in CONTEXT.items()
    if isinstance(default, str) and not name.startswith("_")
]


def is_valid(answers: dict) -> bool:
    """What the pre-gen hook accepts of the menus' answers, or of some of them."""
    is_trainable = answers["lora_targets"] != "full" or answers["quantization"] == "none"
    has_mask = answers.get("collator", "language_modeling") != "language_modeling"
    return is_trainable and not (answers.get("dataset_format") == "text" and has_mask)


def combinations() -> list[dict]:
    """Every valid combination of the menus, with `tracking` in turn: it only names a tracker."""
    names = [name for name in MENUS if name != "tracking"]
    every = [
        dict(zip(names, answers, strict=True))
        for answers in itertools.product(*(MENUS[name] for name in names))
    ]
    valid = [answers for answers in every if is_valid(answers)]
    for number, answers in enumerate(valid):
        answers["tracking"] = MENUS["tracking"][number % len(MENUS["tracking"])]
    return valid


def name_of(answers: dict) -> str:
    return "-".join(answer.split("/")[-1] for answer in answers.values())


def look_at_each_file_once() -> None:
    """Cookiecutter compiles all files and their names anew for every project, and looks at each."""
    generate.is_binary = cache(generate.is_binary)
    compiled, compile_now = {}, StrictEnvironment.compile

    def compiling(environment, source, name=None, filename=None):
        if (source, name) not in compiled:
            compiled[source, name] = compile_now(environment, source, name, filename)
        return compiled[source, name]

    StrictEnvironment.compile = compiling


look_at_each_file_once()


class Bakery:
    """Bakes through pytest-cookies, and says no to an answer that no prompt asks for."""

    def __init__(self, cookies):
        self.cookies = cookies

    def __call__(self, **answers):
        unknown = answers.keys() - CONTEXT.keys()
        assert not unknown, f"cookiecutter.json asks for no {unknown}"
        # answers that come from a program are rendered as Jinja, unlike typed ones: quote them
        answers = {
            name: "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if name in TEXTS else text
            for name, text in answers.items()
        }
        return self.cookies.bake(extra_context=answers)

    def project(self, **answers) -> Path:
        result = self(**answers)
        assert result.exception is None, result.exception
        return Path(result.project_path)


@pytest.fixture
def bake(cookies):
    return Bakery(cookies)


@pytest.fixture(scope="session")
def bake_once(cookies_session):
    return Bakery(cookies_session)


# ---------------------------------------------------------------- running a project by itself

# elsewhere a process cannot fork, or not safely
FORKS = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
PRELOAD = [  # imports alone: what computes starts threads, and a forked process has none of them
    *("torch", "transformers", "peft", "bitsandbytes", "datasets", "accelerate"),
    *("matplotlib.pyplot", "transformers.trainer", "datasets.packaged_modules.json.json"),
    *("cookiecutter.main", "rich.progress", "transformers.integrations.bitsandbytes"),
    *("rich._emoji_codes", "torch.nn.attention.varlen", "transformers.generation.streamers"),
    *("peft.tuners.lora.bnb", "peft.utils.transformers_weight_conversion"),
    *("sacrebleu", "rouge_score.rouge_scorer"),
    *(
        f"transformers.models.{name}.modeling_{name}"
        for name in """apertus gemma3 glm4 granitemoehybrid llama mistral olmo3 phi3 qwen3
        smollm3""".split()
    ),
]
if sys.platform == "linux":
    FORKS.set_forkserver_preload(PRELOAD)


def started(context, function, *args) -> tuple:
    """A process that runs `function(sender, *args)`, after the end of the pipe it sends to."""
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=function, args=(sender, *args))
    child.start()
    sender.close()
    return receiver, child


def in_project(project: Path, function, *args):
    """Call `function(*args)` in a fresh process whose own modules are the project's.

    The process is forked from one that has imported torch and its like: no module of one project
    reaches another, and nobody waits for the imports.
    """
    receiver, child = started(FORKS, _child, project, function, args)
    try:
        ok, value = receiver.recv()
    except EOFError:
        child.join()
        ok, value = False, f"the process died with exit code {child.exitcode}"
    child.join()
    assert ok, value
    return value


def _child(sender, project: Path, function, args) -> None:
    import gc
    import traceback

    import torch

    gc.freeze()  # what this process was forked with, which its collector need not look at
    torch.set_num_threads(1)  # two of these run side by side
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # plugins that a project has no use for
    os.environ["HF_DATASETS_CACHE"] = str(project / "cache")
    log = os.open(project / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    os.chdir(project)
    sys.path.insert(0, str(project))
    try:
        sender.send((True, function(*args)))
    except BaseException:
        tail = (project / "log").read_text(errors="replace")[-3000:]
        sender.send((False, f"{traceback.format_exc()}\n--- the end of its output\n{tail}"))


def another_value(value):
    """A value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 or 0.25
    if isinstance(value, list):
        return [*value, "other"]
    if isinstance(value, dict):
        return {name: another_value(one) for name, one in value.items()}
    return f"{value}_other"


def config_of(project: Path) -> dict:
    return yaml.safe_load((project / "config.yaml").read_text(encoding="utf-8"))
