"""`other` as base model: its own config.json decides; nothing of the menu's models is there."""

import json
from unittest import mock

import pytest

from conftest import MENUS, in_project
from support.rendering import check_render

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


def trained_and_merged(kind: str) -> float:
    """How far the merged model's logits are from the tuned one's, of the largest."""
    from pathlib import Path

    import torch
    from transformers import AutoConfig

    import export
    import train
    from sft.adapter import load_trained
    from sft.config import load_config

    AutoConfig.for_model(kind).save_pretrained(kind)
    final = train.main(["--smoke", f"--base_model_path={kind}", "--max_steps=1", "--answers=0"])
    export.main([f"--output_dir={final.parent}"])
    args, _ = load_config(["--use_cpu=true"])
    tuned, merged = (
        load_trained(Path(folder), args).eval()(torch.arange(5, 25)[None]).logits.float()
        for folder in (final, final.parent / "merged")
    )
    return float((tuned - merged).abs().max() / tuned.abs().max())


# a layer with as few outputs as there are heads, and weights that are stored transposed
@pytest.mark.parametrize("kind", ["lfm3", "gpt2"])
def test_what_4_bits_are_no_matter_of_course_for_is_trained_and_merged(bake, kind):
    project = bake.project(quantization="nf4", collator="seq2seq")
    assert in_project(project, trained_and_merged, kind) < 0.3


def test_an_id_that_is_not_here_ends_in_one_sentence(bake):
    project = bake.project(base_model="other", base_model_path="somebody/their-model")
    said = in_project(project, refusal)
    assert said.startswith("The config.json of 'somebody/their-model' is neither in the cache nor")


def said_of(*errors: Exception) -> list[str]:
    from sft.model import load

    said = []
    for error in errors:
        broken = mock.Mock(**{"from_pretrained.side_effect": error})
        with pytest.raises(SystemExit) as refused:
            load(broken, "org/b")
        said.append(str(refused.value))
    return said


def test_why_a_model_cannot_be_loaded_is_said_with_the_way_out(bake_once):
    project = bake_once.project(project_slug="broken", quantization="none")
    errors = OSError("No such model.\nA long story."), ValueError("No such kind.\nMore of it.")
    missing, unknown = in_project(project, said_of, *errors)
    assert missing == (
        "base_model_path 'org/b' cannot be loaded: No such model. (offline, --smoke needs no "
        "download; for a gated model accept its licence on the Hub, then `hf auth login`)"
    )
    assert unknown == "base_model_path 'org/b' cannot be loaded: No such kind."


def refusal() -> str:
    import train

    with pytest.raises(SystemExit) as refused:
        train.main(["--smoke"])
    return str(refused.value)
