"""`chat_template` in config.yaml: applied, learnt and saved, so that the reloaded model stops."""

import json
import shutil
from pathlib import Path

import pytest
from test_runs_can_be_trusted import make_twin, what_is_said

from conftest import in_project

RUN = """--max_steps=8 --learning_rate=3e-2 --dataset=data/sample.jsonl --answers=1
--base_model_path=base --use_cpu=true --test_size=0.2 --max_length=4096
--gradient_accumulation_steps=1 --save_strategy=no --train_split=train[:24]""".split()
ZEPHYR = """{%- for message in messages -%}
<|{{ message.role }}|>
{{ message.content }}<|end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|assistant|>
{% endif -%}"""


@pytest.fixture(params=["none", "nf4", "full"])
def project(bake, request):
    lora = {"lora_targets": "full"} if request.param == "full" else {"lora_targets": "all_linear"}
    quantization = "none" if request.param == "full" else request.param
    project = bake.project(collator="seq2seq", quantization=quantization, **lora)
    in_project(project, make_twin)
    make_base(project)
    return project


def make_base(project: Path) -> None:
    """The twin without a chat template, as a base model is published."""
    shutil.copytree(project / "twin", project / "base")
    (project / "base/chat_template.jinja").unlink()


def train_and_talk(options: list[str]) -> dict:
    import torch

    import chat
    import train
    from sft.adapter import load_trained
    from sft.config import load_config
    from sft.model import load_tokenizer

    final = train.main(options)
    args, _ = load_config(options)
    tokenizer = load_tokenizer(str(final))
    model = load_trained(final, args).eval()
    talk = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        logits = model(**talk).logits
    chat.main([*options, "--prompt=Hi", "--max_new_tokens=4"])
    chat.main([*options, "--prompt=Hi", "--max_new_tokens=4", "--base"])
    found = {
        "stop": tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id),
        "tokens": len(tokenizer),
        "embeddings": logits.shape[-1],
        "prompt": tokenizer.decode(talk["input_ids"][0]),
        "without special tokens": tokenizer.decode(talk["input_ids"][0], skip_special_tokens=True),
    }
    if hasattr(model, "peft_config"):
        from transformers import AutoModelForCausalLM

        import export

        merged = export.main(options)
        with torch.no_grad():
            again = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)(**talk).logits
        found["merged"] = float((again - logits).abs().max() / logits.abs().max())
        found["merged template"] = (
            load_tokenizer(str(merged)).chat_template == tokenizer.chat_template
        )
    return found


def test_chatml_whose_tokens_are_there_resizes_nothing(project):
    found = in_project(project, train_and_talk, [*RUN, "--chat_template=chatml"])
    assert found["stop"][0] == "<|im_end|>" and found["tokens"] == found["embeddings"] == 1024
    assert found["prompt"] == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert found.get("merged", 0) < 0.05 and found.get("merged template", True)


def evaluated(options: list[str]) -> dict:
    import evaluate

    options = [*options, "--models=base", "--rows=2", "--max_new_tokens=2"]
    return json.loads(evaluate.main(options).read_text(encoding="utf-8"))["models"]["base"]


def test_a_base_model_is_evaluated_before_there_is_a_run(project):
    base = in_project(project, evaluated, [*RUN, "--chat_template=chatml"])
    assert base["loss"]["value"] > 0


def test_a_file_whose_tokens_are_new_has_them_learnt_and_saved(project):
    (project / "zephyr.jinja").write_text(ZEPHYR)
    found = in_project(project, train_and_talk, [*RUN, "--chat_template=zephyr.jinja"])
    assert found["stop"][0] == "<|end|>" and found["embeddings"] == found["tokens"] == 1024 + 2
    assert found["prompt"] == "<|user|>\nHi<|end|>\n<|assistant|>\n"
    base = in_project(project, evaluated, [*RUN, "--chat_template=zephyr.jinja"])
    assert base["loss"]["value"] > 0  # it has room for the tokens, too
    said = found["without special tokens"]
    assert "Hi" in said and "<|end|>" not in said
    assert found.get("merged", 0) < 0.05 and found.get("merged template", True)


def rows_trained(is_tied: bool) -> dict:
    from types import SimpleNamespace

    from transformers import AutoConfig, AutoModelForCausalLM

    from sft.chat_template import embed_new_tokens
    from sft.config import load_config

    args, _ = load_config(["--use_cpu=true"])
    config = AutoConfig.from_pretrained("base_model", tie_word_embeddings=is_tied)
    config.num_hidden_layers, config.layer_types, config.vocab_size = 0, [], 10
    embed_new_tokens(
        AutoModelForCausalLM.from_config(config), SimpleNamespace(new_tokens=[10]), args
    )
    return args.adapter["trainable_token_indices"]


def test_the_rows_of_new_tokens_are_trained_in_a_head_of_its_own_too(bake_once):
    project = bake_once.project(project_slug="rows", collator="seq2seq", quantization="none")
    assert in_project(project, rows_trained, True) == {"embed_tokens": [10]}
    assert in_project(project, rows_trained, False) == {"embed_tokens": [10], "lm_head": [10]}


def test_without_one_the_key_is_named_and_a_wrong_file_is_refused(bake_once):
    project = bake_once.project(project_slug="plain", collator="seq2seq", quantization="none")
    in_project(project, make_twin)
    make_base(project)
    assert "set chat_template: chatml" in in_project(project, what_is_said, RUN)
    said = in_project(project, what_is_said, [*RUN, "--chat_template=nowhere.jinja"])
    assert said.startswith("chat_template 'nowhere.jinja' cannot be read") and "chatml" in said
