"""One short training, from rows to an answer, with the code and the settings of the real one."""

import json

import pytest

import train


@pytest.fixture(scope="module")
def final():
    return train.main(["--smoke"])


def test_the_result_and_its_report_are_saved(final):
    assert (final / "tokenizer.json").exists()
    assert (final.parent / "loss.png").stat().st_size > 1000
    summary = json.loads((final.parent / "summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] == 6
    assert 0 < summary["loss"] < 20


def test_what_is_saved_knows_where_a_turn_ends(final):
    settings = json.loads((final / "generation_config.json").read_text(encoding="utf-8"))
    assert settings["eos_token_id"]
    template = (final / "chat_template.jinja").read_text(encoding="utf-8")
    assert "assistant" in template
