"""The padding collators make equal batches; padding_free has their loss and their gradients."""

import importlib.util
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import MENUS, TEMPLATE, in_project

# one base model of each architecture
ARCHITECTURES = {
    json.loads((TEMPLATE / f"templates/base_model/{name}.json").read_text())["model_type"]: name
    for name in MENUS["base_model"]
}
LENGTHS = (5, 11, 3, 8)


def examples(vocabulary: int = 1000) -> list[dict]:
    torch.manual_seed(0)
    rows = [torch.randint(3, vocabulary, (length,)).tolist() for length in LENGTHS]
    # the first half is the prompt; the last token of each ends the turn
    return [{"input_ids": [*ids[:-1], 2], "labels": [-100] * 2 + [*ids[2:-1], 2]} for ids in rows]


def collator(name: str, tokenizer):
    path = TEMPLATE / f"templates/collator/{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_collator(tokenizer)


def batches() -> dict[str, dict]:
    from sft.smoke import build_tokenizer

    tokenizer = build_tokenizer()
    made = {name: collator(name, tokenizer)(examples()) for name in MENUS["collator"]}
    return {name: {k: v.tolist() for k, v in batch.items()} for name, batch in made.items()}


def test_the_padding_collators_make_equal_batches(bake):
    made = in_project(bake.project(), batches)
    assert made["seq2seq"] == made["visual_check"] == made["manual_mask"]
    padded = made["seq2seq"]
    assert {len(row) for row in padded["input_ids"]} == {max(LENGTHS)}
    for row, mask, length in zip(padded["labels"], padded["attention_mask"], LENGTHS, strict=True):
        assert mask == [1] * length + [0] * (max(LENGTHS) - length)
        assert row[length - 1] == 2 and set(row[length:]) <= {-100}
    every = made["language_modeling"]
    for ids, row, length in zip(every["input_ids"], every["labels"], LENGTHS, strict=True):
        assert row == ids[:length] + [-100] * (max(LENGTHS) - length)
    flat = made["padding_free"]
    assert len(flat["input_ids"]) == 1 and len(flat["input_ids"][0]) == sum(LENGTHS)


def loss_and_gradients(spoil: bool = False) -> dict:
    from sft.smoke import build_tokenizer, build_twin

    build_twin("twin", "")
    results = {}
    for name in ("seq2seq", "padding_free"):
        model = AutoModelForCausalLM.from_pretrained("twin", dtype=torch.float32)
        model.config.use_cache = False
        rows = examples()
        if spoil:
            rows[0]["input_ids"][0] += 1
        batch = collator(name, build_tokenizer())(rows)
        output = model(**batch, num_items_in_batch=torch.tensor(10))
        output.loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results[name] = (output.loss.item(), gradients, output.logits.shape, batch)
    padded, flat = results["seq2seq"], results["padding_free"]
    assert padded[1].keys() == flat[1].keys()
    difference = max(float((padded[1][n] - flat[1][n]).abs().max()) for n in padded[1])
    scale = max(float(gradient.abs().max()) for gradient in padded[1].values())
    return {"losses": (padded[0], flat[0]), "difference": difference / scale, "logits": flat[2]}


@pytest.mark.parametrize("base_model", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_padding_free_trains_exactly_as_padded_rows_do(bake, base_model):
    seen = in_project(bake.project(base_model=base_model), loss_and_gradients)
    assert seen["losses"][0] == pytest.approx(seen["losses"][1], rel=1e-6)
    assert seen["difference"] < 1e-5
    # logits exist where a label is, and nowhere else
    assert seen["logits"][:2] == (1, sum(length - 2 for length in LENGTHS)) or seen["logits"][
        0
    ] == sum(length - 2 for length in LENGTHS)


def logits_of_the_second_example() -> list:
    from sft.smoke import build_tokenizer, build_twin

    build_twin("twin", "")
    model = AutoModelForCausalLM.from_pretrained("twin", dtype=torch.float32).eval()
    seen = []
    for first in (3, 4):
        rows = examples()
        rows[0]["input_ids"][0] = first
        batch = collator("padding_free", build_tokenizer())(rows)
        with torch.no_grad():
            logits = model(**batch, use_cache=False).logits
        seen.append(logits.reshape(-1, logits.shape[-1]))
    own = LENGTHS[0] - 2
    return [
        float((seen[0][:own] - seen[1][:own]).abs().max()),
        bool(torch.equal(seen[0][own:], seen[1][own:])),
    ]


@pytest.mark.parametrize("base_model", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_no_example_sees_another(bake, base_model):
    project = bake.project(base_model=base_model)
    own, others_are_equal = in_project(project, logits_of_the_second_example)
    assert own > 0 and others_are_equal
