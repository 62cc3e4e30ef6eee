"""The peak memory of real training steps on one NVIDIA card, of generated projects.

python bench/gpu_memory.py           on the card; what results/gpu_memory.json holds is kept
python bench/gpu_memory.py --tiny    the same path on the CPU with tiny models; kept out of the page

Each configuration trains three optimizer steps in a process of its own, with the project's own
train.py. The base model has the shape of config.json and random weights, and every row is exactly
`max_length` tokens long. The peak of a process is its own, so several share the card.
"""

import argparse
import json
import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import data
import report
import torch
from contenders import BENCH, GIVEN_BACK, TEMPLATE, WORK, Unavailable, Workshop
from run import machine
from transformers import AutoConfig, AutoModelForCausalLM

STEPS = 3
SOURCE = data.SOURCES["dialogues"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2}

# the answers to the template's questions, and values of config.yaml
DEFAULTS = {
    "base_model": "Qwen/Qwen3-0.6B",
    "quantization": "none",
    "lora_targets": "attention",
    "collator": "seq2seq",
    "per_device_train_batch_size": 2,
    "max_length": 1024,
    "activation_checkpointing": False,
    "gradient_accumulation_steps": 2,
    "trained_share": 0.25,
    "dtype": "bfloat16",
    "optim": "adamw_torch_fused",
}
ANSWERS = ("base_model", "quantization", "lora_targets", "collator")
NF4, INT8 = {"quantization": "nf4"}, {"quantization": "int8"}
ALL_LINEAR, FULL = {"lora_targets": "all_linear"}, {"lora_targets": "full"}
FREE, FLOAT32 = {"collator": "padding_free"}, {"dtype": "float32"}
BIG, MIDDLE = {"base_model": "Qwen/Qwen3-8B"}, {"base_model": "Qwen/Qwen3-1.7B"}


def batch(rows: int, length: int, checkpointing: bool = False) -> dict:
    return {
        "per_device_train_batch_size": rows,
        "max_length": length,
        "activation_checkpointing": checkpointing,
    }


CONFIGURATIONS = [
    DEFAULTS | changed
    for changed in [
        BIG | NF4 | batch(8, 4096, True),
        BIG | NF4 | batch(2, 1024),
        BIG | NF4 | batch(2, 1024, True),
        BIG | NF4 | batch(1, 512, True),
        BIG | NF4 | ALL_LINEAR | batch(2, 1024),
        BIG | NF4 | ALL_LINEAR | FREE | batch(4, 2048, True),
        BIG | INT8 | batch(2, 1024, True),
        BIG | INT8 | batch(1, 512),
        BIG | batch(2, 1024, True),
        BIG | FREE | batch(2, 2048, True),
        MIDDLE | NF4 | batch(2, 1024),
        MIDDLE | NF4 | ALL_LINEAR | FREE | batch(4, 2048, True),
        MIDDLE | {"lora_targets": "mlp"} | batch(4, 1024),
        MIDDLE | FULL | batch(2, 1024),
        MIDDLE | FULL | FLOAT32 | batch(1, 512, True),
        NF4 | batch(1, 512),
        NF4 | batch(8, 4096, True),
        NF4 | ALL_LINEAR | batch(4, 2048),
        INT8 | batch(2, 1024),
        INT8 | ALL_LINEAR | batch(4, 2048, True),
        batch(4, 2048),
        batch(8, 4096, True) | {"trained_share": 0.9},
        FREE | batch(4, 2048),
        FREE | batch(8, 512, True) | {"trained_share": 0.9},
        FULL | FLOAT32 | batch(2, 1024),
        FULL | FLOAT32 | batch(4, 2048, True),
        FULL | FLOAT32 | batch(2, 1024) | {"gradient_accumulation_steps": 1},
        FULL | FLOAT32 | batch(2, 1024, True) | {"optim": "adamw_bnb_8bit"},
        FULL | batch(4, 2048),
        FULL | FREE | batch(4, 2048, True) | {"trained_share": 0.1},
        NF4 | {"base_model": "meta-llama/Llama-3.2-1B-Instruct"} | batch(2, 1024),
        NF4 | {"base_model": "microsoft/Phi-4-mini-instruct"} | batch(2, 1024, True),
        {"base_model": "google/gemma-3-1b-it"} | batch(2, 1024),
        BIG | FULL | batch(1, 512, True),
    ]
]


def tokenizer_of_letters():
    """A tokenizer in which each letter after a space is one token."""
    letters = "".join(f" {letter}" for letter in LETTERS)
    return data.build_tokenizer(iter([letters] * 100))


def write_rows(given: dict, tokenizer, folder: Path) -> Path:
    """Rows of `max_length` tokens each, of which the reply is `trained_share`."""
    rng, length = random.Random(0), given["max_length"]
    per_step = given["per_device_train_batch_size"] * given["gradient_accumulation_steps"]

    def row(prompt: int, reply: int) -> dict:
        words = [" ".join(rng.choices(LETTERS, k=count)) for count in (prompt, reply)]
        return dict(zip((SOURCE.question, SOURCE.response), words, strict=True))

    around = data.lengths([row(1, 1)], SOURCE, tokenizer)[0] - 2
    reply = round(given["trained_share"] * length)
    rows = [row(length - around - reply, reply) for _ in range(STEPS * per_step)]
    if {*data.lengths(rows, SOURCE, tokenizer)} != {length}:
        raise SystemExit(f"The rows are not {length} tokens long.")
    return Path(data.write(rows, SOURCE, folder)["ours"])


def build(base_model: str, tokenizer, tiny: bool) -> Path:
    """Save a model of that shape with random weights; returns its folder."""
    folder = WORK / "shapes" / base_model.replace("/", "-")
    if (folder / "tokenizer_config.json").exists():  # written last
        return folder
    file = TEMPLATE / "templates" / "base_model" / f"{base_model}.json"
    shape = json.loads(file.read_text(encoding="utf-8")) | (TINY if tiny else {})
    if tiny:
        shape |= {"vocab_size": len(tokenizer)}
        shape.pop("layer_types", None)
    shape |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    torch.manual_seed(0)
    with torch.device("cpu" if tiny else "cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    if not tiny:
        torch.cuda.empty_cache()
    return folder


def job_of(given: dict, project: str, model: Path, rows: Path, pad: int, tiny: bool) -> dict:
    """What a worker has to know."""
    training = {key: given[key] for key in DEFAULTS if key not in (*ANSWERS, "trained_share")}
    del training["max_length"]
    return {
        "task": "peaks",
        "memory": GIVEN_BACK,
        "project": project,
        "model": str(model),
        "pad_token_id": pad,
        "rows": {"ours": str(rows)},
        "max_length": given["max_length"],
        "steps": STEPS,
        "options": {},
        "training": training
        | {
            "use_cpu": tiny,
            "num_train_epochs": 1,
            "learning_rate": 1e-7,
            "eval_strategy": "no",
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--at-once", type=int, default=3, help="processes that share the card")
    parser.add_argument("--again", action="store_true", help="measure all of it anew")
    parser.add_argument("--only", default="", help="base models with this in their name")
    parser.add_argument("--tiny", action="store_true", help="on the CPU; kept out of the page")
    args = parser.parse_args()
    results = WORK / "results" if args.tiny else BENCH / "results"
    results.mkdir(parents=True, exist_ok=True)
    file = results / "gpu_memory.json"
    found = {"runs": []}
    if file.exists() and not args.again:
        found = json.loads(file.read_text(encoding="utf-8"))
    kept = [run for run in found["runs"] if "peak" in run]
    done = [{key: run[key] for key in DEFAULTS} for run in kept]
    missing = [one for one in CONFIGURATIONS if one not in done and args.only in one["base_model"]]
    if args.tiny:
        missing = [one | {"max_length": min(one["max_length"], 512)} for one in missing]

    tokenizer = tokenizer_of_letters()
    workshop = Workshop(None, threads=2, timeout=200)
    names = dict.fromkeys(one["base_model"] for one in missing)
    models = {name: build(name, tokenizer, args.tiny) for name in names}
    jobs = []
    for number, given in enumerate(missing):
        project = workshop.project(
            **{key: given[key] for key in ANSWERS},
            row=f"{SOURCE.prompt} => {{{SOURCE.response}}}",
        )
        rows = write_rows(given, tokenizer, WORK / "rows" / f"gpu-memory-{number}")
        pad = tokenizer.pad_token_id
        jobs.append(job_of(given, project, models[given["base_model"]], rows, pad, args.tiny))
    about = machine() | ({} if args.tiny else {"card": torch.cuda.get_device_name()})

    def measure(given: dict, job: dict) -> dict:
        try:
            run = workshop.run("ours", job)
        except Unavailable as error:
            run = {"unavailable": str(error)}
        print(" ", *given.values(), report.peak_in_words(run), flush=True)
        return run

    with ThreadPoolExecutor(args.at_once) as pool:
        for given, run in zip(missing, pool.map(measure, missing, jobs), strict=True):
            versions = run.pop("versions", found.get("versions"))
            kept.append({**given, "card": about.get("card"), **run})
            found = {
                "date": datetime.now(UTC).date().isoformat(),
                "machine": about,
                "versions": versions,
                "runs": kept,
            }
            file.write_text(json.dumps(found, indent=1), encoding="utf-8")
    report.write(results, None if args.tiny else BENCH / "README.md")


if __name__ == "__main__":
    main()
