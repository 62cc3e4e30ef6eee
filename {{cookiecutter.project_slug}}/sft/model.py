"""The base model and its tokenizer."""

from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.chat_template import set_chat_template
from sft.config import ProjectArguments
from sft.machine import supported_dtype
from sft.quantization import quantization_config


def load_tokenizer(path: str, revision: str = "main", chat_template: str = "") -> Tokenizer:
    """The tokenizer in `path`; exits where it has no chat template or no fast version."""
    tokenizer = load(AutoTokenizer, path, revision=revision)
    name = f"The tokenizer of {path!r}"
    set_chat_template(tokenizer, chat_template)
    if not tokenizer.is_fast:  # the mask tokenizes with its `backend_tokenizer`
        raise SystemExit(f"{name} has no tokenizer.json; add it, or choose another model.")
    if tokenizer.pad_token is None:
        # harmless: labels and attention masks are made by length, never by comparing ids
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_model(args: ProjectArguments, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The base model as it is trained: with the quantization chosen in sft/quantization.py."""
    dtype = dtype or supported_dtype(args)
    kwargs = {"dtype": dtype, "revision": args.revision}
    if quantization := quantization_config(dtype):
        kwargs |= {"quantization_config": quantization, "device_map": {"": PartialState().device}}
    return load_whole(args.base_model_path, args, **kwargs)


def load_whole(path: str, args: ProjectArguments, **kwargs) -> PreTrainedModel:
    """The model in `path` as it was saved, in its own dtype if `kwargs` do not say another."""
    kwargs |= {"attn_implementation": args.attn_implementation, "use_safetensors": True}
    return load(AutoModelForCausalLM, path, **kwargs)


def load(kind: type, path: str, **kwargs) -> Any:
    """`kind.from_pretrained`; a wrong path, half a file or a gated model ends in one sentence."""
    try:
        return kind.from_pretrained(path, trust_remote_code=False, **kwargs)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        why = str(error).strip().splitlines()[0]
        if isinstance(error, OSError):
            why += (
                " (offline, --smoke needs no download; for a gated model accept its licence "
                "on the Hub, then `hf auth login`)"
            )
        raise SystemExit(f"base_model_path {path!r} cannot be loaded: {why}") from None
