"""Results to tables and a chart: `python bench/report.py` writes the page again."""

import json
from pathlib import Path
from statistics import median

from contenders import BENCH, BY_NAME

LABELS = {name: contender.label for name, contender in BY_NAME.items()}
FRAMEWORKS = {"ours": "this template", "trl": "TRL", "llamafactory": "LLaMA-Factory"}
BEGIN, END = "<!-- results: written by report.py -->\n", "<!-- end of results -->"


def write(results: Path, page: Path | None) -> None:
    """Tables of all results there are: into the page between its marks, or else to the screen."""
    sections = []
    for part, section in SECTIONS.items():
        file = results / f"{part}.json"
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
            sections.append("\n".join(section(found)) + "\n\n" + about(found))
    sections += memory_sections(results)
    if (results / "gpu_memory.json").exists():
        found = json.loads((results / "gpu_memory.json").read_text(encoding="utf-8"))
        sections.append("\n".join(gpu_memory_section(found)))
    draw(results)
    if page is None:
        print("\n\n".join(sections))
        return
    if (results / "chart.svg").exists():
        sections.insert(0, "![Speed of training and of preprocessing](results/chart.svg)")
    text = "\n\n".join(sections)
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{text}\n\n{END}{after}", encoding="utf-8")


def about(found: dict) -> str:
    """Where, when and with what it was measured."""
    versions = {}
    for run in found["runs"]:
        of = framework(run["name"])
        versions.setdefault(FRAMEWORKS[of], run.get("versions"))
    named = [
        f"{name}: " + ", ".join(f"{package} {number}" for package, number in these.items())
        for name, these in versions.items()
        if these
    ]
    machine = found["machine"]
    card = f"{machine['card']}, " if "card" in machine else ""
    where = (
        f"{card}{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, "
        f"{machine['system']}; {found['threads']} threads; {found['date']}."
    )
    return f"<sub>{where} {'; '.join(named)}.</sub>"


def framework(name) -> str:
    """Whose run that is; those over sizes are all ours."""
    if name in BY_NAME:
        return BY_NAME[name].framework
    first = str(name).partition("-")[0]
    return first if first in FRAMEWORKS else "ours"


def brief(entry: dict) -> str:
    """A run in a line, while it is measured."""
    if "unavailable" in entry:
        return f"{entry['name']}: {entry['unavailable']}"
    unit = "tokens" if "tokens_per_cpu_second" in entry else "rows"
    speed, grown = entry[f"{unit}_per_cpu_second"], entry["memory_growth"] / 2**20
    return f"{entry['name']}: {speed:,.0f} {unit} per CPU-second, {grown:,.0f} MB more"


def peak_in_words(run: dict) -> str:
    """A memory measurement in a line, while it is measured."""
    if "unavailable" in run:
        return run["unavailable"]
    parts = ", ".join(f"{part} {peak / 2**30:.2f}" for part, peak in run["peaks"].items())
    return f"peak {run['peak'] / 2**30:.2f} GB ({parts}); batches {run['batches']}"


def compare(ours: list, theirs: list, model: str) -> dict:
    """How another framework's tokens and labels differ from ours, over the same first rows."""
    from transformers import AutoTokenizer

    pairs = list(zip(ours, theirs, strict=True))
    more, less = {}, {}
    for (ids, labels), (their_ids, their_labels) in pairs:
        if ids == their_ids:
            for token, mine, other in zip(ids, labels, their_labels, strict=True):
                if mine != other:
                    side = more if mine == -100 else less
                    side[token] = side.get(token, 0) + 1
    tokenizer = AutoTokenizer.from_pretrained(model)

    def spelt(tokens: dict) -> dict:
        return {repr(tokenizer.decode([token])): count for token, count in tokens.items()}

    return {
        "compared": len(pairs),
        "same_tokens": sum(mine[0] == other[0] for mine, other in pairs),
        "same_labels": sum(mine == other for mine, other in pairs),
        "also_learnt": spelt(more),
        "not_learnt": spelt(less),
    }


def table(head: list[str], rows: list[list]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def grouped(runs: list[dict], *keys: str) -> dict[tuple, dict[str, list[dict]]]:
    """Runs by setting, then by name, both in the order they were measured in."""
    groups = {}
    for run in runs:
        group = groups.setdefault(tuple(run[key] for key in keys), {})
        group.setdefault(run["name"], []).append(run)
    return groups


def spread(values: list[float], form: str = "{:.2f}") -> str:
    middle, low, high = (form.format(f(values)) for f in (median, min, max))
    return f"{middle} ({low}–{high})" if len(values) > 1 else middle


def middle(runs: list[dict], key: str) -> float:
    return median(run[key] for run in runs)


def times(ours: list[dict], theirs: list[dict], key: str) -> list[float]:
    """How many times as much ours does, in each round."""
    return [mine[key] / other[key] for mine, other in zip(ours, theirs, strict=True)]


def missing(runs: list[dict]) -> str | None:
    return next((run["unavailable"] for run in runs if "unavailable" in run), None)


def compared(group: dict, label, line, width: int) -> list[list]:
    """A table's rows: `line` of each contender, or the reason why there is none."""
    rows, ours = [], group["ours"]
    for name, runs in group.items():
        why = missing(runs)
        cells = [f"not measured: {why}", *[""] * (width - 1)] if why else line(ours, runs)
        rows.append([label(name), *cells])
    return rows


def contender_label(name: str) -> str:
    return f"**{LABELS[name]}**" if name == "ours" else LABELS[name]


def labels_section(found: dict) -> list[str]:
    head = ["framework, data", "tokens", "learnt", "rows with our tokens", "with our labels", ""]
    rows = []
    for run in found["runs"]:
        name = f"{FRAMEWORKS[run['name']]}, {run['dataset']}"
        if "unavailable" in run:
            rows.append([name, f"not measured: {run['unavailable']}", "", "", "", ""])
            continue
        parts = [f"{n} x {token} more" for token, n in run["also_learnt"].items()]
        parts += [f"{n} x {token} less" for token, n in run["not_learnt"].items()]
        share = (f"{run[key]} of {run['compared']}" for key in ("same_tokens", "same_labels"))
        counts = (f"{run[key]:,}" for key in ("tokens", "trained_tokens"))
        rows.append([name, *counts, *share, ", ".join(parts).replace("|", "\\|")])
    return ["### What is learnt", "", *table(head, rows)]


def training_section(found: dict) -> list[str]:
    lines = ["### Training"]
    head = [
        "",
        "tokens per CPU-second",
        "ours does … times as much",
        "tokens per second",
        "padding",
        "mean loss",
        "memory grows by",
        "ours takes of it",
    ]

    def line(ours, runs):
        key = "tokens_per_cpu_second"
        padding = 1 - runs[0]["tokens"] / runs[0]["tokens_with_padding"]
        return [
            f"{middle(runs, key):,.0f}",
            spread(times(ours, runs, key)) if not missing(ours) else "",
            f"{middle(runs, 'tokens_per_second'):,.0f}",
            f"{padding:.0%}",
            f"{median(run['pass']['loss'] for run in runs):.4f}",
            f"{middle(runs, 'memory_growth') / 2**20:,.0f} MB",
            spread(times(ours, runs, "memory_growth"), "{:.0%}") if not missing(ours) else "",
        ]

    for (dataset, method, rows, memory), group in grouped(
        found["runs"], "dataset", "method", "rows_per_step", "memory"
    ).items():
        title = f"{dataset}, {'LoRA' if method == 'lora' else 'full'}, {rows} rows a step"
        title += f", {memory}" if memory else ""
        rows = compared(group, contender_label, line, len(head) - 1)
        lines += ["", f"**{title}**", "", *table(head, rows)]
    return lines


def preprocessing_section(found: dict) -> list[str]:
    lines = ["### Preprocessing"]
    head = ["", "rows per second", "ours does … times as many", "rows per CPU-second"]
    head += ["ours does … times as many", "memory grows by"]

    def line(ours, runs):
        cells = []
        for key in ("rows_per_wall_second", "rows_per_cpu_second"):
            cells.append(f"{middle(runs, key):,.0f}")
            cells.append(spread(times(ours, runs, key)) if not missing(ours) else "")
        return [*cells, f"{middle(runs, 'memory_growth') / 2**20:,.0f} MB"]

    for (dataset, processes), group in grouped(found["runs"], "dataset", "processes").items():
        sizes = {run["rows"] for runs in group.values() for run in runs if "rows" in run}
        title = f"{dataset}, {max(sizes, default=0):,} rows, processes: {processes}"
        rows = compared(group, FRAMEWORKS.get, line, len(head) - 1)
        lines += ["", f"**{title}**", "", *table(head, rows)]
    return lines


def growth_section(found: dict) -> list[str]:
    lines = ["### Growth"]
    for (what,), group in grouped(found["runs"], "what").items():
        key = "rows_per_cpu_second" if "preparing" in what else "tokens_per_cpu_second"
        unit = key.partition("_")[0]
        head = [what, f"CPU-microseconds per {unit[:-1]}", "of the first", "memory grows by"]
        rows, first = [], None
        for size, runs in group.items():
            if why := missing(runs):
                rows.append([f"{size:,}", f"not measured: {why}", "", ""])
                continue
            cost = 1e6 / middle(runs, key)
            first = first or cost
            grown = f"{middle(runs, 'memory_growth') / 2**20:,.0f} MB"
            if "memory_anonymous" in runs[0]:
                anonymous = f"{middle(runs, 'memory_anonymous') / 2**20:,.0f} MB"
                grown += f", without mapped files {anonymous}"
            rows.append([f"{size:,}", f"{cost:,.0f}", f"{cost / first:.0%}", grown])
        lines += ["", *table(head, rows)]
    return lines


def gpu_section(found: dict) -> list[str]:
    lines = ["### On a GPU"]
    head = ["", "tokens per second", "ours does … times as much", "of the peak", "memory, peak"]
    peak = found["peak_tflops"]

    def line(ours, runs):
        key = "tokens_per_second"
        return [
            f"{middle(runs, key):,.0f}",
            "" if missing(ours) else spread(times(ours, runs, key)),
            f"{middle(runs, 'tflops') / peak:.0%}" if peak else "",
            f"{middle(runs, 'memory_peak') / 2**30:,.1f} GB",
        ]

    for (size, what), group in grouped(found["runs"], "size", "what").items():
        title = f"Qwen3-{size}, {what}, {found['rows_per_step']} rows a step"
        rows = compared(group, found["labels"].get, line, len(head) - 1)
        lines += ["", f"**{title}**", "", *table(head, rows)]
    return lines


def gpu_memory_section(found: dict) -> list[str]:
    """What `bench/gpu_memory.py` measured; GB of 2**30 bytes."""
    head = ["", "rows x length", "checkpointing", "dtype", "peak", "reserved", "with CUDA's own"]
    rows = []
    for run in found["runs"]:
        if "peak" not in run:
            continue
        words = [
            *(run["base_model"].partition("/")[2], run["quantization"], run["lora_targets"]),
            *({"padding_free"} & {run["collator"]}),
            *({"adamw_bnb_8bit"} & {run["optim"]}),
            *([f"{run['trained_share']:.0%} trained"] if run["trained_share"] != 0.25 else []),
            *(["no accumulation"] if run["gradient_accumulation_steps"] == 1 else []),
        ]
        sizes = (run["peak"], run.get("reserved"), run.get("process"))
        rows.append(
            [
                ", ".join(words),
                f"{run['per_device_train_batch_size']} x {run['max_length']:,}",
                "on" if run["activation_checkpointing"] else "off",
                run["dtype"],
                *(f"{size / 2**30:.2f}" if size else "" for size in sizes),
            ]
        )
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return [
        "### Memory on a GPU",
        "",
        "The most that three optimizer steps had in use, full batches, a quarter of the tokens "
        "trained, LoRA of rank 64, gradients accumulated over two batches, if nothing else is said "
        "(`bench/gpu_memory.py`); in GB of 2^30 bytes:",
        "",
        *table(head, rows),
        "",
        f"<sub>{found['machine'].get('card', 'CPU')}; {found['date']}; {versions}.</sub>",
    ]


def memory_sections(results: Path) -> list[str]:
    """How far counting a traced step is from what GPUs have measured for other people's code."""
    lines = ["### Memory", "", "Steps counted on fake tensors against peaks that others measured, "]
    lines[-1] += "their code and their settings (`bench/published.py`):"
    lines += ["", "|  | measurements | mean error | worst |", "|---|--:|--:|--:|"]
    groups = {}
    published = results / "published.json"
    for one in json.loads(published.read_text(encoding="utf-8")) if published.exists() else []:
        for group in ("all", one["group"]):
            groups.setdefault(group, []).append(abs(one["error"]))
    lines += [_errors(group, errors) for group, errors in groups.items()]
    return ["\n".join(lines)]


def _errors(name: str, errors: list[float]) -> str:
    return f"| {name} | {len(errors):,} | {sum(errors) / len(errors):.2%} | {max(errors):.2%} |"


SECTIONS = {
    "labels": labels_section,
    "training": training_section,
    "preprocessing": preprocessing_section,
    "growth": growth_section,
    "gpu": gpu_section,
}


PANELS = {
    "training": (
        ("dataset", "method", "rows_per_step", "memory"),
        "tokens_per_cpu_second",
        "rows a step",
    ),
    "preprocessing": (("dataset", "processes"), "rows_per_cpu_second", "process"),
}


def draw(results: Path) -> None:
    """A chart of the first training setting and of the first preprocessing setting."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "bench"  # the same results, the same file
    from matplotlib import pyplot

    panels = []
    for part, (keys, key, last) in PANELS.items():
        file = results / f"{part}.json"
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
            runs, machine = found["runs"], found["machine"]
            setting, group = next(iter(grouped(runs, *keys).items()))
            group = {name: these for name, these in group.items() if not missing(these)}
            unit = key.replace("_", " ").replace("cpu second", "CPU-second")
            setting = ", ".join(str(part) for part in setting if part)
            panels.append((f"{unit} ({setting} {last})", group, key))
    if not panels:
        return
    bars = [len(group) for _, group, _ in panels]
    figure, axes = pyplot.subplots(
        len(panels),
        figsize=(10, 0.34 * sum(bars) + 0.8 * len(panels)),
        height_ratios=bars,
        layout="constrained",
        squeeze=False,
    )
    for (title, group, key), axis in zip(panels, axes[:, 0], strict=True):
        values = {name: [run[key] for run in group[name]] for name in reversed(group)}
        middles = [median(these) for these in values.values()]
        errors = [(median(v) - min(v), max(v) - median(v)) for v in values.values()]
        bars = axis.barh(
            [(FRAMEWORKS if "rows" in key else LABELS)[name].replace("`", "") for name in values],
            middles,
            xerr=list(zip(*errors, strict=True)),
            color=["#2b6cb0" if name == "ours" else "#b8c2cc" for name in values],
        )
        axis.bar_label(bars, [f"{number:,.0f}" for number in middles], padding=8)
        axis.set_title(title, loc="left")
        axis.margins(x=0.1, y=0.02)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB")
    figure.savefig(results / "chart.svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


if __name__ == "__main__":
    write(BENCH / "results", BENCH / "README.md")
