"""What the README of a project says of its files, keys and commands is so."""

import re
from dataclasses import fields

import pytest

from conftest import config_of

PROJECTS = {
    "default": {},
    "conversations": {
        "dataset_format": "messages",
        "quantization": "none",
        "lora_targets": "full",
        "collator": "padding_free",
        "tracking": "wandb",
        "base_model": "google/gemma-3-1b-it",
    },
}
# what is no key: the scripts' own options, a module, a field of a turn
OPTIONS = {
    "base",
    "card",
    "cards",
    "enable",
    "lesson",
    "lora",
    "logdir",
    "max",
    "prompt",
    "smoke",
    "split",
    "to",
}
OTHERS = {"embed_tokens", "reasoning_content", "tool_calls", "function_call"}


@pytest.fixture(params=PROJECTS, scope="module")
def project(request, bake_once):
    return bake_once.project(project_slug=request.param, **PROJECTS[request.param])


@pytest.fixture(scope="module")
def readme(project):
    return (project / "README.md").read_text(encoding="utf-8")


def test_it_begins_with_three_commands_that_lead_to_a_trained_model(readme):
    before, commands = readme.split("```")[:2]
    assert len(before.split()) < 30 and "##" not in before
    words = [line.split("#")[0].strip() for line in commands.splitlines()[1:]]
    assert "pip install" in words[0]
    assert words[1:] == ["python train.py --smoke", "python train.py"]


def test_the_tree_has_every_file_with_its_lines(project, readme):
    folder, found = "", {}
    for line in readme.partition("```text\n")[2].partition("```")[0].splitlines():
        if line.endswith("/"):
            folder = line
            continue
        name, lines, about = re.fullmatch(r"\s*(\S+)\s+(\d+)  (\S.*)", line).groups()
        assert len(about.split()) <= 12, line
        found[(folder if line.startswith(" ") else "") + name] = int(lines)
    files = {path.relative_to(project).as_posix(): path for path in project.rglob("*")}
    wanted = {
        name: path.read_text(encoding="utf-8").count("\n")
        for name, path in files.items()
        if path.is_file() and not name.startswith(".")
    }
    for name in ("LICENSE", "README.md", "sft/__init__.py"):
        wanted.pop(name)
    assert found == wanted


def test_what_it_names_is_there(project, readme):
    from peft import LoraConfig
    from transformers import TrainingArguments

    known = {field.name for kind in (TrainingArguments, LoraConfig) for field in fields(kind)}
    ours = (project / "sft/config.py").read_text(encoding="utf-8")
    known |= config_of(project).keys() | {*re.findall(r"^    (\w+): ", ours, re.MULTILINE)}
    text = re.sub(r"```.*?```", "", readme, flags=re.DOTALL)
    for word in re.findall(r"`([^`\n]+)`", text):
        for path in re.findall(r"\b(?:sft|launch|data|tests)/[\w/.]*|\b\w+\.(?:py|yaml)\b", word):
            assert (project / path).exists(), word
        for key in re.findall(r"--(\w+)", word):
            if not word.startswith(("torchrun", "accelerate")):
                assert key in known or key in OPTIONS, word
        if re.fullmatch(r"[a-z]+(_[a-z]+)+(: .*)?", word):
            assert word.partition(":")[0] in known | OTHERS, word


def test_it_is_short(readme):
    assert len(readme.split()) <= 1200
