"""What is trained: LoRA (arXiv:2106.09685), two thin matrices beside each targeted linear layer.

A frozen weight W of shape (out, in) becomes W + (lora_alpha / r) * B @ A, with A of shape (r, in)
and B of shape (out, r). B starts as zeros, so training starts from the base model exactly. Only A
and B have gradients and optimizer state: that is where the memory of full training goes.
"""

import warnings
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from sft.command_line import refuse_unknown
from sft.config import ProjectArguments
from sft.model import load_model, load_whole

# peft asks by the old name, at every load
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")


def check_adapter(args: ProjectArguments) -> None:
    """Look at `args.adapter`, the LoRA keys of config.yaml, before a model is loaded.

    Raises:
        SystemExit: a key is no field of `peft.LoraConfig`, or its number is out of range.
    """
    refuse_unknown(args.adapter, [each.name for each in fields(LoraConfig)])
    r, dropout = args.adapter.get("r", 8), args.adapter.get("lora_dropout", 0.0)
    if not isinstance(r, int) or r < 1 or not isinstance(dropout, float) or not 0 <= dropout < 1:
        raise SystemExit("r must be a whole number from 1, and lora_dropout from 0.0 to below 1.0.")


def add_adapter(model: PreTrainedModel, args: ProjectArguments) -> PeftModel:
    """Freeze the base model and put LoRA on `target_modules`.

    peft's `prepare_model_for_kbit_training` is left out on purpose: it turns everything that is not
    quantized, embeddings and `lm_head` above all, to float32, which can cost more than 4 bits save.

    Raises:
        SystemExit: a name in `target_modules` matches no linear layer; peft would not say so.
    """
    # bitsandbytes' quantized layers are nn.Linear, too
    modules = model.named_modules()
    linear = {name.split(".")[-1] for name, module in modules if isinstance(module, nn.Linear)}
    linear.discard("lm_head")
    targets = args.adapter.get("target_modules")  # a text is a pattern, for peft
    missing = [name for name in targets if name not in linear] if isinstance(targets, list) else []
    if missing or not targets:
        raise SystemExit(
            f"target_modules: {', '.join(missing) or 'empty'} is in no block of this model; "
            f"it has {', '.join(sorted(linear))}."
        )
    # with checkpointing a block is recomputed from its input, which must then carry a gradient
    model.enable_input_require_grads()
    config = LoraConfig(task_type="CAUSAL_LM", **args.adapter)
    model = get_peft_model(model, config)  # freezes the base; A and B are float32
    # otherwise each save asks the Hub whether the vocabulary was resized
    model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)
    return model


def load_base(
    folder: Path, args: ProjectArguments, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """The base model that the adapter in `folder` was trained on, whatever config.yaml says now."""
    path = PeftConfig.from_pretrained(folder).base_model_name_or_path
    return load_model(replace(args, base_model_path=path), dtype)


def load_trained(folder: Path, args: ProjectArguments) -> PreTrainedModel | PeftModel:
    """The adapter in `folder` on its base as it was trained; a merged folder stands by itself."""
    if (folder / "adapter_config.json").exists():
        model = PeftModel.from_pretrained(load_base(folder, args), folder)
        model.generation_config = GenerationConfig.from_pretrained(folder)
        return model
    return load_whole(str(folder), args)
