"""`make demo` generates a project and trains it with words that are accepted."""

import shlex
import subprocess
from pathlib import Path

from conftest import TEMPLATE, in_project


def commands(model: Path) -> list[list[str]]:
    """What make would do, the installed environment and the model being there."""
    words = ["make", "--dry-run", "--assume-old=.venv/installed", "demo", f"MODEL={model}"]
    made = subprocess.run(words, cwd=TEMPLATE, capture_output=True, text=True, check=True).stdout
    return [shlex.split(line) for line in made.replace("\\\n", "").splitlines()]


def example_of(words: list[str]) -> tuple[str, int]:
    """The first prompt and reply as it is trained on, and how many rows there are."""
    from sft.config import load_config
    from sft.examples import make_examples
    from sft.rows import load_rows
    from sft.twin import build_tokenizer

    args, _ = load_config([*words, "--use_cpu=true"])
    tokenizer = build_tokenizer()
    examples, reports = make_examples(load_rows(args), tokenizer, args)
    return tokenizer.decode(examples["train"][0]["input_ids"]), reports["train"].rows


def test_its_words_are_accepted_and_its_prompts_are_the_dialogues(bake, tmp_path):
    told = commands(tmp_path)
    bakes = next(words for words in told if "cookiecutter" in words[0])
    answers = dict(word.split("=", 1) for word in bakes if "=" in word)
    project = bake.project(**answers)
    assert Path(answers["base_model_path"]) == tmp_path
    trains = next(words for words in told if "train.py" in words)
    text, rows = in_project(project, example_of, trains[trains.index("train.py") + 1 :])
    dialogue, reply = text.split("<|im_end|>\n<|im_start|>assistant\n")
    assert dialogue.startswith("<|im_start|>user\nAna: Are you still coming at six?\n")
    assert reply.startswith("Ben's train is late, so he and Ana will eat at seven.")
    assert rows == 108


def test_another_language_is_in_the_sample_as_it_is_written(bake):
    text = (bake.project() / "data/sample.jsonl").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 120 and "später" in text
