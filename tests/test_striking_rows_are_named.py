"""The preview names rows that are worth a look, and `dedupe` drops those that are copies."""

import json
import random
from pathlib import Path

import pytest

from conftest import in_project

RANDOM = random.Random(1)
WORDS = "red blue green house tree river stone cloud light dark road field bird fish snow".split()


def words(count: int) -> str:
    return " ".join(RANDOM.choices(WORDS, k=count))


def row(dialogue: str, summary: str) -> dict:
    return {"dialogue": dialogue, "summary": summary}


INSTRUCTION = "Read this with care and answer in a single sentence of plain English " * 9
PLAIN = [row(words(60), words(12)) for _ in range(60)]
KEEPS = PLAIN[5]["summary"]
ROWS = [
    *PLAIN,
    PLAIN[3],  # 61
    row(PLAIN[4]["dialogue"].upper() + "!", PLAIN[4]["summary"]),  # 62
    row(PLAIN[5]["dialogue"] + " or so", KEEPS),  # 63
    row(words(30) + " " + KEEPS + " " + words(30), KEEPS),  # 64: told
    row("yes " + words(60), "yes"),  # 65: too short to be told
    row(words(1500), words(12)),  # 66: long
    row("a", "b"),  # 67: short
    row(PLAIN[6]["dialogue"], words(60)),  # 68: another answer is no copy
    PLAIN[3],  # 69
]


@pytest.fixture(scope="module")
def project(bake_once):
    return bake_once.project(project_slug="striking")


def previewed(path: str, *options: str) -> tuple:
    import contextlib
    import io

    import preview

    preview.load_rows = lambda args: loaded(args)
    from sft.rows import load_rows

    def loaded(args):
        args.train_split = "train"  # all of them, of a smoke run too
        return load_rows(args)

    with contextlib.redirect_stderr(io.StringIO()) as said:
        page = preview.main(["--smoke", f"--dataset={path}", *options])
    _, _, look = said.getvalue().partition("Look at these:\n")
    return look.partition("The same as a page")[0], page.read_text(encoding="utf-8")


def written(folder: Path, rows: list) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


@pytest.mark.parametrize("template", ["{dialogue}", INSTRUCTION + "{dialogue}"])
def test_rows_to_look_at_are_named_by_number(project, tmp_path, template):
    option = f"--prompt_template={template}"
    look, page = in_project(project, previewed, written(tmp_path, ROWS), option)
    assert "2 with exactly what an earlier row says; dedupe: true drops them: row 61, 69\n" in look
    assert "2 with nearly what an earlier row says: row 62, 63\n" in look
    assert "1 with a reply that is in the prompt: row 64\n" in look
    if template == "{dialogue}":
        assert "and less: row 66, 67\n" in look
    assert "row 61, 69</p>" in page


def test_where_nothing_is_striking_it_says_so(project, tmp_path):
    look, _ = in_project(project, previewed, written(tmp_path, PLAIN))
    assert look.strip() == "nothing is striking"


def test_many_are_named_by_the_first(project, tmp_path):
    look, _ = in_project(project, previewed, written(tmp_path, PLAIN[:1] * 15))
    assert "14 with exactly" in look and "row 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ...\n" in look


FOREIGN = [row(words(60), "Это ответ на другом языке"), row(words(60), "42")]


def test_a_reply_in_another_script_is_named(project, tmp_path):
    look, _ = in_project(project, previewed, written(tmp_path, PLAIN[:20] + FOREIGN))
    assert "1 with a reply in another script than most: row 21\n" in look
    japanese = [row(words(60), reply * 9) for reply in ["はい"] * 18 + ["東京", "カタカナ"]]
    halves = PLAIN[:5] + [row(words(60), FOREIGN[0]["summary"])] * 4
    for rows in (japanese, halves):
        assert "script" not in in_project(project, previewed, written(tmp_path, rows))[0]


def numbers_of_runs(texts: list[str]) -> list[int]:
    from sft.striking import _runs

    return [len(_runs(text)) for text in texts]


def test_copies_are_told_by_every_run_of_three_words(project):
    assert in_project(project, numbers_of_runs, ["one", "one two three", "1 2 3 4 5"]) == [1, 1, 3]


def with_a_low_limit(path: str) -> tuple:
    from sft import striking

    striking.MOST = 20
    return previewed(path)


def test_what_is_beyond_the_search_is_said(project, tmp_path):
    path = written(tmp_path, PLAIN[:22])
    look, page = in_project(project, with_a_low_limit, path)
    assert look.strip() == "2 with no such search, which ends after 20 rows: row 21, 22"
    assert "ends after 20 rows" in page
    assert "no such search" not in in_project(project, previewed, path)[0]


def deduped_turns(dataset: str) -> int:
    from sft.config import project_arguments
    from sft.rows import load_rows

    return len(load_rows(project_arguments([f"--dataset={dataset}", "--dedupe=true"]))["train"])


def test_what_is_called_a_copy_is_what_dedupe_drops(bake, tmp_path):
    """Other settings of the chat template tell rows of the same words apart, for both."""
    turns = [{"role": "user", "content": words(9)}, {"role": "assistant", "content": words(9)}]
    same = {"messages": turns, "chat_template_kwargs": {"enable_thinking": True}}
    path = written(tmp_path, [same, same | {"chat_template_kwargs": {}}, same])
    conversations = bake.project(dataset_format="messages")
    assert "1 with exactly" in in_project(conversations, previewed, path)[0]
    assert in_project(conversations, deduped_turns, path) == 2


def deduped(dataset: str, *options: str) -> list[str]:
    from sft.config import project_arguments
    from sft.files import plain_row
    from sft.rows import load_rows

    args = project_arguments([f"--dataset={dataset}", f"--eval_dataset={dataset}", *options])
    return [[plain_row(row)["dialogue"] for row in split] for split in load_rows(args).values()]


@pytest.mark.parametrize("mixed", [False, True])
def test_dedupe_keeps_the_first_of_those_that_are_the_same(project, tmp_path, mixed):
    path = written(tmp_path, ROWS)
    dataset = json.dumps([{"path": path}, {"path": path}]) if mixed else path
    train, evaluation = in_project(project, deduped, dataset, "--dedupe=true")
    kept = [one["dialogue"] for at, one in enumerate(ROWS, start=1) if at not in (61, 69)]
    assert train == kept and len(evaluation) == len(ROWS) * (1 + mixed)
    assert len(in_project(project, deduped, path)[0]) == len(ROWS)
