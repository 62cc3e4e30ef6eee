"""config.yaml and the command line: every value of a run, typed and checked."""

import difflib
import json
import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import yaml
from transformers import HfArgumentParser, TrainingArguments

from sft.adapter import AdapterArguments
from sft.format import DatasetArguments
from sft.machine import AUTO, CHOSEN_HERE, choose

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
    dataset_num_proc: int = 0


class _Parser(HfArgumentParser):
    """A parser that knows `auto`, and that a mistake is the user's."""

    def add_argument(self, *names, **kwargs):
        action = super().add_argument(*names, **kwargs)
        if action.dest in CHOSEN_HERE:
            action.default, parse = AUTO, action.type
            action.type = lambda word: word if word == AUTO else parse(word)
            action.choices = action.choices and [*action.choices, AUTO]
        return action

    def error(self, message):
        raise SystemExit(f"config.yaml or the command line: {message}")


def load_config(
    argv: list[str], for_training: bool = False
) -> tuple[ProjectArguments, TrainingArguments]:
    """Read config.yaml, then the command line: where both name a key, the command line wins.

    Args:
        for_training: choose what is `auto` for this machine (sft/machine.py), and say so.

    Raises:
        SystemExit: a key that does not exist, or a value of the wrong type; the sentence names it.
    """
    os.chdir(ROOT)  # paths in config.yaml are relative to the project's folder
    words = [*_words_of_config_yaml(), *argv]
    _refuse_unknown_keys(words)
    types = (ProjectArguments, TrainingArguments)
    values, unknown = _values(types, words)
    if unknown:
        raise SystemExit(f"{unknown[0]!r} belongs to no key; write --key=value.")
    chosen, line = choose(values) if for_training else ({}, "")
    args, training_args = _made(types, values | chosen)
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
    if args.dataset_num_proc < 0:
        raise SystemExit(
            f"dataset_num_proc is a number of processes, or 0, not {args.dataset_num_proc}."
        )
    if not 0 <= args.test_size < 1:
        raise SystemExit(
            f"test_size is a share of the rows, from 0 to below 1, not {args.test_size}."
        )
    if line:
        say(line)
    return args, training_args


def project_arguments(argv: list[str]) -> ProjectArguments:
    """Our own values alone: `TrainingArguments` would already claim the device."""
    os.chdir(ROOT)
    words = [*_words_of_config_yaml(), *argv]
    _refuse_unknown_keys(words)
    values, _ = _values((ProjectArguments,), words)
    return _made((ProjectArguments,), values)[0]


def _values(types: tuple, words: list[str]) -> tuple[dict, list[str]]:
    """The typed values of all keys, and the words that belong to none."""
    values, unknown = _Parser(types, allow_abbrev=False).parse_known_args(words)
    values = vars(values)
    if (
        values.get("activation_checkpointing") == AUTO
        and values["gradient_checkpointing"] is not None
    ):
        values["activation_checkpointing"] = values["gradient_checkpointing"]  # its older name
    return values, unknown


def _made(types: tuple, values: dict) -> tuple:
    """The dataclasses; what is still `auto` gets the library's default."""
    said = {key: v for key, v in values.items() if not (key in CHOSEN_HERE and v == AUTO)}
    try:
        return HfArgumentParser(types).parse_dict(said)
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


def say(text: str) -> None:
    """Print from the first process alone."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(text, file=sys.stderr)
