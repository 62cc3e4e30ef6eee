"""The base model stays in 16 bits (2 bytes a weight): nothing is lost, nothing is quantized."""

import torch


def quantization_config(dtype: torch.dtype) -> None:
    """Nothing to quantize."""
    return None
