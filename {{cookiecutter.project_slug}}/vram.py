"""Will it fit? The memory of one training step with this project's settings, before renting a GPU.

    python vram.py                        what the peak is made of, and which cards are enough
    python vram.py --max_length 4096 --optim adamw_8bit     any key of config.yaml, for one look
    python vram.py --quantization int8 --lora_targets mlp   any structural answer, too
    python vram.py --json                 the breakdown in bytes
    python vram.py --markdown             the table of the README

The bytes are explained in sft/vram.py. One GB is 2**30 bytes, as on the label of a card.
"""

import difflib
import json
import logging
import os
import sys
from pathlib import Path

import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from sft.vram import GB, Estimate, estimate, target_modules

ROOT = Path(__file__).resolve().parent
CARDS = (8, 12, 16, 24, 40, 48, 80, 141)  # GB
BATCH_SIZES = (1, 2, 4, 8)
LENGTHS = (512, 1024, 2048, 4096)
STRUCTURE = ("quantization", "lora_targets", "collator", "base_model")  # of answers.json
OPTIONAL = ("r", "lora_dropout", "target_modules", "trained_share")  # not in every config.yaml
COLOURS = {"fits": "green", "tight": "yellow", "won't": "red"}


class Refusal(Exception):
    """One sentence for the user: what is wrong, and how to mend it."""


def main(argv: list[str]) -> int:
    if {"-h", "--help"} & {*argv}:
        print(__doc__)
        return 0
    try:
        given = overrides(argv)
        settings = read_settings(given)
        shape = read_shape(settings)
        complete(settings, shape, given)
        look = {"json": print_json, "markdown": print_markdown}
        chosen = [look[name] for name in look if f"--{name}" in argv] or [print_tables]
        chosen[0](shape, settings, estimate(shape, settings))
    except (Refusal, ValueError) as refusal:
        print(refusal, file=sys.stderr)
        return 2
    return 0


# --- settings ------------------------------------------------------------------------------------


def overrides(argv: list[str]) -> dict:
    """`--key value` and `--key=value` as a dict; values are YAML, as in config.yaml."""
    words: dict[str, list[str]] = {}
    key = None
    for word in argv:
        if word in ("--json", "--markdown"):
            key = None
        elif word.startswith("--"):
            key, given, value = word[2:].partition("=")
            words[key] = [value] if given else []
        elif key is None:
            raise Refusal(f"{word!r} belongs to no setting; write --key value.")
        else:
            words[key].append(word)
    values = {}
    for key, texts in words.items():
        if not texts:
            raise Refusal(f"--{key} has no value; write --{key} value.")
        try:
            values[key] = yaml.safe_load(" ".join(texts))
        except yaml.YAMLError:
            raise Refusal(f"The value of --{key} is not valid YAML; put it in quotes.") from None
    return values


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
        names, layers = settings.get("target_modules"), target_modules(shape, "all_linear")
        other_model = "base_model_path" in given and not {*(names or ())} <= {*layers}
        if "target_modules" not in given and ("lora_targets" in given or other_model):
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
    try:
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


# --- the three looks -----------------------------------------------------------------------------


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


def print_json(shape: dict, settings: dict, now: Estimate) -> None:
    names = ("parameters", "trainable", "parts", "moments", "peak", "peak_at")
    content = {"base_model": settings["base_model_path"]}
    content |= {name: getattr(now, name) for name in names}
    print(json.dumps(content | {"cards": {gib: now.verdict(gib) for gib in CARDS}}, indent=2))


def print_markdown(shape: dict, settings: dict, now: Estimate) -> None:
    print("| GB at the peak | " + " | ".join(f"{n} tokens" for n in LENGTHS) + " |")
    print("|---|" + "--:|" * len(LENGTHS))
    for batch, row in grid(shape, settings).items():
        print(f"| batch size {batch} | " + " | ".join(gb(e.peak) for e in row) + " |")
    print(f"\n{summary(settings, now)}")


def summary(settings: dict, now: Estimate) -> str:
    batch, length = settings["per_device_train_batch_size"], settings["max_length"]
    enough = [gib for gib in CARDS if now.verdict(gib) == "fits"]
    card = f"fits a card of {enough[0]} GB" if enough else f"fits no card of {CARDS[-1]} GB"
    return (
        f"With these settings (batch size {batch}, {length} tokens) the peak is {gb(now.peak)} GB: "
        f"{card}."
    )


def print_tables(shape: dict, settings: dict, now: Estimate) -> None:
    console = Console(highlight=False)
    console.print(settings["base_model_path"], style="bold", markup=False)
    console.print(describe(settings), markup=False)
    console.print(f"{now.trainable:,} of {now.parameters:,} parameters are trained.\n")

    block = "#" if console.options.ascii_only else "█"
    scale = 40 / max(now.parts.values())
    table = Table(title="What the peak is made of", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("part")
    table.add_column("GB", justify="right")
    table.add_column("")
    for name, size in now.parts.items():
        if size:
            table.add_row(name, gb(size), f"[cyan]{block * round(size * scale)}[/]")
    table.add_row("peak", gb(now.peak), f"reached at: {now.peak_at}", style="bold")
    console.print(table)

    table = Table(title="GB by batch size and length", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("batch size", justify="right")
    for length in LENGTHS:
        table.add_column(f"{length} tokens", justify="right")
    for batch, row in grid(shape, settings).items():
        cells = [f"[{colour(e)}]{gb(e.peak)}[/]" for e in row]
        table.add_row(str(batch), *cells)
    console.print(table)
    console.print("[green]green[/] fits 24 GB, [yellow]yellow[/] fits 80 GB, [red]red[/] neither\n")

    table = Table(title="Cards, with these settings", title_justify="left", box=box.SIMPLE_HEAD)
    verdicts = [now.verdict(gib) for gib in CARDS]
    for gib in CARDS:
        table.add_column(f"{gib} GB", justify="right")
    table.add_row(*(f"[{COLOURS[verdict]}]{verdict}[/]" for verdict in verdicts))
    console.print(table)


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
