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


def tree(project: Path) -> list[Text]:
    """The files of the project, as its README lists them."""
    readme = (project / "README.md").read_text(encoding="utf-8")
    lines = readme.partition("```text\n")[2].partition("\n```")[0].splitlines()
    shown = []
    for line in lines:
        name, number, about = re.fullmatch(r"(\s*\S+)(?:\s+(\d+))?\s*(.*)", line).groups()
        words = about if len(about) < 50 else about[:49].rstrip() + "\u2026"
        style = "bold" if number is None else ""
        shown.append(
            Text.assemble((f"{name:26}", style), f"{number or '':>4}  ", (words, "grey62"))
        )
    return shown


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
    for line in tree(project):
        console.print(line)
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
