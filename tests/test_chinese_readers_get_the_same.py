"""What is written in Chinese has the commands, keys, links and figures of the English."""

import hashlib
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from conftest import MENUS, PROJECT, TEMPLATE, in_project, is_valid
from support.rendering import check_render

PAGES = ["README.md", "docs/tutorial.md"]
CHINESE = yaml.safe_load((TEMPLATE / "templates/zh-CN.yaml").read_text(encoding="utf-8"))
# what an answer needs of the others, beside answers that are no menu's but change the README
NEEDS = ({}, {"quantization": "none"}, {"collator": "language_modeling"})
OTHERS = [
    {"base_model": "other", "base_model_path": "org/of-my-own", "lora_targets": "attention"},
    {"base_model": "google/gemma-3-1b-it", "collator": "padding_free"},
]
FIRST = {name: answers[0] for name, answers in MENUS.items()}
ANSWERS = [
    next(answers for need in NEEDS if is_valid(answers := FIRST | {name: answer} | need))
    for name in MENUS
    for answer in MENUS[name]
    if name != "base_model"
]
ANSWERS = [*{str(answers): answers for answers in ANSWERS}.values()]
ANSWERS += [FIRST | answers for answers in OTHERS]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def facts(text: str) -> dict:
    """What a translation leaves as it is."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    blocks = "\n".join(re.findall(r"```.*?```", text, re.DOTALL))
    lines = map(str.strip, blocks.splitlines())
    links = (link.replace(".zh-CN.md", ".md") for link in re.findall(r"\]\(([^)]+)\)", text))
    return {
        # a command without its comment, a file without its description
        "code": [*filter(None, (re.split(r"^#\s|\s+#\s|\s{2,}", line)[0] for line in lines))],
        "words": Counter(" ".join(word.split()) for word in re.findall(r"`([^`]+)`", prose)),
        "links": Counter(links),
        "figures": Counter(re.findall(r"\d+(?:[.,]\d+)*", text)),
        "headings": [*map(len, re.findall(r"^(#+) ", prose, re.MULTILINE))],
        "cells": [line.count("|") for line in prose.splitlines() if line.startswith("|")],
        "items": len(re.findall(r"^ *(?:-|\d+\.) ", prose, re.MULTILINE)),
        # of a docstring
        "usage": re.findall(r"^(?:python \S+|  --\S+)", prose, re.MULTILINE),
    }


def check_same(english: str, chinese: str) -> None:
    one, other = facts(english), facts(chinese)
    for what, found in one.items():
        assert found == other[what], what


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_the_same_in_chinese(page):
    check_same(read(TEMPLATE / page), read(TEMPLATE / page.replace(".md", ".zh-CN.md")))


# --- a project in Chinese ------------------------------------------------------------------------


@pytest.mark.parametrize("answers", ANSWERS, ids=lambda answers: "-".join(answers.values()))
def test_a_project_says_the_same_in_chinese(bake, tmp_path, answers):
    english, chinese = (bake.project(**answers, _language=one) for one in ("en", "zh-CN"))
    (tmp_path / "notes").mkdir()
    check_render(chinese, answers, tmp_path / "notes")
    tree = re.compile(r"(?<=```text\n).*?(?=```)", re.DOTALL)
    trees, readmes = [], []
    for project in (english, chinese):
        readme = read(project / "README.md")
        trees.append(tree.search(readme)[0].splitlines())
        # a docstring may have fewer lines in Chinese
        readmes.append(tree.sub(re.sub(r" +\d+  .*", "", tree.search(readme)[0]), readme))
    check_same(*readmes)
    titles = [line for line in trees[1] if not line.endswith("/")]
    paragraphs = re.sub(r"```.*?```|`[^`]*`", "", readmes[1], flags=re.DOTALL).splitlines()
    prose = [line for line in paragraphs if len(re.findall(r"\b[a-z]+\b", line)) > 3]
    for line in (*titles, *prose):
        assert re.search("[\u4e00-\u9fff]", line), f"English, since zh-CN.yaml has no word: {line}"
    reminder = "   export COOKIECUTTER_CONFIG=answers.json"
    lessons = read(chinese / "LESSONS.md").splitlines()
    lessons = "\n".join(line for line in lessons if not line.startswith(reminder))
    check_same(read(english / "LESSONS.md"), lessons)
    # the rest of the project is the same, but for docstrings and what is counted of the files
    for file in english.rglob("*.py"):
        ours, theirs = (read(project / file.relative_to(english)) for project in (english, chinese))
        assert ours.split('"""', 2)[2:] == theirs.split('"""', 2)[2:], file


def test_the_tests_of_a_chinese_project_pass(bake):
    project = bake.project(_language="zh-CN")
    assert in_project(project, its_own_tests) == 0, read(project / "log")[-3000:]
    assert in_project(project, memory_is_counted_already)


def its_own_tests() -> int:
    return int(pytest.main(["-q", "-p", "no:cacheprovider", "-k", "not libraries_of_today"]))


def memory_is_counted_already() -> bool:
    from sft import memory
    from sft.config import read_values

    return memory.fingerprint(read_values([])) in memory.COUNTS.read_text(encoding="utf-8")


def docstring(name: str) -> str:
    """The English docstring of a file of templates/ or of the project."""
    file = TEMPLATE / "templates" / name
    return read(file if file.exists() else PROJECT / name).split('"""', 2)[1]


def keyed(name: str) -> str:
    return f"{name} {hashlib.sha256(docstring(name).encode()).hexdigest()[:8]}"


def test_every_lesson_has_a_translation():
    answers = [f"{name}/{answer}.py" for name in MENUS for answer in MENUS[name]]
    answers = [name for name in answers if (TEMPLATE / "templates" / name).exists()]
    lessons = ["train.py", "sft/mask/__init__.py", *answers]
    missing = [keyed(name) for name in lessons if keyed(name) not in CHINESE["docstrings"]]
    assert not missing, "translate them in templates/zh-CN.yaml"


@pytest.mark.parametrize("key", CHINESE["docstrings"])
def test_a_translation_is_of_the_english_of_today(key):
    name = key.split()[0]
    assert key == keyed(name), "translate it anew in templates/zh-CN.yaml, under that key"
    check_same(docstring(name), CHINESE["docstrings"][key])


def test_an_unknown_language_is_refused(bake, capfd):
    assert bake(_language="fr").exit_code != 0
    said = "Refused: _language is 'fr', which is not offered; choose one of en, zh-CN."
    assert said in capfd.readouterr().err.splitlines()
