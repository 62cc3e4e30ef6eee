"""A batch trains on what its examples train on, whatever else is in the batch."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from sft.collator import get_collator
from sft.examples import make_examples
from sft.stop_tokens import stop_tokens
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
    args = replace(args, max_skipped=1.0, test_size=0.0)
    made, _ = make_examples({"train": rows}, build_tokenizer(), args)
    return made["train"].to_list()[:5]


def loss_and_tokens(model, batch):
    with torch.no_grad():
        loss = model(**batch, num_items_in_batch=torch.tensor(1)).loss
    return float(loss), int((batch["labels"][..., 1:] != -100).sum())


def test_a_batch_has_the_loss_of_its_examples(examples, twin):
    collator = get_collator(build_tokenizer(), twin)
    together = loss_and_tokens(twin, collator(examples))
    alone = [loss_and_tokens(twin, collator([example])) for example in examples]
    assert together[1] == sum(tokens for _, tokens in alone)
    assert together[0] == pytest.approx(sum(loss for loss, _ in alone), rel=1e-5)


def test_logits_only_where_a_token_is_trained_leave_the_loss_as_it_is(examples, twin):
    collator = get_collator(build_tokenizer(), twin)
    expected, tokens = loss_and_tokens(twin, collator(examples))
    batch = LogitsWhereTrained(collator)(examples)
    assert batch["shift_labels"].shape == (tokens,)
    with torch.no_grad():
        found = twin(**batch, num_items_in_batch=torch.tensor(1))
    assert found.logits.numel() == tokens * twin.config.vocab_size
    assert float(found.loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("pad_token", ["<|endoftext|>", "<|im_end|>"])  # or the end of turn's
def test_the_end_of_every_reply_is_trained_on(examples, twin, pad_token):
    tokenizer = build_tokenizer()
    stop = set(stop_tokens(tokenizer))
    tokenizer.pad_token = pad_token
    labels = get_collator(tokenizer, twin)(examples)["labels"].flatten().tolist()
    ends = sum(label in stop for example in examples for label in example["labels"])
    assert sum(label in stop for label in labels) >= ends > 0
