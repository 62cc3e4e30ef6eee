"""Settings for the card, where config.yaml says auto: number format, checkpointing, optimizer.

A value in config.yaml or on the command line is never changed. Memory is judged by sft/memory.py,
as if every row were `max_length` long, against all the memory of the card, in use or not: the same
command chooses the same again when it goes on after a crash.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator, PartialState
from transformers.utils import is_torch_bf16_gpu_available, is_torch_tf32_available

from sft.config import AUTO, ProjectArguments, spread_by
from sft.memory import GB, NoCount, count_for, memory, optimizers, read_config


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU: its memory in GB of 2**30 bytes, and the number formats it has in hardware."""

    name: str
    gib: float
    bf16: bool
    tf32: bool


def choose(values: dict, overrides: list[str]) -> tuple[dict, str]:
    """Values for those of `MAY_BE_AUTO` that are `auto`, and a line that says which and why.

    Args:
        values: all typed values of a run.
        overrides: the words of the command line that they are from.
    """
    card = None if values["use_cpu"] else find_card()
    chosen, words = {}, []
    if values["bf16"] == values["fp16"] == AUTO:
        words.append("float32" if card is None else "bf16" if card.bf16 else "fp16")
        if words == ["fp16"] and overflows_float16(values):
            words, overrides = ["float32"], [*overrides, "--dtype=float32"]
        chosen |= {words[0]: True} if words != ["float32"] else {}
    if values["tf32"] == AUTO and card and card.tf32:
        chosen["tf32"] = True
        words.append("tf32")
    if values["dataloader_pin_memory"] == AUTO and (not card or torch.backends.mps.is_available()):
        chosen["dataloader_pin_memory"] = False  # true would only warn

    way, why = _choose_by_memory(card, values, overrides)
    way = {key: value for key, value in way.items() if values[key] == AUTO}
    chosen |= way
    if "optim" in way:
        words.append(way["optim"])
    if "activation_checkpointing" in way:
        words.append(f"{'' if way['activation_checkpointing'] else 'no '}activation checkpointing")
    return chosen, f"Chosen for {describe(card)}: {', '.join(words)}{why}" if words else ""


def _choose_by_memory(card: Card | None, values: dict, overrides: list[str]) -> tuple[dict, str]:
    """Optimizer and activation checkpointing, and why.

    Recomputing costs time alone, and an 8-bit optimizer changes what is calculated: it comes last.
    """
    switch = values["activation_checkpointing"]
    switches = [False, True] if switch == AUTO else [switch]
    optims = optimizers(values)
    ways = [{"optim": o, "activation_checkpointing": s} for o in optims for s in switches]
    if card is None or len(ways) == 1:
        return ways[0], ""
    # no card holds the whole model, and the 8-bit optimizer can't follow
    is_spread = spread_by() or values["fsdp"] or values["deepspeed"]
    with suppress(NoCount):  # loading the model says what is wrong
        if not is_spread:
            count = count_for(overrides)
            peaks = [(way, memory(count, values | way)) for way in ways]
            fitting = [pair for pair in peaks if pair[1].verdict(card.gib) == "fits"]
            way, found = fitting[0] if fitting else min(peaks, key=lambda pair: pair[1].peak)
            but = {"fits": "", "tight": ", which is tight; see python vram.py"}
            but |= {"won't": ", which will not fit; see python vram.py"}
            return way, f" ({found.peak / GB:.1f} GB counted{but[found.verdict(card.gib)]})"
    return {"optim": optims[0], "activation_checkpointing": switches[-1]}, " (not counted)"


def keep_exact(accelerator: Accelerator, smoothing: float) -> None:
    """Where weights are spread over GPUs, reduce and add up gradients in float32, as one GPU does.

    accelerate alone does so in 16 bits, rounds the loss to these, too, and until the last batch of
    a step keeps all gradients whole on each GPU.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin and plugin.fsdp_version == 2:
        accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True
        if policy := plugin.mixed_precision_policy:
            logits = torch.float32 if smoothing else None  # the model's own loss takes them so
            exact = replace(policy, reduce_dtype=torch.float32, output_dtype=logits)
            plugin.mixed_precision_policy = exact


def describe(card: Card | None) -> str:
    return f"{card.name}, {card.gib:.0f} GB" if card else "the CPU"


def find_card() -> Card | None:
    """The GPU of this process, of several on one machine; None where PyTorch finds none."""
    index = int(os.environ.get("LOCAL_RANK", 0))
    if torch.cuda.is_available():
        with torch.cuda.device(index % torch.cuda.device_count()):
            return Card(
                name=torch.cuda.get_device_name(),
                gib=torch.cuda.mem_get_info()[1] / GB,
                bf16=torch.cuda.is_bf16_supported(including_emulation=False),
                tf32=is_torch_tf32_available(),
            )
    if torch.xpu.is_available():
        index %= torch.xpu.device_count()
        name, size = torch.xpu.get_device_name(index), torch.xpu.mem_get_info(index)[1]
    elif torch.backends.mps.is_available():
        name, size = torch.backends.mps.get_name(), torch.mps.recommended_max_memory()
    else:
        return None
    return Card(name=name, gib=size / GB, bf16=is_torch_bf16_gpu_available(), tf32=False)


def supported_dtype(args: ProjectArguments) -> torch.dtype:
    """`args.dtype`, or the nearest one that this machine computes in and this model can be in."""
    card = None if PartialState().device.type == "cpu" else find_card()
    if card is None or args.dtype == "float32":
        return torch.float32
    if card.bf16 and args.dtype == "bfloat16":
        return torch.bfloat16
    return torch.float32 if overflows_float16(vars(args)) else torch.float16


def overflows_float16(values: dict) -> bool:
    """Whether the model's activations pass float16's largest number, 65,504, as Gemma's do."""
    with suppress(NoCount):  # loading the model says what is wrong
        return "gemma" in read_config(values).get("model_type", "")
    return False
