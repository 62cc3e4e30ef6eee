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
from sft.memory import FUSED, GB, PAGED, NoCount, count_for, memory


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
    left = [values[key] for key in ("optim", "activation_checkpointing")]
    count = None
    if card and AUTO in left and not _is_spread(values):
        with suppress(NoCount):  # loading the model says what is wrong
            count = count_for(overrides)
    return choose_for(card, values, count)


def choose_for(card: Card | None, settings: dict, count: dict | None) -> tuple[dict, str]:
    """What `choose` says, for any card.

    Args:
        card: None where training runs on the CPU.
        settings: those that sft/memory.py reads, and all of `MAY_BE_AUTO`.
        count: of a step's memory; None where there is none, or none that holds.
    """
    chosen, words = {}, []
    if settings["bf16"] == settings["fp16"] == AUTO:
        words.append("float32" if card is None else "bf16" if card.bf16 else "fp16")
        chosen |= {words[-1]: True} if card else {}
    if settings["tf32"] == AUTO and card and card.tf32:
        chosen["tf32"] = True
        words.append("tf32")
    if settings["dataloader_pin_memory"] == AUTO and card is None:  # it would only warn
        chosen["dataloader_pin_memory"] = False

    way, why = _choose_by_memory(card, settings, count)
    if settings["optim"] == AUTO:
        chosen["optim"] = way["optim"]
        words.append(way["optim"])
    if settings["activation_checkpointing"] == AUTO:
        on = chosen["activation_checkpointing"] = way["activation_checkpointing"]
        words.append(f"{'' if on else 'no '}activation checkpointing")
    if why and AUTO in (settings["optim"], settings["activation_checkpointing"]):
        words[-1] += f" ({why})"
    where = f"{card.name}, {card.gib:.0f} GB" if card else "the CPU"
    return chosen, f"Chosen for {where}: {', '.join(words)}" if words else ""


def _choose_by_memory(card: Card | None, settings: dict, count: dict | None) -> tuple[dict, str]:
    """Optimizer and activation checkpointing, and why.

    Recomputing costs time alone, and 8 bits change what is calculated: they come last. LoRA's
    optimizer state is too small for them to help.
    """
    optims = [FUSED] if "r" in settings["adapter"] else [FUSED, PAGED]
    if settings["optim"] != AUTO:
        optims = [settings["optim"]]
    switches = [False, True]
    if settings["activation_checkpointing"] != AUTO:
        switches = [settings["activation_checkpointing"]]
    ways = [{"optim": o, "activation_checkpointing": s} for o in optims for s in switches]
    if card is None:
        return ways[0], ""
    if count is None:
        return {"optim": optims[0], "activation_checkpointing": switches[-1]}, "not counted"
    known = settings | settings["adapter"]
    peaks = [(way, memory(count, known | way)) for way in ways]
    fitting = [pair for pair in peaks if pair[1].verdict(card.gib) == "fits"]
    way, found = fitting[0] if fitting else min(peaks, key=lambda pair: pair[1].peak)
    but = {"fits": "", "tight": ", which is tight", "won't": ", which will not fit"}
    see = "" if fitting else "; see python vram.py"
    return way, f"{found.peak / GB:.1f} GB counted{but[found.verdict(card.gib)]}{see}"


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


def _is_spread(values: dict) -> bool:
    """Whether no card holds the whole model: FSDP and DeepSpeed spread it over several.

    The 8-bit optimizer can't follow there.
    """
    engines = [os.environ.get(f"ACCELERATE_USE_{name}") for name in ("FSDP", "DEEPSPEED")]
    return "true" in engines or bool(values["fsdp"] or values["deepspeed"])
