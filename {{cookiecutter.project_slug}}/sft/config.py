"""config.yaml and the command line: every value of a run, typed and checked."""

import difflib
import json
import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from sft.adapter import AdapterArguments
from sft.dataset import DatasetArguments

ROOT = Path(__file__).resolve().parent.parent


@dataclass(kw_only=True)
class ProjectArguments(DatasetArguments, AdapterArguments):
    """The keys of config.yaml that are ours; all others are fields of `TrainingArguments`."""

    base_model_path: str
    dataset: str
    dataset_config: str = ""
    max_length: int
    revision: str = "main"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    attn_implementation: str = "sdpa"
    train_split: str = "train"
    eval_split: str = "validation"
    test_size: float = 0.05
    turns: Literal["all", "last"] = "all"
    truncation_mode: Literal["drop", "truncate_prompt", "keep_start"] = "drop"
    control_tokens: Literal["refuse", "escape"] = "refuse"
    max_set_aside: float = 0.05


class _Parser(HfArgumentParser):
    def error(self, message):
        raise SystemExit(f"config.yaml or the command line: {message}")


def load_config(argv: list[str]) -> tuple[ProjectArguments, TrainingArguments]:
    """Read config.yaml, then the command line: where both name a key, the command line wins.

    Raises:
        SystemExit: a key that does not exist, or a value of the wrong type; the sentence names it.
    """
    os.chdir(ROOT)  # paths in config.yaml are relative to the project's folder
    words = [*_words_of_config_yaml(), *argv]
    _refuse_unknown_keys(words)
    words += _mixed_precision(words)
    args, training_args, unknown = _parse((ProjectArguments, TrainingArguments), words)
    if unknown:
        raise SystemExit(f"{unknown[0]!r} belongs to no key; write --key=value.")
    # several GPUs want torchrun; from one process the Trainer would cut each batch in pieces
    training_args._n_gpu = 1
    if training_args.hub_token:
        raise SystemExit(
            "hub_token would be saved in a file; set HF_TOKEN in the environment instead."
        )
    if args.max_length < 1:
        raise SystemExit(
            f"max_length must be a positive whole number of tokens, not {args.max_length}."
        )
    if not 0 <= args.max_set_aside <= 1:
        raise SystemExit(
            f"max_set_aside is a share of the rows, from 0 to 1, not {args.max_set_aside}."
        )
    if not 0 <= args.test_size < 1:
        raise SystemExit(
            f"test_size is a share of the rows, from 0 to below 1, not {args.test_size}."
        )
    return args, training_args


def project_arguments(argv: list[str]) -> ProjectArguments:
    """Our own values alone: `TrainingArguments` would already claim the device."""
    os.chdir(ROOT)
    words = [*_words_of_config_yaml(), *argv]
    _refuse_unknown_keys(words)
    return _parse((ProjectArguments,), words)[0]


def _parse(types: tuple, words: list[str]) -> tuple:
    parser = _Parser(types, allow_abbrev=False)
    try:
        return parser.parse_args_into_dataclasses(
            words, return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, ImportError) as error:  # TrainingArguments checks its own values
        raise SystemExit(f"config.yaml or the command line: {error}") from None


def _refuse_unknown_keys(words: list[str]) -> None:
    known = [
        "help",
        *(field.name for field in (*fields(ProjectArguments), *fields(TrainingArguments))),
    ]
    for word in words:
        key = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise SystemExit(f"There is no key {key!r}{hint} (see config.yaml).")


def _words_of_config_yaml() -> list[str]:
    """config.yaml as command line words, so that one parser gives every value its type."""
    try:
        values = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        where = f" (line {error.problem_mark.line + 1})" if hasattr(error, "problem_mark") else ""
        raise SystemExit(f"config.yaml is not valid YAML{where}: {error.problem}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"config.yaml cannot be read as UTF-8 text: {error}.") from None
    if not isinstance(values, dict):
        raise SystemExit("config.yaml holds no keys; restore the file.")
    words = []
    for key, value in values.items():
        if isinstance(value, list):
            words += [f"--{key}", *map(str, value)]
        elif isinstance(value, (dict, bool)):
            words.append(f"--{key}={json.dumps(value)}")
        elif value is not None:
            words.append(f"--{key}={value}")
    return words


def _mixed_precision(words: list[str]) -> list[str]:
    """16-bit arithmetic where the GPU has it; `is_bf16_supported` alone also counts emulation."""
    chosen = _parse((MixedPrecision,), words)[0]
    said = chosen.bf16 is not None or chosen.fp16 is not None
    if said or chosen.use_cpu or not torch.cuda.is_available():
        return []
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return ["--bf16=true"]
    return ["--fp16=true"]


@dataclass
class MixedPrecision:
    """The keys of `TrainingArguments` that say what to calculate in."""

    bf16: bool | None = None
    fp16: bool | None = None
    use_cpu: bool = False


def say(text: str) -> None:
    """Print from the first process alone."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(text, file=sys.stderr)
