"""The base model in 4 bits: NF4, the number format of QLoRA (arXiv:2305.14314).

Weights of a trained network are close to normally distributed, so NF4 puts its 16 levels where a
normal distribution has its mass. Each block of 64 weights has a scale of its own, and double
quantization stores each scale in one byte: about 0.52 bytes a weight instead of 2. Only the linear
layers inside the blocks are quantized; embeddings, norms and `lm_head` keep their 16 bits.
The weights are unpacked to `dtype` for each multiplication. They are frozen: a 4-bit number is too
coarse for a gradient step.
"""

import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit
from transformers import BitsAndBytesConfig

# evaluation packs weights on such a CPU, in blocks of 32 outputs and 64 inputs
fits = property(lambda one: has_avx512bf16() and one.out_features % 32 == one.in_features % 64 == 0)
Linear4bit.support_avx512bf16_for_cpu = fits.setter(lambda one, value: None)


def quantization_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """How to quantize while loading; `dtype` is the arithmetic's: float32, the default, is slow."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
