"""What every generated project must look like, before anything of it is run."""

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from conftest import MENUS, PROJECT

# the files with a condition in their names
ONLY_WITH = {
    "sft/further.py": lambda answers: answers["lora_targets"] != "full",
    "sft/targets.py": lambda answers: answers["lora_targets"] != "full",
    "launch/fsdp2.yaml": lambda answers: answers["quantization"] == "none",
    "sft/spread.py": lambda answers: answers["quantization"] == "none",
    "tests/oracle.py": lambda answers: answers["dataset_format"] != "text",
    "tests/test_mask.py": lambda answers: answers["dataset_format"] != "text",
    "sft/attention.py": lambda answers: answers["collator"] == "padding_free",
    "sft/isolation.py": lambda answers: answers["collator"] == "padding_free",
}

# what no file of a project says unless the answer was chosen
FOREIGN = {
    "base_model": {name: re.escape(name) + r"(?![\w-])" for name in MENUS["base_model"]},
    "dataset_format": {
        "prompt_response": r"prompt_template|response_column|one exchange",
        "messages": r"messages_column|ShareGPT|keep_start|\bturns:|\"weight\": 0|last. alone",
        "text": r"text_column|plain text|\bpieces of",
    },
    "quantization": {
        "nf4": r"load_in_4bit|NF4|nf4|\b4.bits?\b|double.quant",
        "int8": r"load_in_8bit|LLM\.int8|\bint8\b|\b8.bits?\b(?! optimizer)",
        "none": r"(?i)fsdp.?2",
    },
    "lora_targets": {
        "full": r"(?i)full (training|fine-tuning)|every weight",
        "attention": r"LoRA\b|\blora_|\bpeft\b",  # LoRA, which the other two have as well
    },
    "collator": {
        "visual_check": r"VisualCheck|visual_check|in colour",
        "manual_mask": r"ManualMask|manual_mask|by hand",
        "padding_free": r"PaddingFree|padding_free|cu_seq_lens|EvenSampler",
        "language_modeling": r"continued pretraining|LanguageModeling|language_modeling",
    },
    "tracking": {name: name for name in MENUS["tracking"] if name != "none"},
}
# what may speak of every answer: the record of all of them, and what works on any conversation
GENERAL = r"answers\.json|sft/mask/.*|tests/(oracle|test_mask)\.py"
# phrases of a file that may: what they say holds for every answer, but for the lesson's
ALLOWED = {
    # all number formats beside each other, and another answer to switch to
    "LESSONS.md": r"\| (int8|4 bits) \||\"collator\": \"\w+\"",
    "vram.py": r"(?i)weights in 4 bits|4-bit numbers|every weight",  # --lesson compares with them
    "sft/count.py": r"\"lora_\" in name",  # where there is an adapter
    "sft/report.py": r"\|lora_\|",  # so is this
    "sft/card.py": r"\"peft\" if|\"prompt_template\"",  # where the run has them
    "sft/card.md.jinja": r"== \"peft\"",
    "sft/memory.py": r"\"lora_alpha\"",  # a key that is no size
}


def expected_files(answers: dict) -> set[str]:
    """The template's own files, without those whose condition these answers do not meet."""
    names = {path.relative_to(PROJECT).as_posix() for path in PROJECT.rglob("*") if path.is_file()}
    names = {re.sub(r"\{%.*?%\}", "", name) for name in names if "__pycache__" not in name}
    assert names >= ONLY_WITH.keys()
    return {name for name in names if ONLY_WITH.get(name, lambda _: True)(answers)}


def foreign_words(name: str, text: str) -> dict[str, str]:
    """Of which answers a file speaks, as "prompt: answer", and where."""
    text, found = re.sub(ALLOWED.get(name, r"(?!)"), "", text), {}
    for prompt in FOREIGN if not re.fullmatch(GENERAL, name) else ():
        for answer, word in FOREIGN[prompt].items():
            if where := re.search(word, text):
                line = text[: where.start()].count("\n") + 1
                found[f"{prompt}: {answer}"] = f"{name}, line {line}, says {where[0]!r}"
    return found


def check_foreign(found: list[dict[str, str]], answers: dict) -> None:
    """No file speaks of an answer that was not chosen."""
    chosen = {f"{prompt}: {answer}" for prompt, answer in answers.items()}
    if answers["lora_targets"] != "full":
        chosen.add("lora_targets: attention")
    known = {prompt for prompt in FOREIGN if answers[prompt] in MENUS[prompt]}
    for words in found:
        for answer, where in words.items():
            is_known = answer.split(": ")[0] in known  # a dummy may share words
            assert answer in chosen or not is_known, f"{where}, which is of {answer}"


def check_render(project: Path, answers: dict, seen: Path) -> None:
    """The exact files, no residue of the template, each in its own language, linted, formatted.

    Args:
        seen: a folder of notes on files that are right, each of which answers it speaks of.
    """
    files = {path.relative_to(project).as_posix(): path for path in project.rglob("*")}
    files = {name: path for name, path in files.items() if path.is_file()}
    expected = expected_files(answers)
    assert files.keys() == expected, f"unlike expected: {sorted(files.keys() ^ expected)}"
    contents = {name: path.read_bytes() for name, path in files.items()}
    settings = tomllib.loads(contents["pyproject.toml"].decode("utf-8"))["tool"]["ruff"]
    notes = {
        name: seen / hashlib.sha256(name.encode() + content + repr(settings).encode()).hexdigest()
        for name, content in contents.items()
    }
    new = [name for name in files if not notes[name].exists()]
    found = {name: json.loads(notes[name].read_text()) for name in files.keys() - {*new}}
    for name in new:
        text = contents[name].decode("utf-8")
        check_text(name, text)
        found[name] = foreign_words(name, text)
    check_foreign(list(found.values()), answers)
    python = [str(files[name]) for name in new if name.endswith(".py")]
    for command in (["check"], ["format", "--check"]) if python else ():
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "--quiet", *python]
        run = subprocess.run(ruff, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    for name in new:
        whole = notes[name].with_name(f"{notes[name].name}.{os.getpid()}")
        whole.write_text(json.dumps(found[name]))
        whole.replace(notes[name])  # never half a note


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
