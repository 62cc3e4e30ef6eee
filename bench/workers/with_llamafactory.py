"""A job done by LLaMA-Factory: what `llamafactory-cli train` runs, with a dictionary for its YAML.

`qwen3_nothink` is its template for this model: ChatML without a system prompt of its own.
"""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import meter

# it is imported for audio, which no row holds; its wheels want the CUDA build of torch
sys.modules["torchaudio"] = ModuleType("torchaudio")
sys.modules["torchaudio"].__spec__ = ModuleSpec("torchaudio", None)

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer  # noqa: E402
from llamafactory.hparams import get_train_args  # noqa: E402
from llamafactory.model import load_tokenizer  # noqa: E402
from llamafactory.train.tuner import run_exp  # noqa: E402


def arguments(job: dict) -> dict:
    """What is not in the job is LLaMA-Factory's own default."""
    lora = job["lora"] and {
        "lora_rank": job["lora"]["r"],
        "lora_alpha": job["lora"]["lora_alpha"],
        "lora_dropout": job["lora"]["lora_dropout"],
        "lora_target": ",".join(job["targets"]),
    }
    return {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": job["model"],
        "finetuning_type": "lora" if lora else "full",
        "template": "qwen3_nothink",
        "dataset": "rows",
        "dataset_dir": str(Path(job["rows"]["llamafactory"]).parent),
        "cutoff_len": job["max_length"],
        "output_dir": job["output_dir"],
        **job["training"],
        **(lora or {}),
        **job["options"],
    }


def train(job: dict) -> dict:
    return meter.measure_training(job, lambda: run_exp(arguments(job)))


def prepare(job: dict) -> dict:
    workers = {"preprocessing_num_workers": job["processes"] if job["processes"] > 1 else None}
    parsed = get_train_args(arguments(job) | workers)
    model_args, data_args, training_args = parsed[:3]
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    result = {}
    with meter.measure_preparing(result):
        datasets = get_dataset(
            template, model_args, data_args, training_args, stage="sft", **module
        )
    return result | meter.describe(datasets["train_dataset"])


if __name__ == "__main__":
    meter.main(train=train, prepare=prepare)
