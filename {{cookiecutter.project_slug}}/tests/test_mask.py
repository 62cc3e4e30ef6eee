"""The loss mask of your rows, under your tokenizer and its chat template."""

import pytest

from sft.dataset import to_messages
from sft.preprocess import MaskError, encode, end_of_turn


@pytest.fixture(scope="module")
def encoded(args, rows, tokenizer):
    pairs = []
    for row in rows:
        messages = to_messages(row, args)
        pairs.append((messages, encode(messages, tokenizer, turns=args.turns)))
    return pairs


def test_the_labels_spell_the_replies_and_nothing_else(args, encoded, tokenizer):
    for messages, example in encoded:
        replies = [turn["content"].strip() for turn in messages if turn["role"] == "assistant"]
        replies = replies if args.turns == "all" else replies[-1:]
        stop = set(end_of_turn(tokenizer))
        trained = [label for label in example["labels"] if label != -100 and label not in stop]
        text = tokenizer.decode(trained)
        spelt = "".join(text.split()).replace(
            "<think></think>", ""
        )  # an empty thought is the template's
        assert spelt == "".join("".join(replies).split())


def test_each_reply_is_taught_to_end(args, encoded, tokenizer):
    stop = set(end_of_turn(tokenizer))
    for messages, example in encoded:
        turns = sum(turn["role"] == "assistant" for turn in messages) if args.turns == "all" else 1
        assert sum(label in stop for label in example["labels"]) >= turns
        assert [label for label in example["labels"] if label != -100][-1] in stop


def test_the_model_reads_what_the_template_writes(encoded, tokenizer):
    for messages, example in encoded:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert example["input_ids"][: len(ids)] == ids
        assert example["input_ids"].count(tokenizer.bos_token_id) <= 1


def test_a_conversation_that_is_too_long_is_refused_not_cut(encoded, tokenizer):
    messages, example = encoded[0]
    with pytest.raises(MaskError, match="longer than max_length"):
        encode(messages, tokenizer, max_length=len(example["input_ids"]) - 1)
