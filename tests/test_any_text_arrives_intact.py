"""Whatever is typed into a text prompt arrives as it was typed, in each file and in the run."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import config_of, in_project

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
    "nobody's home": "~nobody.here/rows",
    "arrow": "this => that => {so}",
}
FREE = ["base_model_path", "dataset"]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("dataset_format", ["prompt_response", "messages", "text"])
def test_intact(bake, text, dataset_format):
    # in a prompt, single braces are columns and double ones are literal
    prompt = text.replace("{", "{{").replace("}", "}}") + "{a column}"
    column = text.replace("{", "(").replace("}", ")")
    row, keys = {
        "prompt_response": (
            f"{prompt} => {{{column}}}",
            {"prompt_template": prompt, "response_column": column},
        ),
        "messages": (column, {"messages_column": column}),
        "text": (column, {"text_column": column}),
    }[dataset_format]
    answers = dict.fromkeys(FREE, text) | {"row": row, "project_slug": "hostile"}
    answers |= {"collator": "language_modeling", "dataset_format": dataset_format}
    project = bake.project(**answers)

    keys |= dict.fromkeys(FREE, text)
    assert keys.items() <= config_of(project).items()
    recorded = json.loads((project / "answers.json").read_text(encoding="utf-8"))["answers"]
    assert answers.items() <= recorded.items()

    rows = [json.loads(line) for line in (project / "data/sample.jsonl").open(encoding="utf-8")]
    columns = {"a column", column} if dataset_format == "prompt_response" else {column}
    assert all(row.keys() == columns for row in rows)

    assert keys.items() <= in_project(project, arguments).items()
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
    answers = dict.fromkeys(FREE, text)
    project = bake_once.project(**answers, row="{a} => {b}", project_slug="hostile")
    config = config_of(project)
    recorded = json.loads((project / "answers.json").read_text(encoding="utf-8"))["answers"]
    for name in answers:
        assert recorded[name] == text
        assert config[name] == text


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


def half_an_emoji() -> list[list[bool]]:
    from sft.mask_view import pieces
    from sft.twin import build_tokenizer

    tokenizer = build_tokenizer()
    ids = tokenizer("🎉", add_special_tokens=False)["input_ids"][:2]
    examples = [{"input_ids": ids, "labels": labels} for labels in (ids, [-100, -100])]
    return [[is_trained for *_, is_trained in pieces(one, tokenizer)] for one in examples]


def test_half_a_character_at_the_end_is_shown_as_trained_on_or_not(bake_once):
    assert in_project(bake_once.project(), half_an_emoji) == [[True], [False]]
