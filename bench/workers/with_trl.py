"""A job done by TRL: `SFTTrainer` on conversational prompts and completions.

In that form its loss is on the completion alone, as ours is.
"""

import meter
from datasets import load_dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer


def trainer(job: dict, rows) -> SFTTrainer:
    """What is not in the job is TRL's own default."""
    arguments = {
        "output_dir": job["output_dir"],
        "max_length": job["max_length"],
        "bf16": job["dtype"] == "bfloat16",
        "model_init_kwargs": {"dtype": job["dtype"]},
        **job["training"],
        **job["options"],
    }
    return SFTTrainer(
        job["model"],
        args=SFTConfig(**arguments),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        peft_config=lora(job),
        quantization_config=quantization(job),
    )


def lora(job: dict):
    if not job["lora"]:
        return None
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", target_modules=job["targets"], **job["lora"])


def quantization(job: dict):
    if job["quantization"] != "nf4":
        return None
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, job["dtype"]),
    )


def load_rows(job: dict):
    return load_dataset("json", data_files=job["rows"]["trl"], split="train")


def train(job: dict) -> dict:
    return meter.measure_training(job, trainer(job, load_rows(job)).train)


def prepare(job: dict) -> dict:
    """The Trainer's making, as far as rows are concerned, and their reading before that."""
    reading, preparing = {}, {}
    with meter.measure_preparing(reading):
        rows = load_rows(job)
    original, prepared = SFTTrainer._prepare_dataset, []

    def measured(*args, **kwargs):
        with meter.measure_preparing(preparing):
            prepared.append(original(*args, **kwargs))
        return prepared[0]

    SFTTrainer._prepare_dataset = measured
    job["options"]["dataset_num_proc"] = job["processes"] if job["processes"] > 1 else None
    trainer(job, rows)
    seconds = ("wall_seconds", "cpu_seconds")
    result = {key: reading[key] + preparing[key] for key in seconds}
    result["memory_growth"] = max(reading["memory_growth"], preparing["memory_growth"])
    return result | meter.describe(prepared[0])


if __name__ == "__main__":
    meter.main(train=train, prepare=prepare)
