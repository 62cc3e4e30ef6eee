"""docs/colab.ipynb is what docs/notebook.py writes today, and leads to a trained model."""

import json
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import CONTEXT, TEMPLATE, in_project

NOTEBOOK = TEMPLATE / "docs" / "colab.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_follows_the_questions_and_commands_of_today(monkeypatch):
    monkeypatch.syspath_prepend(str(TEMPLATE / "docs"))
    import notebook

    said = NOTEBOOK.read_text(encoding="utf-8")
    assert said == notebook.contents(), "write it anew: python docs/notebook.py"


def test_its_form_has_every_question(notebook):
    fields = [re.findall(r"^(\w+) = .*# @param", cell.source, re.M) for cell in notebook.cells]
    asked = {key for key in CONTEXT if key[0] != "_"} - {"base_model_path"}
    assert asked <= set(sum(fields, []))


def test_its_cells_lead_to_a_trained_model(notebook, bake, tmp_path, monkeypatch):
    """All but installation, with a tiny model and this template."""
    nbformat.validate(notebook)
    in_project(bake.project(), make_twin, tmp_path / "tiny")
    notebook.cells = [
        one for one in notebook.cells if "install" not in one.metadata.get("tags", [])
    ]
    for cell in notebook.cells:
        for words, here in {
            "gh:org/sft-template": f"{TEMPLATE} base_model_path={tmp_path / 'tiny'}",
            "--num_train_epochs 2": "--max_steps 2",
            "--prompt": "--max_new_tokens 4 --prompt",
        }.items():
            cell.source = cell.source.replace(words, here)
        if "!" in cell.source:  # a notebook goes on after a command that failed
            cell.source += "\nassert _exit_code == 0"
    config = tmp_path / "config.yaml"
    config.write_text(f"replay_dir: {json.dumps(str(tmp_path))}\n")
    monkeypatch.setenv("COOKIECUTTER_CONFIG", str(config))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    NotebookClient(notebook, resources={"metadata": {"path": tmp_path}}).execute()

    outputs = tmp_path / "my-sft" / "outputs"
    assert (outputs / "final" / "adapter_model.safetensors").exists()
    shown = [
        one.data for cell in notebook.cells for one in cell.get("outputs", []) if "data" in one
    ]
    assert [one["text/html"] for one in shown] == [(outputs / "answers.html").read_text("utf-8")]


def make_twin(folder: Path) -> None:
    from sft.twin import build_twin

    build_twin(folder, "")
