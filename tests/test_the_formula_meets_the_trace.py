"""The memory formula and a traced step of the project's own code agree for each kind of project."""

import json
import subprocess
import sys

import pytest

from conftest import PROJECT, in_project

BIG = {"per_device_train_batch_size": 3, "max_length": 1777}
SMALL = {"per_device_train_batch_size": 1, "max_length": 333, "gradient_accumulation_steps": 1}
NO_CHECKPOINTS = {"activation_checkpointing": False}
LORA = [
    {**BIG, "trained_share": 1.0},
    {**SMALL, "base_model": "Qwen/Qwen3-0.6B", "lora_targets": "all_linear", "r": 256},
    {**BIG, **NO_CHECKPOINTS, "base_model": "meta-llama/Llama-3.2-1B-Instruct"},
    {**BIG, **NO_CHECKPOINTS, "base_model": "google/gemma-3-1b-it", "lora_targets": "mlp"},
    {
        **BIG,
        "base_model": "microsoft/Phi-4-mini-instruct",
        "lora_dropout": 0.1,
        "trained_share": 0.1,
    },
    {**SMALL, **NO_CHECKPOINTS, "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "r": 1},
]
FULL = [
    {**BIG, "trained_share": 1.0},
    {**SMALL, "base_model": "Qwen/Qwen3-0.6B", "optim": "adamw_torch"},
    {**BIG, **NO_CHECKPOINTS, "base_model": "google/gemma-3-1b-it", "optim": "paged_adamw_8bit"},
    {**BIG, "base_model": "microsoft/Phi-4-mini-instruct", "dtype": "bfloat16"},
    {**SMALL, **NO_CHECKPOINTS, "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct"},
]
REENTRANT = {"activation_checkpointing_kwargs": {"use_reentrant": False}}


@pytest.mark.parametrize(
    ("answers", "configurations"),
    [
        ({"quantization": "nf4", "collator": "seq2seq"}, LORA),
        ({"quantization": "nf4", "collator": "padding_free"}, LORA),
        ({"quantization": "int8", "collator": "manual_mask"}, [*LORA, {**BIG, **REENTRANT}]),
        ({"quantization": "none", "collator": "language_modeling"}, LORA),
        ({"quantization": "none", "lora_targets": "full", "collator": "visual_check"}, FULL),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_they_agree(bake_once, answers, configurations):
    project = bake_once.project(**answers)
    for given, calculated, counted in in_project(project, both_ways, configurations):
        assert calculated["peak"] == pytest.approx(counted["peak"], rel=0.01), given
        for name, size in counted["moments"].items():
            if size > 0.9 * counted["peak"]:
                assert calculated["moments"][name] == pytest.approx(size, rel=0.05), (given, name)
        for key in ("parameters", "trainable", "quantized"):
            assert calculated[key] == counted[key], given


def both_ways(configurations):
    """For each configuration what sft/vram.py calculates, and what sft/trace.py counts."""
    from dataclasses import asdict

    import vram

    found = []
    for given in configurations:
        given = dict(given)
        settings = vram.read_settings(given)
        shape = vram.read_shape(settings)
        vram.complete(settings, shape, given)
        ways = vram.estimate(shape, settings), vram.traced(shape, settings, given)
        found.append((given, *map(asdict, ways)))
    return found


def test_a_mixture_of_experts_is_traced_with_its_experts_in_16_bits(bake_once, tmp_path):
    models = json.loads((PROJECT.parent / "tests" / "models.json").read_text(encoding="utf-8"))
    mixture = models["allenai/OLMoE-1B-7B-0924"]
    (tmp_path / "config.json").write_text(json.dumps(mixture["config"]))
    project = bake_once.project(quantization="nf4")
    command = [sys.executable, project / "vram.py", "--base_model_path", tmp_path]

    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2 and "experts stay in 16 bits" in refused.stderr

    counted = subprocess.run([*command, "--trace", "--json"], capture_output=True, text=True)
    found = json.loads(counted.stdout)
    assert found["parameters"] == mixture["parameters"]
    assert found["trainable"] == mixture["trainable"]["attention_r64"]
    assert found["quantized"] == 16 * 4 * 2048 * 2048  # attention alone
    experts = 2 * (mixture["parameters"] - found["quantized"])
    assert experts < found["parts"]["base weights"] < experts + found["quantized"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "mamba9"}, "mamba9"),
        ({"model_type": "vit"}, "no causal language model"),
        ({"model_type": "llama", "num_attention_heads": 7}, "no causal language model"),
        ({"model_type": "gpt2"}, "target_modules"),
        ({"model_type": "mamba"}, "cannot be traced"),
        ({"model_type": "bloom"}, "cannot be traced"),
        (
            {"model_type": "deepseek_v3", "num_hidden_layers": 5, "first_k_dense_replace": 2}
            | {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64}
            | {"n_routed_experts": 8, "vocab_size": 128, "num_attention_heads": 4},
            "differ from one another",
        ),
    ],
)
def test_what_cannot_be_traced_is_refused_in_a_sentence(bake_once, tmp_path, config, said):
    (tmp_path / "config.json").write_text(json.dumps(config))
    full = {"lora_targets": "full"} if config["model_type"] in ("mamba", "bloom") else {}
    project = bake_once.project(quantization="none", **full)
    command = [sys.executable, project / "vram.py", "--trace", "--base_model_path", tmp_path]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert said in run.stderr.splitlines()[-1]  # bitsandbytes may say something before
    assert "Traceback" not in run.stderr


def test_other_answers_are_compared_without_generating_again(bake_once):
    answers = {
        "base_model": "microsoft/Phi-4-mini-instruct",
        "quantization": "int8",
        "lora_targets": "mlp",
        "collator": "language_modeling",
        "max_length": "512",
    }
    full = {"base_model": "Qwen/Qwen3-0.6B", "quantization": "none", "lora_targets": "full"}
    one = bake_once.project()
    for chosen in (answers, full):
        words = [word for key, value in chosen.items() for word in (f"--{key}", value)]
        tried = estimated(one, *words, "--optim", "adamw_torch")
        assert tried == estimated(bake_once.project(**chosen), "--optim", "adamw_torch")


def estimated(project, *words):
    command = [sys.executable, project / "vram.py", "--json", *words]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--card", "voodoo2"], "There is no card 'voodoo2'"),
        (["--card", "-4"], "There is no card -4"),
        (["--max", "--lesson"], "Choose one"),
        (["--max", "24"], "--max takes no value"),
        (["--plot", "memory.pdf"], "writes .svg or .png"),
        (
            ["--trace", "--quantization", "int8"],
            "this project's own code, which has quantization nf4",
        ),
    ],
)
def test_a_wrong_question_gets_one_sentence(bake_once, words, said):
    command = [sys.executable, bake_once.project() / "vram.py", *words]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert said in run.stderr and run.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["--max"], ["--lesson"], ["--card", "T4"], ["--plot", "m.svg"]])
def test_each_look_at_it_is_there(bake_once, words, tmp_path):
    command = [sys.executable, bake_once.project() / "vram.py", *words]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    expected = {
        "--max": "longest max_length",
        "--lesson": "61,341,696",
        "--card": "12 GB",
        "--plot": "m.svg",
    }
    assert expected[words[0]] in run.stdout
    assert (tmp_path / "m.svg").exists() == (words[0] == "--plot")
