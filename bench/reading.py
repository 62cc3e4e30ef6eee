"""How long a generated project takes to read, and how much Python there is.

    .venv/bin/python bench/reading.py              the default project; the READMEs get its figures
    .venv/bin/python bench/reading.py FOLDER       a project that is there already

Minutes are lines of code / 60 + words of comment and docstring / 250; text is words / 250. The path
of a row is what an owner reads to know what happens to the data.
"""

import ast
import io
import re
import sys
import tempfile
import tokenize
from dataclasses import dataclass
from pathlib import Path

from cookiecutter.main import cookiecutter

TEMPLATE = Path(__file__).resolve().parent.parent
PATH_OF_A_ROW = (
    *("README.md", "config.yaml", "train.py", "sft/rows.py", "sft/format.py"),
    *("sft/mask/__init__.py", "sft/examples.py", "sft/collator.py", "sft/model.py"),
    *("sft/quantization.py", "sft/adapter.py", "sft/trainer.py"),
)
# the rest of the Python, by what it is about
GROUPS = {
    "mask": r"sft/mask/.*",
    "memory": r"vram\.py|sft/(vram|trace|advice|memory|count|machine)\.py",
    "tests": r"tests/.*",
    "other": r".*",
}
LIMIT_MINUTES, GOAL_LINES = 20, 3400
# the sentence of each README that says so: minutes, lines, files
CLAIMS = {
    TEMPLATE / "README.md": "takes {:.1f} minutes to read, and\n"
    "  all Python, tests included, is {:,} lines in {} files",
    TEMPLATE / "README.zh-CN.md": "读完需要 {:.1f} 分钟；\n"
    "  全部 Python 代码（含测试）共 {:,} 行、{} 个文件",
}


@dataclass
class Reading:
    """What there is to read in one file."""

    lines: int  # all of them, blank ones too
    code: int  # lines with code on them
    words: int  # of comment, docstring or text

    @property
    def minutes(self) -> float:
        return self.code / 60 + self.words / 250


def count_words(text: str) -> int:
    """Words: what has a letter in it, so no figures, rules or bars of a table."""
    return sum(any(map(str.isalpha, word)) for word in text.split())


def read(file: Path) -> Reading:
    text = file.read_text(encoding="utf-8")
    count = {".py": read_python, ".yaml": read_yaml}.get(file.suffix, read_text)
    return Reading(text.count("\n"), *count(text))


def read_text(text: str) -> tuple[int, int]:
    return 0, count_words(text)


def read_yaml(text: str) -> tuple[int, int]:
    parts = [line.partition("# ") for line in text.splitlines()]
    return sum(bool(code.strip(" #")) for code, _, _ in parts), count_words(
        " ".join(comment for _, _, comment in parts)
    )


def read_python(text: str) -> tuple[int, int]:
    """Lines that hold a token of code, and words of comments and docstrings."""
    docstrings, words = set(), 0
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if ast.get_docstring(node, clean=False) is not None:
                words += count_words(ast.get_docstring(node))
                docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    blank = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            words += count_words(token.string)
        elif token.type not in blank:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings), words


def path_of_a_row(project: Path) -> dict[str, Reading]:
    return {name: read(project / name) for name in PATH_OF_A_ROW}


def all_python(project: Path) -> dict[str, Reading]:
    return {file.relative_to(project).as_posix(): read(file) for file in project.rglob("*.py")}


def total(readings: dict[str, Reading]) -> Reading:
    every = readings.values()
    return Reading(*(sum(getattr(one, key) for one in every) for key in ("lines", "code", "words")))


def claims(path: dict[str, Reading], python: dict[str, Reading]) -> dict[Path, str]:
    """The sentence of each README, with these figures."""
    figures = (total(path).minutes, total(python).lines, len(python))
    return {readme: words.format(*figures) for readme, words in CLAIMS.items()}


def bake(folder: str) -> Path:
    """The default project, in `folder`, with nothing left elsewhere."""
    config = Path(folder, "config.yaml")
    config.write_text(f"replay_dir: '{folder}'\n", encoding="utf-8")
    return Path(
        cookiecutter(str(TEMPLATE), no_input=True, output_dir=folder, config_file=str(config))
    )


def main(argv: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        project = Path(argv[0]) if argv else bake(folder)
        path, python = path_of_a_row(project), all_python(project)

    def show(name: str, reading: Reading) -> None:
        print(
            f"{name:<24}{reading.lines:>6}{reading.code:>6}{reading.words:>6}{reading.minutes:>8.1f}"
        )

    print(f"{'the path of a row':<24}{'lines':>6}{'code':>6}{'words':>6}{'minutes':>8}")
    for name, reading in path.items():
        show(name, reading)
    show(f"(limit {LIMIT_MINUTES} minutes)", total(path))
    print("\nall Python")
    left = dict(python)
    for group, names in GROUPS.items():
        show(group, total({n: left.pop(n) for n in [*left] if re.fullmatch(names, n)}))
    show(f"{len(python)} files (goal {GOAL_LINES:,})", total(python))
    if not argv:
        for readme, claim in claims(path, python).items():
            text = readme.read_text(encoding="utf-8")
            figures = re.split(r"{.*?}", CLAIMS[readme])
            was = re.search(r"[\d.,]+".join(map(re.escape, figures)), text)[0]
            readme.write_text(text.replace(was, claim), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
