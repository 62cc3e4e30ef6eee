"""Each run says what it is, and compare.py puts runs side by side, whole or damaged."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import in_project

BASE = """--base_model_path=twin --dataset=data/sample.jsonl --use_cpu=true --max_steps=2
--answers=0 --logging_steps=1 --eval_steps=1 --save_steps=1
--gradient_accumulation_steps=1""".split()
SECRET = "hf_aVerySecretToken"


def make_twin() -> None:
    from sft.twin import build_twin

    build_twin("twin", "")


def train(words: list[str]) -> None:
    import os

    import train

    os.environ["HF_TOKEN"] = SECRET
    train.main([*BASE, *words])


def compared(words: list[str]) -> tuple[list[str], str]:
    """The lines of the table, and all that is said beside it."""
    import compare

    with (
        contextlib.redirect_stdout(io.StringIO()) as table,
        contextlib.redirect_stderr(io.StringIO()) as said,
    ):
        try:
            compare.main(words)
        except SystemExit as ended:
            print(ended, file=sys.stderr)
    return table.getvalue().splitlines(), said.getvalue()


@pytest.fixture(scope="module")
def sweep(bake_once) -> tuple[Path, list[str]]:
    """A project after the loop that compare.py's docstring shows, and the folders of its runs."""
    project = bake_once.project(project_slug="sweep", quantization="none", collator="seq2seq")
    in_project(project, make_twin)
    text = (project / "compare.py").read_text(encoding="utf-8")
    loop = re.search("^for .* done$", text, re.M)[0]
    script = f'python() {{ echo "$@"; }}; {loop}'
    calls = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    runs = [call.split() for call in calls.stdout.splitlines()]
    assert all(name == "train.py" for name, *_ in runs)
    for _, *words in runs:
        in_project(project, train, words)
    return project, [words[-1] for words in runs]


@pytest.fixture
def two(sweep, tmp_path) -> tuple[Path, Path, Path]:
    """The project, and copies of two of its runs to damage."""
    project, folders = sweep
    for name, folder in zip("ab", folders, strict=False):
        shutil.copytree(project / folder, tmp_path / name)
    return project, tmp_path / "a", tmp_path / "b"


def cells(lines: list[str], name: str) -> list[str]:
    """What the table's row of that name has."""
    found = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    return next((row[1:] for row in found if row[0] == name), [])


def test_a_sweep_leaves_a_folder_for_each_value_and_they_are_compared(sweep):
    project, folders = sweep
    assert folders == ["outputs/lr-1e-4", "outputs/lr-2e-4", "outputs/lr-5e-4"]
    shutil.rmtree(project / "outputs/smoke", ignore_errors=True)
    shutil.copytree(project / folders[0], project / "outputs/smoke")
    for words in ([], folders, ["outputs/lr*"]):
        (project / "outputs/compare.png").unlink(missing_ok=True)
        lines, said = in_project(project, compared, words)
        assert cells(lines, "learning_rate") == ["0.0001", "0.0002", "0.0005"], lines
        differing = "\n".join(lines).split("├")[0].splitlines()[3:]
        assert len(differing) == 1, "settings that are equal are named"
        assert cells(lines, "steps") == ["2", "2", "2"]
        summaries = [json.loads((project / one / "summary.json").read_text()) for one in folders]
        assert cells(lines, "eval_loss") == [f"{one['eval_loss']:.4g}" for one in summaries]
        assert (project / "outputs/compare.png").stat().st_size > 1000
        assert "left out" not in said and "compare.png" in said


def test_changed_rows_and_code_are_named(two):
    project, a, b = two
    run = json.loads((b / "run.json").read_text())
    run["hashes"] |= {"sft/format.py": "0" * 64, "the train rows": "1" * 64}
    run["versions"]["torch"] = "9.0"
    (b / "run.json").write_text(json.dumps(run))
    lines, _ = in_project(project, compared, [str(a), str(b)])
    assert cells(lines, "sft/format.py")[1] == "00000000"
    assert cells(lines, "the train rows")[1] == "11111111"
    assert cells(lines, "torch")[1] == "9.0"
    assert not cells(lines, "train.py") and not cells(lines, "machine")


def test_an_unfinished_run_has_the_losses_of_its_newest_checkpoint(two):
    project, a, b = two
    for name in ("trainer_state.json", "summary.json"):
        (b / name).unlink()
    (b / "checkpoint-10").mkdir()
    log = [{"step": 9, "loss": 3.5}, {"step": 10, "eval_loss": 2.5, "eval_score": 0.5}]
    (b / "checkpoint-10/trainer_state.json").write_text(json.dumps({"log_history": log}))
    lines, said = in_project(project, compared, [str(a), str(b)])
    found = [cells(lines, name)[1] for name in ("steps", "loss", "eval_loss", "eval_score")]
    assert found == ["10", "3.5", "2.5", "0.5"] and "left out" not in said
    (b / "checkpoint-10/trainer_state.json").write_text("{")  # killed while it was written
    lines, said = in_project(project, compared, [str(a), str(b)])
    assert cells(lines, "steps") == ["2", "2"] and "checkpoint-10/trainer_state.json" in said


def test_scores_are_shown_with_their_intervals(two):
    project, a, b = two
    metric = {"value": 0.5, "low": 0.25, "high": 0.75, "difference": {"value": 0.1}}
    models = {"base": {"chrF": metric}, "final": {"chrF": metric | {"value": 0.625}}}
    text = json.dumps({"rows": "6 rows", "differences_to": "base", "models": models})
    (a / "evaluation.json").write_text(text)
    lines, _ = in_project(project, compared, [str(a), str(b)])
    assert cells(lines, "final: chrF") == ["0.625 (0.25 to 0.75)", "-"]
    assert cells(lines, "evaluated") == ["6 rows", "-"]


DAMAGES = {
    "cut off": "run.json {",
    "no mapping": "run.json []",
    "of another program": 'run.json {"settings": 3}',
    "no UTF-8": "run.json \udcff",
    "losses that are words": 'trainer_state.json {"log_history": [{"step": 1, "loss": "low"}]}',
    "a log that is none": 'trainer_state.json {"log_history": 3}',
    "no summary": "summary.json 3",
    "no evaluation": 'evaluation.json {"models": []}',
    "nested without end": "summary.json " + "[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_the_rest_compared(two, damage):
    project, a, b = two
    name, _, text = DAMAGES[damage].partition(" ")
    (a / name).write_bytes(text.encode(errors="surrogateescape"))
    lines, said = in_project(project, compared, [str(a), str(b)])
    assert [line for line in said.splitlines() if "left out" in line] == [
        f"{a / name} is damaged; it is left out."
    ]
    assert cells(lines, "steps")[-1] == "2"


def test_a_folder_that_holds_no_run_is_named_and_a_file_is_passed_over(two):
    project, a, b = two
    (b / "run.json").unlink()
    (b.parent / "notes.txt").touch()
    lines, said = in_project(project, compared, [f"{a.parent}/*", str(a / "nowhere")])
    assert cells(lines, "steps") == ["2"]
    for folder in (b, a / "nowhere"):
        assert f"{folder / 'run.json'} is not there; it is left out." in said
    assert "notes.txt" not in said
    lines, said = in_project(project, compared, [str(b)])
    assert not lines and said.splitlines()[-1].startswith("There is no run to compare")


def test_what_is_in_a_run_stands_for_it(two):
    project, a, _ = two
    lines, said = in_project(project, compared, [f"{a}/*"])
    assert cells(lines, "steps") == ["2"] and "left out" not in said


def test_it_needs_no_torch(sweep):
    code = "import compare, sys; print({'torch', 'transformers'} & {*sys.modules})"
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, cwd=sweep[0], text=True) == "set()\n"


def test_a_run_says_what_it_is_and_keeps_no_token(sweep):
    import torch
    import transformers

    project, folders = sweep
    run = json.loads((project / folders[0] / "run.json").read_text(encoding="utf-8"))
    settings, hashes, versions = run["settings"], run["hashes"], run["versions"]
    assert settings["learning_rate"] == 1e-4 and settings["r"] == 16
    assert {"seed", "logging_steps", "dataset", "world_size", "save_steps"} <= settings.keys()
    wanted = {"train.py", "sft/format.py", "the train rows", "the evaluation rows"}
    wanted |= {"the chat template", "the base model's model.safetensors"}
    assert wanted <= hashes.keys()
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes.values())
    assert {"python", "datasets", "accelerate", "peft"} <= versions.keys()
    assert versions["torch"] == torch.__version__
    assert versions["transformers"] == transformers.__version__
    assert run["machine"] == "the CPU"
    for file in (project / "outputs").rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def killed_while_loading() -> None:
    import train

    def die(*_):
        raise MemoryError

    train.load_model = die
    with contextlib.suppress(MemoryError):
        train.main([*BASE, "--output_dir=killed"])


def test_a_run_that_dies_has_said_what_it_is(sweep):
    project, _ = sweep
    in_project(project, killed_while_loading)
    lines, said = in_project(project, compared, ["killed"])
    assert "left out" not in said and cells(lines, "steps") == ["-"]
