"""The base model in 16 bits, 2 bytes a weight: nothing is quantized."""

import torch


def quantization_config(dtype: torch.dtype) -> None:
    """Nothing to quantize."""
    return None
