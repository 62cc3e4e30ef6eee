"""Whatever is typed into a text prompt arrives as it was typed, in each file and in the run."""

import json
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import TEXTS, config_of, in_project

HOSTILE = {
    "quotes": "it's \"quoted\" and 'quoted' `too`",
    "backslashes": "C:\\new\\table \\u0041 \\",
    "braces": "{dialogue} {{ 1 + 1 }} ${{ secrets }} {% if x %} {# no #}",
    "newlines": "one\ntwo\r\n\tthree\n",
    "emoji": "🚀 👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "CJK": "请总结以下对话：「」",
    "right to left": "שלום \u202eمرحبا\u202c",
    "line separators": "a\u2028b\u2029c\u0085d\ufeffe\x7ff\x1bg",
    "YAML": "x: [1, 2] # &a *a !!python/object:os.system\n---\nkey: 'y'",
    "TOML": '"""\n[tool.evil]\nx = 1\n"""',
    "Python": '"; import os; os.system("false") #',
    "shell": "$(touch evil) `touch evil`; rm -rf x && y | z > w",
    "long": "lorem ipsum " * 900,
    "dash": "--learning_rate",
    "yes": "no",
    "number": "0123",
}
FREE = [name for name in TEXTS if name not in ("project_slug", "max_length", "prompt_template")]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("dataset_format", ["prompt_response", "messages"])
def test_intact(bake, text, dataset_format):
    # in a prompt, single braces are columns and double ones are literal
    prompt = text.replace("{", "{{").replace("}", "}}") + "{a column}"
    answers = dict.fromkeys(FREE, text) | {"prompt_template": prompt, "project_slug": "hostile"}
    project = bake.project(dataset_format=dataset_format, **answers)

    config = config_of(project)
    answers.pop("messages_column" if dataset_format == "prompt_response" else "response_column")
    if dataset_format == "messages":
        answers.pop("prompt_template")
    in_config = answers.keys() & config.keys()
    assert len(in_config) >= 4
    assert {name: config[name] for name in in_config} == {n: answers[n] for n in in_config}
    recorded = json.loads((project / "answers.json").read_text(encoding="utf-8"))["answers"]
    assert {name: recorded[name] for name in answers} == answers

    described = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    assert described["project"]["description"] == " ".join(text.split())
    rows = [json.loads(line) for line in (project / "data/sample.jsonl").open(encoding="utf-8")]
    columns = {"a column", text} if dataset_format == "prompt_response" else {text}
    assert all(row.keys() == columns for row in rows)
    assert " ".join(text.split()) in (project / "README.md").read_text(encoding="utf-8")

    arrived = in_project(project, arguments)
    assert {name: arrived[name] for name in in_config} == {n: answers[n] for n in in_config}
    assert not list(project.parent.rglob("evil"))


def test_intact_on_the_command_line(bake):
    texts = [*HOSTILE.values(), " blanks ", "a # b", "[a, b]", "{a: b}", "null", "true", "1e-4", ""]
    for text, arrived in zip(texts, in_project(bake.project(), prompts_of, texts), strict=True):
        assert arrived == (text, text, text)


# what a terminal can send: any character but a surrogate and NUL, and something to be seen
TYPED = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(TYPED.filter(str.strip))
@settings(max_examples=25, deadline=None, database=None)
def test_generated_texts_arrive_intact(bake_once, text):
    answers = dict.fromkeys(("project_name", "base_model_path", "dataset", "system_prompt"), text)
    project = bake_once.project(**answers, project_slug="hostile")
    config = config_of(project)
    recorded = json.loads((project / "answers.json").read_text(encoding="utf-8"))["answers"]
    for name in answers:
        assert recorded[name] == text
        assert config.get(name, text) == text
    described = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    assert described["project"]["description"] == " ".join(text.split())


def prompts_of(texts: list[str]) -> list[tuple[str, str, str]]:
    """The text as a key of ours, as one of the library's, and as a script's option."""
    from sft.config import load_config, parse

    found = []
    for text in texts:
        words = [f"--prompt={text}", f"--system_prompt={text}", f"--run_name={text}"]
        options, overrides = parse(words, "", prompt="")
        args, training_args = load_config([*overrides, "--use_cpu=true"])
        found.append((options.prompt, args.system_prompt, training_args.run_name))
    return found


def arguments() -> dict:
    from sft.config import project_arguments

    return vars(project_arguments([]))
