"""The base model in 16 bits, 2 bytes a weight: nothing is quantized."""

import torch
from transformers import PreTrainedModel


def quantization_config(dtype: torch.dtype) -> None:
    """Nothing to quantize."""
    return None


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """The model in 16 bits."""
    return model.to(torch.bfloat16)
