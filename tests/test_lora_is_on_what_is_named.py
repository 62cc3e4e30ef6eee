"""The words of target_modules ask the loaded model; keys of config.yaml reach peft's LoraConfig."""

import pytest

from conftest import in_project

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}
EXPERTS = {"experts.gate_up_proj", "experts.down_proj"}
# attention and MLP of architectures whose layers have other names, or are of several kinds
NAMES = {
    "qwen3": (ATTENTION, MLP),
    "phi3": ({"qkv_proj", "o_proj"}, {"gate_up_proj", "down_proj"}),
    "gpt_neox": ({"query_key_value", "dense"}, {"dense_h_to_4h", "dense_4h_to_h"}),
    "gpt2": ({"c_attn", "c_proj"}, {"c_fc", "c_proj"}),  # no nn.Linear, but a Conv1D
    "opt": ({"q_proj", "k_proj", "v_proj", "out_proj"}, {"fc1", "fc2"}),
    "qwen3_moe": (ATTENTION, EXPERTS),
    # the out_proj of a state space is read by its kernel: an adapter would be passed by
    "falcon_h1": (ATTENTION | {"in_proj"}, MLP),
    "mamba": ({"in_proj"}, set()),
    "qwen3_5_text": (
        ATTENTION | {"in_proj_qkv", "in_proj_a", "in_proj_b", "in_proj_z", "out_proj"},
        MLP,
    ),
    "deepseek_v3": (
        {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
        EXPERTS | MLP,  # of the first layers, and shared experts
    ),
    "recurrent_gemma": (ATTENTION | {"linear_x", "linear_y", "linear_out"}, MLP),
    "gemma3": (ATTENTION, MLP),  # not the fc1 and out_proj of the tower for images
}


@pytest.fixture(scope="module")
def project(bake_once):
    return bake_once.project(project_slug="words", quantization="none")


@pytest.mark.parametrize("model_type", NAMES)
def test_a_word_means_the_layers_of_the_model(project, model_type):
    attention, mlp = NAMES[model_type]
    found = in_project(project, named, model_type, [["attention"], ["mlp"], ["all_linear"]])
    expected = [attention, mlp or "mlp is in no block", attention | mlp]
    for names, wanted in zip(found, expected, strict=True):
        assert wanted in names if isinstance(wanted, str) else set(names) == wanted


def test_a_name_that_attention_and_mlp_share_is_told_apart_by_its_path(project):
    targets = [
        ["attention"],
        ["mlp"],
        ["gate_proj"],
        ["self_attn.gate_proj"],
        ["layers.0.mlp.gate_proj"],
    ]
    attention, mlp, gates, gate, one = in_project(project, paths, "afmoe", targets)
    assert "q_proj" in attention and "model.layers.0.self_attn.gate_proj" in attention
    assert "model.layers.0.mlp.gate_proj" in mlp and "gate_proj" not in attention + mlp
    assert gates == ["gate_proj"] and gate == [path for path in attention if "gate" in path]
    assert one == ["model.layers.0.mlp.gate_proj"]


def test_the_head_has_an_adapter_only_where_it_is_named(project):
    found = in_project(project, paths, "qwen3", [["lm_head", "q_proj"], ["all_linear"]])
    assert "lm_head" in found[0] and "lm_head" not in found[1]


def test_what_no_block_has_is_refused_with_what_it_has(project):
    targets = [["gate_porj", "q_proj"], ["embed_tokens"], ["all-linear"], []]
    for words, said in zip(targets, in_project(project, named, "qwen3", targets), strict=True):
        assert said.startswith(f"target_modules: {words[0] if words else 'empty'} is in no block")
        assert "down_proj, gate_proj, k_proj" in said and "lm_head;" not in said


def paths(model_type: str, targets: list[list[str]], **settings) -> list:
    """What LoRA would be on, or the sentence that refuses it."""
    from types import SimpleNamespace

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from sft.targets import lora_config

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type))
    found = []
    for words in targets:
        try:
            config = lora_config(
                model, SimpleNamespace(adapter={"target_modules": words, **settings})
            )
            found.append(sorted([*config.target_modules, *config.target_parameters]))
        except SystemExit as refused:
            found.append(str(refused))
    return found


def named(model_type: str, targets: list[list[str]]) -> list:
    """The same by the ends of the paths."""
    import re

    found = paths(model_type, targets)
    return [
        one
        if isinstance(one, str)
        else sorted({re.search(r"((?<=\.)experts\.)?\w+$", path)[0] for path in one})
        for one in found
    ]


def test_experts_are_left_out_where_peft_cannot_adapt_them(project):
    words = [["all_linear"]]
    (dropout,) = in_project(project, with_settings, "qwen3_moe", words, {"lora_dropout": 0.1})
    (plain,) = in_project(project, with_settings, "qwen3_moe", words, {})
    assert {path for path in plain if "experts" in path} == {*plain} - {*dropout} != set()


def with_settings(model_type: str, targets: list[list[str]], settings: dict) -> list:
    return paths(model_type, targets, **settings)


MISSING = {
    "modules_to_save": ["embed_token"],
    "target_parameters": ["q_porj.weight"],
    "alpha_pattern": {"layers.99.mlp": 8},
    "rank_pattern": {"q_porj": 8},
}


@pytest.mark.parametrize("key", MISSING)
def test_a_name_that_is_in_no_part_of_the_model_is_refused(project, key):
    (said,) = in_project(project, with_settings, "qwen3", [["q_proj"]], {key: MISSING[key]})
    assert said.startswith(f"{key}: '{next(iter(MISSING[key]))}' is in no part of this model")
    if key in ("modules_to_save", "rank_pattern"):
        assert "the nearest is" in said


def test_any_key_of_lora_config_takes_effect(bake):
    project = bake.project()
    config = project / "config.yaml"
    text = config.read_text(encoding="utf-8").replace("[all_linear]", "q_proj")
    config.write_text(f"{text}use_dora: true\nmodules_to_save: [embed_tokens]\n", encoding="utf-8")
    trained, saved = in_project(project, train_and_list)
    layers = {name.split(".lora_")[0].split(".")[-1] for name in trained if "lora_" in name}
    assert layers == {"q_proj"}
    for part in ("lora_magnitude_vector", "modules_to_save.default.weight"):
        assert any(part in name for name in trained), trained
    assert any("embed_tokens" in name for name in saved)
    assert any("lora_magnitude_vector" in name for name in saved)
    said = (project / "log").read_text()
    assert "   in: 1 embed_tokens, 2 q_proj" in said.replace("self_attn.", "")
    assert "2 mlp.down_proj" in said.partition("   not in: ")[2].partition("\n")[0]


def train_and_list() -> tuple[list[str], list[str]]:
    from safetensors import safe_open

    import train

    seen = []
    make_trainer = train.Trainer

    def making(**kwargs):
        model = kwargs["model"]
        seen.extend(name for name, tensor in model.named_parameters() if tensor.requires_grad)
        return make_trainer(**kwargs)

    train.Trainer = making
    final = train.main(["--smoke", "--max_steps=2"])
    with safe_open(final / "adapter_model.safetensors", "pt") as file:
        return seen, list(file.keys())
