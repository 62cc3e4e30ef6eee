"""What config.yaml leaves to the machine with `auto`, and what nobody has said.

A value in config.yaml or on the command line is never changed. Memory is judged by sft/vram.py, as
if every row were `max_length` long, against all the memory of the card, in use or not: the same
command chooses the same again when it goes on after a crash.
"""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig
from transformers.utils import is_torch_tf32_available

from sft.vram import GB, estimate

AUTO = "auto"
# fields of `TrainingArguments` that may be `auto`, and are where they are not named
CHOSEN_HERE = ["activation_checkpointing", "optim", "bf16", "fp16", "tf32", "dataloader_pin_memory"]
FUSED, PAGED = "adamw_torch_fused", "paged_adamw_8bit"
ANSWERS = Path(__file__).resolve().parent.parent / "answers.json"


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU: its memory in GB of 2**30 bytes, and the number formats it has in hardware."""

    name: str
    gib: float
    bf16: bool
    tf32: bool


def choose(values: dict) -> tuple[dict, str]:
    """What `suited` says of these typed values for this process's own card."""
    settings = json.loads(ANSWERS.read_text(encoding="utf-8"))["answers"] | values
    with suppress(ValueError, TypeError):  # `TrainingArguments` refuses what is not JSON
        kwargs = "activation_checkpointing_kwargs"
        settings[kwargs] = json.loads(settings[kwargs])
    card = None if values["use_cpu"] else find_card()
    return suited(card, settings, _shape(values) if card else {})


def suited(card: Card | None, settings: dict, shape: dict) -> tuple[dict, str]:
    """Values for those of `CHOSEN_HERE` that are `auto`, and a line that says which and why.

    Args:
        card: None where training runs on the CPU.
        settings: those of sft/vram.py's `estimate`, and all of `CHOSEN_HERE`.
        shape: the content of the base model's config.json; empty if the estimate does not hold.
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

    way, why = _suited_to_its_memory(card, settings, shape)
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


def _suited_to_its_memory(card: Card | None, settings: dict, shape: dict) -> tuple[dict, str]:
    """Optimizer and activation checkpointing, and why.

    Recomputing costs time alone, and 8 bits change what is calculated: they come last. LoRA's
    optimizer state is too small for them to help.
    """
    optims = [FUSED, PAGED] if settings["lora_targets"] == "full" else [FUSED]
    if settings["optim"] != AUTO:
        optims = [settings["optim"]]
    switches = [False, True]
    if settings["activation_checkpointing"] != AUTO:
        switches = [settings["activation_checkpointing"]]
    ways = [{"optim": o, "activation_checkpointing": s} for o in optims for s in switches]
    if card is None:
        return ways[0], ""
    try:
        estimates = [(way, estimate(shape, settings | way)) for way in ways]
    except ValueError:
        return {"optim": optims[0], "activation_checkpointing": switches[-1]}, "not estimated"
    fitting = [pair for pair in estimates if pair[1].verdict(card.gib) == "fits"]
    way, found = fitting[0] if fitting else min(estimates, key=lambda pair: pair[1].peak)
    but = {"fits": "", "tight": ", which is tight", "won't": ", which will not fit"}
    see = "" if fitting else "; see python vram.py"
    return way, f"{found.peak / GB:.1f} GB estimated{but[found.verdict(card.gib)]}{see}"


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


def _shape(values: dict) -> dict:
    """The base model's config.json; empty if it cannot be read, or no card holds the whole model.

    FSDP and DeepSpeed spread the model over the cards; the 8-bit optimizer can't follow there.
    """
    engines = [os.environ.get(f"ACCELERATE_USE_{name}") for name in ("FSDP", "DEEPSPEED")]
    if "true" in engines or values["fsdp"] or values["deepspeed"]:
        return {}
    try:
        path, revision = values["base_model_path"], values["revision"]
        return AutoConfig.from_pretrained(path, revision=revision).to_dict()
    except (OSError, ValueError):  # loading the model says what is wrong
        return {}
