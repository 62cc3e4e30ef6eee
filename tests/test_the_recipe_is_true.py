"""An answer is one file and one label: a dummy is added to each menu as CONTRIBUTING.md says."""

import json
import re
import shutil
from pathlib import Path

import pytest
from cookiecutter.main import cookiecutter

from conftest import MENUS, PROJECT, TEMPLATE, config_of, in_project
from support.rendering import check_render

ROWS = [{"question": f"What is {n} plus {n}?", "answer": f"It is {2 * n}."} for n in range(12)]
QUESTIONS = '''"""One row is one question of a quiz, and its answer."""

from collections.abc import Callable
from dataclasses import dataclass, field

OPTIONAL_COLUMNS = []
IS_CHAT = False


@dataclass(kw_only=True)
class DatasetArguments:
    """The keys of config.yaml for a quiz."""

    quiz_prefix: str
    system_prompt: str = ""
    chat_template_kwargs: dict = field(default_factory=dict)


def columns(args: DatasetArguments) -> list[str]:
    """The columns that every row must have."""
    return ["question", "answer"]


def mask_options(args: DatasetArguments) -> dict:
    """Nothing beside the defaults."""
    return {}


def to_conversation(row: dict, args: DatasetArguments) -> dict:
    """One row as a conversation."""
    messages = [
        {"role": "user", "content": args.quiz_prefix + row["question"]},
        {"role": "assistant", "content": row["answer"]},
    ]
    return {"messages": messages, "chat_template_kwargs": args.chat_template_kwargs}


def typed_message(read: Callable[[str], str], args: DatasetArguments) -> str:
    """A question, as it is typed."""
    return args.quiz_prefix + read("question")
'''


def like(neighbour: str, **words: str) -> str:
    """The text of another answer's file, with these words in it replaced."""
    text = (TEMPLATE / "templates" / neighbour).read_text(encoding="utf-8")
    for before, after in words.items():
        assert before in text
        text = text.replace(before, after)
    return text


# the name of each dummy, and its files by their endings
DUMMIES = {
    "base_model": (
        "Qwen/Qwen2.5-0.5B-Instruct",
        {
            ".json": like(
                "base_model/Qwen/Qwen3-0.6B.json", **{"Qwen3-0.6B": "Qwen2.5-0.5B-Instruct"}
            )
        },
    ),
    "dataset_format": (
        "quiz",
        {
            ".py": QUESTIONS,
            ".yaml": 'quiz_prefix: "Quiz: "\n',
            ".jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
        },
    ),
    "quantization": ("fp4", {".py": like("quantization/nf4.py", nf4="fp4", NF4="FP4")}),
    "lora_targets": (
        "q_proj",
        {".py": '"""What is trained: LoRA on the queries."""\n\n{% include "lora.py" -%}\n'},
    ),
    "collator": ("plain", {".py": like("collator/seq2seq.py", **{"Examples to": "Some rows to"})}),
}


@pytest.fixture
def template(tmp_path) -> Path:
    """A copy of the template, to which dummies may be added."""
    folder = tmp_path / "template"
    for part in ("templates", "hooks", PROJECT.name):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(TEMPLATE / part, folder / part, ignore=ignored)
    return Path(shutil.copy(TEMPLATE / "cookiecutter.json", folder)).parent


def add(template: Path, prompt: str) -> str:
    """Add the dummy of that prompt by CONTRIBUTING.md's table, and nothing else; its name."""
    answer, texts = DUMMIES[prompt]
    table = (TEMPLATE / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{prompt}` \|(.*)\|$", table, re.MULTILINE)
    files = re.findall(r"`(templates/[^`]+)<answer>(\.[a-z]+)`", row)
    assert {ending for _, ending in files} == texts.keys()
    for folder, ending in files:
        path = template / f"{folder}{answer}{ending}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(texts[ending], encoding="utf-8")
    menu = json.loads((template / "cookiecutter.json").read_text(encoding="utf-8"))
    menu[prompt].append(answer)
    menu["__prompts__"][prompt][answer] = f"{answer}: a dummy"
    (template / "cookiecutter.json").write_text(json.dumps(menu), encoding="utf-8")
    return answer


def bake(template: Path, **answers) -> Path:
    folder = template.parent
    config = folder / "cookiecutter.yaml"
    config.write_text(f"replay_dir: {json.dumps(str(folder / 'replay'))}\n")
    project = cookiecutter(
        str(template),
        no_input=True,
        extra_context=answers,
        output_dir=str(folder),
        config_file=str(config),
    )
    return Path(project)


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_readme_names_every_answer(name):
    text = (TEMPLATE / name).read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE))
    for prompt in MENUS.keys() - {"base_model"}:  # whose families it names
        assert {*MENUS[prompt]} <= {*re.findall("`([^`]*)`", rows[prompt])}, prompt


def test_every_menu_that_decides_a_file_has_a_dummy():
    folders = {path.name for path in (TEMPLATE / "templates").iterdir() if path.is_dir()}
    assert DUMMIES.keys() == folders <= MENUS.keys()


@pytest.mark.parametrize("prompt", DUMMIES)
def test_an_answer_is_its_files_and_a_label(template, tmp_path, prompt):
    answer = add(template, prompt)
    project = bake(template, **{prompt: answer})
    defaults = {name: answers[0] for name, answers in MENUS.items()}
    (tmp_path / "notes").mkdir()
    check_render(project, {**defaults, prompt: answer}, tmp_path / "notes")
    readme = (project / "README.md").read_text(encoding="utf-8")
    text = DUMMIES[prompt][1].get(".py")
    assert (text.split('"""')[1].split("\n")[0] if text else answer) in readme
    assert LOOKS[prompt](project, in_project(project, smoke))


def smoke() -> dict:
    """Train the tiny twin, and look at what was trained with what."""
    import train

    seen = {}
    make_trainer = train.Trainer

    def making(**kwargs):
        model = kwargs["model"]
        seen["model_type"] = model.config.model_type
        seen["quant"] = model.get_base_model().config.quantization_config.bnb_4bit_quant_type
        trained = [name for name, tensor in model.named_parameters() if tensor.requires_grad]
        seen["lora on"] = {name.split(".lora_")[0].split(".")[-1] for name in trained}
        seen["text"] = kwargs["processing_class"].decode(kwargs["train_dataset"][0]["input_ids"])
        seen["collator"] = type(kwargs["data_collator"]).__name__
        return make_trainer(**kwargs)

    train.Trainer = making
    train.main(["--smoke", "--max_steps=2"])
    return seen


LOOKS = {
    "base_model": lambda project, seen: seen["model_type"] == "qwen3",
    "dataset_format": lambda project, seen: "Quiz: What is" in seen["text"],
    "quantization": lambda project, seen: seen["quant"] == "fp4",
    "lora_targets": lambda project, seen: (
        seen["lora on"] == {"q_proj"} and config_of(project)["target_modules"] == ["q_proj"]
    ),
    "collator": lambda project, seen: seen["collator"] == "DataCollatorForSeq2Seq",
}


def test_the_tests_of_a_project_with_new_answers_pass(template):
    answers = {prompt: add(template, prompt) for prompt in ("dataset_format",)}
    project = bake(template, **answers)
    failed = in_project(project, its_own_tests)
    assert not failed, (project / "log").read_text(errors="replace")[-3000:]


def its_own_tests() -> int:
    return int(pytest.main(["-q", "-p", "no:cacheprovider"]))


@pytest.mark.parametrize("prompt", DUMMIES)
def test_a_label_without_its_file_is_noticed(template, prompt):
    answer = add(template, prompt)
    ending = ".yaml" if prompt == "dataset_format" else next(iter(DUMMIES[prompt][1]))
    (template / "templates" / prompt / f"{answer}{ending}").unlink()
    with pytest.raises(Exception, match=re.escape(f"{prompt}/{answer}{ending}")):
        bake(template, **{prompt: answer})
