"""Text of others stays text: in a terminal, in the CI, in a checkpoint of another model."""

import contextlib
import io
import re

import pytest
import yaml

from conftest import TEMPLATE, in_project

# clipboard, title, colours, C1's own forms, a carriage return, reordered and hidden text
HOSTILE = (
    "a\x1b]52;c;aGk=\x07b\x1b]0;t\x1b\\c\x9b31md\x9d0;t\x9ce\rf\u202eg\u2066h\u200fi\x08j\x7fk"
)
MARKUP = "[red]l[/red] [link=file:///x]m[/link] :bomb:"
ALLOWED = re.compile(r"\x1b\[[0-9;]*m")  # rich's own colours


@pytest.fixture(scope="module")
def project(bake_once):
    return bake_once.project(project_slug="safe", quantization="none", collator="visual_check")


def shown(function: str) -> str:
    """What a terminal receives from one of the places that print texts of others."""
    import sys

    import torch
    from rich.table import Table
    from rich.text import Text

    from sft import mask_view
    from sft.config import run, say
    from sft.twin import build_tokenizer

    text, tokenizer = HOSTILE + MARKUP, build_tokenizer()
    ids = tokenizer(text)["input_ids"]
    stream = io.StringIO()
    mask_view.console.file, mask_view.console._force_terminal = stream, True
    mask_view.console._width = 200

    def refuse(argv):
        raise SystemExit(text)

    def chat():
        from chat import Answer

        answer = Answer(tokenizer)
        for token in ids:
            answer.put(torch.tensor([token]))
        answer.end()

    def table():
        table = Table("", text)
        table.add_row(text, Text(text))
        mask_view.console.print(table, Text(text))

    def refusal():
        try:
            run(refuse)
        except SystemExit as ended:
            print(ended.code, file=sys.stderr)

    with contextlib.redirect_stderr(stream), contextlib.redirect_stdout(stream):
        {
            "trained": lambda: mask_view.show("", {"input_ids": ids, "labels": ids}, tokenizer),
            "read": lambda: mask_view.show(
                "", {"input_ids": ids, "labels": [-100] * len(ids)}, tokenizer
            ),
            "table": table,
            "chat": chat,
            "refusal": refusal,
            "say": lambda: say(text),
        }[function]()
    return stream.getvalue()


@pytest.mark.parametrize("place", ["trained", "read", "table", "chat", "refusal", "say"])
def test_no_text_commands_the_terminal(project, place):
    said = ALLOWED.sub("", in_project(project, shown, place))
    assert not re.search(
        "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]", said
    )
    plain = said.replace("\n", "").replace(" ", "").replace("│", "")
    assert "[red]l[/red]" in plain and ":bomb:" in plain and "]52;c;aGk=" in plain


def test_line_feeds_and_joined_emoji_are_shown(project):
    text = "one\n\ttwo 👩‍👩‍👧 naïve 请 שלום"
    assert in_project(project, cleaned, text) == text


def cleaned(text: str) -> str:
    from sft.config import harmless

    return harmless(text)


def test_the_ci_may_only_read_and_its_actions_are_pinned(project):
    for folder in (project, TEMPLATE):
        (file,) = (folder / ".github/workflows").iterdir()
        workflow = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert workflow["permissions"] == {"contents": "read"}
        (job,) = workflow["jobs"].values()
        uses = [step["uses"] for step in job["steps"] if "uses" in step]
        assert uses and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", each) for each in uses)


def saved(umask: int) -> list[str]:
    """The modes of the files in `final/` and `merged/`."""
    import os

    import export
    import train

    os.umask(umask)
    final = train.main(["--smoke", "--max_steps=1", "--eval_strategy=no"])
    merged = export.main(["--output_dir=outputs/smoke"])
    return [oct(file.stat().st_mode & 0o777) for dir in (final, merged) for file in dir.iterdir()]


@pytest.mark.parametrize("umask, mode", [(0o022, "0o644"), (0o007, "0o660")])
def test_all_files_of_a_result_can_be_read_as_the_umask_says(project, umask, mode):
    assert {*in_project(project, saved, umask)} == {mode}


def test_no_code_of_a_model_may_run(project):
    calls = r"(?:Auto\w+|kind)\.from_(?:pretrained|config)[(,](?:[^()]|\([^()]*\))*\)"
    found = []
    for file in [*project.glob("*.py"), *project.glob("sft/**/*.py")]:
        found += re.findall(calls, file.read_text(encoding="utf-8"))
    found = [call for call in found if not call.startswith("AutoHfQuantizer")]
    assert found and all("trust_remote_code=False" in call for call in found), found


def under_a_template(template: str) -> str:
    from sft.mask import encode
    from sft.mask import template as limits
    from support.masks import CONTROL, chat, tokenizer_with

    limits.MOST_SECONDS = 1
    try:
        encode(chat("user: Hi", "assistant: Hello"), tokenizer_with(template, CONTROL, "</s>"))
    except SystemExit as ended:
        return str(ended)
    return ""


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
OF_SOME = f"{{% if 'stop' in messages|string %}}{LOOP}{{% endif %}}"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_chat_template_without_end_for_some_row_is_stopped(bake_once, processes):
    project = bake_once.project(project_slug="masks", dataset_format="messages")
    said = in_project(project, rows_under_a_template, OF_SOME, processes)
    assert said == "The chat template takes over 1 seconds for a conversation."


def rows_under_a_template(template: str, processes: int) -> str:
    from datasets import Dataset

    from sft.config import load_config
    from sft.examples import encode_rows
    from sft.mask import batch
    from sft.mask import template as asked
    from support.masks import CONTROL, chat, tokenizer_with

    batch.MOST_SECONDS = asked.MOST_SECONDS = 1
    rows = [{"messages": chat(f"user: {word}", "assistant: Hello")} for word in ("go", "stop")]
    args, _ = load_config(["--use_cpu=true", f"--dataset_num_proc={processes}"])
    with pytest.raises(SystemExit) as ended:
        encode_rows(Dataset.from_list(rows), tokenizer_with(template, CONTROL, "</s>"), args)
    return ended.value.code


@pytest.mark.parametrize(
    "template",
    [
        LOOP,
        "{% set a = namespace(x='a') %}{% for i in range(60) %}{% set a.x = a.x * 2 %}{% endfor %}",
        "{{ 'a' * 10**12 }}",
    ],
)
def test_a_chat_template_without_end_is_stopped(bake_once, template):
    project = bake_once.project(project_slug="masks", dataset_format="messages")
    assert "The chat template takes over" in in_project(project, under_a_template, template)
