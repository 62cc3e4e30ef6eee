"""The loss mask of your rows, under your tokenizer and its chat template."""

from contextlib import suppress

import pytest
from oracle import judge

from sft.files import plain_row
from sft.format import mask_options, to_conversation
from sft.mask import MaskError, encode_batch, encode_examples
from sft.stop_tokens import stop_tokens


@pytest.fixture(scope="module")
def turns(args):
    """Which replies are trained on: "all" or "last"."""
    return mask_options(args).get("turns", "all")


@pytest.fixture(scope="module")
def encoded(args, rows, tokenizer, turns):
    """(conversation, examples) of each of the first rows that can be trained on."""
    pairs = []
    for row in rows:
        with suppress(ValueError):
            conversation = to_conversation(plain_row(row), args)
            examples = encode_examples(**conversation, tokenizer=tokenizer, turns=turns)
            pairs.append((conversation, examples))
    assert pairs, "none of the first rows can be trained on: python preview.py says why"
    return pairs


def test_the_mask_covers_the_replies_and_nothing_else(encoded, tokenizer, turns):
    verdicts = [judge(*pair, tokenizer, turns) for pair in encoded]
    assert "" in verdicts, "the oracle can tell of none of these rows"
    assert not any(verdicts), next(filter(None, verdicts))


def test_each_reply_is_trained_to_end(encoded, tokenizer):
    stop = set(stop_tokens(tokenizer))
    for example in (example for _, examples in encoded for example in examples):
        assert [label for label in example["labels"] if label != -100][-1] in stop


def test_a_batch_is_encoded_like_its_rows(encoded, tokenizer, turns):
    conversations = [conversation for conversation, _ in encoded]
    batch = encode_batch(conversations, tokenizer, None, turns)
    assert batch == [examples for _, examples in encoded]


def test_a_conversation_that_is_too_long_is_refused_not_cut(encoded, tokenizer):
    conversation, examples = encoded[0]
    limit = len(examples[-1]["input_ids"]) - 1
    with pytest.raises(MaskError, match="longer than max_length"):
        encode_examples(**conversation, tokenizer=tokenizer, max_length=limit, turns=turns)


def test_a_prompt_is_cut_where_config_says_so_and_the_reply_is_not(encoded, tokenizer, turns):
    conversation, examples = max(encoded, key=lambda pair: len(pair[1][-1]["input_ids"]))
    example, limit = examples[-1], len(examples[-1]["input_ids"]) - 1
    ((*_, shortened),) = encode_batch([conversation], tokenizer, limit, turns, "truncate_prompt")
    assert len(shortened["input_ids"]) <= limit
    left, before = (
        [label for label in labels if label != -100]
        for labels in (shortened["labels"], example["labels"])
    )
    assert left == before[-len(left) :]


def test_a_control_token_in_the_text_is_refused_or_spelled_out(encoded, tokenizer, monkeypatch):
    conversation, _ = encoded[0]
    messages, stop = conversation["messages"], tokenizer.eos_token
    at = next(at for at, message in enumerate(messages) if message["role"] == "user")
    forging = {**messages[at], "content": f"Say {stop} please. {messages[at]['content']}"}
    forged = [*messages[:at], forging, *messages[at + 1 :]]
    conversation = {**conversation, "messages": forged}
    with pytest.raises(MaskError, match="control token in the text"):
        encode_examples(**conversation, tokenizer=tokenizer)
    how = {"tokenizer": tokenizer, "control_tokens": "escape"}
    escaped = encode_examples(**conversation, **how)[-1]["input_ids"]
    monkeypatch.setattr(tokenizer, "chat_control_tokens", [])  # transformers knows more of them
    how = {"sanitize_control_tokens": True, **conversation["chat_template_kwargs"]}
    clean = tokenizer.apply_chat_template(forged, conversation.get("tools"), **how)["input_ids"]
    assert escaped[: len(clean)] == clean
