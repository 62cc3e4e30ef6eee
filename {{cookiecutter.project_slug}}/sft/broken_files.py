"""What is wrong with a file of rows, and in which line: the readers do not say."""

import csv
import json
from pathlib import Path


def refuse_broken_text(files: list[Path]) -> None:
    """Refuse an empty file, and what is not UTF-8: the readers fail at it much later.

    Raises:
        SystemExit: the sentence names file and line.
    """
    for file in files:
        if file.stat().st_size == 0:
            raise SystemExit(f"{file} is empty; it should hold one row a line.")
        if file.suffix == ".parquet":
            continue
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError:
                    raise SystemExit(
                        f"{file}, line {number} is not UTF-8; save the file as UTF-8."
                    ) from None


def broken_line(files: list[Path]) -> str:
    """A sentence with the first broken line of the files; "" where there is none."""
    finders = {".csv": _fault_in_csv, ".json": _fault_in_json, ".jsonl": _fault_in_jsonl}
    for file in files:
        fault = finders[file.suffix](file) if file.suffix in finders else ""
        if fault:
            return f"{file}, line {fault}; fix or delete it."
    return ""


def _fault_in_csv(file: Path) -> str:
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        line = 0
        try:
            names = next(reader, [])
            for row in reader:
                line = reader.line_num
                if len(row) > len(names):
                    values = f"{len(row)} values for {len(names)} columns"
                    return f"{line} has {values} (quote texts with commas)"
        except csv.Error as error:
            return f"{line + 1} begins a row that does not end ({error})"
    return ""


def _fault_in_json(file: Path) -> str:
    try:
        json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        return f"{error.lineno} is not JSON ({error.msg})"
    return ""


def _fault_in_jsonl(file: Path) -> str:
    text = file.read_text(encoding="utf-8-sig")
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            if line.strip() and not isinstance(json.loads(line), dict):
                return f"{number} is not a JSON object"
        except json.JSONDecodeError as error:
            return f"{number} is not JSON ({error.msg})"
    return ""
