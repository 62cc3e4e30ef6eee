"""`other` as base model: its own config.json decides; nothing of the menu's models is there."""

import json

from rendering import check_render

from conftest import MENUS, in_project

LAYERS = ["conv", "conv", "full_attention", "conv"]


def a_model(folder) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model("lfm3", num_hidden_layers=4, layer_types=LAYERS)
    config.save_pretrained(folder)


def test_a_folder_with_another_architecture_is_tried_with_its_own_twin(bake, tmp_path):
    answers = {menu: answers[0] for menu, answers in MENUS.items()}
    answers |= {"base_model": "other", "quantization": "none", "lora_targets": "all_linear"}
    project = bake.project(**answers, base_model_path=str(tmp_path / "lfm"))
    check_render(project, answers, tmp_path)
    in_project(project, a_model, str(tmp_path / "lfm"))
    layers, said = in_project(project, smoke)
    assert layers == ["conv", "full_attention"]
    assert "conv.in_proj" in said and "The whole path works" in said
    text = "".join(path.read_text() for path in project.glob("**/*") if path.suffix == ".md")
    assert "There is no figure for this model" in text
    assert not [name for name in MENUS["base_model"] if name in text]


def smoke() -> tuple[list[str], str]:
    from pathlib import Path

    import train

    train.main(["--smoke", "--max_steps=2"])
    config = json.loads(Path("outputs/smoke/twin/config.json").read_text())
    return config["layer_types"], Path("log").read_text()


def test_an_id_that_is_not_here_ends_in_one_sentence(bake):
    project = bake.project(base_model="other", base_model_path="somebody/their-model")
    said = in_project(project, refusal)
    assert said.startswith("The config.json of 'somebody/their-model' is neither in the cache nor")


def refusal() -> str:
    import pytest

    import train

    with pytest.raises(SystemExit) as refused:
        train.main(["--smoke"])
    return str(refused.value)
