"""Several sources, each with its share; and rows to evaluate on that are a source of their own."""

import json
from collections import Counter
from pathlib import Path

import pytest

from conftest import in_project


@pytest.fixture(scope="module")
def project(bake_once):
    return bake_once.project(project_slug="mixed")


@pytest.fixture
def files(tmp_path) -> Path:
    """Two files, of 100 rows and of 60, and folders of other kinds."""
    for name, count in (("a", 100), ("b", 60), ("eval", 7)):
        rows = [{"dialogue": f"{name} {n}", "summary": f"{name} says {n}"} for n in range(count)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    return tmp_path


def load(options: list[str], other_kinds: str = "") -> dict | str:
    """The dialogue and the source of each row of each split, or the words the run stops with."""
    import datetime

    from datasets import Dataset

    from sft import mixture
    from sft.config import project_arguments
    from sft.files import plain_row
    from sft.mixture import SOURCE
    from sft.rows import load_rows

    if other_kinds:
        mixture.CACHE = Path(other_kinds, "not", "there")
        for at in range(2):
            same = {"summary": "s" if at else datetime.date(2024, 3, 10)}
            rows = [same | {"dialogue": f"{at} {n}", "more": {"a": n}} for n in range(30)]
            folder = Path(other_kinds, f"saved{at}")
            Dataset.from_list(rows).save_to_disk(folder)
    try:
        splits = load_rows(project_arguments(options))
    except SystemExit as error:
        return str(error)
    return {
        split: [(plain_row(row)["dialogue"], Path(row.get(SOURCE, "")).name) for row in rows]
        for split, rows in splits.items()
    }


def shares(rows: list) -> dict:
    assert len({text for text, _ in rows}) == len(rows), "a row is used twice"
    assert all(name.startswith(text.split()[0]) for text, name in rows)
    return dict(Counter(name for _, name in rows))


@pytest.mark.parametrize(
    "weights, wanted",
    [
        ((0.7, 0.3), (100, 43)),
        ((3, 7), (26, 60)),
        ((1, 1), (60, 60)),
        ((None, None), (100, 60)),
        ((1, 0.0001), (100, 1)),
    ],
)
def test_each_source_has_its_share_and_no_row_is_used_twice(project, files, weights, wanted):
    sources = [
        {"path": str(files / name)} | ({"weight": weight} if weight else {})
        for name, weight in zip(("a.jsonl", "b.jsonl"), weights, strict=True)
    ]
    options = [f"--dataset={json.dumps(sources)}"]
    first, again = in_project(project, load, options), in_project(project, load, options)
    assert first == again and first.keys() == {"train"}
    assert shares(first["train"]) == dict(zip(("a.jsonl", "b.jsonl"), wanted, strict=True))


def test_sources_of_other_kinds_and_splits_are_mixed(project, files):
    one = {"path": str(files / "saved0"), "weight": 0.5}
    two = {"path": str(files / "a.jsonl"), "weight": 0.5, "train_split": "train[:50]"}
    options = [f"--dataset={json.dumps([one, two])}"]
    rows = in_project(project, load, options, str(files))["train"]
    assert Counter(name for _, name in rows) == {"saved0": 30, "a.jsonl": 30}
    assert all(int(text.split()[1]) < 50 for text, name in rows if name == "a.jsonl")


@pytest.mark.parametrize(
    "sources, words",
    [
        ([{"path": "a.jsonl", "weigth": 1}], "'weigth'; the nearest is 'weight'"),
        ([{"weight": 1}], "names no path"),
        ([{"path": "a.jsonl", "weight": 1}, {"path": "b.jsonl"}], "one is None"),
        ([{"path": "a.jsonl", "weight": 1}, "b.jsonl"], "one is None"),
        ([{"path": "a.jsonl", "weight": -1}, {"path": "b.jsonl", "weight": 1}], "one is -1"),
        ([{"path": "a.jsonl", "weight": "much"}, {"path": "b.jsonl", "weight": 1}], "one is much"),
        ([{"path": "no.jsonl", "weight": 1}], "'{}/no.jsonl' does not exist"),
    ],
)
def test_a_mix_that_cannot_be_is_a_sentence(project, files, sources, words):
    for one in sources:
        if isinstance(one, dict) and "path" in one:
            one["path"] = str(files / Path(one["path"]).name)
    sources = [one if isinstance(one, dict) else str(files / one) for one in sources]
    said = in_project(project, load, [f"--dataset={json.dumps(sources)}"])
    assert words.format(files) in said and "\n" not in said


@pytest.mark.parametrize(
    "options, count",
    [
        ([], 7),
        (["--eval_split=validation[:3]"], 3),
        (["--eval_split=test"], "test"),
    ],
)
def test_rows_to_evaluate_on_may_be_a_source_of_their_own(project, files, options, count):
    given = [f"--dataset={files / 'a.jsonl'}", f"--eval_dataset={files / 'eval.jsonl'}"]
    found = in_project(project, load, [*given, *options])
    if isinstance(count, str):
        assert count in found and "eval.jsonl" in found
        return
    assert len(found["train"]) == 100 and len(found["evaluation"]) == count
    assert all(text.startswith("eval ") for text, _ in found["evaluation"])


def test_rows_to_evaluate_on_are_mixed_alike(project, files):
    sources = [{"path": str(files / f"{name}.jsonl"), "weight": 1} for name in ("eval", "b")]
    options = [f"--dataset={files / 'a.jsonl'}", f"--eval_dataset={json.dumps(sources)}"]
    found = in_project(project, load, options)
    assert shares(found["evaluation"]) == {"eval.jsonl": 7, "b.jsonl": 7}


def trained(options: list[str]) -> list[dict]:
    import evaluate

    import train

    tables = []
    train.show_rows = lambda reports: tables.append({k: r.figures() for k, r in reports.items()})
    train.main(["--smoke", "--max_steps=1", "--eval_strategy=no", *options])
    took, loaded = [], evaluate.load_rows
    evaluate.load_rows = lambda args: took.append(loaded(args)) or took[-1]
    output = "--output_dir=outputs/smoke"
    words = ["--use_cpu", "--models=final", "--max_new_tokens=1", output]
    evaluate.main([*words, "--rows=2", "--dataset=data/sample.jsonl"])
    return [*tables, len(took[-1]["evaluation"])]


def test_a_mix_is_trained_on_and_its_table_counts_each_source(project, files):
    sources = [{"path": str(files / name), "weight": 0.5} for name in ("a.jsonl", "b.jsonl")]
    options = [f"--dataset={json.dumps(sources)}", f"--eval_dataset={files / 'eval.jsonl'}"]
    table, evaluated = in_project(project, trained, options)
    train, evaluation = table["train"], table["evaluation"]
    assert train["rows"] == "120" and evaluation["rows"] == "7"
    for source in (files / "a.jsonl", files / "b.jsonl"):
        assert train[f"from {source}"] == "60"
        assert 45 <= int(train[f"% of trained tokens, {source}"]) <= 55
    assert not any("from" in name for name in evaluation)
    assert evaluated == 120  # another dataset's rows, not the run's eval_dataset
