"""The twin of --smoke is tiny whatever the base model's config looks like, or is refused."""

import json

import pytest

from conftest import in_project


@pytest.fixture(scope="module")
def project(bake_once):
    return bake_once.project(project_slug="tiny", quantization="none", collator="seq2seq")


def twin_of(shape: dict) -> int | str:
    """The parameters of its twin, or why there is none."""
    from pathlib import Path

    from safetensors import safe_open

    from sft.twin import build_twin

    folder = Path("bases") / shape["model_type"]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape))
    try:
        build_twin(folder / "twin", str(folder))
    except SystemExit as refused:
        return str(refused)
    with safe_open(folder / "twin/model.safetensors", "pt") as weights:
        return sum(weights.get_tensor(name).numel() for name in weights.keys())


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
    assert in_project(project, twin_of, shape) < 5_000_000


@pytest.mark.parametrize("kind", ["blt", "xlnet", "of nobody"])
def test_an_architecture_that_cannot_be_tiny_is_refused(project, kind):
    said = in_project(project, twin_of, {"model_type": kind})
    assert f"no tiny twin of the architecture {kind!r}" in said
    assert len(said.splitlines()) == 1
