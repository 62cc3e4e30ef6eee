"""Will it fit? The memory of one training step with this project's settings, before renting a GPU.

python vram.py                      what the peak is made of, which cards are enough, what helps
python vram.py --card 24            advice for that card: GB, or a name such as T4
python vram.py --max                the longest rows and the largest batch for each card
python vram.py --lesson             why training on 4-bit weights would not help, and LoRA does
python vram.py --trace              counted instead of calculated, for what has no formula (seconds)
python vram.py --plot memory.svg    the bars as a picture, .svg or .png
python vram.py --json, --markdown   in bytes; as in the README

Any key of config.yaml can be tried, and any other answer, too:
python vram.py --max_length 4096 --quantization int8 --lora_targets mlp --base_model Qwen/Qwen3-4B

The bytes are explained in sft/vram.py. One GB is 2**30 bytes, as on the label of a card.
"""

import difflib
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from sft.advice import advice, largest, lesson, savings
from sft.vram import GB, Estimate, estimate, target_modules, trainable

ROOT = Path(__file__).resolve().parent
CARDS = (8, 12, 16, 24, 40, 48, 80, 141)  # GB
NAMED = {  # GB that are there to use
    "rtx3060": 12, "rtx4060": 8, "rtx4070": 12, "rtx4080": 16, "rtx3090": 24, "rtx4090": 24,
    "rtx5080": 16, "rtx5090": 32, "t4": 14.6, "v100": 16, "l4": 22, "a10": 22, "a10g": 22,
    "l40s": 44.5, "a6000": 48, "a100": 79, "h100": 79, "h200": 140, "b200": 178,
}  # fmt: skip
BATCH_SIZES = (1, 2, 4, 8)
LENGTHS = (512, 1024, 2048, 4096)
STRUCTURE = ("quantization", "lora_targets", "collator", "base_model")  # of answers.json
OPTIONAL = ("r", "lora_dropout", "target_modules", "trained_share")  # not in every config.yaml
ALIASES = {"lora_r": "r", "gpu": "card"}
COLOURS = {"fits": "green", "tight": "yellow", "won't": "red"}


class Refusal(Exception):
    """One sentence for the user: what is wrong, and how to mend it."""


def main(argv: list[str]) -> int:
    if {"-h", "--help"} & {*argv}:
        print(__doc__)
        return 0
    looks = {
        "json": print_json,
        "markdown": print_markdown,
        "max": print_max,
        "lesson": print_lesson,
        "plot": plot,
    }
    try:
        given = overrides(argv, [*looks, "trace"])
        card = the_card(given.pop("card", None))
        chosen = [name for name in looks if name in given]
        way = given.pop("trace", None)
        if len(chosen) > 1:
            raise Refusal(f"Choose one of --{' and --'.join(chosen)}.")
        options = {"card": card, "file": given.pop("plot", None)}
        given = {key: value for key, value in given.items() if key not in looks}
        settings = read_settings(given)
        shape = read_shape(settings)
        complete(settings, shape, given)
        now = traced(shape, settings, given) if way else estimate(shape, settings)
        look = looks[chosen[0]] if chosen else print_trace if way else print_tables
        look(shape, settings, now, **options)
    except (Refusal, ValueError) as refusal:
        print(refusal, file=sys.stderr)
        return 2
    return 0


# --- settings ------------------------------------------------------------------------------------


def overrides(argv: list[str], flags: list[str]) -> dict:
    """`--key value` and `--key=value` as a dict; values are YAML, as in config.yaml."""
    words: dict[str, list[str]] = {}
    key = None
    for word in argv:
        if word.startswith("--"):
            key, given, value = word[2:].partition("=")
            key = ALIASES.get(key, key)
            words[key] = [value] if given else []
        elif key is None:
            raise Refusal(f"{word!r} belongs to no setting; write --key value.")
        else:
            words[key].append(word)
    values = {}
    for key, texts in words.items():
        if key in flags and key != "plot":
            if texts:
                raise Refusal(f"{texts[0]!r} belongs to no setting; --{key} takes no value.")
            values[key] = True
        elif not texts:
            raise Refusal(f"--{key} has no value; write --{key} value.")
        else:
            try:
                values[key] = yaml.safe_load(" ".join(texts))
            except yaml.YAMLError:
                raise Refusal(f"The value of --{key} is not valid YAML; quote it.") from None
    return values


def the_card(said) -> float | None:
    """The memory of the card that was named, in GB."""
    if said is None:
        return None
    name = str(said).lower().replace(" ", "").removeprefix("nvidia").removesuffix("gb").strip("-")
    for known in (name, name.replace("-", ""), f"rtx{name}"):
        if known in NAMED:
            return NAMED[known]
    with suppress(ValueError):
        if (gib := float(str(said).lower().removesuffix("gb"))) > 0:
            return gib
    raise Refusal(
        f"There is no card {said!r} here; give its memory in GB, such as --card 24, or one of "
        f"{', '.join(NAMED)}."
    )


def read_settings(given: dict) -> dict:
    """config.yaml, the structural answers, then what the command line says."""
    config = _read("config.yaml", yaml.safe_load)
    answers = _read("answers.json", json.loads).get("answers")
    if not isinstance(answers, dict):
        raise Refusal("answers.json has no answers; restore the file that came with the project.")
    settings = {key: answers.get(key) for key in STRUCTURE} | config
    known = [*settings, *OPTIONAL]
    for key in given:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0)[0]
            raise Refusal(f"There is no setting {key!r}; the nearest is {nearest!r}.")
    if "base_model" in given:
        given.setdefault("base_model_path", given["base_model"])
    if isinstance(given.get("target_modules"), str):
        given["target_modules"] = given["target_modules"].split()
    settings |= given
    # base_model/config.json is the shape of what was answered here
    settings["answered_path"] = answers.get("base_model_path", answers.get("base_model"))
    return settings


def complete(settings: dict, shape: dict, given: dict) -> None:
    """A structural answer brings its own values along, as if the project had been made with it."""
    if "quantization" in given and "activation_checkpointing_kwargs" not in given:
        int8 = given["quantization"] == "int8"
        settings["activation_checkpointing_kwargs"] = {"use_reentrant": int8}
    if "lora_targets" in given and "dtype" not in given:
        settings["dtype"] = "float32" if given["lora_targets"] == "full" else "bfloat16"
    if settings["lora_targets"] != "full":
        settings.setdefault("r", 64)
        names, other = settings.get("target_modules"), "base_model_path" in given
        if "target_modules" in given or (names and not other and "lora_targets" not in given):
            return
        with suppress(ValueError):  # of a model without a formula the names stay as they are
            fitting = {*(names or ())} <= {*target_modules(shape, "all_linear")}
            if "lora_targets" in given or not fitting:
                settings["target_modules"] = target_modules(shape, settings["lora_targets"])


def read_shape(settings: dict) -> dict:
    """The config.json of the base model: from its folder, this project, or the Hub."""
    path = settings.get("base_model_path")
    if not isinstance(path, str) or not path:
        raise Refusal("base_model_path is empty; name a model on the Hub or a local folder.")
    folder = os.path.join(ROOT, os.path.expanduser(path))
    if os.path.isdir(folder):
        return _read(os.path.join(folder, "config.json"), json.loads)
    bundled = _read("base_model/config.json", json.loads)
    name = bundled.get("_name_or_path")
    if path == name:
        return bundled
    if path == settings["answered_path"]:
        print(f"The shape of {name} is assumed for {path}.", file=sys.stderr)
        return bundled
    if shape := _read("base_model/menu.json", json.loads).get(path):
        return shape
    try:
        import logging

        from huggingface_hub import hf_hub_download

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # no word on each retry
        file = hf_hub_download(path, "config.json", revision=settings.get("revision"))
    except ImportError:
        raise Refusal(
            f"The shape of {path!r} is not in this project; install huggingface_hub to look it up."
        ) from None
    except Exception:  # no network, no such model, a gated one: the way out is the same
        raise Refusal(
            f"The config.json of {path!r} is neither in the cache nor to be had from the Hub; "
            "check the name and the network, or download the model to a folder."
        ) from None
    return _read(file, json.loads)


def _read(path, parse) -> dict:
    try:
        content = parse((ROOT / path).read_text(encoding="utf-8"))
    except OSError:
        raise Refusal(f"{path} cannot be read; restore the file.") from None
    except (yaml.YAMLError, ValueError):
        raise Refusal(f"{path} is not valid; correct it, or restore the file.") from None
    if not isinstance(content, dict):
        raise Refusal(f"{path} has no keys; correct it, or restore the file.")
    return content


def traced(shape: dict, settings: dict, given: dict) -> Estimate:
    """The estimate that sft/trace.py counts, with this project's own code."""
    answers = _read("answers.json", json.loads)["answers"]
    for key in ("quantization", "collator", "lora_targets"):
        same = given.get(key, answers[key]) == answers[key]
        lora = key == "lora_targets" and "full" not in (given.get(key), answers[key])
        if not same and not lora:
            raise Refusal(
                f"--trace runs this project's own code, which has {key} {answers[key]}; "
                f"generate a project with {given[key]} to trace that."
            )
    try:
        from sft.trace import trace_settings
    except ImportError as error:
        raise Refusal(f"--trace runs the training code; install the project ({error}).") from None
    try:
        return trace_settings(shape, settings)
    except SystemExit as refusal:  # the training code has its own sentences
        raise Refusal(refusal.code) from None


# --- the looks -----------------------------------------------------------------------------------


def gb(size: float) -> str:
    return f"{size / GB:.1f}"


def grid(shape: dict, settings: dict) -> dict[int, list[Estimate]]:
    """Estimates by batch size, for each of `LENGTHS`."""
    return {
        batch: [
            estimate(shape, settings | {"per_device_train_batch_size": batch, "max_length": length})
            for length in LENGTHS
        ]
        for batch in BATCH_SIZES
    }


def smallest(one: Estimate, verdicts=("fits",)) -> int | None:
    """The first of `CARDS` with such a verdict."""
    return next((gib for gib in CARDS if one.verdict(gib) in verdicts), None)


def print_json(shape: dict, settings: dict, now: Estimate, **_) -> None:
    names = ("parameters", "trainable", "quantized", "parts", "moments", "peak", "peak_at")
    content = {"base_model": settings["base_model_path"]}
    content |= {name: getattr(now, name) for name in names}
    print(json.dumps(content | {"cards": {gib: now.verdict(gib) for gib in CARDS}}, indent=2))


def print_markdown(shape: dict, settings: dict, now: Estimate, **_) -> None:
    print("| GB at the peak | " + " | ".join(f"{n} tokens" for n in LENGTHS) + " |")
    print("|---|" + "---|" * len(LENGTHS))
    for batch, row in grid(shape, settings).items():
        print(f"| batch size {batch} | " + " | ".join(map(_cell, row)) + " |")
    print(
        f"\nBehind each figure the smallest card that it fits, of {', '.join(map(str, CARDS))} GB; "
        "in brackets the one that would be tight.\n"
    )
    print(summary(settings, now))


def _cell(one: Estimate) -> str:
    fits, tight = smallest(one), smallest(one, ("fits", "tight"))
    card = f"**{fits}**" if fits else "no card"
    return f"{gb(one.peak)} → {card}" + (f" ({tight})" if tight != fits else "")


def summary(settings: dict, now: Estimate) -> str:
    batch, length = settings["per_device_train_batch_size"], settings["max_length"]
    enough = smallest(now)
    card = f"fits a card of {enough} GB" if enough else f"fits no card of {CARDS[-1]} GB"
    return (
        f"With these settings (batch size {batch}, {length} tokens) the peak is {gb(now.peak)} GB: "
        f"{card}."
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(columns[0])
    for name in columns[1:]:
        table.add_column(name, justify="right")
    return table


def _bars(console: Console, parts: dict[str, int], end: tuple[str, str, str]) -> Table:
    block = "#" if console.options.ascii_only else "█"
    scale = 40 / max(parts.values())
    table = _table("What the peak is made of", "part", "GB")
    table.add_column("")
    for name, size in parts.items():
        table.add_row(name, gb(size), f"[cyan]{block * round(size * scale)}[/]")
    table.add_row(*end, style="bold")
    return table


def _head(settings: dict, now: Estimate) -> Console:
    console = Console(highlight=False)
    console.print(settings["base_model_path"], style="bold", markup=False)
    console.print(describe(settings), markup=False)
    console.print(f"{now.trainable:,} of {now.parameters:,} parameters are trained.")
    if now.quantized:
        console.print(
            f"{now.quantized / 1e9:.1f} of {now.parameters / 1e9:.1f} billion are quantized; "
            "embeddings, norms, lm_head and the experts of a mixture stay in 16 bits."
        )
    console.print()
    return console


def _cards(now: Estimate) -> Table:
    table = Table(title="Cards, with these settings", title_justify="left", box=box.SIMPLE_HEAD)
    verdicts = [now.verdict(gib) for gib in CARDS]
    for gib in CARDS:
        table.add_column(f"{gib} GB", justify="right")
    table.add_row(*(f"[{COLOURS[verdict]}]{verdict}[/]" for verdict in verdicts))
    return table


def print_tables(shape: dict, settings: dict, now: Estimate, card=None, **_) -> None:
    console = _head(settings, now)
    console.print(_bars(console, now.parts, ("peak", gb(now.peak), f"reached at: {now.peak_at}")))
    table = _table("GB by batch size and length", "batch size", *(f"{n} tokens" for n in LENGTHS))
    for batch, row in grid(shape, settings).items():
        table.add_row(str(batch), *(f"[{colour(e)}]{gb(e.peak)}[/]" for e in row))
    console.print(table)
    console.print("[green]green[/] fits 24 GB, [yellow]yellow[/] fits 80 GB, [red]red[/] neither\n")
    console.print(_cards(now))
    target = card or max((gib for gib in CARDS if now.verdict(gib) != "fits"), default=None)
    if target and now.verdict(target) != "fits":
        print_advice(console, shape, settings, now, target)


def print_trace(shape: dict, settings: dict, now: Estimate, **_) -> None:
    console = _head(settings, now)
    console.print(_bars(console, now.parts, ("peak", gb(now.peak), f"reached at: {now.peak_at}")))
    console.print(_cards(now))
    try:
        console.print(f"The formula says {estimate(shape, settings).peak / now.peak - 1:+.2%}.")
    except ValueError:
        console.print("There is no formula for this; it was counted.")


def print_advice(console: Console, shape: dict, settings: dict, now: Estimate, gib: float) -> None:
    table = _table(f"What would help to fit {gib:g} GB", "change", "saves", "then", f"{gib:g} GB")
    table.add_column("")
    for change, then in savings(shape, settings):
        verdict = then.verdict(gib)
        cells = gb(now.peak - then.peak), gb(then.peak), f"[{COLOURS[verdict]}]{verdict}[/]"
        table.add_row(change.name, *cells, change.price)
    if table.row_count:
        console.print(table)
    steps = advice(shape, settings, gib)
    if steps and steps[-1][1].verdict(gib) == "fits":
        names = " and ".join(change.name for change, _ in steps)
        console.print(f"The cheapest that fits, {gb(steps[-1][1].peak)} GB: {names}.", markup=False)
    else:
        left = f" (all of that together: {gb(steps[-1][1].peak)} GB)" if steps else ""
        console.print(f"Only a smaller base model fits {gib:g} GB{left}.")


def print_max(shape: dict, settings: dict, now: Estimate, card=None, **_) -> None:
    batch, length = settings["per_device_train_batch_size"], settings["max_length"]
    keys = {
        f"longest max_length, batch size {batch}": "max_length",
        f"largest batch size, {length} tokens": "per_device_train_batch_size",
    }
    table = _table("The most that fits", "card", *keys)
    for gib in [card] if card else CARDS:
        found = (largest(shape, settings, key, gib) for key in keys.values())
        table.add_row(f"{gib:g} GB", *(f"{n:,}" if n else "-" for n in found))
    console = _head(settings, now)
    console.print(table)
    if longest := shape.get("max_position_embeddings"):
        console.print(f"The model itself was made for rows of up to {longest:,} tokens.")


def print_lesson(shape: dict, settings: dict, now: Estimate, **_) -> None:
    console = Console(highlight=False)
    console.print(f"{settings['base_model_path']}: three ways to train it, in GB\n", style="bold")
    ways = lesson(shape, settings)
    table = _table("", "", *(name for name, *_ in ways))
    for term in ways[1][1]:
        table.add_row(term, *(gb(terms[term]) if term in terms else "?" for _, terms, _ in ways))
    sums = (gb(sum(terms.values())) for _, terms, _ in ways)
    table.add_row("together", *sums, style="bold")
    console.print(table)
    for name, _, sentence in ways:
        console.print(f"[bold]{name}[/]: {sentence}")
    menu = _read("base_model/menu.json", json.loads)
    eight, fourteen = (
        trainable(menu[name], target_modules(menu[name], "attention"), 64)
        for name in ("Qwen/Qwen3-8B", "Qwen/Qwen3-14B")
    )
    console.print(
        "\nLoRA trains r * (in + out) parameters of each matrix, and keys and values are narrower "
        f"than queries. For Qwen3-8B, rank 64 on q, k, v and o, that is {eight:,}, as peft says; "
        f"the tutorial's table has {fourteen:,}, which are Qwen3-14B's."
    )


def plot(shape: dict, settings: dict, now: Estimate, file=None, **_) -> None:
    """The parts of the peak as bars beside the cards, drawn by matplotlib."""
    if Path(str(file)).suffix not in (".svg", ".png"):
        raise Refusal(f"--plot writes .svg or .png, not {str(file)!r}.")
    try:
        import matplotlib
    except ImportError:
        raise Refusal("--plot needs matplotlib; install the project first.") from None
    matplotlib.use("Agg")  # no display is needed
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 2.6 + 0.1 * len(now.parts)), layout="constrained")
    left = 0.0
    for name, size in now.parts.items():
        axes.barh([""], [size / GB], left=left, label=f"{name}, {gb(size)}")
        left += size / GB
    for gib in CARDS:
        if gib < 2 * left or gib == smallest(now):
            axes.axvline(gib, color="black", lw=0.8, ls=":")
            axes.text(gib, 0, f"{gib} GB", ha="right", va="center", rotation=90, fontsize=8)
    axes.set(xlabel="GB", title=f"{settings['base_model_path']}: {gb(now.peak)} GB, {now.peak_at}")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(file)
    print(f"Drawn: {file}")


def describe(settings: dict) -> str:
    """The settings that the estimate depends on, in a line or two."""
    quantization = settings["quantization"]
    if settings["lora_targets"] == "full":
        trained = "full training"
        if quantization != "none":
            quantization = "none (weights that are trained cannot be quantized)"
    else:
        trained = f"LoRA of rank {settings['r']} on {', '.join(settings['target_modules'])}"
    checkpointing = {
        True: "with activation checkpointing",
        "auto": "activation checkpointing where needed",  # and counted in the estimate
    }.get(settings.get("activation_checkpointing"), "without activation checkpointing")
    optim = settings["optim"] if settings["optim"] != "auto" else "adamw_torch_fused where it fits"
    return (
        f"quantization {quantization}, {settings['dtype']}, {trained}, "
        f"batch size {settings['per_device_train_batch_size']} x {settings['max_length']} tokens, "
        f"accumulation {settings['gradient_accumulation_steps']}, {optim}, "
        f"{checkpointing}, collator {settings['collator']}"
    )


def colour(one: Estimate) -> str:
    if one.verdict(24) == "fits":
        return "green"
    return "yellow" if one.verdict(80) == "fits" else "red"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
