"""Refuse answers that cannot work, before a file is written: one sentence with the fix."""

import json
import os
import re
import sys
from pathlib import Path
from string import Formatter

# the answers arrive as a JSON text in a JSON text: whatever is in them, this stays one literal
COOKIECUTTER = json.loads({{ cookiecutter | tojson | tojson }})
# `_repo_dir` may be relative; this file is rendered in the template's folder, and run elsewhere
TEMPLATE = Path({{ lipsum.__globals__.os.getcwd() | tojson }})  # Jinja's lipsum knows os

# names that Windows keeps for devices
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


def refusal(answers):
    """The first reason not to generate, or None."""
    return (
        unknown_answer(answers)
        or bad_slug(answers["project_slug"])
        or name_of_a_dependency(answers)
        or missing_text(answers)
        or other_model(answers)
        or bad_fields(answers)
        or bad_length(answers["max_length"])
        or quantized_full(answers)
        or text_with_a_mask(answers)
    )


def unknown_answer(answers):
    """A replayed answer may be one that is not offered any more; cookiecutter does not look."""
    menus = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
    for name, offered in menus.items():
        if isinstance(offered, list) and not name.startswith("_") and answers[name] not in offered:
            return f"{name} is {answers[name]!r}, which is not offered; choose one of {', '.join(offered)}."
    languages = ["en", *sorted(file.stem for file in TEMPLATE.glob("templates/*.yaml"))]
    if answers["_language"] not in languages:
        return f"_language {answers['_language']!r} is not offered; choose one of {', '.join(languages)}."
    return None


def bad_slug(slug):
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", slug) and slug.lower() not in RESERVED:
        return None
    return (
        f"project_slug {slug!r} is not a folder name; use letters, digits, '-', '_' and '.', "
        "such as my-sft."
    )


def name_of_a_dependency(answers):
    """pip takes a project of that name for the dependency, and finds that it needs itself."""
    files = [*TEMPLATE.glob("constraints.txt"), *TEMPLATE.glob("*/pyproject.toml")]
    lines = "\n".join(file.read_text(encoding="utf-8") for file in files)
    # "datasets>=5.2,<6" of the one, datasets==5.2.0 of the other
    names = re.findall(r'^[\s"]*([\w.-]+)[>=]=|"([\w.-]+)>=', lines, re.MULTILINE)
    names = {re.sub("[-_.]+", "-", name.lower()) for found in names for name in found}
    if re.sub("[-_.]+", "-", answers["project_slug"].lower()) in names:
        return (
            f"project_slug {answers['project_slug']!r} is the name of a package that the project "
            "needs; choose another, such as my-sft."
        )
    return None


def missing_text(answers):
    for name in ("project_name", "base_model_path", "dataset"):
        if not answers[name].strip():
            return f"{name} is empty; answer it, or take the default."
    return None


def other_model(answers):
    if answers["base_model"] == answers["base_model_path"] == "other":
        return "base_model is other: base_model_path has to name it, a Hub id or a local folder."
    return None


def bad_fields(answers):
    if answers["dataset_format"] == "messages" and not answers["messages_column"].strip():
        return "messages_column is empty; name the column that holds the list of turns."
    if answers["dataset_format"] != "prompt_response":
        return None
    if not answers["response_column"].strip():
        return "response_column is empty; name the column that holds the reply to train on."
    try:
        fields = [field for field in Formatter().parse(answers["prompt_template"]) if field[1] is not None]
    except ValueError as error:
        return f"prompt_template: {error}; double the braces that are meant literally."
    for _, name, spec, conversion in fields:
        if not name or spec or conversion:
            return (
                "prompt_template has braces that name no column; "
                "double the braces that are meant literally."
            )
        if name == answers["response_column"]:
            return (
                f"prompt_template shows the model the column {name!r}, which is also the "
                "response_column that it is trained to write; take it out of one of the two."
            )
    if not fields:
        return (
            "prompt_template names no column of the dataset; write one in braces, such as "
            "'Please Summarize: {dialogue}'."
        )
    return None


def bad_length(max_length):
    if re.fullmatch("[1-9][0-9]*", max_length):
        return None
    return f"max_length must be a positive whole number of tokens, such as 1024, not {max_length!r}."


def quantized_full(answers):
    if answers["lora_targets"] == "full" and answers["quantization"] != "none":
        return (
            f"full trains every weight, and {answers['quantization']} weights are too coarse for "
            "gradient steps; choose quantization none, or keep the quantization and choose LoRA on "
            "attention, all_linear or mlp."
        )
    return None


def text_with_a_mask(answers):
    if answers["dataset_format"] == "text" and answers["collator"] != "language_modeling":
        return (
            "text has no prompts and replies, all of it is trained on; choose the collator "
            "language_modeling, or another dataset_format."
        )
    return None


def leave_nothing(output_dir):
    """cookiecutter removes the folder it made, but not those above it that a slug with / made."""
    project = Path.cwd()
    if project.parent != output_dir and output_dir in project.parents:
        os.chdir(output_dir)
        project.rmdir()
        while project.parent != output_dir and not any(project.parent.iterdir()):
            project = project.parent
            project.rmdir()


if reason := refusal(COOKIECUTTER):
    print(f"Refused: {reason}", file=sys.stderr)
    if "_output_dir" in COOKIECUTTER:
        leave_nothing(Path(COOKIECUTTER["_output_dir"]).resolve())
    sys.exit(1)
