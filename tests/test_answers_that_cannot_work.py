"""Answers that cannot work are refused: a sentence, a command that works, and nothing on disk."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import MENUS, TEMPLATE, config_of

REFUSED = {
    "full on 4 bits": ({"lora_targets": "full", "quantization": "nf4"}, "quantization none"),
    "full on 8 bits": ({"lora_targets": "full", "quantization": "int8"}, "quantization none"),
    "slug climbs out": ({"project_slug": "../evil"}, "not a folder name"),
    "slug with a slash": ({"project_slug": "a/b"}, "not a folder name"),
    "slug of an emoji": ({"project_slug": "🚀"}, "not a folder name"),
    "slug of a device": ({"project_slug": "con"}, "not a folder name"),
    "slug of a dependency": ({"project_slug": "Datasets"}, "a package that the project needs"),
    "slug of a tracker": ({"project_slug": "wandb"}, "a package that the project needs"),
    "slug of torch's dependency": ({"project_slug": "Typing.Extensions"}, "a package that the"),
    "slug of a tool": ({"project_slug": "pytest"}, "a package that the project needs"),
    "slug with a blank": ({"project_slug": "my sft"}, "not a folder name"),
    "no row": ({"row": " "}, "row is empty"),
    "no column for messages": ({"row": "", "dataset_format": "messages"}, "row is empty"),
    "row without a response": ({"row": "Summarize {dialogue}"}, "does not end with ' => '"),
    "response without braces": ({"row": "{dialogue}=> summary"}, "does not end with ' => '"),
    "response with words": ({"row": "{dialogue} => In short: {summary}"}, "does not end with"),
    "two responses": ({"row": "{dialogue} => {summary} and {topic}"}, "does not end with"),
    "empty prompt": ({"row": " => {summary}"}, "names no column"),
    "prompt without a column": ({"row": "Summarize => {summary}"}, "names no column"),
    "prompt with a lone brace": ({"row": "{dialogue} } => {summary}"}, "double the braces"),
    "prompt with an empty brace": ({"row": "{} {dialogue} => {summary}"}, "double the braces"),
    "prompt with a format": ({"row": "{dialogue:>9} {a} => {summary}"}, "double the braces"),
    "prompt shows the reply": (
        {"row": "{dialogue} {summary} => {summary}"},
        "'summary' that it is",
    ),
    "the example's row for other rows": ({"dataset": "org/rows"}, "name its columns"),
    "a row in braces for messages": (
        {"row": "{turns}", "dataset_format": "messages"},
        "the name of a column alone",
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
    """The command below the sentence is not refused."""
    result = bake(**answers)
    assert result.exit_code != 0
    assert result.project_path is None
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bake00", "cookies"]
    said = capfd.readouterr().err.splitlines()
    assert sentence in said[0] and said[0].startswith("Refused: ")
    assert sum(line.startswith("Refused: ") for line in said) == 1
    assert bake.cookies.bake(extra_context=answers_of(said)).exception is None


def answers_of(said: list[str]) -> dict:
    """What the one command that was printed answers."""
    (command,) = [line for line in said if line.startswith("    cookiecutter --no-input ")]
    return dict(word.split("=", 1) for word in shlex.split(command) if "=" in word)


RIGHT = {
    "project_slug": "mine",
    "base_model": "other",
    "base_model_path": 'it\'s/a "model"',
    "dataset": "org/$rows; `x`",
    "row": "{{a}} {% b %} {# c #} {question}\n => {answer}",
    "lora_targets": "full",
    "collator": "padding_free",
    "tracking": "trackio",
    "_language": "zh-CN",
}


def test_the_corrected_command_repeats_all_other_answers(bake, capfd):
    assert bake(**RIGHT, max_length="long").exception
    said = capfd.readouterr().err.splitlines()
    assert ["max_length" in said[0], "full trains" in said[1]] == [True, True]  # both at once
    result = bake.cookies.bake(extra_context=answers_of(said))
    recorded = json.loads((result.project_path / "answers.json").read_text(encoding="utf-8"))
    defaults = {"dataset_format": "prompt_response", "max_length": "1024", "quantization": "none"}
    assert recorded["answers"] | {"_language": "zh-CN"} == RIGHT | defaults
    assert recorded["default_context"] == {"_language": "zh-CN"}


FILES = {
    "my.csv": "question,answer\nWhy?,So.\n",
    "my.jsonl": '{"question": "Why?", "answer": "So."}\n',
    "my.json": '[\n  {"question": "Why?", "answer": "So."}\n]\n',
}


@pytest.mark.parametrize("name", FILES)
def test_whoever_names_a_file_alone_is_given_its_path_and_columns(tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(FILES[name])
    (tmp_path / "config").write_text(f"replay_dir: {json.dumps(str(tmp_path / 'replay'))}\n")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "COOKIECUTTER_CONFIG": str(tmp_path / "config")}
    how = {"shell": True, "cwd": tmp_path, "env": env, "capture_output": True, "text": True}
    typed = f"cookiecutter --no-input -o out {shlex.quote(str(TEMPLATE))} dataset={name}"
    refused = subprocess.run(typed, **how)
    assert f"dataset '{name}' is not in the new project" in refused.stderr
    assert "with the columns question, answer; name" in refused.stderr
    (command,) = [line for line in refused.stderr.splitlines() if line.startswith("    cookie")]
    assert subprocess.run(command, **how).returncode == 0
    values = config_of(tmp_path / "out/my-sft")
    assert (tmp_path / "out/my-sft" / values["dataset"]).samefile(tmp_path / "out" / name)
    assert (values["prompt_template"], values["response_column"]) == ("{question}", "answer")


TICKETS = {  # the row that is typed for these columns, and what is proposed
    "{subject}: {bdoy} => {answer}": "{subject}: {body} => {answer}",
    "{Body} => {answers}": "{body} => {answer}",
    "{body} -> {answer}": "{body} => {answer}",
    "{body} = {answer}": "{body} => {answer}",
    "{body}": "{body} => {answer}",
    "Reply to body => answer": "Reply to {body} => {answer}",
    "Reply => {answer}": "Reply {subject} {body} => {answer}",
    "{body} {answer} => {answer}": "{body} => {answer}",
    "{conversation}": "conversation",
    "conversations": "conversation",
    "chat": "conversation",
    "id": None,
}


@pytest.mark.parametrize("typed", TICKETS)
def test_a_row_is_held_against_a_file_that_can_be_seen(bake, tmp_path, capfd, typed):
    """The proposal keeps what was typed, and is not refused."""
    is_chat = "conv" in str(TICKETS[typed]) or not TICKETS[typed]
    ticket = {"id": 7, "subject": "Late", "body": "Where is it?", "answer": "On its way."}
    chat = {"id": 7, "conversation": [{"role": "user", "content": "Hi"}]}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(chat if is_chat else ticket) + "\n")
    form = "messages" if is_chat else "prompt_response"
    result = bake(dataset=str(file), dataset_format=form, row=typed)
    if TICKETS[typed] is None:
        assert result.exception is None
        return
    assert result.exit_code != 0
    answers = answers_of(capfd.readouterr().err.splitlines())
    assert answers["row"] == TICKETS[typed]
    assert bake.cookies.bake(extra_context=answers).exception is None


SEEN = {  # a file, the row that is typed for it (None for the default), and what is proposed
    "one column": ("a.csv", "text\nhi\n", None, "{PROMPT} => {text}"),
    "one column of an object": ("a.jsonl", '{"text": {"data": 1}}\n', None, "{PROMPT} => {text}"),
    "surplus values": ("a.csv", "question,answer\nWhy?,So.,\n", None, "{question} => {answer}"),
    "an index without a name": (
        "a.csv",
        ",question,answer\n0,Why?,So.\n",
        None,
        "{question} => {answer}",
    ),
    "signs of a format": ("a.csv", "Q:,text,answer\na,b,c\n", None, "{text} => {answer}"),
    "a key of later rows": (
        "a.jsonl",
        '{"q": 1, "a": 2}\n\n{"q": 1, "context": 3, "a": 2}\n',
        "{q} {contxt} => {a}",
        "{q} {context} => {a}",
    ),
    "equals in the prompt": (
        "a.csv",
        "q,a\n1,2\n",
        "Solve f(x)=y: {q} -> {a}",
        "Solve f(x)=y: {q} => {a}",
    ),
    "a prompt alone": ("a.csv", "q,a\n1,2\n", "Is 1+1=2? {q}", "Is 1+1=2? {q} => {a}"),
}


@pytest.mark.parametrize("name, text, typed, proposed", SEEN.values(), ids=SEEN)
def test_a_proposal_suits_the_file(bake, tmp_path, capfd, name, text, typed, proposed):
    file = tmp_path / name
    file.write_text(text)
    answers = {"dataset": str(file)} | ({} if typed is None else {"row": typed})
    assert bake(**answers).exit_code != 0
    found = answers_of(capfd.readouterr().err.splitlines())
    assert found["row"] == proposed
    assert bake.cookies.bake(extra_context=found).exception is None


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("a.csv", "question;answer\nWhy?;So.\n", "save it with commas"),
        ("a.json", "[" * 100_000, "name its columns"),
        ("a.json", '{"data": [1]}', "name its columns"),
        ("a.jsonl", "no JSON\n", "name its columns"),
    ],
)
def test_a_file_that_tells_no_columns_is_no_obstacle(bake, tmp_path, capfd, name, text, said):
    (tmp_path / name).write_text(text)
    assert bake(dataset=str(tmp_path / name)).exit_code != 0
    assert said in capfd.readouterr().err
    is_separated = "commas" in said
    result = bake(dataset=str(tmp_path / name), row="{question} => {answer}")
    assert (result.exception is None) is not is_separated


def test_a_sample_that_is_written_anew_is_not_asked(bake, tmp_path):
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "cookiecutter",
        str(TEMPLATE),
        "--no-input",
        "-f",
        "-o",
        str(out),
    ]
    for row in ("{a} => {b}", "{c} => {d}"):
        subprocess.run([*command, "dataset=data/sample.jsonl", f"row={row}"], check=True)


def test_quotes_around_a_path_are_taken_off(bake, tmp_path, capfd):
    (tmp_path / "rows.csv").write_text("dialogue,summary\na,b\n")
    assert bake(dataset=f'"{tmp_path / "rows.csv"}"').exit_code != 0
    said = capfd.readouterr().err.splitlines()
    assert answers_of(said)["dataset"] == str(tmp_path / "rows.csv")


def test_a_file_that_is_not_there_yet_is_said(bake, capfd):
    there = {
        "../mine.csv": True,
        "data/sample.jsonl": False,
        "org/rows": False,
        "../m/*.csv": False,
    }
    for data, is_said in there.items():
        assert bake(dataset=data, row="{a} => {b}").exception is None
        assert ("is not there yet" in capfd.readouterr().out) is is_said


def test_other_rows_with_the_example_s_columns_are_taken(bake, tmp_path):
    (tmp_path / "rows.csv").write_text("id,dialogue,summary\n1,a,b\n")
    assert bake(dataset=str(tmp_path / "rows.csv")).exception is None
    assert bake(dataset="org/chats", dataset_format="messages").exception is None


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
