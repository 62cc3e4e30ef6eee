"""config.yaml and the command line: every value of a run, typed and checked.

Importing this file imports no torch, so that `python vram.py` answers at once.
"""

import difflib
import errno
import math
import os
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from enum import EnumType
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from sft.format import DatasetArguments

if TYPE_CHECKING:
    from transformers import TrainingArguments

ROOT = Path(__file__).resolve().parent.parent
AUTO = "auto"
# fields of `TrainingArguments` that may be `auto`, and are where config.yaml does not name them
MAY_BE_AUTO = ["activation_checkpointing", "optim", "bf16", "fp16", "tf32", "dataloader_pin_memory"]
HELP = """
Each key of config.yaml is an option as well, for one run: --max_length 2048, --report_to=none.
So is any other field of transformers.TrainingArguments.
"""
OLD, NEW = "gradient_checkpointing", "activation_checkpointing"  # in two keys
ABOVE_0 = """max_length num_train_epochs per_device_train_batch_size per_device_eval_batch_size
gradient_accumulation_steps logging_steps eval_steps save_steps save_total_limit
eval_accumulation_steps"""
FROM_0 = """weight_decay max_grad_norm neftune_noise_alpha dataset_num_proc
early_stopping_patience answers"""
EVALUATION = "needs an evaluation: test_size above 0 and an eval_strategy"
BEST, OTHER_OPTIM = "needs load_best_model_at_end", "is read by other values of optim"
UNUSED = "do_train do_eval do_predict enable_jit_checkpoint label_names use_cache"
BY_METRIC = ("best", "reduce_lr_on_plateau", "greedy")


def whole_batches(config: dict | str | None, settings: object) -> bool:
    """Whether each process makes batches of its own, of `per_device_eval_batch_size`."""
    ways = ("split_batches", "dispatch_batches")
    return not isinstance(config, dict) or not any(map(config.get, ways))


RULES = (  # keys; whether a value can work, `s` being all of them; what is said where it cannot
    (ABOVE_0, lambda n, s: n > 0, "must be above 0"),
    (FROM_0, lambda n, s: n >= 0, "must be 0 or above"),
    ("max_steps", lambda n, s: n > 0 or n == -1, "must be above 0"),
    ("max_skipped label_smoothing_factor", lambda n, s: 0 <= n <= 1, "must be from 0 to 1"),
    ("test_size", lambda n, s: 0 <= n < 1, "must be from 0 to below 1"),
    ("eval_on_start load_best_model_at_end", lambda on, s: s.evaluates or not on, EVALUATION),
    ("save_strategy lr_scheduler_type", lambda x, s: s.evaluates or x not in BY_METRIC, EVALUATION),
    ("metric_for_best_model", lambda m, s: "score" not in m or s.answers, "needs answers above 0"),
    ("early_stopping_patience", lambda n, s: not n or s.load_best_model_at_end, BEST),
    ("fp16", lambda on, s: on is not True or not s.use_cpu, "needs a GPU"),
    ("liger_kernel_config", lambda _, s: s.use_liger_kernel, "needs use_liger_kernel"),
    ("data_seed", lambda n, s: s.train_sampling_strategy != "sequential", "is for random order"),
    ("lr_scheduler_kwargs", lambda _, s: "constant" not in s.lr_scheduler_type, "is for schedules"),
    ("optim_args", lambda _, s: not re.match("adamw_torch(_fused)?$|paged", s.optim), OTHER_OPTIM),
    ("optim_target_modules", lambda _, s: re.match("galore|apollo", s.optim), OTHER_OPTIM),
    ("hub_token", lambda _, s: False, "would be saved in a file; set HF_TOKEN in the environment"),
    ("save_only_model", lambda on, s: not on, "leaves nothing to resume from"),
    ("bf16_full_eval fp16_full_eval", lambda on, s: not on, "rounds what is saved after it"),
    ("average_tokens_across_devices", lambda on, s: on, "weighs a token by its batch"),
    ("accelerator_config", whole_batches, "takes neither split_batches nor dispatch_batches"),
    (UNUSED, lambda value, s: not value, "has no use here; remove it"),
)
NAMES = {bool: "true or false", int: "a whole number", float: "a number"}
NAMES |= {str: "text", list: "a list", dict: "a mapping"}
# what makes a terminal do something or reorder its text; line feed and tab may pass
CONTROL = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
NO_WRITING = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)


class Yaml(yaml.SafeLoader):
    """YAML 1.1, but 1e-5 is a number, as in YAML 1.2 and Python."""


Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    [*"-+.0123456789"],
)


@dataclass(kw_only=True)
class ProjectArguments(DatasetArguments):
    """The keys of config.yaml that are ours."""

    base_model_path: str
    dataset: str | list
    dataset_config: str = ""
    max_length: int
    revision: str = "main"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    attn_implementation: str = "sdpa"
    chat_template: str = ""
    train_split: str = "train"
    eval_split: str = "validation"
    eval_dataset: str | list = ""
    test_size: float = 0.05
    dedupe: bool = False
    control_tokens: Literal["refuse", "escape"] = "refuse"
    max_skipped: float = 0.05
    dataset_num_proc: int = 0
    accept_changed_code: bool = False
    early_stopping_patience: int = 0
    answers: int = 4
    # the keys that are neither here nor in TrainingArguments: sft/adapter.py takes them
    adapter: dict[str, Any] = field(default_factory=dict)


OURS = {key: kind for key, kind in get_type_hints(ProjectArguments).items() if key != "adapter"}


def run(main: Callable[[list[str]], Any], interrupted: str | int = 130) -> None:
    """Call a script's `main`; Ctrl-C ends it with `interrupted`, a refusal or a full disk with a
    sentence."""
    if hasattr(sys.stdout, "reconfigure"):  # a terminal may lack a letter
        sys.stdout.reconfigure(errors="replace")
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(interrupted)
    except SystemExit as ended:
        sys.exit(harmless(ended.code) if isinstance(ended.code, str) else ended.code)
    except OSError as error:
        if error.errno not in NO_WRITING:
            raise
        sys.exit(harmless(f"{error}: make room or permit it, or name another folder."))
    try:
        print(end="", flush=True)
    except BrokenPipeError:  # what reads it, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)  # as rich does


def parse(argv: list[str], doc: str, **defaults: Any) -> tuple[SimpleNamespace, list[str]]:
    """Split the command line into a script's own options and the words that override config.yaml.

    `defaults` are the options' values, of the same types, where none are given. `--help` shows
    `doc`, the script's docstring, and exits.
    """
    if {"-h", "--help"} & {*argv}:
        print(doc, HELP, sep="", end="")
        raise SystemExit(0)
    words, overrides = _words(argv, defaults), []
    own = {key: typed(key, words.pop(key, was), type(was)) for key, was in defaults.items()}
    for key, value in words.items():
        overrides += [f"--{key}={value}"] if isinstance(value, str) else [f"--{key}", *value]
    return SimpleNamespace(**own), overrides


def load_config(
    overrides: list[str], choose: Callable[[dict, list[str]], tuple[dict, str]] | None = None
) -> tuple[ProjectArguments, "TrainingArguments"]:
    """All values of a run: config.yaml's, or the command line's where it names the same key.

    `choose` chooses what is `auto`: training takes sft/machine.py's. Exits at a key that does not
    exist or a value that is wrong.
    """
    from transformers import TrainingArguments

    values = typed_values(overrides)
    chosen, line = choose(values, overrides) if choose else ({}, "")
    values |= chosen
    for key in MAY_BE_AUTO:
        if values[key] == AUTO:  # still: the library's own default
            del values[key]
    args, training_args = _make(ProjectArguments, values), _make(TrainingArguments, values)
    # several GPUs need torchrun; from one process the Trainer would split each batch over them
    training_args._n_gpu = 1
    if line:
        say(line)
    return args, training_args


def project_arguments(overrides: list[str]) -> ProjectArguments:
    """Our own values alone: making `TrainingArguments` would already claim the device."""
    return _make(ProjectArguments, typed_values(overrides))


def read_values(overrides: list[str], kinds: dict[str, Any] = OURS) -> dict[str, Any]:
    """The keys of config.yaml and the command line, typed by `kinds`: ours alone need no torch."""
    values = _config_yaml() | _words(overrides)
    for each in fields(ProjectArguments):
        if each.default is each.default_factory is MISSING and each.name not in values:
            raise SystemExit(f"config.yaml has no key {each.name!r}; restore it.")
    return {key: typed(key, value, kinds.get(key, Any)) for key, value in values.items()}


def typed_values(overrides: list[str]) -> dict[str, Any]:
    """Every key with its value or its default; the adapter's keys also together as `adapter`."""
    from transformers import TrainingArguments

    os.chdir(ROOT)  # paths in config.yaml are relative to the project's folder
    kinds = get_type_hints(TrainingArguments) | OURS
    choices = {each.name: each.metadata.get("choices") for each in fields(TrainingArguments)}
    kinds |= {key: Literal[tuple(words)] for key, words in choices.items() if words}
    kinds |= {key: kinds[key] | Literal[AUTO] for key in MAY_BE_AUTO}
    others = {key: type(value) for key, value in _config_yaml().items() if key not in kinds}
    slips = [key for key in others if difflib.get_close_matches(key, kinds, n=1, cutoff=0.88)]
    refuse_unknown(slips, kinds)
    every = (*fields(TrainingArguments), *fields(ProjectArguments))
    values = {each.name: each.default for each in every if each.default is not MISSING}
    values["restore_callback_states_from_checkpoint"] = True  # early stopping counts on
    values |= dict.fromkeys(MAY_BE_AUTO, AUTO) | read_values(overrides, kinds | others)
    settings = SimpleNamespace(**values, evaluates=values["eval_strategy"] != "no")
    for keys, can_work, why in RULES:
        for key in keys.split():
            if values[key] is not None and not can_work(values[key], settings):
                raise SystemExit(f"config.yaml or the command line: {key} {why}.")
    return values | {"adapter": {key: values[key] for key in others}}


def refuse_unknown(keys: Iterable[str], known: Iterable[str]) -> None:
    """Exit at the first key that does not exist, and name the nearest one that does."""
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise SystemExit(f"There is no key {key!r}{hint} (see config.yaml).")


def spread_by() -> str:
    """By what `accelerate launch` spreads weights over GPUs: "FSDP", "DEEPSPEED" or ""."""
    engines = ("FSDP", "DEEPSPEED")
    return next((n for n in engines if os.environ.get(f"ACCELERATE_USE_{n}") == "true"), "")


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def say(text: str) -> None:
    """Print from the first process alone."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(harmless(text), file=sys.stderr)


def harmless(text: str) -> str:
    """The text with U+FFFD for each character that would command a terminal."""
    return CONTROL.sub("\ufffd", text)


def _config_yaml() -> dict[str, Any]:
    try:
        values = yaml.load((ROOT / "config.yaml").read_text(encoding="utf-8"), Yaml)
    except (OSError, ValueError, yaml.YAMLError) as error:
        mark, why = getattr(error, "problem_mark", None), getattr(error, "problem", error)
        line = f", line {mark.line + 1}," if mark else ""
        raise SystemExit(f"config.yaml{line} is not valid YAML in UTF-8: {why}.") from None
    if not isinstance(values, dict):
        raise SystemExit("config.yaml holds no keys; restore the file.")
    return {f"{key}".replace(OLD, NEW): value for key, value in values.items() if value is not None}


def _words(argv: list[str], options: Iterable[str] = ()) -> dict[str, str | list[str]]:
    """The command line by key; exits at a key that config.yaml, library and script do not have.

    `--key=value` and `--key value` are a text, `--key` and `--key one two` a list of texts.
    """
    texts, key = {}, None
    for word in argv:
        if word.startswith("--"):
            key, is_given, value = word[2:].partition("=")
            key = key.replace(OLD, NEW)
            texts[key] = [value] if is_given else []
        elif key is None:
            raise SystemExit(f"{word!r} belongs to no key; write --key=value.")
        else:
            texts[key].append(word)
    known = [*options, *OURS, *_config_yaml()]
    if not texts.keys() <= {*known}:
        from transformers import TrainingArguments

        refuse_unknown(texts, [*known, *get_type_hints(TrainingArguments)])
    return {key: found[0] if len(found) == 1 else found for key, found in texts.items()}


def typed(key: str, given: Any, annotation: Any) -> Any:
    """What is given for a key as one of its types: `true` for `bool | str` is True, `all` text."""
    allowed, readings = _allowed(annotation), [given]
    if isinstance(given, str):
        readings = [_read(given), given, [given]]
    elif given == []:
        readings = [True, given]  # a switch, such as --smoke
    for value in readings:
        if isinstance(value, float) and not math.isfinite(value):
            continue
        if Any in allowed or type(value) in allowed or value in allowed:
            return value
        if type(value) is int and float in allowed:
            return float(value)
    wanted = " or ".join(str(NAMES.get(one, one)) for one in allowed)
    raise SystemExit(f"config.yaml or the command line: {key} must be {wanted}, not {given!r}.")


def _allowed(annotation: Any) -> list:
    """The types and single values that it names: for `bool | Literal["a"]`, [bool, "a"]."""
    is_union = get_origin(annotation) in (Union, UnionType)
    kinds, allowed = get_args(annotation) if is_union else [annotation], []
    is_enum = EnumType in map(type, kinds)  # of `Enum | str` only the text of a member is right
    for kind in kinds:
        if isinstance(kind, EnumType):
            allowed += [member.value for member in kind]
        elif get_origin(kind) is Literal:
            allowed += get_args(kind)
        elif kind is not NoneType and not (is_enum and kind is str):
            allowed.append(get_origin(kind) or kind)
    return allowed


def _read(text: str) -> Any:
    """A number, true, a list or a mapping; any other text stays as it is, blanks included."""
    for read in (int, lambda text: yaml.load(text, Yaml)):  # to YAML alone, 010 is 8
        with suppress(ValueError, yaml.YAMLError):
            value = read(text)
            return text if value is None or isinstance(value, str) else value
    return text


def _make(arguments: type, values: dict[str, Any]) -> Any:
    """The dataclass with those of the values that it has a field for."""
    names = {each.name for each in fields(arguments)} & values.keys()
    try:
        return arguments(**{name: values[name] for name in names})
    except Exception as error:  # both dataclasses check their values
        raise SystemExit(f"config.yaml or the command line: {error}") from None
