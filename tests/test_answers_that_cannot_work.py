"""Answers that cannot work are refused in one sentence, and nothing is left on disk."""

import json
import subprocess
import sys

import pytest

from conftest import MENUS, TEMPLATE

REFUSED = {
    "full on 4 bits": ({"lora_targets": "full", "quantization": "nf4"}, "quantization none"),
    "full on 8 bits": ({"lora_targets": "full", "quantization": "int8"}, "quantization none"),
    "slug climbs out": ({"project_slug": "../evil"}, "not a folder name"),
    "slug with a slash": ({"project_slug": "a/b"}, "not a folder name"),
    "slug of an emoji": ({"project_name": "🚀"}, None),
    "slug of a device": ({"project_slug": "con"}, "not a folder name"),
    "slug of a dependency": ({"project_name": "Datasets"}, "a package that the project needs"),
    "slug of a tracker": ({"project_slug": "wandb"}, "a package that the project needs"),
    "slug of torch's dependency": ({"project_slug": "Typing.Extensions"}, "a package that the"),
    "slug of a tool": ({"project_slug": "pytest"}, "a package that the project needs"),
    "slug with a blank": ({"project_slug": "my sft"}, "not a folder name"),
    "empty prompt": ({"prompt_template": ""}, "names no column"),
    "prompt without a column": ({"prompt_template": "Summarize"}, "names no column"),
    "prompt with a lone brace": ({"prompt_template": "{dialogue} }"}, "double the braces"),
    "prompt with an empty brace": ({"prompt_template": "{} {dialogue}"}, "double the braces"),
    "prompt shows the reply": ({"prompt_template": "{dialogue} {summary}"}, "summary"),
    "no response column": ({"response_column": " "}, "response_column is empty"),
    "no messages column": (
        {"dataset_format": "messages", "messages_column": ""},
        "messages_column is empty",
    ),
    "text with a mask": ({"dataset_format": "text"}, "choose the collator language_modeling"),
    "another model without its path": ({"base_model": "other"}, "base_model_path has to name it"),
    "no dataset": ({"dataset": ""}, "dataset is empty"),
    "max_length of zero": ({"max_length": "0"}, "positive whole number"),
    "max_length below zero": ({"max_length": "-5"}, "positive whole number"),
    "max_length of a word": ({"max_length": "long"}, "positive whole number"),
    "max_length with a fraction": ({"max_length": "10.5"}, "positive whole number"),
    "max_length in other digits": ({"max_length": "١٠"}, "positive whole number"),
}


@pytest.mark.parametrize("answers, sentence", REFUSED.values(), ids=REFUSED.keys())
def test_refused(bake, tmp_path, capfd, answers, sentence):
    result = bake(**answers)
    assert result.exit_code != 0
    assert result.project_path is None
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bake00", "cookies"]
    if sentence:
        said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("Refused:")]
        assert len(said) == 1
        assert sentence in said[0]


@pytest.mark.parametrize("started", [".", "tests"])  # without a shell, PWD is of another folder
def test_a_dependency_is_known_to_a_template_that_is_given_by_a_relative_path(tmp_path, started):
    path = {".": ".", "tests": ".."}[started]
    command = [sys.executable, "-m", "cookiecutter", path, "--no-input", "-o", tmp_path]
    command = [*command, "project_slug=peft"]
    run = subprocess.run(command, cwd=TEMPLATE / started, capture_output=True, text=True)
    assert run.returncode != 0
    assert run.stderr.startswith("Refused: project_slug 'peft' is the name of a package")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("menu", MENUS)
def test_an_answer_that_is_not_offered_is_refused(bake, menu):
    result = bake(**{menu: "no such answer"})
    assert result.exit_code != 0 and "no such answer" in str(result.exception)
    assert result.project_path is None


def test_a_replayed_answer_that_is_no_longer_offered_is_refused(tmp_path):
    command = [sys.executable, "-m", "cookiecutter", str(TEMPLATE)]
    config = tmp_path / "config.yaml"
    config.write_text(f"replay_dir: {json.dumps(str(tmp_path))}\n")
    options = ["--config-file", str(config), "--output-dir", str(tmp_path / "out")]
    subprocess.run([*command, "--no-input", *options], check=True, capture_output=True)
    (replay,) = tmp_path.glob("*.json")
    answers = json.loads(replay.read_text())
    answers["cookiecutter"].update(collator="of last year", project_slug="again")
    replay.write_text(json.dumps(answers))
    run = subprocess.run([*command, "--replay", *options], capture_output=True, text=True)
    assert run.returncode != 0
    assert "Refused: collator is 'of last year'" in run.stderr
    assert not (tmp_path / "out" / "again").exists()
