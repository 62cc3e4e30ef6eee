"""Will it fit? The memory of one training step with this project's settings, before renting a GPU.

python vram.py                      what the peak is made of, which cards are enough, what helps
python vram.py --card T4            the verdict for a card, GB or a name, and what to change for it
python vram.py --max                the longest rows and the largest batch for each card
python vram.py --lesson             why training on 4-bit weights would not help, and LoRA does

A step of this project's own code is counted (sft/count.py): what you change there is counted anew,
which takes some seconds. Another model: --base_model_path Qwen/Qwen3-4B. One GB is 2**30 bytes.
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from rich import box
from rich.console import Console
from rich.table import Table

from sft.config import parse, read_values
from sft.memory import DEFAULTS, FUSED, GB, PAGED, Memory, NoCount, count_for, memory

CARDS = (8, 12, 16, 24, 32, 40, 48, 80, 141)  # GB
NAMED = {  # GB that are there to use
    "3060": 12, "4060": 8, "4070": 12, "4080": 16, "3090": 24, "4090": 24, "5060ti": 16,
    "5070": 12, "5080": 16, "5090": 32, "t4": 14.6, "p100": 16, "v100": 16, "l4": 22, "a10": 22,
    "a10g": 22, "a40": 45, "l40s": 44.5, "a6000": 48, "a100": 79, "a10040": 39, "h100": 79,
    "h200": 140, "b200": 178,
}  # fmt: skip
BATCHES, LENGTHS = (1, 2, 4, 8), (512, 1024, 2048, 4096)
COLOURS = {"fits": "green", "tight": "yellow", "won't": "red"}


@dataclass
class Options:
    card: Annotated[str | None, "the card to judge: GB, or a name such as T4"] = None
    max: Annotated[bool, "the longest rows and the largest batch, card by card"] = False
    lesson: Annotated[bool, "why 4 bits do not make full training cheap, and LoRA does"] = False
    trained_share: Annotated[float, "the share of tokens that are trained on (0.25)"] = 0.25
    json: Annotated[bool, "in bytes, for programs"] = False
    markdown: Annotated[bool, "the table of the README"] = False
    plot: Annotated[Path | None, "draw the parts of the peak to this .svg or .png file"] = None


def main(argv: list[str]) -> None:
    """Print what is asked for.

    Raises:
        SystemExit: a card or setting that does not exist, or a step that cannot be counted.
    """
    options, overrides = parse(argv, __doc__, Options)
    try:
        count = count_for(overrides)
    except NoCount as error:
        raise SystemExit(str(error)) from None
    settings = DEFAULTS | read_values(overrides) | {"trained_share": options.trained_share}
    step = Step(count, settings)
    card = card_gb(options.card) if options.card else None
    if options.json:
        cards = {f"{gb:g}": step.memory().verdict(gb) for gb in ((card,) if card else CARDS)}
        print(json.dumps(asdict(step.memory()) | {"cards": cards}, indent=2))
    elif options.markdown:
        print_markdown(step)
    elif options.lesson:
        print_lesson(step)
    elif options.max:
        print_max(step, (card,) if card else CARDS)
    elif options.plot:
        plot(step, options.plot)
    else:
        print_tables(step, card)


class Step:
    """One training step with settings that can be changed."""

    def __init__(self, count: dict, settings: dict):
        self.count, self.settings = count, settings

    @cache  # noqa: B019
    def _memory(self, changes: tuple) -> Memory:
        return memory(self.count, self.settings | dict(changes))

    def memory(self, **changes) -> Memory:
        """What it takes with these settings changed."""
        return self._memory(tuple(changes.items()))

    def changes(self) -> Iterator[tuple[dict, str]]:
        """Values of config.yaml that save memory, and their price; the cheapest come first."""
        now = self.settings
        if (batch := now["per_device_train_batch_size"]) > 1:
            steps = now["gradient_accumulation_steps"] * batch
            sizes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": steps}
            yield sizes, "the same result, a little slower"
        if not now["activation_checkpointing"]:
            yield {"activation_checkpointing": True}, "a quarter slower"
        if PAGED in self.count["optimizers"] and now["optim"] in ("auto", FUSED, "adamw_torch"):
            yield {"optim": PAGED}, "the optimizer's averages in 8 bits"
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
    """The memory of a card in GB, by its size or name.

    Raises:
        SystemExit: there is no card of that name here.
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


def gb(size: float) -> str:
    return f"{size / GB:.1f}"


def table(title: str, *columns: str) -> Table:
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, name in enumerate(columns):
        made.add_column(name, justify="right" if number else "left")
    return made


def print_markdown(step: Step) -> None:
    print(f"| GB at the peak | {' | '.join(f'{n} tokens' for n in LENGTHS)} |")
    print("|---|" + "---|" * len(LENGTHS))
    for batch in BATCHES:
        cells = []
        for length in LENGTHS:
            one = step.memory(per_device_train_batch_size=batch, max_length=length)
            fits, tight = smallest(one), smallest(one, ("fits", "tight"))
            card = f"**{fits}**" if fits else "no card"
            cells.append(f"{gb(one.peak)} → {card}" + (f" ({tight})" if tight != fits else ""))
        print(f"| batch size {batch} | {' | '.join(cells)} |")
    print(
        f"\nAfter each figure the smallest card that it fits, of {', '.join(map(str, CARDS))} GB; "
        f"in brackets the one that would be tight.\n\n{summary(step)}"
    )


def summary(step: Step) -> str:
    now, settings = step.memory(), step.settings
    fits = smallest(now)
    return (
        f"With these settings (batch size {settings['per_device_train_batch_size']}, "
        f"{settings['max_length']} tokens) the peak is {gb(now.peak)} GB: "
        f"fits {f'a card of {fits}' if fits else f'no card of {CARDS[-1]}'} GB."
    )


def print_tables(step: Step, card: float | None) -> None:
    console, now, settings = Console(highlight=False), step.memory(), step.settings
    console.print(settings["base_model_path"], style="bold", markup=False)
    console.print(f"{now.trainable:,} of {now.parameters:,} parameters are trained.")
    if now.quantized:
        share = f"{now.quantized / 1e9:.1f} of {now.parameters / 1e9:.1f} billion"
        console.print(f"{share} are quantized; the rest stays in 16 bits.")
    console.print()

    parts = table("What the peak is made of", "part", "GB", "")
    block = "#" if console.options.ascii_only else "█"
    for name, size in sorted(now.parts.items(), key=lambda part: -part[1]):
        bar = block * round(40 * size / max(now.parts.values()))
        parts.add_row(name, gb(size), f"[cyan]{bar:<40}[/]")
    parts.add_row("peak", gb(now.peak), f"reached at: {now.peak_at}", style="bold")
    console.print(parts)

    sizes = table("GB by batch size and length", "batch size", *(f"{n} tokens" for n in LENGTHS))
    verdict_of = [card] if card else [24, 80]
    for batch in BATCHES:
        row = (step.memory(per_device_train_batch_size=batch, max_length=n) for n in LENGTHS)
        sizes.add_row(str(batch), *(f"[{colour(one, verdict_of)}]{gb(one.peak)}[/]" for one in row))
    console.print(sizes)
    said = " ".join(
        f"[{name}]{name}[/] fits {gb:g} GB,"
        for name, gb in zip(("green", "yellow"), verdict_of, strict=False)
    )
    console.print(f"{said} [red]red[/] does not\n")

    cards = [card] if card else CARDS
    verdicts = table("Cards, with these settings", *(f"{gb:g} GB" for gb in cards))
    judged = [now.verdict(gb) for gb in cards]
    verdicts.add_row(*(f"[{COLOURS[verdict]}]{verdict}[/]" for verdict in judged))
    console.print(verdicts)
    small = max((gb for gb in cards if now.verdict(gb) != "fits"), default=None)
    if small:
        print_advice(console, step, small)


def colour(one: Memory, cards: list[float]) -> str:
    fitting = (
        name
        for name, gb in zip(("green", "yellow"), cards, strict=False)
        if one.verdict(gb) == "fits"
    )
    return next(fitting, "red")


def print_advice(console: Console, step: Step, card: float) -> None:
    now, together = step.memory(), {}
    advice = table(f"What would help to fit {card:g} GB", "change", "saves", "then", "together", "")
    for change, price in step.changes():
        alone = step.memory(**change)
        if alone.peak > 0.99 * now.peak:
            continue
        fits_already = together and step.memory(**together).verdict(card) == "fits"
        together = together if fits_already else together | change
        name = ", ".join(f"{key}: {json.dumps(value)}" for key, value in change.items())
        sizes = (gb(now.peak - alone.peak), gb(alone.peak))
        all_of_it = "" if fits_already else gb(step.memory(**together).peak)
        advice.add_row(name, *sizes, all_of_it, price)
    console.print(advice)
    verdict = step.memory(**together).verdict(card)
    if verdict == "fits":
        names = ", ".join(f"{key}: {json.dumps(value)}" for key, value in together.items())
        console.print(f"The cheapest that fits: {names}.", markup=False)
    else:
        console.print(
            f"Only another project fits {card:g} GB: a smaller base model, fewer bits or LoRA."
        )


def print_max(step: Step, cards: tuple) -> None:
    batch, length = (step.settings[key] for key in ("per_device_train_batch_size", "max_length"))
    most = table(
        "The most that fits",
        "card",
        f"longest max_length, batch size {batch}",
        f"largest batch size, {length} tokens",
    )
    for card in cards:
        found = [step.largest(key, card) for key in ("max_length", "per_device_train_batch_size")]
        most.add_row(f"{card:g} GB", *(f"{n:,}" if n else "-" for n in found))
    Console(highlight=False).print(most)


def print_lesson(step: Step) -> None:
    """Training a parameter takes 16 bytes; where they go, in figures of this model."""
    now = step.memory()
    whole, trained = now.parameters / GB, now.trainable / GB
    frozen = sum(n for name, n in now.parts.items() if name.startswith(("base", "quant"))) / GB
    ways = table("Three ways to train it, in GB", "", "weights in 4 bits", "full", "as here")
    ways.add_row("weights", f"{whole / 2:.1f}", f"{4 * whole:.1f}", f"{frozen + 4 * trained:.1f}")
    ways.add_row("gradients", *(f"{4 * n:.1f}" for n in (whole, whole, trained)))
    ways.add_row("two averages of AdamW", *(f"{8 * n:.1f}" for n in (whole, whole, trained)))
    sums = (12.5 * whole, 16 * whole, frozen + 16 * trained)
    ways.add_row("together", *(f"{n:.1f}" for n in sums), style="bold")
    console = Console(highlight=False)
    console.print(ways)
    console.print(
        "A trained parameter takes 16 bytes: its weight 4, its gradient 4 and the optimizer's two "
        "averages 8. Weights in 4 bits would save a quarter of that at best, and could not be "
        "trained: a gradient step is much finer than the distance between two 4-bit numbers. What "
        f"is frozen has neither gradient nor averages and may be rounded; here {now.trainable:,} "
        f"of {now.parameters:,} parameters are trained."
    )


def plot(step: Step, file: Path) -> None:
    """The parts of the peak as a bar beside the cards, drawn by matplotlib."""
    import matplotlib

    matplotlib.use("Agg")  # no display is needed
    import matplotlib.pyplot as plt

    if file.suffix not in (".svg", ".png"):
        raise SystemExit(f"--plot writes .svg or .png, not {str(file)!r}.")
    now, left = step.memory(), 0.0
    figure, axes = plt.subplots(figsize=(9, 3.5), layout="constrained")
    for name, size in now.parts.items():
        axes.barh([""], [size / GB], left=left, label=f"{name}, {gb(size)}")
        left += size / GB
    for card in (card for card in CARDS if card < 2 * left or card == smallest(now)):
        axes.axvline(card, color="black", lw=0.8, ls=":")
        axes.text(card, 0, f"{card} GB", ha="right", va="center", rotation=90, fontsize=8)
    axes.set(xlabel="GB", title=f"{step.settings['base_model_path']}: {gb(now.peak)} GB")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(file)
    print(f"Drawn: {file}")


if __name__ == "__main__":
    main(sys.argv[1:])
