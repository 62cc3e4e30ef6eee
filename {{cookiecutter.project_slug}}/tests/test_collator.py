"""A batch trains on what its examples train on, whatever else is in the batch."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from sft.collator import get_collator
from sft.examples import prepare
from sft.model import stop_tokens
from sft.trainer import LogitsWhereTrained
from sft.twin import build_tokenizer, build_twin


@pytest.fixture(scope="module")
def twin(args, tmp_path_factory):
    folder = tmp_path_factory.mktemp("twin")
    build_twin(folder, args.base_model_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.use_cache = False
    return model


@pytest.fixture(scope="module")
def examples(args, rows):
    args = replace(args, max_set_aside=1.0, test_size=0.0)
    return list(prepare({"train": rows}, build_tokenizer(), args)[0]["train"].select(range(5)))


def loss_and_tokens(model, batch):
    tokens = int((batch["labels"][..., 1:] != -100).sum())
    with torch.no_grad():
        return float(model(**batch, num_items_in_batch=torch.tensor(1)).loss), tokens


def test_a_batch_has_the_loss_of_its_examples(examples, twin):
    collator = get_collator(build_tokenizer(), twin)
    together = loss_and_tokens(twin, collator([dict(example) for example in examples]))
    alone = [loss_and_tokens(twin, collator([dict(example)])) for example in examples]
    assert together[1] == sum(tokens for _, tokens in alone)
    assert together[0] == pytest.approx(sum(loss for loss, _ in alone), rel=1e-5)


def test_logits_only_where_a_token_is_trained_leave_the_loss_as_it_is(examples, twin):
    collator = get_collator(build_tokenizer(), twin)
    features = [dict(example) for example in examples]
    wanted, tokens = loss_and_tokens(twin, collator(features))
    batch = LogitsWhereTrained(collator)(features)
    assert batch["shift_labels"].shape == (tokens,)
    with torch.no_grad():
        found = twin(**batch, num_items_in_batch=torch.tensor(1))
    assert found.logits.numel() == tokens * twin.config.vocab_size
    assert float(found.loss) == pytest.approx(wanted, rel=1e-6)


def test_the_end_of_every_reply_is_trained_on(examples, twin):
    tokenizer = build_tokenizer()
    collator, stop = get_collator(tokenizer, twin), set(stop_tokens(tokenizer))
    for example in examples:
        batch = collator([dict(example)])
        wanted = sum(label in stop for label in example["labels"])
        assert sum(label in stop for label in batch["labels"].flatten().tolist()) >= wanted


def test_the_stop_tokens_is_trained_on_even_where_it_is_the_pad_token(examples, twin):
    tokenizer = build_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    batch = get_collator(tokenizer, twin)([dict(example) for example in examples])
    ends = sum(label == tokenizer.eos_token_id for e in examples for label in e["labels"])
    assert int((batch["labels"] == tokenizer.eos_token_id).sum()) >= ends
