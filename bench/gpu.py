"""The same comparison on one NVIDIA card, with the shapes of real models and random weights.

python bench/gpu.py --peak-tflops 989    of an H100 in bf16, to say what share of it is used
python bench/gpu.py --tiny               the same path on the CPU with a tiny shape

The same batches come twice, and the second time is measured: by then every shape is known, as in a
long run. TRL advises FlashAttention's own package for padding_free; here all have PyTorch's.

Of the card's peak, counted is what the task needs, the same for everyone, whatever a framework
computes beyond it. For each token, with N parameters in the blocks: 2N forward, 2N for the
gradients of what is passed on, and 2N for those of the weights where these are trained; so 6N for
full training and 4N for LoRA, whose own matrices are too small to count. Attention looks back at
half of a row on average: 6 x length x heads x head_dim in each layer. The vocabulary's matrix
counts where a token is learnt, and nowhere else.
"""

import argparse
import json
import shutil
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import data
import report
import torch
from contenders import (
    BENCH,
    BY_NAME,
    TEMPLATE,
    WORK,
    Contender,
    Unavailable,
    Workshop,
    training_job,
)
from run import machine

DATASET = "dialogues"
SIZES = ("0.6B", "1.7B", "8B")
METHODS = {"lora": ("lora", "none"), "nf4": ("lora", "nf4"), "full": ("full", "none")}
CONTENDERS = [BY_NAME[name] for name in ("ours", "trl", "trl-free", "trl-padding-free")] + [
    Contender(
        "trl-liger",
        "trl",
        "TRL, no checkpointing, padding_free, Liger kernels",
        BY_NAME["trl-padding-free"].options | {"use_liger_kernel": True},
    ),
    BY_NAME["padded"],
]


def shape_of(size: str, tiny: bool) -> dict:
    """The numbers of Qwen3's config.json that decide its speed."""
    file = TEMPLATE / "templates" / "base_model" / "Qwen" / f"Qwen3-{size}.json"
    shape = json.loads(file.read_text(encoding="utf-8"))
    shape = {key: value for key, value in shape.items() if key in data.SHAPE}
    return shape | (data.SHAPE if tiny else {})


def flops(shape: dict, method: str, tokens: int, trained_tokens: int, length: float) -> float:
    """What these tokens need at least; see above.

    Args:
        length: of the row that a token stands in, on average over the tokens.
    """
    heads, dim = shape["num_attention_heads"], shape["head_dim"]
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    projections = 2 * heads + 2 * shape["num_key_value_heads"]  # query and output, key and value
    block = hidden * dim * projections + 3 * hidden * shape["intermediate_size"]
    head = hidden * shape["vocab_size"]
    per_parameter = 6 if method == "full" else 4
    attention = 6 * length * heads * dim * layers
    return tokens * (per_parameter * block * layers + attention) + (
        trained_tokens * per_parameter * head
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--peak-tflops", type=float, help="of the card, dense bf16")
    parser.add_argument("--rows-per-step", type=int, default=16)
    parser.add_argument("--steps", type=int, default=14, help="each is taken twice")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dialogues", type=Path, help=".jsonl with dialogue, summary")
    parser.add_argument("--envs", type=Path, default=BENCH / ".envs", help="of the peers")
    parser.add_argument(
        "--here", action="store_true", help="the peers are installed in this environment"
    )
    parser.add_argument("--again", action="store_true", help="measure all of it anew")
    parser.add_argument("--tiny", action="store_true", help="on the CPU; kept out of the page")
    args = parser.parse_args()
    if args.tiny:
        args.sizes, args.steps, args.rounds = args.sizes[:1], 3, 1
    return args


def main() -> None:
    args = arguments()
    results = WORK / "results" if args.tiny else BENCH / "results"
    results.mkdir(parents=True, exist_ok=True)
    file = results / "gpu.json"
    about = machine() | ({} if args.tiny else {"card": torch.cuda.get_device_name()})
    runs = []
    if file.exists() and not args.again:
        before = json.loads(file.read_text(encoding="utf-8"))
        if before["machine"].get("card") != about.get("card"):
            raise SystemExit(
                f"{file.name} is of another card, {before['machine'].get('card')}; "
                "measure all of it anew with --again."
            )
        runs = [run for run in before["runs"] if "unavailable" not in run]
    done = {(run["size"], run["what"], run["round"], run["name"]) for run in runs}

    workshop = Workshop(None if args.here else args.envs, threads=2, timeout=150)
    source, rows = data.SOURCES[DATASET], data.read(DATASET, args.dialogues)
    tokenizer = data.tokenizer_of([rows])
    lengths = data.lengths(rows, source, tokenizer)
    rows = [row for row, n in zip(rows, lengths, strict=True) if n <= data.MAX_LENGTH]
    rows = data.sample(rows, min(len(rows), args.rows_per_step * (2 * args.steps + 1)))
    files = data.write(rows, source, WORK / "rows" / "gpu")
    lengths = data.lengths(rows, source, tokenizer)
    length = sum(n * n for n in lengths) / sum(lengths)

    rounds = range(1, args.rounds + 1)
    for size, (number, name) in product(args.sizes, product(rounds, args.methods)):
        shape = shape_of(size, args.tiny)
        missing = [one for one in CONTENDERS if (size, name, number, one.name) not in done]
        if not missing:
            continue
        method, quantization = METHODS[name]
        model = model_of(shape, tokenizer, size, args.tiny)
        for contender in missing:
            job = training_job(
                workshop,
                contender,
                files,
                source,
                model,
                method=method,
                rows_per_step=args.rows_per_step,
                max_length=data.MAX_LENGTH,
                warmup=args.steps,
                steps=args.steps,
                quantization=quantization,
            )
            job["replay"] = True
            job["training"] |= {"use_cpu": args.tiny, "bf16": not args.tiny}
            if method == "lora" and not args.tiny:
                job["dtype"] = "bfloat16"
            entry = {"name": contender.name, "round": number, "size": size, "what": name}
            try:
                entry |= workshop.run(contender.framework, job)
                tokens = entry["tokens"], entry["trained_tokens"]
                needed = flops(shape, method, *tokens, length)
                entry["tflops"] = needed / entry["wall_seconds"] / 1e12
            except Unavailable as error:
                entry["unavailable"] = str(error)
            runs.append(entry)
            print(" ", size, name, number, report.brief(entry), flush=True)
            found = {
                "part": "gpu",
                "date": datetime.now(UTC).date().isoformat(),
                "machine": about,
                "threads": 2,
                "rows_per_step": args.rows_per_step,
                "peak_tflops": args.peak_tflops,
                "labels": {contender.name: contender.label for contender in CONTENDERS},
                "runs": in_order(runs),
            }
            file.write_text(json.dumps(found, indent=1), encoding="utf-8")
    report.write(results, None if args.tiny else BENCH / "README.md")


def in_order(runs: list[dict]) -> list[dict]:
    """Runs of several calls as one would have made them."""
    places = [list(SIZES), list(METHODS), [contender.name for contender in CONTENDERS]]

    def place(run: dict) -> tuple:
        size, what, name = (
            at.index(run[key]) for at, key in zip(places, ("size", "what", "name"), strict=True)
        )
        return size, what, run["round"], name

    return sorted(runs, key=place)


def model_of(shape: dict, tokenizer, size: str, tiny: bool) -> dict:
    """The random model of that shape, made where it is missing; the last one is deleted."""
    folder = WORK / "model-gpu" / size
    if not folder.exists():
        shutil.rmtree(WORK / "model-gpu", ignore_errors=True)
        with torch.device("cpu" if tiny else "cuda"):
            made = data.build_model(
                shape, tokenizer, folder, torch.float32 if tiny else torch.bfloat16
            )
        torch.cuda.empty_cache()
        return made
    return {"folder": str(folder), "pad_token_id": tokenizer.pad_token_id}


if __name__ == "__main__":
    main()
