"""What cannot be trained is refused before the weights are loaded: model, tokenizer, settings."""

import json
import shutil
from pathlib import Path

import pytest
from test_runs_can_be_trusted import SMALL, make_twin, what_is_said

from conftest import in_project


@pytest.fixture(scope="module")
def project(bake_once):
    project = bake_once.project(project_slug="suits", quantization="none", collator="seq2seq")
    in_project(project, make_twin)
    return project


def base(project: Path, name: str, **config) -> list[str]:
    """Options for a copy of the twin without weights, its config.json changed."""
    folder = project / name
    shutil.copytree(project / "twin", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    shape = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(shape))
    return [*SMALL, f"--output_dir={name}/out", f"--base_model_path={name}"]


BASES = {
    "GPTQ": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, [], "(gptq); name"),
    "FP8 inside": (
        {
            "model_type": "gemma3",
            "text_config": {
                "model_type": "gemma3_text",
                "quantization_config": {"quant_method": "fp8"},
            },
        },
        [],
        "(fp8); name",
    ),
    "few positions": ({"max_position_embeddings": 64}, [], "knows 64 positions, and max_length"),
    "no such attention": ({}, ["--attn_implementation=fast"], "(every model has eager)"),
    "flash without its package": (
        {},
        ["--attn_implementation=flash_attention_2"],
        "be installed. (every model has eager)",
    ),
    "no causal model": ({"model_type": "t5"}, [], "Unrecognized configuration class"),
    "no logits_to_keep": (
        {"model_type": "xlstm"},
        ["--attn_implementation=eager"],
        "xLSTMForCausalLM takes no logits_to_keep",
    ),
    "code of its own": (
        {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config"}},
        [],
        "contains custom code",
    ),
}


@pytest.mark.parametrize("config, options, sentence", BASES.values(), ids=BASES)
def test_a_base_that_does_not_suit_is_refused(project, config, options, sentence, request):
    words = [*base(project, request.node.callspec.id.replace(" ", "-"), **config), *options]
    said = in_project(project, what_is_said, words)
    assert sentence in said and "licence" not in said and len(said.splitlines()) == 1, said


def says(script: str, words: list[str]) -> str:
    with pytest.raises(SystemExit) as refused:
        __import__(script).main(words)
    return str(refused.value)


@pytest.mark.parametrize("script", ["train", "preview", "vram"])
def test_no_script_takes_rows_that_are_longer_than_the_model_knows(project, script):
    options = base(project, f"short-{script}", max_position_embeddings=64)
    said = in_project(project, says, script, options)
    assert "knows 64 positions" in said and len(said.splitlines()) == 1


def test_an_adapter_is_no_base(project):
    options = base(project, "adapted")
    (project / "adapted/adapter_config.json").write_text("{}")
    assert "'adapted' holds an adapter; merge it" in in_project(project, what_is_said, options)


def test_a_tokenizer_that_cannot_say_where_a_token_is_is_refused(project):
    options = base(project, "slow")
    for file in (project / "slow").glob("token*"):
        file.unlink()
    slow = json.dumps({"tokenizer_class": "ByT5Tokenizer"})
    (project / "slow/tokenizer_config.json").write_text(slow)
    said = in_project(project, what_is_said, [*options, "--chat_template=chatml"])
    assert "'slow' has no tokenizer.json; add it" in said and len(said.splitlines()) == 1


def test_a_token_without_embedding_is_named(project):
    options = base(project, "token")
    file = project / "token/tokenizer.json"
    vocabulary = json.loads(file.read_text())
    new = vocabulary["added_tokens"][-1] | {"id": 1024, "content": "dinner", "special": False}
    vocabulary["added_tokens"].append(new)
    file.write_text(json.dumps(vocabulary))
    said = in_project(project, what_is_said, [*options, "--prompt_template={dialogue} dinner"])
    assert "the token 'dinner', number 1,025, and the model has 1,024 embeddings" in said


SETTINGS = {
    "--report_to wandb": "pip install wandb",
    "--optim adamw_torch_8bit": "torchao",
    "--use_liger_kernel true": "liger-kernel",
    "--per_device_train_batch_size 0": "per_device_train_batch_size must be above 0",
    "--per_device_eval_batch_size -1": "per_device_eval_batch_size must be above 0",
    "--gradient_accumulation_steps 0": "gradient_accumulation_steps must be above 0",
    "--max_steps 0": "max_steps must be above 0",
    "--num_train_epochs 0": "num_train_epochs must be above 0",
    "--max_steps=-2": "max_steps must be above 0",
    "--eval_steps 0": "eval_steps must be above 0",
    "--save_total_limit 0": "save_total_limit must be above 0",
    "--early_stopping_patience -1": "early_stopping_patience must be 0 or above",
    "--optim galore_adamw --optim_target_modules all-linear": "galore",
    "--learning_rate nan": "learning_rate must be a number",
    "--weight_decay=.nan": "weight_decay must be a number",
    "--learning_rate -1": "Invalid learning rate: -1",
    "--adam_beta1 2": "Invalid beta parameter",
    "--optim_args one": "config.yaml or the command line: ",
    "--lr_scheduler_type cosine_with_min_lr": "min_lr",
    '--lr_scheduler_kwargs={"turns":3}': "unexpected keyword argument 'turns'",
    '--accelerator_config={"turns":3}': "unexpected keyword argument 'turns'",
    '--activation_checkpointing_kwargs={"use_reentrant":true,"turns":3}': "g_kwargs: Unexpected",
    '--activation_checkpointing_kwargs={"use_reentrant":false,"turns":3}': "argument 'turns'",
    "--metric_for_best_model rouge": "is not in ['loss', 'score'] of sft/trainer.py",
    "--dataloader_num_workers -1": "num_workers option should be non-negative",
    "--fsdp full_shard": "Using fsdp only works in distributed training",
}


@pytest.mark.parametrize("options, sentence", SETTINGS.items(), ids=SETTINGS)
def test_a_setting_that_the_trainer_refuses_is_refused_at_the_start(project, options, sentence):
    words = ["--dataset=nowhere.jsonl", "--output_dir=start", *options.split(" ")]
    said = in_project(project, what_is_said, [*SMALL, *words])
    assert sentence in said and len(said.splitlines()) == 1, said


PASSES = ["--label_smoothing_factor=0.1", "--train_sampling_strategy=group_by_length"]
PASSES += ["--optim=paged_adamw_8bit", "--lr_scheduler_type=reduce_lr_on_plateau", "--bf16=true"]
PASSES += [
    "--metric_for_best_model=eval_loss",
    "--activation_checkpointing_kwargs={use_reentrant: false, early_stop: false}",
]
PASSES += ["--optim=adafactor", "--torch_compile=true", "--neftune_noise_alpha=5"]


@pytest.mark.parametrize("option", PASSES)
def test_a_setting_that_works_is_not_refused(project, option):
    words = [*SMALL, "--dataset=nowhere.jsonl", "--output_dir=start", option]
    assert "'nowhere.jsonl' does not exist" in in_project(project, what_is_said, words)


LORA = {
    "use_dora: maybe": "use_dora must be true or false, not 'maybe'",
    "lora_dropout: -0.1": "lora_dropout from 0.0 to below 1.0",
    "lora_dropout: 1.0": "lora_dropout from 0.0 to below 1.0",
    "lora_dropout: 1.5": "lora_dropout from 0.0 to below 1.0",
    "modules_to_save: [embed_token]": "the nearest is 'embed_tokens'",
    "use_dorra: true": "the nearest is 'use_dora'",
    "init_lora_weights: foo": "Unknown initialization init_lora_weights='foo'",
    "init_lora_weights: 3": "'init_lora_weights': 3",
    "bias: maybe": "Requested bias: maybe",
    "layers_to_transform: x": "'layers_to_transform': 'x'",
    "layers_to_transform: [99]": "not found in the base model",
    "rank_pattern: 3": "rank_pattern must be a mapping",
    "rank_pattern: {q_proj: x}": "'rank_pattern': {'q_proj': 'x'}",
    "trainable_token_indices: x": "'trainable_token_indices': 'x'",
    "lora_bias: true\nuse_dora: true": "lora_bias=True is not supported for DoRA",
}
LORA_PASSES = [f"init_lora_weights: {way}" for way in "pissa pissa_niter_2 olora gaussian".split()]
LORA_PASSES += ["init_lora_weights: orthogonal", "init_lora_weights: false", "use_dora: true"]
LORA_PASSES += ["use_rslora: true", "bias: all", "rank_pattern: {q_proj: 4}", "lora_bias: true"]
LORA_PASSES += ["modules_to_save: [embed_tokens]", "trainable_token_indices: [5]"]


def test_what_peft_refuses_is_refused_before_the_weights_are_loaded(project):
    lora = LORA | dict.fromkeys(LORA_PASSES, "'nowhere.jsonl' does not exist")
    said = in_project(project, said_of_lora, [*lora])
    for (key, sentence), what in zip(lora.items(), said, strict=True):
        assert sentence in what and len(what.splitlines()) == 1, (key, what)


def said_of_lora(lines: list[str]) -> list[str]:
    config = Path("config.yaml").read_text()
    said = []
    for line in lines:
        Path("config.yaml").write_text(f"{config}{line}\n")
        said.append(what_is_said([*SMALL, "--dataset=nowhere.jsonl", "--output_dir=lora"]))
    Path("config.yaml").write_text(config)
    return said
