"""Measure a project of this template beside TRL and LLaMA-Factory, on the CPU.

python bench/run.py                                     everything, with data from the Hub
python bench/run.py --only training --rounds 1          one part of it
python bench/run.py --dialogues A.jsonl --gsm8k B.jsonl data from files: nothing is downloaded
python bench/run.py --quick                             a few minutes, to see that all of it runs
"""

import argparse
import json
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

import data
import report
import torch
from contenders import (
    BENCH,
    BY_NAME,
    CONTENDERS,
    GIVEN_BACK,
    KEPT,
    WORK,
    Unavailable,
    Workshop,
    training_job,
)
from data import MAX_LENGTH, SOURCES

PARTS = ("labels", "training", "preprocessing", "growth")
FRAMEWORKS = ("ours", "trl", "llamafactory")
WARMUP = 2

# (dataset, method, rows per step, freed memory); everybody is measured in the first two, the best
# in the others
SETTINGS = [
    ("dialogues", "full", 8, GIVEN_BACK),
    ("gsm8k", "full", 8, GIVEN_BACK),
    ("dialogues", "full", 25, GIVEN_BACK),
    ("gsm8k", "full", 25, GIVEN_BACK),
    ("dialogues", "lora", 8, GIVEN_BACK),
    ("gsm8k", "lora", 8, GIVEN_BACK),
    ("dialogues", "lora", 25, GIVEN_BACK),
    ("gsm8k", "lora", 25, GIVEN_BACK),
    ("dialogues", "full", 8, KEPT),
    ("gsm8k", "full", 8, KEPT),
]
BEST = [
    "ours",
    "plain",
    "trl",
    "trl-free",
    "trl-padding-free",
    "trl-packing",
    "lf-grouped",
    "lf-neat",
]


class Bench:
    """The data of a session, and what its parts have in common."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.workshop = Workshop(args.envs, args.threads)
        everything = {name: data.read(name, getattr(args, name)) for name in SOURCES}
        tokenizer = data.tokenizer_of(everything.values())
        self.model = data.build_model(data.SHAPE, tokenizer, WORK / "model")
        self.rows, self.mean_length, self.files = {}, {}, {}
        for name, source in SOURCES.items():
            lengths = data.lengths(everything[name], source, tokenizer)
            pairs = zip(everything[name], lengths, strict=True)
            fitting = [(row, n) for row, n in pairs if n <= MAX_LENGTH]
            self.rows[name] = [row for row, _ in fitting]
            self.mean_length[name] = sum(n for _, n in fitting) / len(fitting)
            count = min(args.rows, len(fitting))
            self.files[name] = data.write(
                data.sample(self.rows[name], count), source, WORK / "rows" / name
            )

    def numbered(self, name: str, count: int) -> dict[str, str]:
        """Files of `count` rows that all differ."""
        folder = WORK / "rows" / f"{name}-{count}"
        rows = data.numbered(self.rows[name], count, SOURCES[name])
        return data.write(rows, SOURCES[name], folder)

    def train(self, contender, files, dataset, method, rows_per_step, **limits) -> dict:
        """Have a contender train; raises `Unavailable`."""
        if contender.packs:  # as many packs as hold those rows
            rows_per_step = max(1, round(rows_per_step * self.mean_length[dataset] / MAX_LENGTH))
        job = training_job(
            self.workshop,
            contender,
            files,
            SOURCES[dataset],
            self.model,
            method=method,
            rows_per_step=rows_per_step,
            max_length=MAX_LENGTH,
            **{"warmup": WARMUP, **limits},
        )
        return self.workshop.run(contender.framework, job)

    def prepare(self, framework, files, dataset, processes=1) -> dict:
        """Have a framework turn rows into tokens and labels; raises `Unavailable`."""
        contender = next(c for c in CONTENDERS if c.framework == framework)
        job = training_job(
            self.workshop,
            contender,
            files,
            SOURCES[dataset],
            self.model,
            method="full",
            rows_per_step=8,
            max_length=MAX_LENGTH,
            warmup=0,
        )
        job |= {"task": "prepare", "processes": processes}
        result = self.workshop.run(framework, job)
        for unit in ("cpu", "wall"):
            result[f"rows_per_{unit}_second"] = result["rows"] / result[f"{unit}_seconds"]
        return result

    def rounds(self, names: list, run, count: int | None = None, **about) -> list[dict]:
        """Each of `names` in turn, over and over: a slow minute of the machine hits all of them."""
        runs = []
        for number in range(1, (count or self.args.rounds) + 1):
            for name in names:
                entry = {"name": name, "round": number, **about}
                try:
                    entry |= run(name)
                except Unavailable as error:
                    entry["unavailable"] = str(error)
                entry.pop("first", None)
                runs.append(entry)
                print(" ", *about.values(), f"round {number}:", report.brief(entry), flush=True)
        return runs


def labels(bench: Bench) -> list[dict]:
    """Which tokens each framework learns of the same rows."""
    runs = []
    for dataset in SOURCES:
        ours = None
        for framework in FRAMEWORKS:
            entry = {"name": framework, "dataset": dataset}
            try:
                found = bench.prepare(framework, bench.files[dataset], dataset)
                first = found.pop("first")
                ours = ours or first
                entry |= found | report.compare(ours, first, bench.model["folder"])
            except Unavailable as error:
                entry["unavailable"] = str(error)
            runs.append(entry)
            print(" ", dataset, report.brief(entry), flush=True)
    return runs


def training(bench: Bench) -> list[dict]:
    """One pass over the same rows by every contender; by the best, once, in other settings."""
    runs = []
    for number, (dataset, method, rows_per_step, memory) in enumerate(bench.args.settings):

        def one(name, dataset=dataset, method=method, rows=rows_per_step, memory=memory):
            files = bench.files[dataset]
            return bench.train(BY_NAME[name], files, dataset, method, rows, memory=memory)

        names, count = (list(BY_NAME), None) if number < 2 else (BEST, 1)
        about = {"dataset": dataset, "method": method, "rows_per_step": rows_per_step}
        about["memory"] = memory
        runs += bench.rounds(names, one, count, **about)
    return runs


def preprocessing(bench: Bench) -> list[dict]:
    """Rows to tokens and labels."""
    runs = []
    sizes = {"dialogues": 5000, "gsm8k": len(bench.rows["gsm8k"])}
    for dataset, size in sizes.items():
        files = bench.numbered(dataset, 500 if bench.args.quick else size)
        for processes in (1, 2):

            def one(name, files=files, dataset=dataset, processes=processes):
                return bench.prepare(name, files, dataset, processes)

            runs += bench.rounds(list(FRAMEWORKS), one, dataset=dataset, processes=processes)
    return runs


def growth(bench: Bench) -> list[dict]:
    """What ours takes per row and per token as the dataset grows, and as the batch does."""
    counts = [200, 1000] if bench.args.quick else [1_000, 10_000, 100_000]
    files = {count: bench.numbered("dialogues", count) for count in counts}
    # tokens of a step -> (rows, steps)
    mean = bench.mean_length["dialogues"]
    batches = {tokens: round(tokens / mean) for tokens in (2048, 4096, 8192, 16384, 32768)}
    if bench.args.quick:
        batches = {tokens: rows for tokens, rows in batches.items() if tokens <= 8192}
    ours = BY_NAME["ours"]

    def over_rows(count):
        return bench.train(ours, files[count], "dialogues", "full", 8, steps=16)

    def over_batch(tokens, memory=GIVEN_BACK):
        steps = max(4, 2 * max(batches) // tokens)
        limits = {"warmup": 1, "steps": steps, "memory": memory}
        return bench.train(ours, files[counts[1]], "dialogues", "full", batches[tokens], **limits)

    def over_rows_prepared(count):
        return bench.prepare("ours", files[count], "dialogues")

    return [
        *bench.rounds(counts, over_rows_prepared, what="preparing, rows"),
        *bench.rounds(counts, over_rows, what="training, rows"),
        *bench.rounds(list(batches), over_batch, what="training, tokens of a step"),
        *bench.rounds(
            list(batches),
            lambda tokens: over_batch(tokens, KEPT),
            what=f"training, tokens of a step, {KEPT}",
        ),
    ]


def machine() -> dict:
    """What the figures belong to; nothing that names a person or a place.

    Cloud processors of one name differ twofold in speed: the vector instructions are named as well.
    """
    cpu, system = platform.processor(), platform.system()
    if system == "Linux":
        text = Path("/proc/cpuinfo").read_text()
        cpu = next((line for line in text.splitlines() if "model name" in line), cpu)
        cpu = cpu.partition(":")[2].strip() or cpu
        system = platform.freedesktop_os_release().get("PRETTY_NAME", system)
    cpu = f"{cpu} ({torch.backends.cpu.get_cpu_capability()})"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gb": round(memory), "system": system}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--quick", action="store_true", help="few rows, one round; kept out of the page"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=200, help="of a training's one pass")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--dialogues", type=Path, help=".jsonl with dialogue, summary")
    parser.add_argument("--gsm8k", type=Path, help=".jsonl with question, answer")
    parser.add_argument("--envs", type=Path, default=BENCH / ".envs", help="of the peers")
    args = parser.parse_args()
    args.settings, results = SETTINGS, BENCH / "results"
    if args.quick:
        args.rounds, args.rows, args.settings = 1, min(args.rows, 50), SETTINGS[:1]
        results = WORK / "results"
    results.mkdir(parents=True, exist_ok=True)

    bench = Bench(args)
    for part in [part for part in PARTS if part in args.only]:
        print(part, flush=True)
        start = time.perf_counter()
        runs = globals()[part](bench)
        found = {
            "part": part,
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
            "threads": args.threads,
            "rows": args.rows,
            "minutes": round((time.perf_counter() - start) / 60, 1),
            "shape": data.SHAPE,
            "runs": runs,
        }
        (results / f"{part}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    report.write(results, None if args.quick else BENCH / "README.md")


if __name__ == "__main__":
    main()
