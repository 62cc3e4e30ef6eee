"""A project is read in the time that the READMEs say, and within the limits of bench/reading.py."""

import sys

import pytest

from conftest import TEMPLATE

sys.path.insert(0, str(TEMPLATE / "bench"))
import reading  # noqa: E402


@pytest.fixture(scope="module")
def project(bake_once):
    return bake_once.project(project_slug="my-sft")


def test_the_readmes_have_the_figures_that_are_measured(project):
    claims = reading.claims(reading.path_of_a_row(project), reading.all_python(project))
    for readme, claim in claims.items():
        assert claim in readme.read_text(encoding="utf-8"), "make reading writes them"


CODE = '''"""Two words."""

x = """no
docstring"""  # one


def f():
    """Three more words."""
    return (
        1
    )
'''


def test_what_is_counted_is_what_is_read(tmp_path):
    (tmp_path / "a.py").write_text(CODE)
    assert reading.read(tmp_path / "a.py") == reading.Reading(lines=11, code=6, words=6)
    (tmp_path / "a.yaml").write_text("# a comment\nkey: 1  # of two\n\nother: '#'\n")
    assert reading.read(tmp_path / "a.yaml") == reading.Reading(lines=4, code=2, words=4)
    (tmp_path / "a.md").write_text("| one | 1,234 | **two** |\n|---|---|---|\n")
    assert reading.read(tmp_path / "a.md") == reading.Reading(lines=2, code=0, words=2)


def test_it_path_of_a_row_takes_twenty_minutes(project):
    assert reading.total(reading.path_of_a_row(project)).minutes <= reading.LIMIT_MINUTES
