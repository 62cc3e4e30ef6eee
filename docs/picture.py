"""Draw docs/run.svg, the picture in the README: the files of a project, and its smoke run.

python docs/picture.py demo/my-sft      (after `make demo`)
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

WHAT = {
    "config.yaml": "every value",
    "train.py": "the story, top to bottom",
    "preview.py": "what is trained on, in colour",
    "chat.py": "talk to the result",
    "merge.py": "fold the adapter in",
    "vram.py": "will it fit?",
    "advice.py": "what would make it fit",
    "trace.py": "memory, counted on fake tensors",
    "base_model": "its shape, for the estimate and the twin",
    "data": "a sample",
    "config.py": "config.yaml and the command line",
    "report.py": "tables and a plot",
    "smoke.py": "the tiny twin",
    "rows.py": "where rows come from",
    "dataset.py": "rows to messages",
    "conversation.py": "is it sound? what may be left out?",
    "control_tokens.py": "those that a row's own text forges",
    "end_of_turn.py": "where a turn ends",
    "preprocess.py": "messages to input_ids, labels: the mask",
    "tokens.py": "which tokens a reply became",
    "machine.py": "what suits the card",
    "prepare.py": "all rows, and which are set aside",
    "collator.py": "examples to a batch",
    "model.py": "base model, tokenizer",
    "quantization.py": "4 bits",
    "adapter.py": "what is trained",
    "trainer.py": "logits, evaluate, resume",
    "launch": "several GPUs",
    "tests": "of your data, mask, batches",
}
LEFT_OUT = {"__init__.py", "__pycache__", "outputs", "cache"}


def tree(folder: Path, deep: tuple = ("sft",)) -> Tree:
    def add(branch: Tree, path: Path) -> None:
        name = path.name + ("/" if path.is_dir() else "")
        label = Text.assemble((f"{name:18}", "bold" if path.is_dir() else ""), " ")
        leaf = branch.add(label.append(WHAT.get(path.name, ""), "grey62"))
        if path.name in deep:
            for inner in sorted(path.iterdir()):
                if inner.name not in LEFT_OUT:
                    add(leaf, inner)

    root = Tree(Text(folder.name + "/", "bold"), guide_style="grey42")
    shown = [path for path in folder.iterdir() if path.name not in LEFT_OUT]
    for path in sorted(shown, key=lambda path: (path.suffix != ".py", path.name)):
        if not path.name.startswith("."):
            add(root, path)
    return root


def run(project: Path) -> list[str]:
    """The lines of `python train.py --smoke` as a terminal shows them at the end."""
    environment = {
        **os.environ,
        "FORCE_COLOR": "1",
        "COLORTERM": "truecolor",
        "COLUMNS": "84",
        "HF_HUB_OFFLINE": "1",
    }
    output = subprocess.run(
        [sys.executable, "train.py", "--smoke"],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    ).stdout
    bars = r".*(it/s|s/it|examples/s)\]?(\x1b\[\w)*"
    lines = [re.sub(bars, "", re.split("\r", line)[-1]) for line in output.splitlines()]
    passing = r"^\s*$|\{'|Failed to load CPU|mtime may not|numerical ordering"
    # the twin's answer is random bytes, and an SVG holds none that cannot be printed
    return [
        re.sub(r"[^\x1b\x20-\U0010ffff]", "", line)
        for line in lines
        if not re.search(passing, line)
    ]


def main(project: Path) -> None:
    console = Console(record=True, width=84, force_terminal=True, file=open(os.devnull, "w"))
    console.print(Text("$ ls", "bold"))
    console.print(tree(project))
    console.print()
    console.print(Text("$ python train.py --smoke", "bold"))
    for line in run(project):
        console.print(Text.from_ansi(line))
    svg = console.export_svg(title=project.name)
    # the fonts of the reader's machine will do; nothing is to be loaded from elsewhere
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)
    target = Path(__file__).parent / "run.svg"
    target.write_text(svg, encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
