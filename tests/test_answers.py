"""What a run shows of its model: answers to held-out prompts, and a score that chooses by them."""

import itertools
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import in_project

SMALL = [
    *("--max_steps=9", "--save_steps=3", "--eval_steps=3", "--logging_steps=1", "--use_cpu=true"),
    *("--gradient_accumulation_steps=1", "--learning_rate=1e-2", "--save_total_limit=5"),
    *("--dataset=data/sample.jsonl", "--base_model_path=twin", "--test_size=0.2", "--answers=3"),
]
BY_SCORE = ["--metric_for_best_model=score", "--load_best_model_at_end=true"]


def make_twin() -> None:
    from sft.twin import build_twin

    build_twin("twin", "")


@pytest.fixture(scope="module")
def project(bake_once):
    project = bake_once.project(project_slug="answers", quantization="none", collator="seq2seq")
    in_project(project, make_twin)
    return project


def train_with_scores(scores: list[float], options: list[str]) -> dict:
    """Train; evaluation number n scores `scores[n]`, whatever the answers are."""
    import train
    from sft import answers

    asked = []
    answers.score = lambda answer, row: asked.append(row) or scores[(len(asked) - 1) // 3]
    final = train.main(options)
    state = final.parent / "checkpoint-9/trainer_state.json"
    return {
        "asked": asked,
        "state": json.loads(state.read_text()) if state.exists() else {},
        "rows": [json.loads(line) for line in (final.parent / "answers.jsonl").open()],
        "summary": json.loads((final.parent / "summary.json").read_text()),
        "weights": (final / "adapter_model.safetensors").read_bytes(),
    }


def test_the_score_of_answers_picks_the_best_checkpoint(project):
    options = [*SMALL, *BY_SCORE, "--output_dir=by_score"]
    found = in_project(project, train_with_scores, [0.1, 0.9, 0.2, 0.9], options)
    assert found["state"]["best_model_checkpoint"].endswith("checkpoint-6")
    best = project / "by_score/checkpoint-6/adapter_model.safetensors"
    assert found["weights"] == best.read_bytes()
    scores = [log["eval_score"] for log in found["state"]["log_history"] if "eval_score" in log]
    assert scores == pytest.approx([0.1, 0.9, 0.2])
    assert found["summary"]["eval_score"] == pytest.approx(0.9)
    assert found["asked"][0].keys() >= {"prompt", "reference"}
    assert "tokens per second" in (project / "log").read_text(encoding="utf-8")


def test_early_stopping_follows_the_score(project):
    options = [*SMALL, *BY_SCORE, "--early_stopping_patience=1", "--output_dir=early"]
    found = in_project(project, train_with_scores, [0.9, 0.2, 0.9], options)
    assert found["summary"]["steps"] == 6


def answers_of(options: list[str]) -> list[dict]:
    import train

    return [json.loads(line) for line in (train.main(options).parent / "answers.jsonl").open()]


def test_the_same_rows_are_asked_from_run_to_run_and_none_is_trained_on(project):
    first = in_project(project, answers_of, [*SMALL, "--output_dir=a", "--seed=1"])
    again = in_project(project, answers_of, [*SMALL, "--output_dir=b", "--seed=2"])
    asked = [[(row["prompt"], row["base"]["text"]) for row in rows] for rows in (first, again)]
    assert asked[0] == asked[1] and len(first) == 3
    assert any(row["tuned"]["text"] != row["base"]["text"] for row in first)


def test_two_processes_ask_once_and_agree_on_the_best(project):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, "train.py", *SMALL, *BY_SCORE, "--early_stopping_patience=1"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command.append("--output_dir=two")
    two = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert two.returncode == 0, two.stderr[-3000:]
    assert two.stderr.count("Held-out row 1") == 1
    assert len((project / "two/answers.jsonl").read_text("utf-8").splitlines()) == 3
    assert "eval_score" in json.loads((project / "two/summary.json").read_text())


@pytest.mark.parametrize("option", ["--answers=0", "--test_size=0"])
def test_where_nothing_is_asked_there_are_no_answers(project, option):
    folder = f"none{option.strip('-').partition('=')[0]}"
    in_project(project, train_alone, [*SMALL, option, f"--output_dir={folder}"])
    assert (project / folder / "final").exists()
    assert not (project / folder / "answers.html").exists()


def train_alone(options: list[str]) -> None:
    import train

    train.main([*options, "--max_steps=1", "--eval_strategy=no"])


def marked(text: str, reference: str) -> str:
    from sft.answers import differences

    return "".join(f"[{word}]" if common else word for word, common in differences(text, reference))


def test_what_the_reference_has_is_marked_in_an_answer(project):
    found = in_project(project, marked, "They eat at 7 pm.", "They will eat at 7.")
    assert found == "[They][ ][eat][ ][at][ ][7] pm[.]"
    assert in_project(project, marked, "我们七点吃", "七点吃饭") == "我们[七][点][吃]"


def shown_and_limited() -> tuple[str, int, int]:
    import contextlib
    import io

    from sft.answers import Question, show_answers, to_question
    from sft.twin import build_tokenizer

    with contextlib.redirect_stderr(io.StringIO()) as said:
        answer = {"text": "Me", "stopped": True, "tokens": 1, "seconds": 0.1}
        show_answers([Question([1], "Who?", "Me", 5)], {"base": [answer]}, Path())
    example = {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]}
    limits = [to_question(example, build_tokenizer(), limit).limit for limit in (0, 4)]
    return said.getvalue(), *limits


def test_answers_are_numbered_from_one_and_may_be_twice_as_long_as_the_reference(project):
    said, unlimited, limited = in_project(project, shown_and_limited)
    assert "Held-out row 1" in said and "reference" in said
    assert (unlimited, limited) == (2 * 3 + 16, 4)


def asked_while_training() -> tuple[list[bool], bool]:
    from types import SimpleNamespace

    import torch

    from sft.answers import Question, ask
    from sft.twin import build_tokenizer

    class Model(torch.nn.Module):
        device, generation_config = "cpu", SimpleNamespace(eos_token_id=[2])

        def generate(self, input_ids, **how):
            modes.append(self.training)
            return torch.cat([input_ids, torch.tensor([[2]])], dim=1)

    modes, model = [], Model()
    [*ask(model, build_tokenizer(), [Question([5], "", "", 3)], 1)]
    return modes, model.training


def test_a_model_answers_without_dropout_and_is_trained_on_with_it(project):
    assert in_project(project, asked_while_training) == ([False], True)


def cut(length: int) -> str:
    from sft.answers import SHOWN, shortened

    return shortened("a" * (SHOWN + length))


def test_a_long_answer_is_shown_by_its_end(project):
    assert "[...]" not in in_project(project, cut, 0)
    assert in_project(project, cut, 1) == "[...] " + in_project(project, cut, 0)


# --- chat.py -------------------------------------------------------------------------------------


def chat_in_a_terminal(typed: list[str], options: list[str]) -> list[list[dict]]:
    """The messages of each prompt that chat.py makes of what is typed, each text in one go."""
    import chat

    asked, (ours, terminal) = [], pty.openpty()
    sys.stdin = os.fdopen(terminal)
    waiting = itertools.chain(typed, itertools.repeat("\n"))
    ask = __builtins__["input"] if isinstance(__builtins__, dict) else __builtins__.input

    def line(words: str = "") -> str:
        if words:  # it waits for somebody to type
            asked.append(words)
            os.write(ours, next(waiting).encode())
        return ask()

    chat.input = line
    shown = []

    def reply(model, tokenizer, messages, *_, **how):
        shown.append([dict(message) for message in messages])
        return "Hm."

    chat.reply = reply
    chat.load_model = lambda args: chat.load_trained(Path("twin"), args)
    chat.main(["--base", "--base_model_path=twin", "--use_cpu", *options])
    return [asked, shown]


PASTED = "Ana: Are you coming?\n\nBen: At six.\n"


def test_a_pasted_dialogue_is_one_message_in_the_words_of_the_prompt_template(project):
    options = ["--save=exchanges.jsonl"]
    asked, shown = in_project(project, chat_in_a_terminal, [PASTED, "Ana: Hi.\n"], options)
    prompts = [f"Please Summarize: {text.strip()}" for text in (PASTED, "Ana: Hi.")]
    assert shown == [[{"role": "user", "content": prompt}] for prompt in prompts]
    assert asked == ["dialogue> "] * 3
    answer = {"role": "assistant", "content": "Hm."}
    rows = map(json.loads, (project / "exchanges.jsonl").open())
    assert [row["messages"] for row in rows] == [[*messages, answer] for messages in shown]


def test_who_gives_a_prompt_is_not_asked_for_one(project):
    asked, shown = in_project(project, chat_in_a_terminal, [], ["--prompt=Hi"])
    assert asked == [] and shown == [[{"role": "user", "content": "Hi"}]]


def test_a_prompt_of_two_columns_asks_for_each(project):
    options = ["--prompt_template=Say {dialogue} in {language}", "--system_prompt=Be brief."]
    asked, ((system, user),) = in_project(
        project, chat_in_a_terminal, ["Hi\n", "French\n"], options
    )
    assert asked == ["dialogue> ", "language> "] * 2
    assert system["content"] == "Be brief." and user["content"] == "Say Hi in French"


def test_a_column_that_is_left_empty_leaves_out_its_line(project):
    options = ["--prompt_template={language}\n{dialogue}"]
    asked, ((user,),) = in_project(project, chat_in_a_terminal, ["\n", "Hi\n"], options)
    assert user["content"] == "Hi" and len(asked) == 4


def test_a_conversation_goes_on(bake):
    project = bake.project(quantization="none", collator="seq2seq", dataset_format="messages")
    in_project(project, make_twin)
    options = ["--save=chat.jsonl"]
    _, (first, second) = in_project(project, chat_in_a_terminal, [PASTED, "And?\n"], options)
    assert [turn["content"] for turn in first] == [PASTED.strip()]
    assert [turn["content"] for turn in second] == [PASTED.strip(), "Hm.", "And?"]
    (row,) = map(json.loads, (project / "chat.jsonl").open())
    assert row["messages"] == [*second, {"role": "assistant", "content": "Hm."}]
