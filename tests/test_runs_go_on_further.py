"""A finished run goes on for more steps, and a new run starts from an adapter."""

import json
import shutil

import pytest
from test_a_base_model_gets_a_chat_template import ZEPHYR
from test_runs_can_be_trusted import SMALL, make_twin, what_is_said

from conftest import in_project

LORA = ["--r=8", "--lora_alpha=16"]


@pytest.fixture(scope="module")
def project(bake_once):
    project = bake_once.project(project_slug="further", quantization="none", collator="seq2seq")
    in_project(project, make_twin)
    in_project(project, train, [*SMALL, *LORA, "--output_dir=first"])
    return project


def train(options: list[str]) -> dict:
    """The steps, the answers of base and tuned model, and the trained weights at the start."""
    import train as script

    seen, make = {}, script.Trainer

    def making(**kwargs):
        parts = kwargs["model"].named_parameters()
        seen["started"] = {n: float(p.abs().sum()) for n, p in parts if "lora_B" in n}
        return make(**kwargs)

    script.Trainer = making
    final = script.main(options)
    state = json.loads((final.parent / "trainer_state.json").read_text())
    lines = (final.parent / "answers.jsonl").read_text().splitlines()
    said = [json.loads(line) for line in lines]
    return seen | {
        "steps": [entry["step"] for entry in state["log_history"] if "grad_norm" in entry],
        "base": [row["base"]["text"] for row in said],
        "tuned": [row["tuned"]["text"] for row in said],
    }


def test_a_new_run_starts_from_an_adapter_and_is_compared_with_it(project):
    said = [json.loads(line) for line in (project / "first/answers.jsonl").open()]
    words = [*SMALL, *LORA, "--output_dir=second", "--adapter_path=first/final", "--seed=42"]
    second = in_project(project, train, [*words, "--max_steps=2"])
    assert all(second["started"].values()) and len(second["steps"]) == 2
    assert second["base"] == [row["tuned"]["text"] for row in said]


def test_it_starts_from_one_that_has_learnt_new_tokens(project):
    (project / "zephyr.jinja").write_text(ZEPHYR)
    words = [*SMALL, *LORA, "--chat_template=zephyr.jinja"]
    first = in_project(project, train, [*words, "--output_dir=tokens"])
    words += ["--adapter_path=tokens/final", "--max_steps=2", "--output_dir=more"]
    second = in_project(project, train, words)
    assert second["base"] == first["tuned"] != first["base"]
    words += ["--chat_template=chatml", "--output_dir=other"]
    said = in_project(project, what_is_said, words)
    assert said.endswith("and config.yaml None: set the same chat_template.")


def test_an_empty_list_is_no_other_setting(project):
    config = project / "config.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(f"{text}modules_to_save: []\n", encoding="utf-8")
    words = [*SMALL, *LORA, "--output_dir=empty", "--adapter_path=first/final", "--max_steps=1"]
    try:
        assert all(in_project(project, train, words)["started"].values())
    finally:
        config.write_text(text, encoding="utf-8")


OTHERS = {
    "--r=4": "has r 8, and config.yaml 4: set the same",
    "--lora_alpha=8": "has lora_alpha 16, and config.yaml 8: set the same",
    "--target_modules=mlp": "is on other layers than target_modules",
    "--adapter_path=twin": "is no adapter",
}


@pytest.mark.parametrize("option", OTHERS)
def test_an_adapter_with_other_settings_is_refused(project, option):
    words = [*SMALL, *LORA, "--output_dir=third", "--adapter_path=first/final", option]
    said = in_project(project, what_is_said, words)
    assert said.startswith("adapter_path '") and OTHERS[option] in said
    assert len(said.splitlines()) == 1 and not (project / "third/run.json").exists()


def test_a_finished_run_goes_on_for_more_steps(project):
    longer = [*SMALL, *LORA, "--output_dir=first", "--max_steps=16"]
    found = in_project(project, train, longer)
    assert found["steps"] == [*range(1, 17)]
    assert (project / "first/final-12").is_dir() and (project / "first/final").is_dir()
    assert "is of another run: r was 8" in in_project(project, what_is_said, [*longer, "--r=4"])
    shorter = in_project(project, what_is_said, [*longer, "--max_steps=14"])
    assert "max_steps was 16, and now it is 14" in shorter


def test_a_result_that_does_not_say_which_run_it_is_of_is_refused(project):
    shutil.copytree(project / "first", project / "nameless")
    manifest = project / "nameless/final/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"run": None}))
    words = [*SMALL, *LORA, "--output_dir=nameless", "--max_steps=20"]
    assert "nameless/final is of another run" in in_project(project, what_is_said, words)
