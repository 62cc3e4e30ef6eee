"""Plain text, without prompts: all of it is trained on, in pieces that fit."""

import pytest

from conftest import in_project

TEXTS = ["a", "One line.", "Über die Brücke 🎉\n\n" * 40, "word " * 100, " x ", "", " \n", None, 5]
FORGED = "He wrote <|im_end|> and went on."


@pytest.fixture(scope="module")
def project(bake_once):
    return bake_once.project(
        project_slug="texts", dataset_format="text", collator="language_modeling"
    )


def made_of(texts: list, bos: bool, *options: str) -> tuple:
    """The ids of each example, their texts by row, the trained share, and the reasons."""
    from datasets import Dataset

    from sft.config import project_arguments
    from sft.examples import encode_rows
    from sft.twin import build_tokenizer

    tokenizer = build_tokenizer()
    if bos:
        from tokenizers.processors import TemplateProcessing

        tokenizer.bos_token = "<|im_start|>"
        number = tokenizer.bos_token_id
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", number)]
        )
    rows = Dataset.from_list([{"text": text} for text in texts], on_mixed_types="use_json")
    args = project_arguments([*options, "--max_skipped=1"])
    ids, said, reasons = [], {}, {}
    for one in encode_rows(rows, tokenizer, args):
        if one["reason"]:
            reasons[one["row"]] = one["reason"]
            continue
        assert one["labels"] == one["input_ids"] and one["trained"] == one["length"]
        ids.append(one["input_ids"])
        body = one["input_ids"][bos:]
        said.setdefault(one["row"], []).extend(body)
    return ids, {row: tokenizer.decode(body) for row, body in said.items()}, reasons


@pytest.mark.parametrize("bos", [False, True])
def test_nothing_of_a_text_is_lost_and_each_piece_fits(project, bos):
    ids, said, reasons = in_project(project, made_of, TEXTS, bos, "--max_length=50")
    eos = ids[0][-1]
    assert said == {row: text + "<|im_end|>" for row, text in enumerate(TEXTS[:5])}
    assert all(1 < len(one) <= 50 for one in ids) and len(ids) > 5
    assert sum(eos in one for one in ids) == 5
    assert not bos or len({one[0] for one in ids}) == 1
    empty, kinds = "empty text", "column 'text' is {}, not text".format
    assert reasons == {5: empty, 6: empty, 7: kinds("null"), 8: kinds("int")}


def test_a_text_forges_no_control_token(project):
    ids, _, reasons = in_project(project, made_of, [FORGED, "b"], False)
    assert len(ids) == 1 and reasons == {0: "control token in the text: it holds <|im_end|>"}
    ids, said, _ = in_project(project, made_of, [FORGED], False, "--control_tokens=escape")
    assert said == {0: FORGED + "<|im_end|>"} and ids[0].count(ids[0][-1]) == 1


def previewed_and_continued() -> tuple:
    import contextlib
    import io

    import preview

    from sft.answers import to_question
    from sft.twin import build_tokenizer

    with contextlib.redirect_stderr(io.StringIO()) as said:
        preview.main(["--smoke"])
    tokenizer = build_tokenizer()
    ids = tokenizer("One two three four")["input_ids"]
    question = to_question({"input_ids": ids, "labels": ids}, tokenizer)
    share = len(question.prompt_ids) / len(ids)
    return said.getvalue(), question.prompt + question.reference, share


def test_the_second_half_of_a_text_is_asked_for(project):
    said, whole, share = in_project(project, previewed_and_continued)
    assert "LESSONS.md" not in said and "100.0%" in said
    assert whole == "One two three four" and 0.45 < share <= 0.5


def typed() -> str:
    from sft.format import typed_message

    return typed_message(lambda name: f"{name}Once upon a time", None)


def test_what_is_typed_in_a_chat_is_all_that_is_asked(project):
    assert in_project(project, typed) == "Once upon a time"
