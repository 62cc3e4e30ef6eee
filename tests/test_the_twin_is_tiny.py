"""The twin of --smoke is tiny whatever the base model's config looks like, or is refused."""

import json

import pytest

from conftest import in_project


@pytest.fixture(scope="module")
def project(bake_once):
    return bake_once.project(project_slug="tiny", quantization="none", collator="seq2seq")


def twin_of(shape: dict) -> tuple[int, dict] | str:
    """The parameters and config.json of its twin, or why there is none."""
    from pathlib import Path

    from safetensors import safe_open

    from sft.twin import build_twin

    folder = Path("bases") / shape["model_type"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape))
    try:
        build_twin(folder / "twin", str(folder))
    except SystemExit as refused:
        return str(refused)
    with safe_open(folder / "twin/model.safetensors", "pt") as weights:
        parameters = sum(weights.get_tensor(name).numel() for name in weights.keys())
    return parameters, json.loads((folder / "twin/config.json").read_text())


VISION = {"model_type": "siglip_vision_model"}
SHAPES = {
    "nested text": {
        "model_type": "gemma3",
        "text_config": {"model_type": "gemma3_text"},
        "vision_config": VISION,
    },
    "nested experts": {"model_type": "llama4", "text_config": {"model_type": "llama4_text"}},
    "nested without a word": {"model_type": "qwen3_5_moe"},
    "128 experts": {"model_type": "qwen3_moe"},
    "256 experts in groups": {"model_type": "deepseek_v3"},
    "8 experts": {"model_type": "mixtral"},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_twin_is_tiny(project, shape):
    parameters, _ = in_project(project, twin_of, shape)
    assert parameters < 5_000_000


LAYERS = 3 * ["linear_attention"] + ["full_attention"]
KINDS = {  # a config.json, and what its twin has of it
    "shared experts": (
        {"model_type": "nemotron_h"},
        {"moe_shared_expert_intermediate_size": 128},
    ),
    "types of layers": (
        {"model_type": "qwen3_5_text", "num_hidden_layers": 8, "layer_types": 2 * LAYERS},
        {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2},
    ),
    "two lists": (
        {
            "model_type": "kimi_linear",
            "num_hidden_layers": 8,
            "layer_types": 2 * LAYERS,
            "mlp_layer_types": ["dense"] + 7 * ["sparse"],
        },
        {
            "layer_types": ["linear_attention", "linear_attention", "full_attention"],
            "mlp_layer_types": ["dense", "sparse", "sparse"],
        },
    ),
    "blocks alone": (
        {
            "model_type": "nemotron_h",
            "layers_block_type": 3 * ["mamba", "moe", "mamba", "attention"],
        },
        {"layers_block_type": ["linear_attention", "moe", "full_attention"]},
    ),
    "numbers of layers": (
        {
            "model_type": "llama4_text",
            "num_hidden_layers": 4,
            "moe_layers": [1, 3],
            "no_rope_layers": [1, 1, 1, 0],
            "layer_types": 3 * ["chunked_attention"] + ["full_attention"],
        },
        {"moe_layers": [1, 2], "no_rope_layers": [1, 1, 0], "num_hidden_layers": 3},
    ),
    "no experts": (
        {"model_type": "granitemoehybrid", "num_local_experts": 0},
        {"num_local_experts": 0},
    ),
    "heads that share no keys": (
        {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 8},
        {"num_attention_heads": 4, "num_key_value_heads": 4},
    ),
    "a switch": (
        {"model_type": "qwen2", "tie_word_embeddings": True, "hidden_act": "gelu"},
        {"tie_word_embeddings": True, "hidden_act": "gelu"},
    ),
}


@pytest.mark.parametrize("shape, expected", KINDS.values(), ids=KINDS)
def test_the_twin_has_a_layer_of_each_kind_and_the_switches_of_its_model(project, shape, expected):
    _, config = in_project(project, twin_of, shape)
    assert {key: config[key] for key in expected} == expected


def smoked(*words: str) -> list[str]:
    from sft.twin import smoke_overrides

    return smoke_overrides([*words])


def test_a_smoke_run_reads_the_start_of_the_splits_that_are_there(project):
    own = ["--dataset=data/sample.jsonl", "--train_split=first[:9]", "--eval_split=last"]
    assert {"--train_split=first[:64]", "--eval_split=last[:16]"} <= {
        *in_project(project, smoked, *own)
    }
    ours = {"--train_split=train[:64]", "--eval_split=validation[:16]"}  # of the sample
    assert ours <= {*in_project(project, smoked, "--dataset=org/b", *own[1:])}


@pytest.mark.parametrize("kind", ["blt", "xlnet", "of nobody"])
def test_an_architecture_that_cannot_be_tiny_is_refused(project, kind):
    said = in_project(project, twin_of, {"model_type": kind})
    assert f"no tiny twin of the architecture {kind!r}" in said
    assert len(said.splitlines()) == 1


def given_to_the_twin(options: list[str]) -> tuple:
    from sft import twin

    given = []
    twin.build_twin = lambda folder, *rest: given.append(rest)
    twin.smoke_overrides(options)
    return given[0]


def test_it_is_of_the_base_model_and_revision_of_the_run(project):
    options = ["--base_model_path=org/some", "--revision=v2", "--max_length=10"]
    assert in_project(project, given_to_the_twin, options) == ("org/some", 80, "v2")
