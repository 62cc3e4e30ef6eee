"""What is wrong with a file of rows, and in which line: the readers do not say."""

import csv
import json
from pathlib import Path


def refuse_broken_text(files: list[Path]) -> None:
    """Exit at an empty file, or a line that is not UTF-8: the readers fail at it much later."""
    for file in files:
        if file.stat().st_size == 0:
            raise SystemExit(f"{file} is empty; it should hold one row a line.")
        if file.suffix != ".parquet":
            with file.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    try:
                        line.decode("utf-8")
                    except UnicodeDecodeError:
                        fault = f"{file}, line {number} is not UTF-8; save the file as UTF-8."
                        raise SystemExit(fault) from None


def broken_line(files: list[Path]) -> str:
    """A sentence with the first broken line of the files; "" where there is none."""
    find = {".csv": _fault_in_csv, ".json": _fault_in_json, ".jsonl": _fault_in_json}
    for file in files:
        fault = find[file.suffix](file) if file.suffix in find else ""
        if fault:
            return f"{file}, line {fault}; fix or delete it."
    return ""


def _fault_in_csv(file: Path) -> str:
    with file.open(encoding="utf-8", newline="") as lines:
        rows, line = csv.DictReader(lines, strict=True), 0
        try:
            for row in rows:
                line = rows.line_num
                if None in row:  # the key of values beyond the last column
                    return f"{line} has more values than columns; quote texts with commas"
        except csv.Error as error:
            return f"{line + 1} begins a row that does not end ({error})"
    return ""


def _fault_in_json(file: Path) -> str:
    """In a `.json` file, which is one value, or a `.jsonl` file, which has an object a line."""
    text, is_lines = file.read_text(encoding="utf-8-sig"), file.suffix == ".jsonl"
    for number, part in enumerate(text.split("\n") if is_lines else [text], start=1):
        try:
            value = json.loads(part if part.strip() else "{}")
            if is_lines and not isinstance(value, dict):
                return f"{number} is not a JSON object"
        except json.JSONDecodeError as error:
            return f"{number + error.lineno - 1} is not JSON ({error.msg})"
    return ""
