"""What one training step takes on a GPU, from a count of this project's own code. Without torch.

A count (sft/count.py) says for each place in a step that can be its peak what is alive there, part
by part, as bytes * batch * length and the like. From it follows the peak of every size. Counts are
kept in base_model/memory.json, each with a fingerprint of what it depends on; what is not there is
counted, which takes some seconds and the installed project.
"""

import ast
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from math import prod
from pathlib import Path

from sft.config import ROOT, read_values, say

GB = 2**30  # as card makers and nvidia-smi count: an "80 GB" card has 80 * 2**30 bytes
WORKSPACE = 16 * 2**20  # of cuBLAS
CONTEXT = GB // 2  # budget for CUDA's own kernels and handles; 0.14 GB were measured on a T4
MARGIN = 1.15  # the allocator reserves more than is in use: 1.06 to 1.25 times with sdpa

FUSED, PAGED = "adamw_torch_fused", "paged_adamw_8bit"
COUNTS = ROOT / "base_model" / "memory.json"
AS_GENERATED = "as generated"  # instead of a fingerprint, until the project is complete
KEPT = 20  # counts; the oldest go
DEFAULTS = {  # where config.yaml does not say
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "activation_checkpointing": "auto",
    "optim": FUSED,
    "trained_share": 0.25,  # a reply is often about a quarter of its conversation
}
CODE = ("adapter", "attention", "collator", "count", "quantization", "trainer")  # of sft/
# a count holds for all values of these
SIZES = {"per_device_train_batch_size", "max_length", "gradient_accumulation_steps", "r"}
SIZES |= {"activation_checkpointing", "optim", "trained_share"}
# and these change no size
SAME = {"base_model_path", "revision", "bf16", "fp16", "tf32", "lora_alpha", "use_cpu"}
SAME |= {"dataset", "dataset_config", "train_split", "eval_split", "test_size", "prompt_template"}
SAME |= {"response_column", "messages_column", "system_prompt", "turns", "truncation_mode"}
SAME |= {"control_tokens", "max_skipped", "dataset_num_proc", "output_dir", "num_train_epochs"}
SAME |= {"max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "seed", "report_to"}
SAME |= {"per_device_eval_batch_size", "ddp_find_unused_parameters", "dataloader_pin_memory"}
SAME |= {"logging_steps", "logging_nan_inf_filter", "eval_strategy", "eval_steps"}
SAME |= {"save_strategy", "save_steps", "save_total_limit"}


class NoCount(ValueError):
    """One sentence on why there is no count, and how to get one."""


@dataclass(frozen=True)
class Memory:
    """What one training step takes, in bytes.

    Attributes:
        parts: what the peak is made of, by name; they add up to `peak`.
        peak: the most that is allocated, comparable to torch.cuda.max_memory_allocated.
        peak_at: where in the step that is.
        parameters, trainable, quantized: exact numbers of parameters: all of the base model's,
            those that are trained, and those stored in 4 or 8 bits.
    """

    parts: dict[str, int]
    peak: int
    peak_at: str
    parameters: int
    trainable: int
    quantized: int

    def verdict(self, card_gb: float) -> str:
        """Whether a card of so many GB is enough: "fits", "tight" or "won't".

        "fits" has room for what the allocator reserves without using it, "tight" has not.
        """
        if MARGIN * self.peak + CONTEXT <= card_gb * GB:
            return "fits"
        return "tight" if self.peak + CONTEXT <= card_gb * GB else "won't"


def memory(count: dict, values: dict) -> Memory:
    """What a count says of these values.

    It is that of the fullest batch, in which every row is `max_length` long. What is `auto` is
    taken as it needs least without changing what is calculated: checkpointing, fused AdamW.

    Args:
        values: those of config.yaml and, if known, `trained_share`: the share of tokens with a
            label.
    """
    values = DEFAULTS | values
    length, share = values["max_length"], values["trained_share"]
    sizes = {
        "1": 1,
        "batch": values["per_device_train_batch_size"],
        "length": length,
        "labels": length * (1 if count["every_token"] else share),
        "r": values.get("r", 1),
    }

    def size(polynomial: dict[str, float]) -> float:
        return sum(
            n * prod(sizes[name] for name in key.split("*")) for key, n in polynomial.items()
        )

    optim = values["optim"] if values["optim"] != "auto" else FUSED
    optimizer = count["optimizers"][optim]
    always = {**count["always"], "optimizer state": optimizer["state"]}
    gradients = {"gradients": count["gradients"]}
    several = values["gradient_accumulation_steps"] > 1
    steps = count["checkpointing" if values["activation_checkpointing"] else "no checkpointing"]
    window = max((above for above in steps if int(above) < length), key=int)
    places = [
        *((place, gradients if several else {}) for place in steps[window][_batches(several)]),
        *((place, gradients) for place in optimizer["step"]),
    ]
    peaks = []
    for place, more in places:
        parts = {name: size(polynomial) for name, polynomial in always.items()}
        parts["buffers"] = parts.get("buffers", 0) + WORKSPACE
        for name, polynomial in (*place["parts"].items(), *more.items()):
            parts[name] = parts.get(name, 0) + size(polynomial)
        peaks.append((round(sum(parts.values())), place["at"], parts))
    peak, peak_at, parts = max(peaks, key=lambda one: one[0])
    return Memory(
        parts={name: round(n) for name, n in parts.items() if round(n)},
        peak=peak,
        peak_at=peak_at,
        parameters=count["parameters"],
        trainable=round(size(count["trainable"])),
        quantized=count["quantized"],
    )


def _batches(several: bool) -> str:
    return "more batches" if several else "one batch"


# --- counts, kept --------------------------------------------------------------------------------


def count_for(overrides: list[str]) -> dict:
    """The count that holds for config.yaml and these words; one that is not kept yet is made.

    Raises:
        NoCount: there is no config.json of the base model, the project is not installed, or its
            step cannot be counted.
    """
    values = DEFAULTS | read_values(overrides)
    key = fingerprint(read_config(values), values)
    counts = _read(COUNTS) if COUNTS.exists() else {}
    found = counts.get(key)
    if found and values["optim"] in (*found["optimizers"], "auto"):
        return found
    say(f"Counting the memory of a step of {values['base_model_path']}: some seconds, once ...")
    command = [sys.executable, "-m", "sft.count", *overrides]  # its torch must not see the GPU
    ours = {name: os.environ[name] for name in os.environ if name not in _OF_A_LAUNCHER}
    run = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=ours | {"CUDA_VISIBLE_DEVICES": ""}
    )
    if run.returncode:
        raise NoCount((run.stderr.strip().splitlines() or ["The count was killed."])[-1])
    counts[key] = json.loads(run.stdout.splitlines()[-1])
    _write(dict([*counts.items()][-KEPT:]))
    return counts[key]


_OF_A_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def adopt() -> None:
    """Sign the count that came with the project, once all of its files are written."""
    counts = _read(COUNTS)
    if count := counts.pop(AS_GENERATED, None):
        values = read_values([])
        counts[fingerprint(read_config(values), values)] = count
    _write(counts)


def fingerprint(config: dict, values: dict) -> str:
    """Of all that a count depends on: the model's shape, values that are no size, the code."""
    names = ("_name_or_path", "transformers_version")
    files = [ROOT / "sft" / f"{name}.py" for name in CODE]
    facts = [
        {key: value for key, value in config.items() if key not in names},
        {key: value for key, value in values.items() if key not in SIZES | SAME},
        [_code(file.read_text(encoding="utf-8")) for file in files if file.exists()],
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _code(text: str) -> list:
    """Python without comments, docstrings and layout, the same in each version of Python."""
    nodes = [*ast.walk(ast.parse(text))]
    bodies = [node.body for node in nodes if isinstance(getattr(node, "body", None), list)]
    docs = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
    plain = (str, int, float, bool, bytes)
    return [
        [type(node).__name__, *(str(v) for _, v in ast.iter_fields(node) if isinstance(v, plain))]
        for node in nodes
        if id(node) not in docs
    ]


def read_config(values: dict) -> dict:
    """The config.json of the base model: from its folder, this project, the cache, or the Hub.

    Raises:
        NoCount: it is in none of these.
    """
    path = values["base_model_path"]
    folder = ROOT / Path(path).expanduser()
    if folder.is_dir():
        return _read(folder / "config.json")
    bundled = _read(ROOT / "base_model" / "config.json")
    if path == bundled["_name_or_path"]:
        return bundled
    try:
        from huggingface_hub import hf_hub_download

        file = hf_hub_download(path, "config.json", revision=values.get("revision"))
    except ImportError:
        raise NoCount(
            f"There is no figure for {path!r} yet: install the project and run python vram.py."
        ) from None
    except Exception:  # no network, no such model, a gated one: the way out is the same
        raise NoCount(
            f"The config.json of {path!r} is neither in the cache nor to be had from the Hub; "
            "check the name and the network, or download the model to a folder."
        ) from None
    return _read(Path(file))


def _read(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise NoCount(f"{file} cannot be read as JSON; restore it.") from None


def _write(counts: dict) -> None:
    lines = (f"{json.dumps(key)}: {json.dumps(count)}" for key, count in counts.items())
    COUNTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
