"""Every valid combination of the menus: exact files, no residue, parses, lints, is formatted."""

import ast
import json
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from conftest import MENUS, combinations, name_of, render

ALWAYS = """
.github/workflows/test.yml .gitignore LICENSE README.md answers.json base_model/config.json
base_model/menu.json base_model/twin_chat_template.jinja chat.py config.yaml data/sample.jsonl
launch/ddp.yaml launch/two_machines.yaml preview.py pyproject.toml sft/__init__.py sft/adapter.py
sft/advice.py sft/collator.py sft/config.py sft/control_tokens.py sft/conversation.py
sft/dataset.py sft/end_of_turn.py sft/machine.py sft/model.py sft/prepare.py sft/preprocess.py
sft/preview.html sft/preview.py sft/quantization.py sft/report.py sft/rows.py sft/smoke.py
sft/tokens.py sft/trace.py sft/trainer.py sft/vram.py tests/conftest.py tests/oracle.py
tests/test_collator.py tests/test_dataset.py tests/test_mask.py tests/test_train.py
tests/test_vram.py train.py vram.py
""".split()

# what a file of one answer must not say, since it was not chosen
FOREIGN = {
    "quantization": {
        "nf4": r"load_in_4bit|NF4",
        "int8": r"load_in_8bit|LLM\.int8",
    },
    "collator": {
        "visual_check": "VisualCheck",
        "manual_mask": "ManualMask",
        "padding_free": "PaddingFree",
        "language_modeling": "continued pretraining",
    },
}


def expected_files(answers: dict) -> set[str]:
    files = set(ALWAYS)
    if answers["lora_targets"] != "full":
        files.add("merge.py")
    if answers["quantization"] == "none":
        files.add("launch/fsdp2.yaml")
    if answers["collator"] == "padding_free":
        files.add("sft/attention.py")
    return files


def test_the_product_of_the_menus_is_complete():
    pairs = len(MENUS["quantization"]) * (len(MENUS["lora_targets"]) - 1) + 1  # full: none alone
    others = len(MENUS["base_model"]) * len(MENUS["dataset_format"]) * len(MENUS["collator"])
    assert len(combinations()) == pairs * others
    assert {name for answers in combinations() for name in answers} == MENUS.keys()


@pytest.mark.parametrize("base_model", MENUS["base_model"])
def test_every_combination_of(base_model, tmp_path):
    seen = set()
    for answers in combinations():
        if answers["base_model"] != base_model:
            continue
        project = render(answers, tmp_path / "projects")
        files = {
            str(path.relative_to(project)): path for path in project.rglob("*") if path.is_file()
        }
        assert files.keys() == expected_files(answers), name_of(answers)
        for name, path in files.items():
            content = path.read_bytes()
            if (path.suffix, content) not in seen:
                seen.add((path.suffix, content))
                check(name, content.decode("utf-8"), name_of(answers))
        code = "".join(files[f"sft/{name}.py"].read_text() for name in ("quantization", "collator"))
        for prompt, words in FOREIGN.items():
            for answer, word in words.items():
                if answer != answers[prompt]:
                    assert not re.search(word, code), f"{name_of(answers)} mentions {answer}"
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check"], ["format", "--check"]):
        run = subprocess.run(
            [*ruff, *command, "--no-cache", "--quiet", str(tmp_path / "projects")],
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]


def check(name: str, text: str, answers: str) -> None:
    """No residue of the template in a file, and its own language understands it."""
    where = f"{name} of {answers}"
    if name.endswith(".jinja"):
        return  # a chat template: Jinja on purpose
    assert "cookiecutter" not in text, where
    residue = re.search(r"\{%|\{#", text) or re.search(r"\{\{(?! and \}\} are)", text)
    assert not residue, f"{where}: {residue}"
    assert text.endswith("\n") and not text.endswith("\n\n"), f"{where}: end of file"
    assert not re.search(r"[ \t]+$", text, re.M), f"{where}: blanks at the end of a line"
    if name.endswith(".py"):
        ast.parse(text, where)
    elif name.endswith((".yaml", ".yml")):
        assert isinstance(yaml.safe_load(text), dict), where
    elif name.endswith(".toml"):
        tomllib.loads(text)
    elif name.endswith(".json"):
        json.loads(text)
    elif name.endswith(".jsonl"):
        assert all(json.loads(line) for line in text.splitlines()), where
