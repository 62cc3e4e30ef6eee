"""`make handover`: asked in whatever way, the result answers the same and stops as soon."""

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
    answers |= {"prompt_template": "{dialogue}", "quantization": "none", "collator": "seq2seq"}
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
        words = [str(TEMPLATE / "tests/askers.py"), way, str(home / "outputs" / folder)]
        return json.loads(run(home, *words, text=prompts, **variables).splitlines()[-1])

    return ask


@pytest.fixture(scope="module")
def by_chat(ask):
    answers = ask("ask_chat", "final")
    assert len({text for text, _ in answers}) == 10 and all(stopped for _, stopped in answers)
    return answers


WAYS = {
    "transformers, merged": ("ask_transformers", "merged"),
    "transformers 4, merged": ("ask_transformers", "merged"),
    "transformers serve, merged": ("ask_serve", "merged"),
    "transformers serve, adapter and base in one folder": ("ask_serve", "with_base"),
    "llama.cpp, 16 bits": ("ask_llama", "gguf/model.gguf"),
}


@pytest.mark.parametrize("name", WAYS)
def test_it_answers_and_stops_as_in_chat(ask, by_chat, name):
    older = {"PYTHONPATH": str(HANDOVER / "transformers4")} if " 4" in name else {}
    answers = ask(*WAYS[name], **older)
    print(f"\n{name}: {share(answers, by_chat)} as chat.py answers")
    assert answers == by_chat


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_in_fewer_bits_the_share_that_stays_is_shown(home, ask, by_chat, kind):
    file = str(home / "outputs/gguf/model.gguf")
    code = "import sys; from askers import quantize; print(quantize(*sys.argv[1:]))"
    run(home, "-c", code, file, kind, PYTHONPATH=str(TEMPLATE / "tests"))
    answers = ask("ask_llama", f"gguf/{kind}.gguf")
    print(f"\nllama.cpp, {kind}: {share(answers, by_chat)} as chat.py answers")
    assert all(stopped for _, stopped in answers)


def test_the_adapters_own_folder_is_no_model_to_transformers_serve(ask):
    """As the README says; where this fails, the library has learnt it, and the README may, too."""
    assert "500" in ask("ask_serve", "final")


def share(answers: list, others: list) -> str:
    same = sum(one == other for one, other in zip(answers, others, strict=True))
    return f"{same} of {len(others)}"
