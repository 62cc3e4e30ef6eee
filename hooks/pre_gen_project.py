"""Refuse answers that cannot work, before a file is written: one sentence, and the command that works."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from difflib import get_close_matches
from functools import partial
from itertools import islice
from pathlib import Path
from string import Formatter

from jinja2 import Template  # cookiecutter's

# the answers arrive as a JSON text in a JSON text: whatever is in them, this stays one literal
COOKIECUTTER = json.loads({{ cookiecutter | tojson | tojson }})
# `_repo_dir` may be relative; this file is rendered in the template's folder, and run elsewhere
TEMPLATE = Path({{ lipsum.__globals__.os.getcwd() | tojson }})  # Jinja's lipsum knows os
QUESTIONS = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
SAMPLE = "data/sample.jsonl"  # written with the project, for any row
NAME_A_COLUMN = ("messages", "text")  # the formats whose row is the name of a column
TO_REPLACE = ("PROMPT", "RESPONSE", "ORG/NAME")  # where nothing can be proposed
MOST = 2**27  # bytes of a file that is looked at

# names that Windows keeps for devices
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


def refusal(answers):
    """The first reason not to generate, and what to answer instead; or None."""
    return (
        unknown_answer(answers)
        or bad_slug(answers["project_slug"])
        or name_of_a_dependency(answers["project_slug"])
        or missing_text(answers)
        or other_model(answers)
        or misplaced_dataset(answers)
        or other_separator(answers)
        or row_of_the_example(answers)
        or bad_row(answers)
        or bad_length(answers["max_length"])
        or quantized_full(answers)
        or text_with_a_mask(answers)
    )


def default(name, answers):
    """What cookiecutter takes for a question that is not answered."""
    offered = QUESTIONS[name]
    return Template(offered[0] if isinstance(offered, list) else offered).render(cookiecutter=answers)


def unknown_answer(answers):
    """A replayed answer may be one that is not offered any more; cookiecutter does not look."""
    menus = {name: one for name, one in QUESTIONS.items() if isinstance(one, list) and name[0] != "_"}
    menus["_language"] = ["en", *sorted(file.stem for file in TEMPLATE.glob("templates/*.yaml"))]
    for name, offered in menus.items():
        if answers[name] not in offered:
            reason = f"{name} is {answers[name]!r}, which is not offered"
            return f"{reason}; choose one of {', '.join(offered)}.", {name: offered[0]}
    return None


def bad_slug(slug):
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", slug) and slug.lower() not in RESERVED:
        return None
    words = "-".join(re.findall("[A-Za-z0-9]+", slug))
    reason = f"project_slug {slug!r} is not a folder name; use letters, digits, '-', '_' and '.'."
    return reason, {"project_slug": words if words not in ("", slug) else "my-sft"}


def name_of_a_dependency(slug):
    """pip takes a project of that name for the dependency, and finds that it needs itself."""
    files = [*TEMPLATE.glob("constraints.txt"), *TEMPLATE.glob("*/pyproject.toml")]
    lines = "\n".join(file.read_text(encoding="utf-8") for file in files)
    # "datasets>=5.2,<6" of the one, datasets==5.2.0 of the other
    names = re.findall(r'^[\s"]*([\w.-]+)[>=]=|"([\w.-]+)>=', lines, re.MULTILINE)
    names = {re.sub("[-_.]+", "-", name.lower()) for found in names for name in found}
    if re.sub("[-_.]+", "-", slug.lower()) not in names:
        return None
    reason = f"project_slug {slug!r} is the name of a package that the project needs; choose another."
    return reason, {"project_slug": f"my-{slug}"}


def missing_text(answers):
    for name in ("base_model_path", "dataset", "row"):
        if not answers[name].strip():
            return f"{name} is empty; answer it, or take the default.", {name: default(name, answers)}
    return None


def other_model(answers):
    if answers["base_model"] == answers["base_model_path"] == "other":
        reason = "base_model is other: base_model_path has to name it, a Hub id or a local folder."
        return reason, {"base_model_path": "ORG/NAME"}
    return None


def misplaced_dataset(answers):
    """A file is typed as it is seen from here, and read as it is seen from the new project."""
    path = answers["dataset"]
    if quoted := re.fullmatch(r"\s*(['\"])(.*\.(?:csv|jsonl?|parquet))\1\s*", path):
        return f"dataset {path!r} is in quotes, which belong to no path.", {"dataset": quoted[2]}
    beside = os.path.join(answers.get("_output_dir", ""), path)
    is_there = os.path.isfile(beside) or "/" not in path and os.path.isdir(beside)
    if os.path.exists(path) or not is_there:
        return None
    reason = f"dataset {path!r} is not in the new project but beside it; begin the path there, with '../'."
    return reason, {"dataset": f"../{path}"}


def columns_of(answers):
    """Those of a local file's first rows, with a value of each; empty where it can't be seen from here."""
    data, found = os.path.expanduser(answers["dataset"]), {}
    # cruft renders elsewhere than in the project, in which it is started
    folders = ["", os.environ.get("PWD", "")] if is_cruft(answers) else [""]
    data = next(filter(os.path.isfile, (os.path.join(folder, data) for folder in folders)), SAMPLE)
    if data == SAMPLE or os.path.getsize(data) > MOST:
        return {}
    csv.field_size_limit(MOST)
    try:
        with open(data, encoding="utf-8-sig", newline="") as file:
            if data.endswith(".csv"):
                rows = csv.DictReader(file)
            elif data.endswith(".jsonl"):
                rows = (json.loads(line) for line in file if line.strip())
            else:
                rows = json.load(file) if data.endswith(".json") else []
            for row in islice(rows, 100):
                found = {**row, **found}
    except (OSError, ValueError, TypeError, RecursionError, csv.Error):
        return {}
    found.pop(None, None)  # values of a CSV that are in no column
    return found


def other_separator(answers):
    columns = [*columns_of(answers)]
    if answers["dataset"].endswith(".csv") and len(columns) == 1 and re.search("[;\t]", columns[0]):
        return f"dataset {answers['dataset']!r} separates by another sign than ','; save it with commas.", {}
    return None


def braced(*columns):
    return " ".join("{" + column + "}" for column in columns)


def nearest(name, columns):
    """The column that is meant by a name, or ""; any name where the columns are not known."""
    if name in columns or not columns:
        return name
    known = {column.lower(): column for column in columns}
    return known.get(next(iter(get_close_matches(name.lower(), known, n=1)), ""), "")


def proposed_row(row, form, columns):
    """What may be meant: what was typed, with columns that the rows have; capitals are to replace."""
    # a number of the row says nothing, and in braces these signs mean something else
    columns = {name: one for name, one in columns.items() if name and not re.search("[{}:!]", name)}
    useful = [name for name in columns if not re.fullmatch("(?i)(.*[_ -])?(id|index)", name)]
    if form in NAME_A_COLUMN:
        longest = max(useful, key=lambda column: len(str(columns[column])), default=form)
        return nearest(row.strip("{} "), columns) or longest
    ways = r"(.*)[=-]>(.*)", r"(.*)=\s*(\{[^{}]+\})\s*", "(.*)()"
    prompt, response = next(filter(None, (re.fullmatch(way, row, re.DOTALL) for way in ways))).groups()
    prompt = re.sub(r"\{\{|\}\}|\{([^{}:!]+)\}|([{}])", partial(with_columns, columns), prompt)
    if not re.search(r"\{\w", prompt):  # columns without braces
        prompt = re.sub(r"\w+", lambda word: braced(word[0]) if word[0] in columns else word[0], prompt)
    response = nearest((re.findall(r"\{([^{}]+)\}", response) or [response.strip()])[-1], columns)
    if not response:
        response = next((one for one in reversed(useful) if braced(one) not in prompt), "RESPONSE")
    prompt = prompt.replace(braced(response), "").strip()
    if not re.search(r"\{\w", prompt):
        prompt += " " + (braced(*[column for column in useful if column != response]) or "{PROMPT}")
    return f"{prompt.strip()} => {braced(response)}"


def with_columns(columns, found):
    """A column in braces by its nearest name, a lone brace doubled, and the rest as it is."""
    if found[1]:
        column = nearest(found[1], columns)
        return braced(column) if column else found[1]
    return found[0] * 2 if found[2] else found[0]


def bad_row(answers):
    row, form, data = answers["row"], answers["dataset_format"], answers["dataset"]
    columns = columns_of(answers)
    fixed = {"row": proposed_row(row, form, columns)}
    if form in NAME_A_COLUMN:
        if re.search("[{}]", row):
            return f"row {row!r} has braces, but for {form} it is the name of a column alone.", fixed
        names = [row]
    elif form == "prompt_response":
        parts = re.fullmatch(r"(.*) => \{([^{}]+)\}", row, re.DOTALL)
        if not parts:
            return f"row {row!r} does not end with ' => ' and the column to train on, in braces.", fixed
        prompt, response = parts.groups()
        literal = "double the braces that are meant literally"
        try:
            fields = [field[1:] for field in Formatter().parse(prompt) if field[1] is not None]
        except ValueError as error:
            return f"row {row!r}: {error}; {literal}.", fixed
        names = [name for name, *_ in fields]
        if any(not name or spec or conversion for name, spec, conversion in fields):
            return f"row {row!r} has braces that name no column; {literal}.", fixed
        if response in names:
            reason = f"row {row!r} shows the model the column {response!r} that it is trained to write"
            return f"{reason}; take it out of the prompt.", fixed
        if not names:
            return f"row {row!r} names no column before ' => '; write one in braces.", fixed
        names.append(response)
    else:  # a format that was added
        return None
    for name in names:
        if columns and name not in (*columns, *TO_REPLACE):
            reason = f"row {row!r} names the column {name!r}, and {data!r} has {', '.join(columns)}."
            return reason, fixed
    return None


def row_of_the_example(answers):
    """The default suits the default dataset: with another it was forgotten, or old answers lack it."""
    data, row, form = answers["dataset"], answers["row"], answers["dataset_format"]
    if form != "prompt_response" or row != default("row", answers):
        return None
    columns = columns_of(answers)
    if data in (default("dataset", answers), SAMPLE) or {*re.findall(r"\{(\w+)\}", row)} <= {*columns}:
        return None
    reason = f"row {row!r} is the example's, and {data!r} is another dataset"
    if columns:
        reason += f", with the columns {', '.join(columns)}; name one or more of them."
    else:
        reason += "; name its columns, or change a word of the prompt if they are the same."
    if is_cruft(answers):
        reason += " In a project of 0.1.0 these are prompt_template and response_column in config.yaml."
    return reason, {"row": proposed_row("", form, columns)}


def bad_length(max_length):
    if re.fullmatch("[1-9][0-9]*", max_length):
        return None
    reason = f"max_length must be a positive whole number of tokens, such as 1024, not {max_length!r}."
    return reason, {"max_length": "1024"}


def quantized_full(answers):
    if answers["lora_targets"] == "full" and answers["quantization"] != "none":
        reason = (
            f"full trains every weight, and {answers['quantization']} weights are too coarse for "
            "gradient steps; choose quantization none, or keep the quantization and choose LoRA on "
            "attention, all_linear or mlp."
        )
        return reason, {"quantization": "none"}
    return None


def text_with_a_mask(answers):
    if answers["dataset_format"] == "text" and answers["collator"] != "language_modeling":
        reason = (
            "text has no prompts and replies, all of it is trained on; choose the collator "
            "language_modeling, or another dataset_format."
        )
        return reason, {"collator": "language_modeling"}
    return None


def is_cruft(answers):
    """cookiecutter's own command says where it writes to; cruft does not."""
    return "_output_dir" not in answers


def commands(answers, fixed):
    """What to type for these answers, and no question."""
    given = {name: as_jinja(answers[name]) for name in QUESTIONS if name[0] != "_"}
    if "_language" in fixed or answers["_language"] != "en":
        given["_language"] = answers["_language"]
    if is_cruft(answers):
        new = ["cruft", "create", answers["_template"], "--no-input", "--extra-context", json.dumps(given)]
        corrected = json.dumps({name: given[name] for name in fixed})
        return [new, ["cruft", "update", "--variables-to-update", corrected]]
    options, folder = ["--no-input"], answers["_output_dir"]
    if os.path.realpath(os.environ.get("PWD", folder)) != os.path.realpath(folder):
        options += ["--output-dir", folder]
    if answers.get("_checkout"):
        options += ["--checkout", answers["_checkout"]]
    words = [f"{name}={answer}" for name, answer in given.items()]
    return [["cookiecutter", *options, answers["_template"], *words]]


def as_jinja(answer):
    """Where no question is asked, cookiecutter renders the answers."""
    if not re.search(r"\{[%#{]", answer):
        return answer
    return "{" * 2 + f" {json.dumps(answer, ensure_ascii=False)} " + "}" * 2


def leave_nothing(output_dir):
    """cookiecutter removes the folder it made, but not those above it that a slug with / made."""
    project = Path.cwd()
    if project.parent != output_dir and output_dir in project.parents:
        os.chdir(output_dir)
        project.rmdir()
        while project.parent != output_dir and not any(project.parent.iterdir()):
            project = project.parent
            project.rmdir()


# each correction is looked at in its turn; a proposal that is refused again must not go on for ever
reasons, corrected, answers = [], {}, dict(COOKIECUTTER)
while (found := refusal(answers)) and found[0] not in reasons and len(reasons) < len(QUESTIONS):
    reasons.append(found[0])
    corrected |= found[1]
    answers |= found[1]
if reasons:
    for reason in reasons:
        print(f"Refused: {reason}", file=sys.stderr)
    if not found:
        is_whole = not re.search("|".join(TO_REPLACE), str(corrected))
        to_do = "" if is_whole else "; put your own in the place of words in capitals"
        print(f"Corrected, with all that you answered{to_do}:", file=sys.stderr)
        for words in commands(answers, corrected):
            line = subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
            print(f"    {line}", file=sys.stderr)
    print("What follows is cookiecutter, which says that it stopped here.", file=sys.stderr)
    if "_output_dir" in COOKIECUTTER:
        leave_nothing(Path(COOKIECUTTER["_output_dir"]).resolve())
    sys.exit(1)
