"""The tokens of a span of text are the same ones whether widths or the tokenizer's offsets tell."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import in_project

ALPHABET = st.sampled_from("ab \n.é🎉\u0301\u212b") | st.sampled_from(["<|im_end|>", "  ", "the"])


@pytest.fixture(scope="module")
def project(bake_once):
    return bake_once.project(project_slug="spans")


def both_ways(normalizer: str | None) -> dict:
    """How often widths told, of many random spans in random texts, once both said the same."""
    from tokenizers import normalizers

    from sft.mask import batch as mask
    from sft.mask import tokens
    from sft.twin import build_tokenizer

    tokenizer = build_tokenizer()
    if normalizer:
        tokenizer.backend_tokenizer.normalizer = getattr(normalizers, normalizer)()
    quick, careful = (mask.Settings(tokenizer, "refuse") for _ in range(2))
    assert quick.widths is not None
    careful.widths = None

    def tokens_of(text: str, span: tuple, how) -> tuple:
        row = mask.Row([], text=text, replies=[span])
        mask.tokenize([row], how)
        return row.ids, row.spans

    seen = {"spans": 0, "by width": 0}

    @settings(max_examples=300, deadline=None, database=None)
    @given(st.lists(ALPHABET, min_size=1, max_size=30).map("".join), st.data())
    def compare(text, data):
        at = st.integers(0, len(text))
        span = tuple(sorted((data.draw(at), data.draw(at))))
        if span[0] == span[1]:
            return
        assert tokens_of(text, span, quick) == tokens_of(text, span, careful)
        seen["spans"] += 1
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        row = mask.Row([], text=text, replies=[span], ids=ids)
        seen["by width"] += tokens._by_width(row, quick.widths) is not None

    compare()
    return seen


@pytest.mark.parametrize("normalizer", [None, "NFC", "Lowercase"])
def test_widths_and_offsets_agree(project, normalizer):
    seen = in_project(project, both_ways, normalizer)
    assert 0 < seen["by width"] < seen["spans"]


def other_tokenizers() -> bool:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from sft.mask import conversation

    words = Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return conversation._widths(PreTrainedTokenizerFast(tokenizer_object=words)) is None


def test_a_tokenizer_that_is_not_byte_level_is_asked(project):
    assert in_project(project, other_tokenizers)
