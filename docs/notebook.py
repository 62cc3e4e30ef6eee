"""Write docs/colab.ipynb: from the answers to a chat with the trained model, on Colab's free T4.

python docs/notebook.py

Its form asks what cookiecutter.json asks; its commands are those of README.md and of a project's
README. First answers and training options are those of `make demo`, under which a small model
visibly learns from the bundled rows.
"""

import json
import re
import shlex
from pathlib import Path

TEMPLATE = Path(__file__).resolve().parent.parent
TARGET = TEMPLATE / "docs" / "colab.ipynb"
FITS = 4  # GB for QLoRA: a model so small also fits a T4 without quantization

ABOUT = """\
# Fine-tune a small language model on a free GPU

Choose *Runtime > Change runtime type > T4 GPU*, then run the cells from top to bottom. They are the
commands of [sft-template](https://github.com/org/sft-template)."""
ANSWERS = """\
## Answer

As answered here, a model of 135 million parameters learns to summarize the sample's dialogues."""
GENERATE = """\
## Generate and install the project

Other answers need another `project_slug`."""
PREVIEW = "## See what is trained on, in green"
SMOKE = "## Prove the whole path with a tiny random twin of the model, on the CPU"
TRAIN = """\
## Train

A T4 has no bfloat16: there the project trains in float16. After an interruption the same cell goes
on."""
COMPARE = "## Read what base and tuned model answer to held-out prompts"
CHAT = "## Talk to the result"
KEEP = """\
## Keep it

Colab deletes all files when the session ends: download `outputs/final` of the project in *Files* on
the left. The project's `README.md` says what else it can do, and with which commands."""


def read(name: str) -> str:
    return (TEMPLATE / name).read_text(encoding="utf-8")


def contents() -> str:
    answers, options = demo()
    cookiecutter, generate = commands(
        read("README.md"), "pip install cookiecutter", "cookiecutter --no-input gh:"
    )
    install, smoke, train, preview, chat = commands(
        read("{{cookiecutter.project_slug}}/README.md"),
        *("pip install -e", "python train.py --smoke", "python train.py"),
        *("python preview.py", "python chat.py"),
    )
    generate = re.match(r"cookiecutter --no-input \S+", generate)[0]
    there = "!cd {project_slug} && "
    page = "from IPython.display import HTML\n\n"
    page += 'HTML(filename=f"{project_slug}/outputs/answers.html")'
    say = 'message = "Ana: Are you still coming at six? Ben: My train is late, say seven."'
    say += '  # @param {"type": "string"}\n'
    cells = [
        markdown(ABOUT),
        markdown(ANSWERS),
        code(form(answers)),
        markdown(GENERATE),
        code(f"!{cookiecutter}", "install"),
        code(f"!{generate} {{answers}}"),
        code(there + install, "install"),
        markdown(PREVIEW),
        code(there + preview),
        markdown(SMOKE),
        code(there + smoke),
        markdown(TRAIN),
        code(f"{there}{train} {options}"),
        markdown(COMPARE),
        code(page),
        markdown(CHAT),
        code(f"{say}{there}{chat} --prompt {{shlex.quote(message)}}"),
        markdown(KEEP),
    ]
    metadata = {
        "accelerator": "GPU",
        "colab": {"gpuType": "T4", "provenance": []},
        "kernelspec": {"display_name": "Python 3", "name": "python3"},
        "language_info": {"name": "python"},
    }
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 4}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def commands(readme: str, *beginnings: str) -> list[str]:
    """The shortest command in a README with each beginning."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", readme, re.DOTALL))
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", readme, flags=re.DOTALL))
    lines = [re.split(r"\s+#", line)[0].split("&& ")[-1] for line in blocks.splitlines()]
    known = [*lines, *(" ".join(span.split()) for span in spans)]
    return [min((c for c in known if c.startswith(words)), key=len) for words in beginnings]


def demo() -> tuple[dict, str]:
    """The answers with which `make demo` generates its project, and the options of its training."""
    recipe = read("Makefile").partition("\ndemo:")[2].partition("\n\n")[0].replace("\\\n", " ")
    bakes = next(line for line in recipe.splitlines() if "/cookiecutter --no-input" in line)
    answers = dict(word.split("=", 1) for word in shlex.split(bakes) if "=" in word)
    return answers, " ".join(re.search(r"train\.py (--.*)", recipe)[1].split())


def form(first: dict) -> str:
    """A field for each question of cookiecutter.json, with these answers or its own first ones."""
    context = json.loads(read("cookiecutter.json"))
    keys = [key for key in context if not key.startswith("_")]
    keys.remove("base_model_path")  # by default what base_model is
    lines = ["# @title Answers"]
    for key in keys:
        answer, question, kind = context[key], context["__prompts__"][key], {"type": "string"}
        if isinstance(answer, list):
            labels, question = question, question["__prompt__"]
            kind = [name for name in answer if key != "base_model" or is_for_all(labels[name])]
            answer = kind[0]
        lines += [f"# @markdown {line.strip()}" for line in question.splitlines()]
        answer = json.dumps(first.get(key, answer))
        lines.append(f"{key} = {answer}  # @param {json.dumps(kind)}")
    lines += ["", "import shlex", "", f'keys = "{", ".join(keys)}"']
    lines.append('answers = shlex.join(f"{key}={globals()[key]}" for key in keys.split(", "))')
    return "\n".join(lines)


def is_for_all(label: str) -> bool:
    """Whether a base model fits a T4 and asks for no click on the Hub, as its label says."""
    memory = re.search(r"QLoRA (\d+) GB", label)
    return bool(memory) and int(memory[1]) <= FITS and "click" not in label


def markdown(text: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": text.splitlines(keepends=True)}


def code(text: str, *tags: str) -> dict:
    """A cell of code; `install` tags what an environment may have already."""
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {"tags": [*tags]} if tags else {},
        "outputs": [],
        "source": text.splitlines(keepends=True),
    }


if __name__ == "__main__":
    TARGET.write_text(contents(), encoding="utf-8")
    print(TARGET)
