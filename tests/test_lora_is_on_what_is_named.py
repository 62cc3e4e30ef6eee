"""The words of target_modules ask the loaded model; keys of config.yaml reach peft's LoraConfig."""

import pytest

from conftest import in_project

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}
# attention and MLP of architectures whose layers have other names, or are of several kinds
NAMES = {
    "qwen3": (ATTENTION, MLP),
    "phi3": ({"qkv_proj", "o_proj"}, {"gate_up_proj", "down_proj"}),
    "gpt_neox": ({"query_key_value", "dense"}, {"dense_h_to_4h", "dense_4h_to_h"}),
    "opt": ({"q_proj", "k_proj", "v_proj", "out_proj"}, {"fc1", "fc2"}),
    "qwen3_moe": (ATTENTION, set()),  # its experts are no linear layers
    "falcon_h1": (ATTENTION | {"in_proj", "out_proj"}, MLP),  # what mixes tokens is attention
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
    targets = [["attention"], ["mlp"], ["all_linear"], ["gate_proj"], ["self_attn.gate_proj"]]
    attention, mlp, every, gates, gate = in_project(project, named, "afmoe", targets)
    assert "self_attn.gate_proj" in attention and "gate_proj" not in attention
    assert "mlp.gate_proj" in mlp and "gate_proj" not in mlp
    assert "gate_proj" in every and not any("." in name for name in every)
    assert gates == ["gate_proj"] and gate == ["self_attn.gate_proj"]


def test_what_no_block_has_is_refused_with_what_it_has(project):
    targets = [["gate_porj", "q_proj"], ["lm_head"], ["all-linear"], []]
    for words, said in zip(targets, in_project(project, named, "qwen3", targets), strict=True):
        assert said.startswith(f"target_modules: {words[0] if words else 'empty'} is in no block")
        assert "down_proj, gate_proj, k_proj" in said and "lm_head;" not in said
    assert "it has no linear layers" in in_project(project, named, "gpt2", [["attention"]])[0]


def named(model_type: str, targets: list[list[str]]) -> list:
    """What LoRA would be on, or the sentence that refuses it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from sft.targets import layer_names

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type))
    found = []
    for words in targets:
        try:
            found.append(layer_names(model, words))
        except SystemExit as refused:
            found.append(str(refused))
    return found


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
