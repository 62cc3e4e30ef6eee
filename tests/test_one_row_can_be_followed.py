"""Who follows one row from file to file on its way to an example has few files to change."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest

from conftest import in_project

MOST_CHANGES = 25


def files_on_the_way(row: dict) -> list[str]:
    """The project's files in the order in which their functions are called for one row."""
    from sft.config import project_arguments
    from sft.examples import _encode_batch
    from sft.twin import build_tokenizer

    args, tokenizer = project_arguments([]), build_tokenizer()
    args.max_length = 10_000  # the twin's tokens are short
    batch, positions = {name: [value] for name, value in row.items()}, [0]
    root, files = str(Path.cwd()), []

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(root):
            files.append(frame.f_code.co_filename)

    _encode_batch(batch, positions, tokenizer, args)  # once, for what is kept
    sys.setprofile(note)
    try:
        table = _encode_batch(batch, positions, tokenizer, args)
    finally:
        sys.setprofile(None)
    assert table["reason"].to_pylist() == [""], table["reason"]
    return [Path(file).relative_to(root).as_posix() for file in files]


TURNS = [
    {"role": role, "content": content}
    for role, content in (
        ("system", "Be brief."),
        *(("user", "Hi"), ("assistant", "Hello")),
        *(("user", "Who?"), ("assistant", "Me")),
        *(("user", "Bye"), ("assistant", "Bye")),
    )
]
ROWS = {
    "prompt_response": {"dialogue": "A: Hi. B: Hello.", "summary": "They greet."},
    "messages": {"messages": TURNS},
}


@pytest.mark.parametrize("dataset_format", ROWS)
def test_a_row_changes_file_a_few_times(bake, dataset_format):
    project = bake.project(dataset_format=dataset_format)
    files = in_project(project, files_on_the_way, ROWS[dataset_format])
    changes = sum(before != after for before, after in pairwise(files))
    assert 0 < changes <= MOST_CHANGES, [b for a, b in pairwise(["", *files]) if a != b]
