"""`make handover`: asked in whatever way, a model answers the same and stops as soon."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import TEMPLATE

pytestmark = pytest.mark.handover
HANDOVER = Path(os.environ.get("HANDOVER", "nowhere"))
TRAIN = ["--learning_rate=1e-3", "--test_size=0", "--max_steps=60", "--answers=0", "--use_cpu"]
TRAIN += ["--per_device_train_batch_size=2", "--gradient_accumulation_steps=1"]


@pytest.fixture(scope="module")
def home(bake_once):
    """A project in which SmolLM2 has learnt ten replies, and all that it hands on."""
    model = os.environ["MODEL"]
    answers = {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "base_model_path": model}
    answers |= {"row": "{dialogue} => {summary}", "quantization": "none", "collator": "seq2seq"}
    project = bake_once.project(project_slug="handover", dataset="ten.jsonl", **answers)
    rows = (project / "data/sample.jsonl").read_text(encoding="utf-8").splitlines()[:10]
    (project / "ten.jsonl").write_text("\n".join(rows), encoding="utf-8")
    run(project, "train.py", *TRAIN)
    run(project, "export.py", "--to=merged")
    run(project, "export.py", "--to=gguf")
    # an adapter is served from a folder that has its base as well
    both = project / "outputs/with_base"
    shutil.copytree(model, both)
    shutil.copytree(project / "outputs/final", both, dirs_exist_ok=True)
    return project


def run(project: Path, *words: str, text: str = "", **variables: str) -> str:
    (converter,) = HANDOVER.glob("llama_cpp_python-*/vendor/llama.cpp")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "LLAMA_CPP": str(converter)} | variables
    command = [HANDOVER / "bin/python", *words]
    how = {"input": text, "capture_output": True, "text": True}
    ran = subprocess.run(command, cwd=project, env=environment, **how)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


@pytest.fixture(scope="module")
def ask(home):
    """Ten prompts to one way of asking: answers, and whether each stopped."""
    lines = (home / "ten.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = json.dumps([json.loads(line)["dialogue"] for line in lines])

    def ask(way: str, folder: str, **variables: str) -> list | str:
        words = [str(TEMPLATE / "tests/support/askers.py"), way, str(home / "outputs" / folder)]
        return json.loads(run(home, *words, text=prompts, **variables).splitlines()[-1])

    return ask


@pytest.fixture(scope="module")
def answers(ask):
    """By weights, what is answered: the adapter's by chat.py, and the merged ones', rounded."""
    found = {"adapter": ask("ask_chat", "final"), "merged": ask("ask_transformers", "merged")}
    assert len({text for text, _ in found["adapter"]}) == 10
    return found


WAYS = {  # the weights, how they are asked, and where they are
    "transformers serve, adapter and base in one folder": ("adapter", "ask_serve", "with_base"),
    "transformers serve, merged": ("merged", "ask_serve", "merged"),
    "transformers 4, merged": ("merged", "ask_transformers", "merged"),
    "llama.cpp, 16 bits": ("merged", "ask_llama", "gguf/model.gguf"),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_same_weights_answer_and_stop_the_same(ask, answers, name):
    older = {"PYTHONPATH": str(HANDOVER / "transformers4")} if " 4" in name else {}
    weights, *where = WAYS[name]
    found = ask(*where, **older)
    print(f"\n{name}: {share(found, answers['adapter'])} as chat.py answers")
    assert found == answers[weights]


def test_merging_rounds_an_answer_away_at_most(answers):
    """Where two tokens are about as likely, 16 bits may choose the other."""
    print(
        f"\ntransformers, merged: {share(answers['merged'], answers['adapter'])} as chat.py answers"
    )
    assert share(answers["merged"], answers["adapter"]) in ("9 of 10", "10 of 10")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_in_fewer_bits_the_share_that_stays_is_shown(home, ask, answers, kind):
    file = str(home / "outputs/gguf/model.gguf")
    code = "import sys; from support.askers import quantize; print(quantize(*sys.argv[1:]))"
    run(home, "-c", code, file, kind, PYTHONPATH=str(TEMPLATE / "tests"))
    found = ask("ask_llama", f"gguf/{kind}.gguf")
    print(f"\nllama.cpp, {kind}: {share(found, answers['adapter'])} as chat.py answers")


def test_the_adapters_own_folder_is_no_model_to_transformers_serve(ask):
    """As the README says; where this fails, the library has learnt it, and the README may, too."""
    assert "500" in ask("ask_serve", "final")


def share(answers: list, others: list) -> str:
    same = sum(one == other for one, other in zip(answers, others, strict=True))
    return f"{same} of {len(others)}"
