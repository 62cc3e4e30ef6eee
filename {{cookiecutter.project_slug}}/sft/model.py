"""The base model and its tokenizer."""

from contextlib import contextmanager
from itertools import pairwise

import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.mask import encode
from sft.quantization import quantization_config


def supported_dtype(name: str) -> torch.dtype:
    """The dtype of that name, or the nearest one that this machine computes in hardware."""
    if name == "float32" or PartialState().device.type != "cuda":
        return torch.float32
    if name == "bfloat16" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16


def load_tokenizer(path: str, revision: str = "main") -> Tokenizer:
    """The tokenizer with its chat template.

    Raises:
        SystemExit: there is none at `path`, or it has no chat template.
    """
    with _one_sentence(path):
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise SystemExit(
            f"The tokenizer of {path!r} has no chat template; "
            "use the instruction-tuned model of the same name, or add a template to its folder."
        )
    if not tokenizer.is_fast:
        raise SystemExit(f"The tokenizer of {path!r} is a slow one; the mask needs its offsets.")
    if tokenizer.pad_token is None:
        # harmless: labels and attention masks are made from lengths, never by comparing ids
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_model(args, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The base model as it is trained: with the quantization chosen in sft/quantization.py."""
    dtype = dtype or supported_dtype(args.dtype)
    quantized = quantization_config(dtype)
    placed = {"quantization_config": quantized, "device_map": {"": PartialState().device}}
    return _load(args.base_model_path, args, dtype=dtype, **(placed if quantized else {}))


def load_whole(path: str, args) -> PreTrainedModel:
    """The model in `path` as it was saved, in its own dtype."""
    return _load(path, args, dtype="auto")


def stop_tokens(tokenizer: Tokenizer) -> list[int]:
    """The control tokens that the model learns to end its turns with, the last turn's first."""
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}] * 2
    labels = encode(chat, tokenizer)["labels"]
    ends = [last for last, after in pairwise([*labels, -100]) if last != -100 == after]
    control = {*tokenizer.added_tokens_decoder, tokenizer.eos_token_id}
    return [end for end in dict.fromkeys(reversed(ends)) if end in control]


def stop_at(model: PreTrainedModel, token_ids: list[int]) -> GenerationConfig:
    """The model's generation settings, with its turn ended by any of these tokens as well.

    A base model's own settings may end at another token than its chat template ends a turn with; an
    adapter's folder holds none at all. Either way the model would learn to stop and yet talk on.
    """
    settings = model.generation_config
    before = settings.eos_token_id
    before = [] if before is None else [before] if isinstance(before, int) else before
    settings.eos_token_id = list(dict.fromkeys([*token_ids, *before]))
    return settings


def _load(path: str, args, **kwargs) -> PreTrainedModel:
    with _one_sentence(path):
        return AutoModelForCausalLM.from_pretrained(
            path,
            revision=args.revision if path == args.base_model_path else "main",
            attn_implementation=args.attn_implementation,
            use_safetensors=True,
            trust_remote_code=False,
            **kwargs,
        )


@contextmanager
def _one_sentence(path: str):
    """Loading from a wrong path or a gated model ends in a sentence, not in a traceback."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(
            f"base_model_path {path!r} cannot be loaded: {str(error).strip().splitlines()[0]} "
            "(offline, --smoke needs no download; a gated model wants its licence accepted "
            "on the Hub, then `hf auth login`)"
        ) from None
