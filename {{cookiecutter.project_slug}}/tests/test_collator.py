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
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def examples(args, rows):
    args = replace(args, max_skipped=1.0, test_size=0.0)
    made, _ = make_examples({"train": rows}, build_tokenizer(), args)
    return made["train"].to_list()[:5]


@torch.no_grad()
def run(twin, batch):
    """The model's output; its loss is the sum over the trained tokens."""
    return twin(**batch, use_cache=False, num_items_in_batch=torch.tensor(1))


def test_a_batch_has_the_loss_of_its_examples(examples, twin):
    collator = get_collator(build_tokenizer(), twin)
    alone = [float(run(twin, collator([example])).loss) for example in examples]
    assert float(run(twin, collator(examples)).loss) == pytest.approx(sum(alone), rel=1e-5)


def test_logits_only_where_a_token_is_trained_leave_the_loss_as_it_is(examples, twin):
    collator = get_collator(build_tokenizer(), twin)
    whole = collator(examples)
    trained = int((whole["labels"][:, 1:] != -100).sum())
    found = run(twin, LogitsWhereTrained(collator)(examples))
    assert found.logits.numel() == trained * twin.config.vocab_size
    assert float(found.loss) == pytest.approx(float(run(twin, whole).loss), rel=1e-6)


@pytest.mark.parametrize("pad_token", ["<|endoftext|>", "<|im_end|>"])  # or the end of turn's
def test_the_end_of_every_reply_is_trained_on(examples, twin, pad_token):
    tokenizer = build_tokenizer()
    stop = set(stop_tokens(tokenizer))
    tokenizer.pad_token = pad_token
    labels = get_collator(tokenizer, twin)(examples)["labels"].flatten().tolist()
    ends = sum(label in stop for example in examples for label in example["labels"])
    assert sum(label in stop for label in labels) >= ends > 0
