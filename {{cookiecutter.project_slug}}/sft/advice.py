"""What to do with a memory estimate: what would make it fit, how far it goes, what it teaches.

Standard library alone, like sft/vram.py.
"""

from dataclasses import dataclass

from sft.vram import Estimate, estimate, parameters, target_modules, trainable


@dataclass(frozen=True)
class Change:
    """A change of settings that saves memory.

    Attributes:
        name: as it would be written.
        price: what it costs, or what it is.
        settings: the values to change.
    """

    name: str
    price: str
    settings: dict


def changes(shape: dict, settings: dict) -> list[Change]:
    """What could save memory, the cheapest first: what costs time, precision, then capacity."""
    batch, length = settings["per_device_train_batch_size"], settings["max_length"]
    full, found = settings["lora_targets"] == "full", []

    def add(name: str, price: str, **values) -> None:
        found.append(Change(name, price, values))

    if settings.get("attn_implementation") == "eager":
        add("attn_implementation: sdpa", "the same numbers", attn_implementation="sdpa")
    if batch > 1:
        smaller = batch // 2
        steps = settings["gradient_accumulation_steps"] * -(-batch // smaller)
        add(
            f"per_device_train_batch_size: {smaller}",
            f"with gradient_accumulation_steps: {steps} the same learning, a little slower",
            per_device_train_batch_size=smaller,
            gradient_accumulation_steps=steps,
        )
    if settings.get("activation_checkpointing") is False:
        add("activation_checkpointing: true", "a quarter slower", activation_checkpointing=True)
    if full and settings["optim"] in ("auto", "adamw_torch", "adamw_torch_fused"):
        add("optim: paged_adamw_8bit", "averages in 8 bits", optim="paged_adamw_8bit")
    if not full and settings["quantization"] != "nf4":
        kwargs = {"use_reentrant": False}
        add(
            "quantization nf4",
            "frozen weights in 4 bits: a new project",
            quantization="nf4",
            activation_checkpointing_kwargs=kwargs,
        )
    if settings["collator"] == "language_modeling":
        add("collator seq2seq", "prompts are not learnt: a new project", collator="seq2seq")
    if full and settings["dtype"] == "float32":
        add("dtype: bfloat16", "the smallest steps are rounded away", dtype="bfloat16")
    if not full and settings["r"] > 16:
        add("r: 16", "a smaller adapter learns less", r=16)
    if full:
        add(
            "lora_targets attention",
            "LoRA instead of every weight: a new project",
            lora_targets="attention",
            target_modules=target_modules(shape, "attention"),
            r=64,
            dtype="bfloat16",
        )
    if length >= 512:
        add(f"max_length: {length // 2}", "longer rows are set aside", max_length=length // 2)
    return found


def savings(shape: dict, settings: dict) -> list[tuple[Change, Estimate]]:
    """Each of `changes` that saves a hundredth or more by itself, and what it comes to."""
    now = estimate(shape, settings).peak
    tried = [(one, estimate(shape, settings | one.settings)) for one in changes(shape, settings)]
    return [(one, then) for one, then in tried if then.peak < 0.99 * now]


def advice(shape: dict, settings: dict, card_gib: float) -> list[tuple[Change, Estimate]]:
    """The cheapest changes that make it fit the card, each with those before it.

    If all of them together are not enough, the last estimate does not fit.
    """
    steps: list[tuple[Change, Estimate]] = []
    now = estimate(shape, settings)
    while now.verdict(card_gib) != "fits" and (possible := savings(shape, settings)):
        # one that is enough by itself, else the cheapest
        enough = [step for step in possible if step[1].verdict(card_gib) == "fits"]
        change, now = step = (enough or possible)[0]
        settings = settings | change.settings
        steps.append(step)
    return steps


def largest(shape: dict, settings: dict, key: str, card_gib: float) -> int:
    """The largest whole number for a setting with which it fits the card; 0 for none.

    Args:
        key: `max_length` or `per_device_train_batch_size`.
    """

    def fits(value: int) -> bool:
        return estimate(shape, settings | {key: value}).verdict(card_gib) == "fits"

    if not fits(1):
        return 0
    enough, too_much = 1, 2
    while too_much <= 2**24 and fits(too_much):
        enough, too_much = too_much, 2 * too_much
    while too_much - enough > 1:
        middle = (enough + too_much) // 2
        enough, too_much = (middle, too_much) if fits(middle) else (enough, middle)
    return enough


def lesson(shape: dict, settings: dict) -> list[tuple[str, dict[str, float], str]]:
    """Three ways to train this model, in bytes by term: what one hopes for, what is, and LoRA.

    Each is a name, its terms, and a sentence.
    """
    count = parameters(shape)
    full = settings | {"lora_targets": "full", "quantization": "none", "dtype": "float32"}
    full |= {"optim": "adamw_torch_fused", "gradient_accumulation_steps": 1}
    names = settings.get("target_modules")
    if settings["lora_targets"] == "full":
        names = target_modules(shape, "attention")
    lora = settings | {"lora_targets": "attention", "quantization": "nf4", "dtype": "bfloat16"}
    lora |= {"target_modules": names, "r": settings.get("r", 64), "optim": "adamw_torch_fused"}
    hoped = {"weights": count / 2, "gradients": 4 * count, "optimizer state": 8 * count}
    return [
        (
            "full, on 4-bit weights",
            hoped,
            "Nobody can train that: a number of 4 bits is too coarse to take a gradient step. And "
            "it would save little, for gradients and AdamW's averages have 12 of 16 bytes.",
        ),
        (
            "full, as it is",
            _terms(estimate(shape, full)),
            "Every weight in float32 with its gradient and two averages: 16 bytes each.",
        ),
        (
            f"LoRA of rank {lora['r']} on 4 bits",
            _terms(estimate(shape, lora)),
            f"The 16 bytes again, but for {trainable(shape, names, lora['r']):,} parameters; "
            "the others are frozen, so they may be coarse.",
        ),
    ]


def _terms(one: Estimate) -> dict[str, float]:
    """An estimate with the four terms of the lesson."""
    terms = {"weights": 0, "gradients": 0, "optimizer state": 0, "activations and the rest": 0}
    for name, size in one.parts.items():
        if name.startswith(("base weights", "quantization", "adapter")):
            terms["weights"] += size
        else:
            terms[name if name in terms else "activations and the rest"] += size
    return terms
