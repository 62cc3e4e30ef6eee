"""What evaluate.py says of a model is what training, chat and the packages of the metrics say."""

import json
import math
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from conftest import in_project

KINDS = {
    "lora": {"lora_targets": "all_linear", "collator": "padding_free", "quantization": "none"},
    "nf4": {"lora_targets": "attention", "collator": "language_modeling", "quantization": "nf4"},
    "full": {"lora_targets": "full", "collator": "seq2seq", "quantization": "none"},
}
# the run is told what config.yaml does not say; evaluate.py is not, and has it from the run
RUN = [
    "--dataset=data/sample.jsonl",
    "--base_model_path=twin",
    "--train_split=train[:24]",
    "--test_size=0.334",  # 8 rows
    "--max_steps=30",
    "--learning_rate=1e-2",
    "--lr_scheduler_type=constant",
    "--per_device_train_batch_size=4",
    "--gradient_accumulation_steps=1",
    "--save_steps=15",
    "--answers=8",
]
HERE = ["--use_cpu", "--per_device_eval_batch_size=4"]


def learn() -> None:
    import train
    from sft.twin import build_twin

    build_twin("twin", "")
    train.main([*RUN, *HERE])
    if Path("outputs/final/adapter_config.json").exists():
        import export

        export.main([])


@pytest.fixture(scope="module")
def lora(bake_once):
    project = bake_once.project(project_slug="lora", **KINDS["lora"])
    in_project(project, learn)
    return project


@pytest.fixture(scope="module", params=KINDS)
def project(request, bake_once):
    if request.param == "lora":
        return request.getfixturevalue("lora")
    project = bake_once.project(project_slug=request.param, **KINDS[request.param])
    in_project(project, learn)
    return project


def evaluate(*options: str) -> dict:
    """What evaluation.json says of each model, its answers, and how many were asked anew."""
    import evaluate

    asked, ask = [], evaluate.ask

    def counted(model, tokenizer, questions, size):
        asked.append(len(questions))
        return ask(model, tokenizer, questions, size)

    evaluate.ask = counted
    path = evaluate.main([*HERE, *options])
    evaluate.ask = ask
    lines = path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    result = json.loads(path.read_text(encoding="utf-8"))
    return result | {"answers": [*map(json.loads, lines)], "asked": asked}


def without_time(answer: dict) -> dict:
    return {key: value for key, value in answer.items() if key != "seconds"}


def beside_chat() -> tuple[dict, dict]:
    """An evaluation, and by model what chat.py answers to the same prompts."""
    import chat

    models = [
        name for name in ("final", "outputs/merged") if Path(name).exists() or name == "final"
    ]
    found, said = evaluate("--models", "base", *models), {}
    for name in models:
        folder = "outputs/final" if name == "final" else name
        said[name] = []
        for row in found["answers"][:3]:
            prompt = re.search(r"user\n(.*)<\|im_end\|>", row["prompt"], re.DOTALL)[1]
            most = row[name]["tokens"]
            options = [f"--prompt={prompt}", f"--model={folder}", f"--max_new_tokens={most}"]
            said[name].append(chat.main([*options, "--use_cpu"]))
    return found, said


def test_it_says_what_training_and_chat_say(project):
    found, said = in_project(project, beside_chat)
    # the same loss as the Trainer's
    summary = json.loads((project / "outputs/summary.json").read_text())
    final = found["models"]["final"]
    assert final["loss"]["value"] == pytest.approx(summary["eval_loss"], rel=1e-5)
    assert final["loss"]["difference"] != 0
    # the same answers as with the adapter off before training, and as after it
    lines = (project / "outputs/answers.jsonl").read_text(encoding="utf-8").splitlines()
    others = []
    for row, wanted in zip(found["answers"], map(json.loads, lines), strict=True):
        assert row["prompt"] == wanted["prompt"] and row["reference"] == wanted["reference"]
        for name, then in (("base", "base"), ("final", "tuned")):
            keys = ("text", "stopped", "tokens")
            others += [wanted] if any(row[name][k] != wanted[then][k] for k in keys) else []
    # on a CPU bitsandbytes repacks 4-bit weights amid the first prompt that it computes
    assert len(others) <= (project.name == "nf4"), others
    # the same answers as chat.py's
    for name, texts in said.items():
        assert texts == [row[name]["text"] for row in found["answers"][:3]], name
    assert len({row["final"]["text"] for row in found["answers"]}) > 1


def in_batches_of(size: int) -> list[dict]:
    shutil.rmtree("outputs/evaluation", ignore_errors=True)
    found = evaluate("--models=final", f"--per_device_eval_batch_size={size}")
    assert found["asked"] == [8]
    return [without_time(row["final"]) for row in found["answers"]]


def test_batches_of_one_and_of_eight_say_the_same(lora):
    one, eight = (in_project(lora, in_batches_of, size) for size in (1, 8))
    for a, b in zip(one, eight, strict=True):
        assert a.pop("loss") == pytest.approx(b.pop("loss"), rel=1e-5)
        assert a == b


def kept() -> dict[str, list]:
    files = Path("outputs/evaluation").glob("*.jsonl")
    lines = {file.name: file.read_text().splitlines() for file in files}
    return {name: [without_time(json.loads(one)) for one in rows] for name, rows in lines.items()}


def evaluate_and_die() -> None:
    import evaluate as script

    def dying(answers, *args, **kwargs):
        for number, answer in enumerate(answers):
            if number == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            yield answer

    script.track = dying
    evaluate("--models=final")


def test_a_killed_evaluation_goes_on_and_a_changed_model_starts_anew(lora):
    folder = lora / "outputs/evaluation"
    shutil.rmtree(folder, ignore_errors=True)
    in_project(lora, evaluate, "--models=final")
    whole = in_project(lora, kept)
    shutil.rmtree(folder)
    with pytest.raises(AssertionError, match="exit code -9"):
        in_project(lora, evaluate_and_die)
    (file,) = folder.glob("*.jsonl")
    assert len(file.read_text().splitlines()) == 5
    file.write_text(file.read_text() + '{"row": 7, "te')  # half a line
    assert in_project(lora, evaluate, "--models=final")["asked"] == [3]
    assert in_project(lora, kept) == whole
    assert in_project(lora, evaluate, "--models=final")["asked"] == []
    os.utime(lora / "outputs/final/adapter_model.safetensors", (1, 1))
    assert in_project(lora, evaluate, "--models=final")["asked"] == [8]


def test_runs_share_what_the_base_says(lora):
    whole = in_project(lora, evaluate)
    shutil.copytree(lora / "outputs/final", lora / "other/final")
    found = in_project(lora, evaluate, "--output_dir=other")
    assert found["asked"] == [8]  # the tuned model alone
    assert found["models"]["base"] == whole["models"]["base"]
    os.utime(lora / "twin/model.safetensors", (1, 1))  # another base is asked anew
    assert in_project(lora, evaluate, "--models=base")["asked"] == [8]


def train_with_a_split() -> None:
    import train

    train.main([*RUN, *HERE, "--eval_split=train[24:30]", "--max_steps=1", "--output_dir=split"])


def test_it_asks_what_the_command_line_of_the_run_held_out(lora):
    in_project(lora, train_with_a_split)
    found = in_project(lora, evaluate, "--models=final", "--output_dir=split")
    assert found["rows"].startswith("6 rows")


MORE = [
    {"dialogue": "甲：火车几点开？\n乙：九点。", "summary": "火车九点开。"},
    {"dialogue": "甲：今天下雨吗？\n乙：不下。", "summary": "今天不下雨。"},
    {"dialogue": "甲：门开着吗？\n乙：开着。", "summary": "门开着。"},
]


def test_a_base_is_evaluated_where_there_is_no_run(lora):
    where = ["--base_model_path=twin", "--dataset=data/sample.jsonl", "--output_dir=not/there"]
    found = in_project(lora, evaluate, "--models", "base", *where)
    assert [*found["models"]] == ["base"] and (lora / "not/there/evaluation.html").exists()


def test_it_takes_other_rows_than_those_held_out(lora):
    rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in MORE)
    (lora / "test.jsonl").write_text(rows, encoding="utf-8")
    found = in_project(lora, evaluate, "--dataset=test.jsonl", "--models=outputs/checkpoint-15")
    assert found["rows"] == "3 rows of test.jsonl, train"
    assert [row["reference"] for row in found["answers"]] == [row["summary"] for row in MORE]
    metrics = found["models"]["outputs/checkpoint-15"]
    assert metrics["ROUGE-L"]["value"] is None  # no words that it knows
    assert metrics["chrF"]["value"] >= 0 and metrics["tokens"]["value"] > 0
    assert re.search("ROUGE-L .*│ - ", (lora / "log").read_text())

    own = in_project(lora, evaluate, "--dataset=data/sample.jsonl", "--models=final", "--rows=2")
    assert own["rows"].startswith("the first 2 of 8 rows") and len(own["answers"]) == 2
    whole = in_project(lora, evaluate, "--split=train", "--models=final", "--max_new_tokens=1")
    assert len(whole["answers"]) == 120
    assert whole["models"]["final"]["tokens"]["value"] == 1


def test_another_score_is_another_result_without_asking_again(lora):
    before = in_project(lora, evaluate)["models"]["final"]
    file = lora / "sft/score.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("return sentence", 'return len(row["reference"]) + 0 * sentence'))
    after = in_project(lora, evaluate)
    file.write_text(text)
    assert after["asked"] == []
    mean = sum(len(row["reference"]) for row in after["answers"]) / 8
    assert after["models"]["final"]["score"]["value"] == pytest.approx(mean)
    assert after["models"]["final"]["chrF"] == before["chrF"]


def metrics_by_hand() -> tuple[list, dict, dict]:
    import evaluate
    from evaluate import measure, summarize

    from sft.answers import Question

    questions = [
        Question([1], "", "<think>\nEasy.\n</think>\n\nThe cat sat.", 9),
        Question([1], "", "它是一只猫", 9),
        Question([1], "", "No dog", 9),
    ]
    answer = {"stopped": True, "tokens": 4, "seconds": 0.5, "loss": 6.0, "trained": 3}
    tuned = [
        answer | {"text": "<think>Hard.</think> The cat sat.\n"},
        answer | {"text": "它是一只狗", "stopped": False, "tokens": 8},
        answer | {"text": "A cat", "loss": 2.0, "trained": 5},
    ]
    base = [one | {"text": "The cat", "loss": one["loss"] + one["trained"]} for one in tuned]
    rows = [measure(*pair) for pair in zip(questions, tuned, strict=True)]
    found = {"tuned": tuned, "base": base}
    summary, evaluate.RESAMPLES = summarize(questions, found, "base"), 1
    return rows, summary, summarize(questions, found, "base")


def test_metrics_are_those_of_their_packages_over_all_rows(lora):
    (first, chinese, third), summary, of_one = in_project(lora, metrics_by_hand)
    assert first["exact match"] == (True, 1) and third["exact match"] == (False, 1)
    assert first["chrF"] == (1.0, 1) and first["ROUGE-L"] == (1.0, True)  # without the thoughts
    assert chinese["ROUGE-L"] == (0.0, False) and 0.4 < chinese["chrF"][0] < 1
    tuned, base = summary["tuned"], summary["base"]
    assert tuned["loss"]["value"] == pytest.approx(14 / 11)  # by token, not by row
    assert tuned["perplexity"]["value"] == pytest.approx(math.exp(14 / 11))
    assert tuned["stopped by itself"]["value"] == pytest.approx(2 / 3)
    assert tuned["tokens"]["value"] == pytest.approx(16 / 3)
    assert tuned["tokens per second"]["value"] == pytest.approx(16 / 1.5)
    # paired: a loss that is higher by 1 in each row has a difference without spread
    of_difference = ("difference", "difference_low", "difference_high")
    assert [tuned["loss"][key] for key in of_difference] == pytest.approx([-1, -1, -1])
    assert [base["loss"][key] for key in of_difference] == [0, 0, 0]
    assert tuned["loss"]["low"] < tuned["loss"]["value"] < tuned["loss"]["high"]
    assert of_one["tuned"]["loss"]["low"] == of_one["tuned"]["loss"]["high"] is not None
    for one in (*tuned.values(), *base.values()):
        if one["value"] is not None:
            assert one["low"] <= one["value"] <= one["high"]
            assert one["difference_low"] <= one["difference"] <= one["difference_high"]


REFUSED = {
    "no such run": (["--output_dir=none"], "none/final does not exist; run train.py, or"),
    "no such folder": (["--models", "final", "outputs/9"], "outputs/9 does not exist"),
    "no such split": (["--split=dev"], "data/sample.jsonl'.*dev"),
    "nothing held out": (["--test_size=0"], "holds out no rows; name others: --dataset"),
}


def refused(options: list[str], world_size: str = "1") -> str:
    os.environ["WORLD_SIZE"] = world_size
    with pytest.raises(SystemExit) as refusal:
        evaluate(*options)
    return str(refusal.value)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_evaluated_is_refused_in_one_sentence(lora, case):
    options, sentence = REFUSED[case]
    said = in_project(lora, refused, options)
    assert re.search(sentence, said) and "\n" not in said


def out_of_memory() -> str:
    import evaluate as script
    import torch

    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    script.LogitsWhereTrained = full
    return refused(["--models=final", "--rows=1"])


def test_out_of_memory_ends_with_what_helps(lora):
    assert "lower per_device_eval_batch_size" in in_project(lora, out_of_memory)


def test_a_base_is_asked_before_anything_is_trained(lora):
    """Its own tokenizer is taken, and the rows of the command line."""
    options = ["--models=base", "--output_dir=new", "--base_model_path=twin", "--rows=2"]
    found = in_project(lora, evaluate, "--dataset=data/sample.jsonl", *options)
    assert found["rows"].startswith("the first 2 of 120 rows") and found["asked"] == [2]


def test_it_runs_in_one_process(lora):
    assert "One process" in in_project(lora, refused, [], "2")
