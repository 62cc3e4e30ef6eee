"""Put the file tree and the memory table into the new README; show the memory and what is next."""

import ast
import hashlib
import json
import os
import re
import sys
from pathlib import Path

import yaml

LANGUAGE = {{ cookiecutter._language | tojson }}
# this file is rendered in the template's folder, and run elsewhere; Jinja's lipsum knows os
TEMPLATES = Path({{ lipsum.__globals__.os.getcwd() | tojson }}, "templates")
SLUG = {{ cookiecutter.project_slug | tojson }}

sys.dont_write_bytecode = True
sys.path.insert(0, os.getcwd())  # the new project's own code, with cookiecutter's libraries
import vram
from sft import memory
from sft.config import read_values

UNTITLED = {  # files whose format has no room for a word on themselves
    "answers.json": "what you answered",
    "base_model/config.json": "the base model's shape",
    "base_model/memory.json": "counts for vram.py",
    "base_model/twin_chat_template.jinja": "its chat template",
    "data/sample.jsonl": "example rows",
    "pyproject.toml": "dependencies and tools",
    "sft/answers.html.jinja": "page of answers",
    "sft/card.md.jinja": "card text",
    "sft/preview.html.jinja": "page of preview.py",
}
SKY = {  # SkyPilot's names of cards, and ours; all compute in bfloat16, so that one resumes another's run
    "L4": "l4", "A10G": "a10g", "L40S": "l40s", "A100-80GB": "a100", "H100": "h100", "H200": "h200",
}  # fmt: skip
UNLISTED = ("LICENSE", "README.md", "sft/__init__.py")
LOW_RANK = """\
A matrix of {size:,} x {size:,} has {whole:,} weights. LoRA leaves them as they are and adds the product of
{size:,} x {r} and {r} x {size:,}: {trained:,} weights to train, {fewer:.0%} fewer. Only they need
gradients and the optimizer's averages. At first the product is zero, so training begins at the base model.
"""
CARDS = "Bold: the smallest card (GB) that fits; in brackets: tight."

said = {"words": {}, "docstrings": {}}
if LANGUAGE != "en":
    said = yaml.safe_load((TEMPLATES / f"{LANGUAGE}.yaml").read_text(encoding="utf-8"))


def word(text):
    """The same in the project's language; what has no translation stays English."""
    return said["words"].get(text, text)


def translate_docstrings():
    """A translation is found by the hash of its English: one that is out of date changes nothing."""
    texts = {key.split()[-1]: text for key, text in said["docstrings"].items()}
    for path in Path().rglob("*.py"):
        before, *rest = path.read_text(encoding="utf-8").split('"""', 2)
        key = hashlib.sha256(rest[0].encode()).hexdigest()[:8] if rest and not before else None
        if key in texts:
            path.write_text('"""'.join([before, texts[key], rest[1]]), encoding="utf-8")


def first_line(path):
    """The first line of a file's docstring: what it says of the answer that chose it."""
    return ast.get_docstring(ast.parse(Path(path).read_text(encoding="utf-8"))).split("\n")[0]


def title(name, text):
    """What a file is for: the first clause of its docstring or leading comment."""
    if name.endswith(".py"):
        words = ast.get_docstring(ast.parse(text)) or ""
    else:
        text = re.sub(r"^#!.*\n", "", text)
        words = UNTITLED.get(name) or (text[2:] if text.startswith("# ") else "")
    return word(re.split(r"[:,.?]\s|[：，。？]|\n| that ", words + "\n")[0].rstrip("."))


def tree():
    """Every file by folder, with its lines and its title."""
    lines, folders = [], set()
    paths = [path for path in Path().rglob("*") if path.is_file()]
    for path in sorted(paths, key=lambda path: (path.parent.as_posix(), path.name)):
        name = path.as_posix()
        if name.startswith(".") or name in UNLISTED:
            continue
        text = path.read_text(encoding="utf-8")
        folder = path.parent.as_posix()
        if folder not in folders and folder != ".":
            folders.add(folder)
            lines.append(f"{folder}/")
        indented = path.name if folder == "." else f"  {path.name}"
        lines.append(f"{indented:<26}{text.count(chr(10)):>4}  {title(name, text)}".rstrip())
    return "\n".join(["```text", *lines, "```", ""])


def memory_table(step):
    """The README's table: GB by batch size and length, and the smallest card for each."""
    lines = [
        f"| {word('GB at the peak')} | {' | '.join(f'{length} tokens' for length in vram.LENGTHS)} |",
        "|---|" + "---|" * len(vram.LENGTHS),
    ]
    for batch in vram.BATCHES:
        cells = []
        for length in vram.LENGTHS:
            one = step.memory(**{vram.BATCH: batch, vram.LENGTH: length})
            fits, tight = vram.smallest(one), vram.smallest(one, ("fits", "tight"))
            card = f"**{fits}**" if fits else word("no card")
            cells.append(f"{vram.gb(one.peak)} → {card}" + (f" ({tight})" if tight != fits else ""))
        lines.append(f"| {word('batch size')} {batch} | {' | '.join(cells)} |")
    return "\n".join([
        *lines,
        "",
        word(CARDS),
        "",
    ])


def precision(step):
    """How much the model's weights take in each number format."""
    sizes = {"float32": 4, "bfloat16, float16": 2, "int8": 1, "4 bits": 0.5}
    rows = [f"| {word(name)} | {step.memory().parameters * size / memory.GB:.1f} |" for name, size in sizes.items()]
    return "\n".join(["| {} | GB |".format(word("each of this model's weights in")), "|---|---|", *rows, ""])


def low_rank():
    """What LoRA trains of one matrix of this model."""
    shape, values = memory.read_config({"base_model_path": "base_model"}), read_values([])
    size, r = (shape.get("text_config") or shape).get("hidden_size"), values.get("r", 0)
    if not size:  # the shape of another model than the menu's is not known here
        return f"{none}\n"
    whole, trained = size * size, 2 * size * r
    figures = {"whole": whole, "trained": trained, "fewer": 1 - trained / whole}
    return word(LOW_RANK).format(size=size, r=r, **figures)


def counted_step():
    """The step whose count came with the project, signed for its files as they are; or None."""
    counts = [*json.loads(memory.COUNTS.read_text(encoding="utf-8")).values()]
    if not counts:  # of another model than the menu's nothing is assumed
        return None
    memory.keep({memory.fingerprint(read_values([])): counts[0]})
    return vram.Step([])


translate_docstrings()
step = counted_step()
none = word(f"{memory.NO_FIGURE}: python vram.py counts it in the installed project.")
table = memory_table(step) if step else f"{none}\n"
lessons = Path("LESSONS.md")
text = lessons.read_text(encoding="utf-8")
text = text.replace("<!-- precision table -->\n", precision(step) if step else f"{none}\n")
lessons.write_text(text.replace("<!-- low rank -->\n", low_rank()), encoding="utf-8")
if step:
    sky, now = Path("launch/sky.yaml"), step.memory()
    cards = [name for name, card in SKY.items() if now.verdict(vram.NAMED[card]) == "fits"] or ["H200"]
    text = sky.read_text(encoding="utf-8")
    sky.write_text(text.replace("{H200: 1}", str(dict.fromkeys(cards, 1)).replace("'", "")), encoding="utf-8")
readme = Path("README.md")
text = readme.read_text(encoding="utf-8")
text = text.replace("<!-- memory table -->\n", table)
text = re.sub(r"<!-- (sft/\w+\.py) -->", lambda found: first_line(found[1]), text)
readme.write_text(text.replace("<!-- file tree -->\n", tree()), encoding="utf-8")

if hasattr(sys.stdout, "reconfigure"):  # the bars, on Windows too
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
if step:
    vram.print_all(step, vram.CARDS)
else:
    print(none)
data = read_values([])["dataset"]
is_path = re.search(r"\.(jsonl?|csv|parquet)$|^[./~]", data) and not re.search(r"[*?\[]", data)
if is_path and not os.path.exists(os.path.expanduser(data)):
    print(f"The dataset {data} is not there yet, as seen from {SLUG}.")
print(f"{SLUG} is ready. Next:\n")
print(f"    cd {SLUG} && pip install -e \".[test]\"")
print("    python preview.py --smoke   # your rows, and what is trained on")
print("    python train.py --smoke     # the whole path with a tiny twin, on the CPU, in seconds")
