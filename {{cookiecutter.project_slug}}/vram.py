"""Will it fit? The memory of one training step with this project's settings, before renting a GPU.

python vram.py                      what the peak is made of, which cards are enough, what helps

  --card             the verdict for a card, GB or a name such as T4, and what to change for it
  --max              the longest rows and the largest batch for each card
  --lesson           why 16 bytes a trained parameter decide, and not their bits
  --json             in bytes, for programs
  --trained_share    the share of tokens that are trained on; 0.25

A step of this project's own code is counted (sft/count.py). What you change there is counted anew,
as is another model: --base_model_path ORG/NAME. One GB is 2**30 bytes.
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict

from rich import box
from rich.console import Console
from rich.table import Table

from sft.config import parse, read_values
from sft.memory import DEFAULTS, FUSED, GB, PAGED, Memory, NoCount, count_for, memory

CARDS = (8, 12, 16, 24, 32, 40, 48, 80, 141)  # GB
NAMED = {  # GB that are there to use
    "3060": 12, "4060": 8, "4070": 12, "4080": 16, "3090": 24, "4090": 24, "5070": 12, "5080": 16,
    "5090": 32, "t4": 14.6, "v100": 16, "l4": 22, "a10": 22, "a10g": 22, "a40": 45, "l40s": 44.5,
    "a6000": 48, "a100": 79, "h100": 79, "h200": 140, "b200": 178,
}  # fmt: skip
BATCHES, LENGTHS = (1, 2, 4, 8), (512, 1024, 2048, 4096)
OPTIONS = {"card": "", "max": False, "lesson": False, "json": False, "trained_share": 0.25}
COLOURS = {"fits": "green", "tight": "yellow", "won't": "red"}


def main(argv: list[str]) -> None:
    """Print what the options say.

    Raises:
        SystemExit: a card or a key does not exist, or the step cannot be counted.
    """
    options, overrides = parse(argv, __doc__, **OPTIONS)
    try:
        step = Step(overrides, options.trained_share)
    except NoCount as error:
        raise SystemExit(str(error)) from None
    cards = (card_gb(options.card),) if options.card else CARDS
    if options.json:
        now = step.memory()
        print(json.dumps(asdict(now) | {"cards": {f"{gb:g}": now.verdict(gb) for gb in cards}}))
    elif options.lesson:
        print_lesson(step)
    elif options.max:
        print_max(step, cards)
    else:
        print_all(step, cards)


class Step:
    """One training step, with settings that can be changed."""

    def __init__(self, overrides: list[str], trained_share: float = 0.25):
        self.count = count_for(overrides)
        self.settings = DEFAULTS | read_values(overrides) | {"trained_share": trained_share}

    def memory(self, **changes) -> Memory:
        """What it takes with these settings changed."""
        return memory(self.count, self.settings | changes)

    def sized(self, batch: int, length: int) -> Memory:
        return self.memory(per_device_train_batch_size=batch, max_length=length)

    def changes(self) -> Iterator[tuple[dict, str]]:
        """Values of config.yaml that save memory, and their price; the cheapest come first."""
        now = self.settings
        if (batch := now["per_device_train_batch_size"]) > 1:
            steps = now["gradient_accumulation_steps"] * batch
            sizes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": steps}
            yield sizes, "the same result, a little slower"
        if not now["activation_checkpointing"]:
            yield {"activation_checkpointing": True}, "a quarter slower"
        if PAGED in self.count["optimizers"] and now["optim"] in ("auto", FUSED):
            yield {"optim": PAGED}, "the optimizer's averages are rounded"
        if now.get("r", 0) > 16:
            yield {"r": 16}, "a smaller adapter learns less"
        if (length := now["max_length"]) >= 512:
            yield {"max_length": length // 2}, "longer rows are skipped"

    def largest(self, key: str, card: float) -> int:
        """The largest value of a size that fits a card; 0 if 1 is too large already."""
        low, high = 0, 2**24
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.memory(**{key: middle}).verdict(card) == "fits"
            low, high = (middle, high) if fits else (low, middle)
        return low


def card_gb(name: str) -> float:
    """The memory of a card in GB, by its size or its name.

    Raises:
        SystemExit: no card of that name is known.
    """
    key = re.sub(r"nvidia|geforce|tesla|rtx|gb$|[^a-z0-9.]", "", name.lower())
    if key in NAMED:
        return NAMED[key]
    if re.fullmatch(r"\d+(\.\d+)?", key) and 0 < float(key) < 1000:
        return float(key)
    raise SystemExit(
        f"There is no card {name!r} here; give its memory in GB, such as --card 24, or one of "
        f"{', '.join(NAMED)}."
    )


def smallest(one: Memory, verdicts: tuple = ("fits",)) -> int | None:
    """The first of `CARDS` with such a verdict."""
    return next((gb for gb in CARDS if one.verdict(gb) in verdicts), None)


def summary(step: Step) -> str:
    now, fits = step.memory(), smallest(step.memory())
    return (
        f"With these settings (batch size {step.settings['per_device_train_batch_size']}, "
        f"{step.settings['max_length']} tokens) the peak is {gb(now.peak)} GB: "
        f"fits {f'a card of {fits}' if fits else f'no card of {CARDS[-1]}'} GB."
    )


def gb(size: float) -> str:
    return f"{size / GB:.1f}"


def print_table(
    title: str, columns: list[str], rows: list[list[str]], bold_end: bool = False
) -> None:
    """Print a table whose columns but the first are numbers, and those without a name are text."""
    table = Table(*columns[:1], box=box.SIMPLE_HEAD)
    for name in columns[1:]:
        table.add_column(name, justify="right" if name else "left")
    for number, row in enumerate(rows, start=1):
        table.add_row(*row, style="bold" if bold_end and number == len(rows) else None)
    console = Console(highlight=False)
    console.print(f"[italic]{title}[/]", table, sep="\n")


def print_all(step: Step, cards: tuple) -> None:
    """The parts of the peak, the sizes, the cards, and what would help."""
    now = step.memory()
    print(
        f"{step.settings['base_model_path']}: {now.parameters:,} parameters, {now.quantized:,} of "
        f"them quantized; {now.trainable:,} are trained.\n"
    )
    longest = max(now.parts.values())
    parts = [
        [name, gb(size), f"[cyan]{'█' * round(40 * size / longest)}[/]"]
        for name, size in sorted(now.parts.items(), key=lambda part: -part[1])
    ]
    parts.append(["peak", gb(now.peak), f"in {now.peak_at}"])
    print_table("What the peak is made of", ["", "GB", ""], parts, bold_end=True)

    shades = dict(zip(cards if len(cards) == 1 else (24, 80), ("green", "yellow"), strict=False))
    sizes = []
    for batch in BATCHES:
        row = [step.sized(batch, length) for length in LENGTHS]
        shade = [next((s for c, s in shades.items() if m.verdict(c) == "fits"), "red") for m in row]
        sizes.append(
            [f"{batch}", *(f"[{s}]{gb(m.peak)}[/]" for s, m in zip(shade, row, strict=True))]
        )
    fit = ", ".join(f"[{shade}]{shade}[/] fits {card:g} GB" for card, shade in shades.items())
    title = f"GB by batch size and length: {fit}, [red]red[/] does not"
    print_table(title, ["batch size", *(f"{n} tokens" for n in LENGTHS)], sizes)

    verdicts = {card: now.verdict(card) for card in cards}
    row = [f"[{COLOURS[verdict]}]{verdict}[/]" for verdict in verdicts.values()]
    print_table("With these settings a card of", [f"{card:g} GB" for card in cards], [row])
    print(summary(step))
    if small := [card for card, verdict in verdicts.items() if verdict != "fits"]:
        print_advice(step, small[-1])


def print_advice(step: Step, card: float) -> None:
    """What would help to fit a card: each change alone, then one after the other until it fits."""
    now, taken, rows = step.memory(), {}, []
    for change, price in step.changes():
        alone = step.memory(**change)
        if alone.peak > 0.99 * now.peak:
            continue
        name = "\n".join(f"{key}: {json.dumps(value)}" for key, value in change.items())
        rows.append([name, gb(alone.peak), price])
        if step.memory(**taken).verdict(card) != "fits":
            taken |= change
    if rows:
        print_table(f"\nWhat would help to fit {card:g} GB", ["", "then GB", ""], rows)
    if step.memory(**taken).verdict(card) == "fits":
        words = " ".join(f"--{key} {json.dumps(value)}" for key, value in taken.items())
        print(f"The cheapest that fits {card:g} GB: {words}")
    else:
        print(f"No value fits {card:g} GB: take a smaller model, or train fewer parameters.")


def print_max(step: Step, cards: tuple) -> None:
    """The largest sizes that fit, card by card."""
    keys = ("max_length", "per_device_train_batch_size")
    rows = []
    for card in cards:
        found = [step.largest(key, card) for key in keys]
        rows.append([f"{card:g} GB", *(f"{n:,}" if n else "-" for n in found)])
    print_table("The most that fits, each with the other as it is", ["card", *keys], rows)


def print_lesson(step: Step) -> None:
    """Training a parameter takes 16 bytes; where they go, in figures of this model."""
    now = step.memory()
    whole, trained = now.parameters / GB, now.trainable / GB
    frozen = sum(n for name, n in now.parts.items() if name.startswith(("base", "quant"))) / GB
    frozen = frozen if now.trainable < now.parameters else 0
    rows = [
        ["weights", *(f"{n:.1f}" for n in (whole / 2, 4 * whole, frozen + 4 * trained))],
        ["gradients", *(f"{4 * n:.1f}" for n in (whole, whole, trained))],
        ["two averages of AdamW", *(f"{8 * n:.1f}" for n in (whole, whole, trained))],
        ["together", *(f"{n:.1f}" for n in (12.5 * whole, 16 * whole, frozen + 16 * trained))],
    ]
    columns = ["", "weights in 4 bits", "every weight", "this project"]
    print_table("Three ways to train, in GB", columns, rows, bold_end=True)
    print(
        "A trained parameter takes 16 bytes: weight 4, gradient 4, the optimizer's averages 8.\n"
        "Weights in 4 bits save a quarter at best, and cannot be trained: a gradient step is much\n"
        "finer than the distance between two 4-bit numbers. What is frozen has no gradient and no\n"
        f"averages. Here {now.trainable:,} of {now.parameters:,} parameters are trained."
    )


if __name__ == "__main__":
    main(sys.argv[1:])
