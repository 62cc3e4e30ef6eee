"""What is written in Chinese has the commands, keys, links and figures of the English."""

import re
from collections import Counter

import pytest

from conftest import TEMPLATE

PAGES = ["README.md"]


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
    }


def check_same(english: str, chinese: str) -> None:
    one, other = facts(english), facts(chinese)
    for what, found in one.items():
        assert found == other[what], what


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_the_same_in_chinese(page):
    english, chinese = (TEMPLATE / page, TEMPLATE / page.replace(".md", ".zh-CN.md"))
    check_same(english.read_text(encoding="utf-8"), chinese.read_text(encoding="utf-8"))
