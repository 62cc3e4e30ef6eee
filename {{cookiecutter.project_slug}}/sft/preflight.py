"""Checks before the weights are loaded: do settings, model and tokenizer suit each other?"""

import inspect
from contextlib import suppress
from copy import copy
from importlib import import_module

import pyarrow.compute as pc
import torch
import transformers
from datasets import Dataset
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, TrainingArguments
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils.peft_utils import find_adapter_config_file

from sft import collator
from sft.adapter import add_adapter, check_adapter
from sft.config import ProjectArguments, one_line
from sft.machine import supported_dtype
from sft.model import load
from sft.quantization import quantization_config
from sft.trainer import METRICS


def check_settings(args: TrainingArguments) -> None:
    """Exit at what the Trainer would refuse, or has no package for, by making one of no model."""
    if quantization_config(torch.float32):
        device, served = args.device.type, import_module("bitsandbytes").supported_torch_devices
        if device not in served:
            fix = "generate the project again with the quantization none, or add --use_cpu true."
            raise SystemExit(f"bitsandbytes quantizes the model, and not on {device!r}: {fix}")
    args, model = copy(args), nn.Sequential(nn.Linear(1, 1))
    args.push_to_hub, model.config = False, PreTrainedConfig()
    args.optim_target_modules = args.optim_target_modules and "all-linear"  # of this model
    rows, what = [{"input_ids": [0], "labels": [0], "length": 1}], ""
    try:
        if (args.metric_for_best_model or "loss").removeprefix("eval_") not in METRICS:
            raise ValueError(f"metric_for_best_model is not in {METRICS} of sft/trainer.py")
        if args.use_liger_kernel:
            apply_liger_kernel(model, args.liger_kernel_config)
        trainer = transformers.Trainer(model, args, train_dataset=rows, eval_dataset=rows)
        is_spread = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        if is_spread and "score" in (args.metric_for_best_model or ""):
            why = "is of answers, and weights that are spread over GPUs give none: take loss"
            raise ValueError(f"metric_for_best_model score {why}")
        trainer.get_train_dataloader(), trainer.get_eval_dataloader()
        trainer.create_optimizer_and_scheduler(num_training_steps=1)
        if args.torch_compile:
            torch.compile(model, mode=args.torch_compile_mode)
        if kwargs := args.activation_checkpointing_kwargs:
            what = "activation_checkpointing_kwargs: "
            checkpoint(model, torch.ones(1, 1, requires_grad=True), **kwargs)
    except Exception as error:
        raise SystemExit(f"config.yaml or the command line: {what}{one_line(error)}") from None


def check_model(args: ProjectArguments, attn_implementation: str = "") -> int:
    """Exit where the model does not suit config.yaml; returns how many tokens have embeddings.

    `attn_implementation` is tried instead of config.yaml's, which this machine may lack.
    """
    check_adapter(args)
    name = f"base_model_path {args.base_model_path!r}"
    with suppress(OSError):  # no such path: loading config.json says so
        if find_adapter_config_file(args.base_model_path, revision=args.revision):
            fix = "merge it into its base and name that folder."
            raise SystemExit(f"{name} holds an adapter; {fix}")
    config = load(AutoConfig, args.base_model_path, revision=args.revision)
    parts = (config, config.get_text_config())
    if stored := next(filter(None, (getattr(p, "quantization_config", 0) for p in parts)), None):
        method = dict(stored).get("quant_method", "some format")
        raise SystemExit(f"{name} is stored quantized ({method}); name the model in 16 bits.")
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions and args.max_length > positions:
        fix = "lower it, or raise max_position_embeddings in its config.json."
        raise SystemExit(f"{name} knows {positions:,} positions, and max_length is above: {fix}")
    way = attn_implementation or args.attn_implementation
    how = {"dtype": supported_dtype(args), "attn_implementation": way}
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, **how)
    except (ValueError, ImportError) as error:
        raise SystemExit(
            f"{name} with attn_implementation {way!r}: {one_line(error)} (every model has eager)"
        ) from None
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        why = "takes no logits_to_keep, which sft/trainer.py needs"
        raise SystemExit(f"{name}: {type(model).__name__} {why}; choose another model.")
    embeddings = model.get_input_embeddings().num_embeddings
    try:
        with torch.device("meta"):
            add_adapter(model, args)
    except Exception as error:
        if "meta" not in f"{error}".lower():  # else it is what a tensor without data cannot do
            why = f"{one_line(error)} (of {args.adapter})"
            raise SystemExit(f"config.yaml or the command line: {why}") from None
    if hasattr(collator, "check_model"):  # it asks something of the model
        collator.check_model(config, args)
    return embeddings


def check_tokens(examples: dict[str, Dataset], tokenizer: Tokenizer, embeddings: int) -> None:
    """Exit where an example has a token that the model has no embedding for."""
    new = getattr(tokenizer, "new_tokens", [])  # for them there will be room
    embeddings = max(embeddings, 1 + max(new, default=0))
    for rows in examples.values():
        highest = pc.max(pc.list_flatten(rows.data.column("input_ids"))).as_py() or 0
        if highest >= embeddings:
            token = tokenizer.convert_ids_to_tokens(highest)
            raise SystemExit(
                f"The tokenizer has the token {token!r}, number {highest + 1:,}, and the model has "
                f"{embeddings:,} embeddings: resize those (resize_token_embeddings) and save it, "
                "or take the token out."
            )
