import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import GenerationConfig, PreTrainedModel

from sft.chat_template import make_room
from sft.config import ProjectArguments
from sft.further import start_from
from sft.model import load_model, load_whole
from sft.targets import check_adapter, lora_config

__all__ = ["add_adapter", "check_adapter", "load_trained"]

# peft asks by the old name, at every load
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")


def add_adapter(model: PreTrainedModel, args: ProjectArguments) -> PeftModel:
    """Freeze the base model and put LoRA (arXiv:2106.09685) on `target_modules`.

    A frozen weight W of shape (out, in) becomes W + (lora_alpha / r) * B @ A, with A of shape
    (r, in) and B of shape (out, r); B starts as zeros. Only A and B have gradients and optimizer
    state. peft's `prepare_model_for_kbit_training` is not called: embeddings in float32 cost much.
    """
    config = lora_config(model, args)
    # checkpointing recomputes a block from its input, which must carry a gradient
    model.enable_input_require_grads()
    model = get_peft_model(model, config)  # freezes the base; A and B are float32
    start_from(model, args.adapter.get("adapter_path"))
    # or each save asks the Hub whether the vocabulary was resized
    model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)
    return model


def load_trained(
    folder: Path, args: ProjectArguments, dtype: torch.dtype | None = None
) -> PreTrainedModel | PeftModel:
    """The adapter in `folder` on its base as it was trained; a merged folder loads by itself.

    With a `dtype` the base is in that, dequantized: rounded weights, as the adapter saw them.
    """
    if not (folder / "adapter_config.json").exists():
        return load_whole(str(folder), args)
    config = PeftConfig.from_pretrained(folder)
    path = config.base_model_name_or_path  # not config.yaml's of today
    base = load_model(replace(args, base_model_path=path), dtype)
    make_room(base, config.trainable_token_indices)
    if dtype and getattr(base, "is_quantized", False):
        base = base.dequantize(dtype=dtype).to(dtype)
    if (folder / "generation_config.json").exists():  # not in a checkpoint
        base.generation_config = GenerationConfig.from_pretrained(folder)
    return PeftModel.from_pretrained(base, folder)
