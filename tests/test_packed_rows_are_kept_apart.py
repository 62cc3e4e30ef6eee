"""With padding_free no architecture is packed that would mix its rows; where it can, it trains."""

import json

import pytest
from test_runs_can_be_trusted import SMALL, make_twin, what_is_said

from conftest import in_project

APART = ["llama", "gemma3_text", "phi3", "mixtral", "olmo3"]
MIXED = [
    "lfm3",
    "falcon_h1",
    "granitemoehybrid",
    "mamba2",
    "qwen3_5_text",
    "zamba2",
    "bloom",
    "gpt_oss",
]


@pytest.fixture(scope="module")
def project(bake_once):
    return bake_once.project(project_slug="apart", quantization="none", collator="padding_free")


def what_is_said_of(model_type: str) -> str:
    """What a run on rows that do not exist ends with."""
    from pathlib import Path

    from transformers import AutoConfig

    folder = Path("bases") / model_type
    folder.mkdir(parents=True)
    shape = AutoConfig.for_model(model_type).to_dict()
    (folder / "config.json").write_text(json.dumps(shape))
    words = [
        *SMALL,
        f"--base_model_path={folder}",
        "--dataset=nowhere.jsonl",
        f"--output_dir={folder}/out",
    ]
    words += ["--target_modules=all_linear"]
    return what_is_said([*words, "--attn_implementation=eager"] if model_type in EAGER else words)


EAGER = ["bloom", "gpt_oss", "mamba2"]


@pytest.mark.parametrize("model_type", APART)
def test_what_keeps_rows_apart_trains(project, model_type):
    assert "'nowhere.jsonl' does not exist" in in_project(project, what_is_said_of, model_type)


@pytest.mark.parametrize("model_type", MIXED)
def test_what_mixes_rows_is_refused_before_the_rows_are_read(project, model_type):
    said = in_project(project, what_is_said_of, model_type)
    assert f"this architecture, {model_type}, cannot be trained without padding" in said
    why = "can't keep packed" if "qwen" in model_type else "logits change with the one before it"
    assert why in said and "collator seq2seq" in said and len(said.splitlines()) == 1


def test_eager_attention_is_no_fault_of_the_architecture(project):
    in_project(project, make_twin)
    said = in_project(project, what_is_said, [*SMALL, "--attn_implementation=eager"])
    assert "with the one before it): set attn_implementation: sdpa, or generate" in said


def is_refused(difference: float) -> bool:
    """Whether a model is whose logits, 1,000 each, differ by so much after another example."""
    from types import SimpleNamespace

    import torch
    from transformers import AutoConfig

    from sft import isolation
    from sft.collator import get_collator
    from sft.config import project_arguments

    class Model(torch.nn.Module):
        config = AutoConfig.for_model("llama")

        def forward(self, input_ids, **_):
            logits = torch.full((*input_ids.shape, 4), 1000.0)
            return SimpleNamespace(logits=logits + difference * (input_ids.shape[1] > 20))

    isolation.AutoModelForCausalLM = SimpleNamespace(from_config=lambda *_, **__: Model())
    try:
        isolation.refuse_mixing(get_collator, Model.config, project_arguments([]))
    except SystemExit:
        return True
    return False


def test_rounding_is_measured_by_the_largest_logit(project):
    assert not in_project(project, is_refused, 0.005)
    assert in_project(project, is_refused, 0.05)


def look() -> str:
    import preview

    return preview.main(["--smoke"]).read_text(encoding="utf-8")


def test_rows_that_are_packed_can_be_looked_at_before(project):
    assert "Examples" in in_project(project, look)


def of_mixed_dtypes() -> tuple:
    import torch

    from sft.attention import varlen_attention

    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 6, 8)
    bounds = {"cu_seq_lens_q": torch.tensor([0, 4, 6], dtype=torch.int32), "max_length_q": 4}
    half = [states.bfloat16() for states in (query, key, value)]
    expected, _ = varlen_attention(None, *half, None, **bounds)
    found, _ = varlen_attention(None, query, key, half[2], None, **bounds)
    return str(found.dtype), torch.equal(found, expected)


def test_queries_in_float32_beside_values_in_16_bits_are_rounded(project):
    """Autocast leaves the norms of Qwen3's queries and keys in float32."""
    assert in_project(project, of_mixed_dtypes) == ("torch.bfloat16", True)
