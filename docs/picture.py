"""Draw docs/run.svg, the picture in the README: the files of a project, and its training.

python docs/picture.py      runs `make demo`; words after it are make's: MODEL=FOLDER
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

TEMPLATE = Path(__file__).resolve().parent.parent


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


def run(words: list[str]) -> list[str]:
    """The lines of `make demo` as a terminal shows them at the end, from the training on."""
    environment = {**os.environ, "FORCE_COLOR": "1", "COLORTERM": "truecolor", "COLUMNS": "84"}
    output = subprocess.run(
        ["make", "demo", *words],
        cwd=TEMPLATE,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    ).stdout
    output = output[output.index("1. Load the rows") : output.index("The project is in demo")]
    # one row of the first batch is enough, and what was said before it is there again
    output = re.sub(r"(?<=trained on)(.*?\n).*?(?=7\. Save to)", r"\1", output, count=1, flags=re.S)
    bars = r".*(it/s|s/it|examples/s)\]?(\x1b\[\w)*"
    lines = [re.sub(bars, "", re.split("\r", line)[-1]) for line in output.splitlines()]
    passing = r"^\s*$|\{'|Failed to load CPU|mtime may not|numerical ordering"
    return [line for line in lines if not re.search(passing, line)]


def main(words: list[str]) -> None:
    lines, project = run(words), TEMPLATE / "demo/my-sft"
    console = Console(record=True, width=84, force_terminal=True, file=open(os.devnull, "w"))
    console.print(Text("$ ls", "bold"))
    for line in tree(project):
        console.print(line)
    console.print()
    console.print(Text("$ python train.py", "bold"))
    for line in lines:
        console.print(Text.from_ansi(line))
    svg = console.export_svg(title=project.name)
    # the fonts of the reader's machine will do; nothing is to be loaded from elsewhere
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)
    target = TEMPLATE / "docs/run.svg"
    target.write_text(svg, encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main(sys.argv[1:])
