"""Will it fit? The memory of one training step with this project's settings, before renting a GPU.

python vram.py                      what the peak is made of, which cards are enough, what helps

  --card             the verdict for a card, GB or a name such as T4, and what to change for it
  --cards            the same for one of so many cards, over which weights of 16 bits are spread
  --max              the longest rows and the largest batch for each card
  --lesson           why 16 bytes a trained parameter decide, and not their bits
  --json             in bytes, for programs
  --trained_share    the share of tokens that are trained on; 0.25

A step of this project's own code is counted (sft/count.py). What you change there is counted anew,
as is another model: --base_model_path ORG/NAME. One GB is 2**30 bytes.
"""

import importlib.util
import json
import re
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from sft.config import AUTO, harmless, parse, read_values, run, spread_by
from sft.memory import DEFAULTS, FUSED, GB, PAGED, Memory, NoCount, count_for, memory, read_config

CARDS = (8, 12, 16, 24, 32, 40, 48, 80, 141)  # GB
NAMED = {  # GB that are there to use
    "3060": 12, "4060": 8, "4070": 12, "4080": 16, "3090": 24, "4090": 24, "5070": 12, "5080": 16,
    "5090": 32, "t4": 14.6, "v100": 16, "l4": 22, "a10": 22, "a10g": 22, "a40": 45, "l40s": 44.5,
    "a6000": 48, "a100": 79, "h100": 79, "h200": 140, "b200": 178,
}  # fmt: skip
BATCH, LENGTH = "per_device_train_batch_size", "max_length"
BATCHES, LENGTHS = (1, 2, 4, 8), (512, 1024, 2048, 4096)
OPTIONS = {"card": "", "cards": 1, "max": False, "lesson": False, "json": False}
OPTIONS |= {"trained_share": 0.25}


def main(argv: list[str]) -> None:
    """Print what the options say; exits where a card does not exist or a step cannot be counted."""
    options, overrides = parse(argv, __doc__, **OPTIONS)
    cards = (card_gb(options.card),) if options.card else CARDS
    step = Step(overrides, options.trained_share, options.cards)
    if options.json:
        now = step.memory()
        print(json.dumps(asdict(now) | {"cards": {f"{gb:g}": now.verdict(gb) for gb in cards}}))
    elif options.lesson:
        print_lesson(step.memory())
    elif options.max:
        print_max(step, cards)
    else:
        print_all(step, cards)


def advise(args: Any, overrides: list[str], card: float) -> str:
    """Print what would have fitted; returns a run's last sentence. `args`: `TrainingArguments`."""
    chosen = [f"--activation_checkpointing={args.activation_checkpointing}"]
    if spread_by() == "FSDP":
        chosen += [f"--cards={args.world_size}"]
    with suppress(SystemExit):  # its step cannot be counted
        main([f"--card={card:.1f}", *overrides, *chosen, f"--optim={args.optim.value}"])
    return "Out of memory; with other values it is another run, in its own --output_dir."


class Step:
    """One training step, with settings that can be changed."""

    def __init__(self, overrides: list[str], trained_share: float = 0.25, cards: int = 1):
        self.count, self.cards = count_for(overrides), cards
        if cards != 1:
            self.count = share_of_one(self.count, overrides, cards)
        self.settings = DEFAULTS | read_values(overrides) | {"trained_share": trained_share}
        shape = read_config(self.settings)
        positions = (shape.get("text_config") or shape).get("max_position_embeddings")
        if positions and self.settings[LENGTH] > positions:
            raise SystemExit(f"The model knows {positions:,} positions: lower max_length.")

    def memory(self, **changes) -> Memory:
        """What it takes with these settings changed."""
        return memory(self.count, self.settings | changes)

    def changes(self) -> Iterator[tuple[dict, str]]:
        """Values of config.yaml that save memory, and their price; the cheapest come first."""
        now = self.settings
        steps = now["gradient_accumulation_steps"] * now[BATCH]
        if now[BATCH] > 1:
            sizes = {BATCH: 1, "gradient_accumulation_steps": steps}
            yield sizes, "the same result, a little slower"
        if not now["activation_checkpointing"]:
            yield {"activation_checkpointing": True}, "a quarter slower"
        # an 8-bit optimizer cannot be spread over cards
        if PAGED in self.count["optimizers"] and now["optim"] in (AUTO, FUSED) and self.cards == 1:
            yield {"optim": PAGED}, "the optimizer's averages are rounded"
        if now.get("r", 0) > 16:
            yield {"r": 16}, "a smaller adapter learns less"
        if now[LENGTH] >= 512:
            yield {LENGTH: now[LENGTH] // 2}, "longer rows are skipped"

    def largest(self, key: str, card: float) -> int:
        """The largest value of a size that fits a card; 0 if 1 is too large already."""
        sizes = range(1, 2**24)
        return bisect_left(
            sizes, True, key=lambda size: self.memory(**{key: size}).verdict(card) != "fits"
        )


def share_of_one(count: dict, overrides: list[str], cards: int) -> dict:
    """The count of one of several cards; exits where no weights are spread over them."""
    if cards < 1:
        raise SystemExit(f"--cards is how many there are, not {cards}.")
    if importlib.util.find_spec("sft.spread") is None:
        why = "quantized weights are not spread over cards: each holds the whole model"
        raise SystemExit(f"--cards: {why} (launch/ddp.yaml), and takes what a single one takes.")
    if importlib.util.find_spec("torch") is None:
        raise NoCount("To count one of several cards, install the project first.")
    return importlib.import_module("sft.spread").share(count, overrides, cards)


def card_gb(name: str) -> float:
    """The memory of a card in GB, by its size or its name; exits at a name that is not known."""
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


def gb(size: float) -> str:
    return f"{size / GB:.1f}"


def coloured(text: str, verdict: str) -> str:
    colour = {"fits": "green", "tight": "yellow", "won't": "red"}[verdict]
    return f"[{colour}]{text}[/]"


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table; columns with a name hold numbers, but for the first."""
    table = Table(*columns[:1], box=box.SIMPLE_HEAD)
    for name in columns[1:]:
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(f"[italic]{title}[/]", table, sep="\n")


def print_all(step: Step, cards: tuple) -> None:
    """The parts of the peak, the sizes, the cards, and what would help."""
    now, name = step.memory(), harmless(step.settings["base_model_path"])
    print(
        f"{name}: {now.parameters:,} parameters, {now.quantized:,} of them quantized; "
        f"{now.trainable:,} are trained.\n"
    )
    longest = max(now.parts.values())
    parts = [
        [name, gb(size), f"[cyan]{'█' * round(40 * size / longest)}[/]"]
        for name, size in sorted(now.parts.items(), key=lambda part: -part[1])
    ]
    parts.append(["[bold]peak[/]", f"[bold]{gb(now.peak)}[/]", f"in {now.peak_at}"])
    print_table("What the peak is made of", ["", "GB", ""], parts)

    card = cards[0] if len(cards) == 1 else 24
    sizes = []
    for batch in BATCHES:
        row = [step.memory(**{BATCH: batch, LENGTH: length}) for length in LENGTHS]
        sizes.append([f"{batch}", *(coloured(gb(one.peak), one.verdict(card)) for one in row)])
    meaning = f"[green]green[/] fits {card:g} GB, [yellow]yellow[/] is tight, [red]red[/] won't"
    columns = ["batch size", *(f"{length} tokens" for length in LENGTHS)]
    print_table(f"GB by batch size and length: {meaning}", columns, sizes)

    verdicts = {card: now.verdict(card) for card in cards}
    row = [coloured(verdict, verdict) for verdict in verdicts.values()]
    print_table("With these settings a card of", [f"{card:g} GB" for card in cards], [row])
    enough = f"a card of {smallest(now)}" if smallest(now) else f"no card of {CARDS[-1]}"
    how = f"batch size {step.settings[BATCH]}, {step.settings[LENGTH]} tokens"
    where = f"on each of {step.cards} cards " if step.cards > 1 else ""
    print(f"With these settings ({how}) the peak {where}is {gb(now.peak)} GB: fits {enough} GB.")
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
    rows = []
    for card in cards:
        found = [step.largest(key, card) for key in (LENGTH, BATCH)]
        rows.append([f"{card:g} GB", *(f"{n:,}" if n else "-" for n in found)])
    print_table("The most that fits, each with the other as it is", ["card", LENGTH, BATCH], rows)


def print_lesson(now: Memory) -> None:
    """Training a parameter takes 16 bytes; where they go, in figures of this model."""
    whole, trained = now.parameters / GB, now.trainable / GB
    frozen = sum(n for name, n in now.parts.items() if name.startswith(("base", "quant"))) / GB
    frozen *= now.trainable < now.parameters
    ways = {  # weights, gradients, averages
        "weights in 4 bits": (whole / 2, 4 * whole, 8 * whole),
        "every weight": (4 * whole, 4 * whole, 8 * whole),
        "this project": (frozen + 4 * trained, 4 * trained, 8 * trained),
    }
    columns = ["", "weights", "gradients", "two averages of AdamW", "together"]
    rows = [[name, *(f"{n:.1f}" for n in (*way, sum(way)))] for name, way in ways.items()]
    print_table("Three ways to train, in GB", columns, rows)
    print(
        "A trained parameter takes 16 bytes: weight 4, gradient 4, the optimizer's averages 8.\n"
        "Weights in 4 bits save a quarter at best, and cannot be trained: a gradient step is much\n"
        "finer than the distance between two 4-bit numbers. What is frozen has no gradient and no\n"
        f"averages. Here {now.trainable:,} of {now.parameters:,} parameters are trained."
    )


if __name__ == "__main__":
    run(main)
