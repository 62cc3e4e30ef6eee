"""What every generated project must look like, before anything of it is run."""

import ast
import hashlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

ALWAYS = """
.github/workflows/test.yml .gitignore LICENSE README.md answers.json base_model/config.json
base_model/menu.json base_model/twin_chat_template.jinja chat.py config.yaml data/sample.jsonl
launch/ddp.yaml launch/two_machines.yaml preview.py pyproject.toml sft/__init__.py sft/adapter.py
sft/advice.py sft/broken_files.py sft/checkpoints.py sft/collator.py sft/command_line.py
sft/config.py sft/examples.py sft/format.py sft/machine.py sft/mask/__init__.py
sft/mask/control_tokens.py sft/mask/conversation.py sft/mask/encoder.py sft/mask/end_of_turn.py
sft/mask/tokens.py sft/mask_view.html sft/mask_view.py sft/model.py sft/quantization.py
sft/report.py sft/row_report.py sft/rows.py sft/stop_tokens.py sft/trace.py sft/trainer.py
sft/twin.py sft/vram.py tests/conftest.py tests/oracle.py tests/test_collator.py
tests/test_format.py tests/test_mask.py tests/test_train.py tests/test_vram.py train.py vram.py
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


def check_render(project: Path, answers: dict, seen: Path) -> None:
    """The exact files, no residue of the template, each in its own language, linted, formatted.

    Args:
        seen: a folder of notes; what is said there to be right is not looked at again.
    """
    files = {path.relative_to(project).as_posix(): path for path in project.rglob("*")}
    files = {name: path for name, path in files.items() if path.is_file()}
    expected = expected_files(answers)
    assert files.keys() == expected, f"unlike expected: {sorted(files.keys() ^ expected)}"
    contents = {name: path.read_bytes() for name, path in files.items()}
    settings = contents["pyproject.toml"]
    notes = {
        name: seen / hashlib.sha256(name.encode() + content + settings).hexdigest()
        for name, content in contents.items()
    }
    new = [name for name in files if not notes[name].exists()]
    for name in new:
        check_text(name, contents[name].decode("utf-8"))
    code = b"".join(contents[f"sft/{name}.py"] for name in ("quantization", "collator")).decode()
    for prompt, words in FOREIGN.items():
        for answer, word in words.items():
            if answer != answers[prompt]:
                assert not re.search(word, code), f"{answer} is mentioned, and was not chosen"
    python = [str(files[name]) for name in new if name.endswith(".py")]
    for command in (["check"], ["format", "--check"]) if python else ():
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "--quiet", *python]
        run = subprocess.run(ruff, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    for name in new:
        notes[name].touch()


def check_text(name: str, text: str) -> None:
    """No residue of the template in a file, and its own language understands it."""
    where = name
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
