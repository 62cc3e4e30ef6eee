"""The base model in 8 bits: LLM.int8() (arXiv:2208.07339).

Each row of a weight matrix is scaled to whole numbers from -127 to 127: one byte a weight instead
of two. The few input features with outliers (above 6 in magnitude) are multiplied in 16 bits. Only
the linear layers inside the blocks are quantized; embeddings, norms and `lm_head` keep their 16
bits. The weights are frozen: whole numbers take no gradient step.
"""

import warnings

import torch
from transformers import BitsAndBytesConfig

# on a CPU the arithmetic is in float32, and each layer would say so
warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")


def quantization_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """How to quantize while loading; `dtype` is that of everything that stays unquantized."""
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)
