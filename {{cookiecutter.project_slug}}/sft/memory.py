"""Peak memory, for any batch and length, read from a count of the project's own code; no torch.

A count (sft/count.py) has, for each place in a step that can be its peak, what is alive there: by
part, bytes * batch * length and the like. From it follows the peak of every size. Counts are kept
in base_model/memory.json under a fingerprint of what they depend on; what is not there is counted.
"""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, fields
from math import prod
from operator import itemgetter
from pathlib import Path

from sft.config import AUTO, ROOT, ProjectArguments, read_values, say

GB = 2**30  # as card makers and nvidia-smi count: an "80 GB" card has 80 * 2**30 bytes
WORKSPACE = 16 * 2**20  # of cuBLAS; 70 MB were measured on an H200
CONTEXT = GB // 2  # CUDA's own kernels and handles; 0.14 GB were measured on a T4, 0.8 on an H200
MARGIN = 1.15  # the allocator reserves more than is in use: 1.06 to 1.25 times with sdpa

FUSED, PAGED = "adamw_torch_fused", "paged_adamw_8bit"
COUNTS = ROOT / "base_model" / "memory.json"
KEPT = 20  # counts; the oldest go
LIMIT = 600  # seconds for a count, which mostly takes 30
DEFAULTS = {  # where config.yaml does not say
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "activation_checkpointing": AUTO,
    "optim": AUTO,
    "trained_share": 0.25,  # a reply is often about a quarter of its conversation
}
# a count holds for all values of these keys, and of our own but for `dtype` and the attention
SIZES = {*DEFAULTS, "max_length", "r", "lora_alpha"}
OURS = {each.name for each in fields(ProjectArguments)} - {"dtype", "attn_implementation"}
UNCHANGING = ("eval_", "logging_", "save_", "warmup_", "lr_", "num_", "report_", "output_", "ddp_")
UNCHANGING += ("seed", "learning_rate", "max_steps", "per_device_eval", "use_cpu")
UNCHANGING += ("bf16", "fp16", "tf32")
CODE = "adapter attention collator count quantization targets trainer".split()  # of sft/
NO_FIGURE = "There is no figure for this model and these settings yet"


class NoCount(SystemExit):
    """One sentence on why there is no count, and how to get one; a script may end with it."""


@dataclass(frozen=True)
class Memory:
    """What one training step takes, in bytes.

    Attributes:
        parts: what the peak is made of, by name; they add up to `peak`.
        peak: the most that is allocated, comparable to torch.cuda.max_memory_allocated.
        peak_at: where in the step that is.
        parameters, trainable, quantized: exact numbers of parameters.
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
    """What a count says of these values, for the fullest batch: every row is `max_length` long.

    What is `auto` is taken as it needs least and calculates the same: checkpointing, fused AdamW.

    Args:
        values: those of config.yaml; also `trained_share`, the share of tokens with a label.
    """
    values = DEFAULTS | values
    length = values["max_length"]
    sizes = {
        "1": 1,
        "batch": values["per_device_train_batch_size"],
        "length": length,
        "labels": length * (1 if count["every_token"] else values["trained_share"]),
        "r": values.get("r", 1),
    }

    def total(by_growth: dict[str, float]) -> float:
        return sum(n * prod(sizes[name] for name in key.split("*")) for key, n in by_growth.items())

    optimizer = count["optimizers"][FUSED if values["optim"] == AUTO else values["optim"]]
    steps = count["checkpointing" if values["activation_checkpointing"] else "no checkpointing"]
    step = steps[max((low for low in steps if int(low) < length), key=int)]
    always = {**count["always"], "optimizer state": optimizer["state"]}
    peaks = []
    for place in [*optimizer["step"], *step]:
        held = place["parts"]
        # there are all gradients, of batches before
        if values["gradient_accumulation_steps"] > 1 or place in optimizer["step"]:
            held = held | {"gradients": count["gradients"]}
        parts = Counter({"buffers": WORKSPACE})
        for name, by_growth in [*always.items(), *held.items()]:
            parts[name] += round(total(by_growth))
        peaks.append((parts.total(), place["at"], parts))
    peak, peak_at, parts = max(peaks, key=itemgetter(0))
    parts = {name: size for name, size in parts.items() if size}
    trainable = round(total(count["trainable"]))
    return Memory(parts, peak, peak_at, count["parameters"], trainable, count["quantized"])


def count_for(overrides: list[str]) -> dict:
    """The count that holds for config.yaml and these words; one that is not kept yet is made.

    Raises:
        NoCount: there is no config.json of the base model, the project is not installed, or its
            step cannot be counted.
    """
    values, counts = read_values(overrides), _read(COUNTS)
    key = fingerprint(values)
    found = counts.get(key, {"optimizers": {}})
    if found["optimizers"].keys() >= {*optimizers(values)}:
        return found
    if importlib.util.find_spec("torch") is None:
        raise NoCount(f"{NO_FIGURE}: install the project and run python vram.py.")
    say(f"Counting the memory of a step of {values['base_model_path']}: some seconds, once ...")
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    alone = {name: value for name, value in os.environ.items() if name not in launcher}
    alone["CUDA_VISIBLE_DEVICES"] = ""  # its torch must not see the GPU
    command = [sys.executable, "-m", "sft.count", *overrides]
    how = {"capture_output": True, "text": True, "cwd": ROOT, "env": alone, "timeout": LIMIT}
    try:
        run = subprocess.run(command, **how)
    except subprocess.TimeoutExpired:
        raise NoCount(f"Not counted in {LIMIT} seconds; only a GPU can tell its memory.") from None
    if run.returncode:
        raise NoCount((run.stderr.strip().splitlines() or ["The count was killed."])[-1])
    made = json.loads(run.stdout.splitlines()[-1])
    made["optimizers"] |= found["optimizers"]
    keep({**counts, key: made})
    return made


def optimizers(values: dict) -> list[str]:
    """Those to count: the one that config.yaml names, or those that `auto` takes."""
    optim = values.get("optim", AUTO)
    if optim != AUTO:
        return [optim]
    # an adapter's state is too small for the 8-bit optimizer to help
    return [FUSED] if "r" in values else [FUSED, PAGED]


def keep(counts: dict[str, dict]) -> None:
    """Write counts by fingerprint, one a line."""
    lines = [f"{json.dumps(key)}: {json.dumps(count)}" for key, count in counts.items()][-KEPT:]
    COUNTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def fingerprint(values: dict) -> str:
    """Of all that a count depends on: the model's shape, values that are no size, the code."""
    shape = {key: value for key, value in read_config(values).items() if key != "_name_or_path"}
    others = values.keys() - SIZES - OURS
    others = {key: values[key] for key in others if not key.startswith(UNCHANGING)}
    files = [ROOT / "sft" / f"{name}.py" for name in CODE]
    code = [file.read_text(encoding="utf-8") for file in files if file.exists()]
    text = json.dumps([shape, others, code], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_config(values: dict) -> dict:
    """The config.json of the base model: from its folder, this project, the cache, or the Hub.

    Raises:
        NoCount: it is in none of these.
    """
    path = values["base_model_path"]
    folder, bundled = ROOT / os.path.expanduser(path), ROOT / "base_model" / "config.json"
    if os.path.isdir(folder):  # also where a path is no name of a file
        return _read(folder / "config.json")
    if path == _read(bundled)["_name_or_path"]:
        return _read(bundled)
    try:
        from huggingface_hub import hf_hub_download

        return _read(Path(hf_hub_download(path, "config.json", revision=values.get("revision"))))
    except ImportError:
        raise NoCount(f"{NO_FIGURE}: install the project and run python vram.py.") from None
    except Exception:  # no network, no such model, a gated one: the way out is the same
        raise NoCount(
            f"The config.json of {path!r} is neither in the cache nor to be had from the Hub; "
            "check the name and the network, or download the model to a folder."
        ) from None


def _read(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise NoCount(f"{file} cannot be read as JSON; restore it.") from None
