"""Settings for the card where config.yaml says auto: number format, checkpointing, optimizer.

A value in config.yaml or on the command line is never changed. Memory is judged by sft/memory.py,
as if every row were `max_length` long, against all the memory of the card, in use or not: the same
command chooses the same again when it goes on after a crash.
"""

import os
from contextlib import suppress
from dataclasses import dataclass

import torch
from transformers.utils import is_torch_tf32_available

from sft.config import AUTO
from sft.memory import GB, NoCount, count_for, memory, optimizers


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
        chosen |= {words[-1]: True} if card else {}
    if values["tf32"] == AUTO and card and card.tf32:
        chosen["tf32"] = True
        words.append("tf32")
    if values["dataloader_pin_memory"] == AUTO and card is None:  # it would only warn
        chosen["dataloader_pin_memory"] = False

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
    # FSDP and DeepSpeed: no card holds the whole model, and the 8-bit optimizer can't follow
    engines = [os.environ.get(f"ACCELERATE_USE_{name}") for name in ("FSDP", "DEEPSPEED")]
    is_spread = "true" in engines or values["fsdp"] or values["deepspeed"]
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


def describe(card: Card | None) -> str:
    return f"{card.name}, {card.gib:.0f} GB" if card else "the CPU"


def find_card() -> Card | None:
    """The card of this process, of several on one machine; None without CUDA."""
    if not torch.cuda.is_available():
        return None
    with torch.cuda.device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()):
        return Card(
            name=torch.cuda.get_device_name(),
            gib=torch.cuda.mem_get_info()[1] / GB,
            bf16=torch.cuda.is_bf16_supported(including_emulation=False),
            tf32=is_torch_tf32_available(),
        )
