"""A batch trains on what its examples train on, whatever else is in the batch."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from sft.collator import get_collator
from sft.model import stop_tokens
from sft.prepare import prepare
from sft.smoke import build_tokenizer, build_twin


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
    targets = batch.get("shift_labels", batch["labels"][..., 1:])
    tokens = int((targets != -100).sum())
    with torch.no_grad():
        return float(model(**batch, num_items_in_batch=torch.tensor(1)).loss), tokens


def test_a_batch_has_the_loss_of_its_examples(examples, twin):
    collator = get_collator(build_tokenizer())
    together = loss_and_tokens(twin, collator([dict(example) for example in examples]))
    alone = [loss_and_tokens(twin, collator([dict(example)])) for example in examples]
    assert together[1] == sum(tokens for _, tokens in alone)
    assert together[0] == pytest.approx(sum(loss for loss, _ in alone), rel=1e-5)


def test_the_end_of_every_reply_is_trained_on(examples):
    tokenizer = build_tokenizer()
    collator, stop = get_collator(tokenizer), set(stop_tokens(tokenizer))
    for example in examples:
        batch = collator([dict(example)])
        targets = batch.get("shift_labels", batch["labels"])
        wanted = sum(label in stop for label in example["labels"])
        assert sum(target in stop for target in targets.flatten().tolist()) >= wanted


def test_the_stop_tokens_is_trained_on_even_where_it_is_the_pad_token(examples):
    tokenizer = build_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    batch = get_collator(tokenizer)([dict(example) for example in examples])
    targets = batch.get("shift_labels", batch["labels"])
    ends = sum(label == tokenizer.eos_token_id for e in examples for label in e["labels"])
    assert int((targets == tokenizer.eos_token_id).sum()) >= ends
