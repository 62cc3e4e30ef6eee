import inspect
import warnings
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from sft.config import ProjectArguments, refuse_unknown
from sft.model import load_model, load_whole

# peft asks by the old name, at every load
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")


def check_adapter(args: ProjectArguments) -> None:
    """Exit at a key of config.yaml that is no field of `peft.LoraConfig`, or is out of range."""
    refuse_unknown(args.adapter, [each.name for each in fields(LoraConfig)])
    r, dropout = args.adapter.get("r", 8), args.adapter.get("lora_dropout", 0.0)
    if not isinstance(r, int) or r < 1 or not isinstance(dropout, float) or not 0 <= dropout < 1:
        raise SystemExit("r must be a whole number from 1, and lora_dropout from 0.0 to below 1.0.")


def add_adapter(model: PreTrainedModel, args: ProjectArguments) -> PeftModel:
    """Freeze the base model and put LoRA (arXiv:2106.09685) on `target_modules`.

    A frozen weight W of shape (out, in) becomes W + (lora_alpha / r) * B @ A, with A of shape
    (r, in) and B of shape (out, r); B starts as zeros. Only A and B have gradients and optimizer
    state. peft's `prepare_model_for_kbit_training` is not called: embeddings in float32 can cost
    more than quantization saves.

    Raises:
        SystemExit: `target_modules` names what no block of the model has; peft would not say so.
    """
    names = layer_names(model, args.adapter.get("target_modules") or [])
    # checkpointing recomputes a block from its input, which must carry a gradient
    model.enable_input_require_grads()
    config = LoraConfig(task_type="CAUSAL_LM", **{**args.adapter, "target_modules": names})
    model = get_peft_model(model, config)  # freezes the base; A and B are float32
    # or each save asks the Hub whether the vocabulary was resized
    model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)
    return model


def layer_names(model: PreTrainedModel, targets: list[str] | str) -> list[str]:
    """The linear layers in `targets`, where a word means several; refuses what no block has."""
    targets = [targets] if isinstance(targets, str) else targets
    layers = linear_layers(model)
    paths = layers["all_linear"]
    names = {path.split(".")[-1] for path in paths}
    missing = [word for word in targets if not layers.get(word) and word not in names | paths]
    if missing or not targets:
        raise SystemExit(
            f"target_modules: {', '.join(missing) or 'empty'} is in no block of this model; it has "
            f"{', '.join(sorted(names)) or 'no linear layers'}; attention, mlp and all_linear "
            "mean several of them."
        )
    chosen = set().union(*(layers.get(word, {word}) for word in targets))
    for name in names:
        named = {path for path in paths if path.split(".")[-1] == name}
        if named <= chosen:  # else peft would take the others as well
            chosen = chosen - named | {name}
    return sorted(chosen)


def linear_layers(model: PreTrainedModel) -> dict[str, set[str]]:
    """The paths of the linear layers in a block, such as self_attn.q_proj, by word.

    Attention is what takes the attention mask, whatever its name.
    """
    attention, mlp = set(), set()
    for block in model.modules():
        if isinstance(block, GradientCheckpointingLayer):
            for name, part in block.named_children():
                takes_mask = "attention_mask" in inspect.signature(type(part).forward).parameters
                for path, module in part.named_modules(prefix=name):
                    if isinstance(module, nn.Linear):  # bitsandbytes' layers are, too
                        (attention if takes_mask else mlp).add(path)
    return {"attention": attention, "mlp": mlp, "all_linear": attention | mlp}


def load_base(
    folder: Path, args: ProjectArguments, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """The base model that the adapter in `folder` was trained on, whatever config.yaml says now."""
    path = PeftConfig.from_pretrained(folder).base_model_name_or_path
    return load_model(replace(args, base_model_path=path), dtype)


def load_trained(folder: Path, args: ProjectArguments) -> PreTrainedModel | PeftModel:
    """The adapter in `folder` on its base as it was trained; a merged folder loads by itself."""
    if (folder / "adapter_config.json").exists():
        model = PeftModel.from_pretrained(load_base(folder, args), folder)
        model.generation_config = GenerationConfig.from_pretrained(folder)
        return model
    return load_whole(str(folder), args)
