"""docs/tutorial.md names files and commands that exist, and figures that can be computed."""

import json
import re
import subprocess
import sys

import pytest

from conftest import CONTEXT, MENUS, TEMPLATE, config_of

PAGE = (TEMPLATE / "docs/tutorial.md").read_text(encoding="utf-8")
WORDS = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))
SHAPES = {
    name: json.loads((TEMPLATE / f"templates/base_model/Qwen/{name}.json").read_text("utf-8"))
    for name in ("Qwen3-8B", "Qwen3-14B")
}


@pytest.fixture(scope="module")
def project(bake_once):
    """What the command on the page writes, in English."""
    (command,) = re.findall(r"^cookiecutter .*", PAGE, re.MULTILINE)
    answers = dict(word.split("=") for word in command.split() if "=" in word)
    assert answers.pop("_language") == "zh-CN"
    return bake_once.project(**answers, project_slug="tutorial")


def test_what_it_names_is_there(project):
    for word in WORDS:
        script, *options = word.removeprefix("python ").split()
        where = TEMPLATE if script.startswith(("docs/", "bench/", "templates/")) else project
        if re.search(r"[/.]", script):
            assert (where / script).exists(), word
        else:  # an answer
            key, _, answer = script.partition("=")
            assert key in CONTEXT if answer else any(key in menu for menu in MENUS.values()), word
        for option in re.findall(r"--(\w+)", " ".join(options)):
            text = (project / script).read_text(encoding="utf-8").split('"""')[1]
            assert f"  --{option} " in text or option in config_of(project), word
    assert len(WORDS) > 40


def lora_parameters(shape: dict, r: int = 64) -> int:
    """Of LoRA on q, k, v and o: each matrix gets r times its inputs and outputs."""
    size, head = shape["hidden_size"], shape["head_dim"]
    queries, keys = head * shape["num_attention_heads"], head * shape["num_key_value_heads"]
    return shape["num_hidden_layers"] * r * (2 * (size + queries) + 2 * (size + keys))


def test_the_tutorials_figure_is_another_models(project):
    wrong, right = (lora_parameters(SHAPES[name]) for name in ("Qwen3-14B", "Qwen3-8B"))
    (row,) = re.findall(r"^\| Qwen3-8B, LoRA.*", PAGE, re.MULTILINE)
    _, there, here, why, _ = row.split("|")
    assert f"{wrong:,} trained" in there and here.strip() == f"{right:,}"
    assert config_of(project)["r"] == 64
    for shape, layers in zip(SHAPES.values(), re.findall(r"in each of (\d+)", why), strict=True):
        assert int(layers) == shape["num_hidden_layers"]
    for terms, result in re.findall(r"(64 × \(.*?\)\)) = ([\d,]+)", why):
        figures = re.sub(r"\s*×\s*", "*", terms.replace(",", ""))
        assert re.fullmatch(r"[\d*+() ]+", figures)
        assert f"{eval(figures):,}" == result


def test_the_memory_is_what_the_lesson_says(project):
    run = [sys.executable, "vram.py"]
    lesson, now = (
        subprocess.run([*run, word], cwd=project, check=True, capture_output=True, text=True).stdout
        for word in ("--lesson", "--json")
    )
    parameters, last = json.loads(now)["parameters"], "All in bfloat16 it is half, {} GB"
    together = {
        name: line.split()[-1]
        for name in ("every weight", "this project")
        for line in lesson.splitlines()
        if name in line
    }
    assert f"| {together['every weight']} GB, in float32 |" in PAGE
    assert f"{parameters:,} parameters × 16 bytes = {16 * parameters:,} bytes" in PAGE
    assert f"{16 * parameters / 2**30:.1f}" == together["every weight"]
    assert last.format(f"{8 * parameters / 2**30:.1f}") in PAGE
    assert f"are {together['this project']} GB before activations" in PAGE
