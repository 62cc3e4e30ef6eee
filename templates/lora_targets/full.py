"""What is trained: every weight of the model; no adapter, nothing frozen.

Each parameter then needs its weight, its gradient and two numbers of optimizer state: 16 bytes in
float32, 8 in bfloat16. `python vram.py` shows what that comes to.
"""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from sft.config import ProjectArguments, refuse_unknown
from sft.model import load_whole


def check_adapter(args: ProjectArguments) -> None:
    """Refuse what config.yaml has besides our keys and the Trainer's: there is no adapter."""
    refuse_unknown(args.adapter, known=())


def add_adapter(model: PreTrainedModel, args: ProjectArguments) -> PreTrainedModel:
    """The model itself, with every parameter set to be trained.

    Raises:
        SystemExit: the weights are in float16, whose gradients vanish.
    """
    if model.dtype == torch.float16:
        raise SystemExit("Weights in float16 cannot be trained; set dtype: float32 in config.yaml.")
    return model.requires_grad_(True)


def load_trained(
    folder: Path, args: ProjectArguments, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """The model in `folder`, which loads by itself, in its own dtype if none is given."""
    return load_whole(str(folder), args, **({"dtype": dtype} if dtype else {}))
