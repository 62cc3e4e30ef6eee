"""A job done by a project that this template writes: by its own train.py and its own sft/."""

import inspect
import os
import sys

import meter
from torch.nn.attention import varlen


def enter(job: dict) -> list[str]:
    """Go into the project's folder; returns the job's settings as its command line."""
    os.chdir(job["project"])
    sys.path.insert(0, job["project"])
    if "enable_gqa" not in inspect.signature(varlen.varlen_attn).parameters:
        kernel = varlen.varlen_attn  # torch 2.11: keys of fewer heads are taken without being told
        varlen.varlen_attn = lambda *args, enable_gqa, **options: kernel(*args, **options)
    settings = {
        "base_model_path": job["model"],
        "dataset": job["rows"]["ours"],
        "max_length": job["max_length"],
        "test_size": 0,
        "output_dir": job["output_dir"],
        **job["options"],
    }
    return [f"--{key}={value}" for key, value in settings.items()]


def train(job: dict) -> dict:
    argv = enter(job)
    from sft import trainer
    from train import main

    if job["all_logits"]:
        trainer.LogitsWhereTrained = lambda collator, takes_mask: collator
    argv += [
        f"--{key}={value}"
        for key, value in {
            **job["training"],
            "dtype": job["dtype"],
            "eval_strategy": "no",
            **(job["lora"] or {}),
        }.items()
    ]
    return meter.measure_training(job, lambda: main(argv))


def peaks(job: dict) -> dict:
    argv = enter(job) + [f"--{key}={value}" for key, value in job["training"].items()]
    import train as project

    project.check_disk = lambda *args: None  # nothing is saved
    return meter.measure_peaks(job, lambda: project.main(argv))


def prepare(job: dict) -> dict:
    argv = enter(job)
    from sft.config import project_arguments
    from sft.examples import make_examples
    from sft.model import load_tokenizer
    from sft.rows import load_rows

    argv.append(f"--dataset_num_proc={job['processes']}")
    args = project_arguments(argv)
    tokenizer = load_tokenizer(args.base_model_path)
    result = {}
    with meter.measure_preparing(result):
        datasets, _ = make_examples(load_rows(args), tokenizer, args)
    return result | meter.describe(datasets["train"])


if __name__ == "__main__":
    meter.main(train=train, prepare=prepare, peaks=peaks)
