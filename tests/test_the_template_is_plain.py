"""The template's own Python is Python, and its menus say what an answer costs."""

import re

import pytest

from conftest import CONTEXT, MENUS, PROJECT, TEMPLATE

INCLUDES = ["adapter", "collator", "format", "quantization"]
STRUCTURAL = ["collator", "dataset_format", "lora_targets", "quantization"]


def test_python_files_hold_no_jinja():
    for path in [*PROJECT.rglob("*.py"), *(TEMPLATE / "templates").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        if path.parent.name == "sft" and path.stem in INCLUDES:
            assert re.fullmatch(r"\{% include [^%]+ %\}", text), path
        else:
            # an answer may be a docstring of its own, and then a file that others include as well
            text = re.sub(r'(?<="""\n\n)\{% include "[a-z_]+\.py" -%\}\n\Z', "", text)
            assert not re.search(r"\{\{|\{%|\{#", text), path


def test_every_answer_of_a_structural_prompt_is_a_file():
    for prompt in STRUCTURAL:
        files = {path.stem for path in (TEMPLATE / "templates" / prompt).glob("*.py")}
        assert files == set(MENUS[prompt])
    shapes = TEMPLATE / "templates/base_model"
    files = {path.relative_to(shapes).as_posix() for path in shapes.rglob("*.json")}
    kinds = (".json", ".counts.json")  # its shape, and the memory of a step by `make memory`
    assert files == {name + kind for name in MENUS["base_model"] for kind in kinds}


@pytest.mark.parametrize("prompt", [name for name in CONTEXT if not name.startswith("_")])
def test_every_prompt_is_a_question_and_every_answer_has_a_label(prompt):
    words = CONTEXT["__prompts__"][prompt]
    question = words if isinstance(words, str) else words["__prompt__"]
    assert len(question) > 10
    assert "[" not in str(words), "cookiecutter would take it for markup"
    if prompt in MENUS:
        assert words.keys() - {"__prompt__"} == set(CONTEXT[prompt])


def test_no_more_than_eleven_questions_are_asked_and_each_answer_fits_a_line():
    questions = [name for name in CONTEXT if not name.startswith("_")]
    assert len(questions) <= 11
    for name in questions:
        words = CONTEXT["__prompts__"][name]
        lines = [words] if isinstance(words, str) else [f"10 - {word}" for word in words.values()]
        assert all(len(f"    {line}") <= 80 for text in lines for line in text.split("\n")), name


def test_a_model_that_needs_a_click_says_so_in_the_menu_and_in_the_readme():
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    gated = tuple(re.findall(r'"([^"]+/)"', re.search(r"set gated = .*", readme)[0]))
    for name in MENUS["base_model"]:
        label = CONTEXT["__prompts__"]["base_model"][name]
        assert label.endswith("; click") == name.startswith(gated), label


def test_nothing_is_named_that_is_illegal_elsewhere():
    for path in TEMPLATE.rglob("*"):
        if not {".git", ".venv", "demo"} & set(path.relative_to(TEMPLATE).parts):
            assert not re.search(r'[<>:"|?*\\]', path.name), path
