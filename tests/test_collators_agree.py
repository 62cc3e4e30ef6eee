"""Every collator trains what padded rows train; padding_free does it without padding or mask."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
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
    # the first two tokens are the prompt; the last one ends the turn
    return [{"input_ids": [*ids[:-1], 2], "labels": [-100] * 2 + [*ids[2:-1], 2]} for ids in rows]


def module(name: str):
    """A collator's own file, whichever of them the project has."""
    path = TEMPLATE / f"templates/collator/{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    found = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def project(bake_once):
    return bake_once.project(project_slug="flat", collator="padding_free")


# ---------------------------------------------------------------- batches


def batches() -> dict[str, dict]:
    from sft.twin import build_tokenizer, build_twin

    build_twin("twin", "")
    model = AutoModelForCausalLM.from_pretrained("twin")
    made = {
        name: module(name).get_collator(build_tokenizer(), model)(examples())
        for name in MENUS["collator"]
    }
    return {
        name: {k: v.tolist() if torch.is_tensor(v) else v for k, v in batch.items()}
        for name, batch in made.items()
    }


def test_the_padding_collators_make_equal_batches(project):
    made = in_project(project, batches)
    assert made["seq2seq"] == made["visual_check"] == made["manual_mask"]
    padded = made["seq2seq"]
    assert {len(row) for row in padded["input_ids"]} == {max(LENGTHS)}
    for row, mask, length in zip(padded["labels"], padded["attention_mask"], LENGTHS, strict=True):
        assert mask == [1] * length + [0] * (max(LENGTHS) - length)
        assert row[length - 1] == 2 and set(row[length:]) <= {-100}
    every = made["language_modeling"]
    for ids, row, length in zip(every["input_ids"], every["labels"], LENGTHS, strict=True):
        assert row == ids[:length] + [-100] * (max(LENGTHS) - length)


def test_padding_free_makes_one_row_and_says_where_examples_begin(project):
    flat = in_project(project, batches)["padding_free"]
    rows = examples()
    assert flat["input_ids"] == [[token for row in rows for token in row["input_ids"]]]
    assert flat["labels"] == [[label for row in rows for label in row["labels"]]]
    assert flat["position_ids"] == [[at for length in LENGTHS for at in range(length)]]
    assert flat["cu_seq_lens_q"] == [0, *np.cumsum(LENGTHS).tolist()]
    assert flat["max_length_q"] == max(LENGTHS)
    assert "attention_mask" not in flat


# ---------------------------------------------------------------- loss and gradients


def twin(name: str, attention: str = "sdpa", **changes):
    """A tiny model of the project's architecture, and that collator made for it."""
    from sft.twin import build_tokenizer, build_twin

    build_twin("twin", "")
    model = AutoModelForCausalLM.from_pretrained(
        "twin", dtype=torch.float32, attn_implementation=attention, **changes
    )
    model.config.use_cache = False
    return model, module(name).get_collator(build_tokenizer(), model)


def trained(name: str, logits_where_trained: bool, attention: str = "sdpa", **changes):
    """Loss, gradients and the number of logits' rows of one batch."""
    from sft.trainer import LogitsWhereTrained

    model, collator = twin(name, attention, **changes)
    collator = LogitsWhereTrained(collator) if logits_where_trained else collator
    output = model(**collator(examples()), num_items_in_batch=torch.tensor(10))
    output.loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return output.loss.item(), gradients, output.logits.numel() // output.logits.shape[-1]


def difference(one: tuple, other: tuple) -> dict:
    assert one[1].keys() == other[1].keys()
    scale = max(float(gradient.abs().max()) for gradient in one[1].values())
    off = max(float((one[1][n] - other[1][n]).abs().max()) for n in one[1])
    return {"losses": (one[0], other[0]), "gradients": off / scale, "logits": other[2]}


def against_padded_rows(name: str, **changes) -> dict:
    return difference(trained("seq2seq", False, **changes), trained(name, True, **changes))


@pytest.mark.parametrize("base_model", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_padding_free_trains_exactly_as_padded_rows_do(bake, base_model):
    project = bake.project(base_model=base_model, collator="padding_free")
    seen = in_project(project, against_padded_rows, "padding_free")
    assert seen["losses"][0] == pytest.approx(seen["losses"][1], rel=1e-6)
    assert seen["gradients"] < 1e-6
    assert seen["logits"] == sum(length - 2 for length in LENGTHS)  # one for each trained token


OTHERWISE = ("padding_free", "language_modeling")  # without padding; with other labels


@pytest.mark.parametrize("name", [one for one in MENUS["collator"] if one not in OTHERWISE])
def test_no_logits_for_prompts_and_padding_changes_nothing_else(project, name):
    seen = in_project(project, against_padded_rows, name)
    assert seen["losses"][0] == pytest.approx(seen["losses"][1], rel=1e-6)
    assert seen["gradients"] < 1e-6
    assert seen["logits"] == sum(length - 2 for length in LENGTHS)


def of_every_token() -> dict:
    return difference(trained("language_modeling", False), trained("language_modeling", True))


def test_continued_pretraining_keeps_every_logit_but_those_of_padding(project):
    seen = in_project(project, of_every_token)
    assert seen["losses"][0] == pytest.approx(seen["losses"][1], rel=1e-6)
    assert seen["gradients"] < 1e-6
    assert seen["logits"] == sum(length - 1 for length in LENGTHS)


def with_a_window() -> dict:
    return difference(
        trained("seq2seq", False, sliding_window=4), trained("padding_free", True, sliding_window=4)
    )


def window_matters() -> float:
    wide, narrow = trained("seq2seq", False), trained("seq2seq", False, sliding_window=4)
    return abs(wide[0] - narrow[0])


@pytest.mark.parametrize("architecture", ["mistral", "phi3", "gemma3_text", "olmo3"])
def test_a_sliding_window_slides_inside_each_example(bake, architecture):
    project = bake.project(base_model=ARCHITECTURES[architecture], collator="padding_free")
    assert in_project(project, window_matters) > 1e-5
    seen = in_project(project, with_a_window)
    assert seen["losses"][0] == pytest.approx(seen["losses"][1], rel=1e-6)
    assert seen["gradients"] < 1e-6


def by_the_kernel_of_a_gpu(window: int | None) -> dict:
    """The path of a GPU; what its kernel promises (torch.nn.attention.varlen) is written out."""
    from sft import attention

    calls = []

    def kernel(query, key, value, starts, starts_k, longest, longest_k, **options):
        calls.append(options)
        assert query.dim() == 3 and longest == longest_k == max(LENGTHS)
        assert torch.equal(starts, starts_k) and starts.dtype == torch.int32
        assert options["enable_gqa"] is True
        left, right = options["window_size"]
        assert right == 0
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        at = torch.arange(len(query))
        example = torch.bucketize(at, starts[1:], right=True)
        sees = (example[:, None] == example) & (at[:, None] >= at)
        sees &= (at[:, None] - at <= left) | (left == -1)
        scores = torch.einsum("qhd,khd->hqk", query, key) * options["scale"]
        scores = scores.masked_fill(~sees, float("-inf")).softmax(-1)
        return torch.einsum("hqk,khd->qhd", scores, value)

    one = trained("padding_free", True, sliding_window=window)
    attention.varlen_attn, attention._kernel_can = kernel, lambda query, dropout: True
    other = trained("padding_free", True, sliding_window=window)
    return difference(one, other) | {"calls": len(calls)}


@pytest.mark.parametrize("window", [None, 4])
def test_the_kernel_of_a_gpu_gets_what_the_cpu_computes(bake, window):
    base_model = ARCHITECTURES["mistral"]
    project = bake.project(base_model=base_model, collator="padding_free")
    seen = in_project(project, by_the_kernel_of_a_gpu, window)
    assert seen["calls"] == 2  # one a layer
    assert seen["losses"][0] == pytest.approx(seen["losses"][1], rel=1e-6)
    assert seen["gradients"] < 1e-5


def without_that_kernel() -> tuple[list[dict], bool]:
    """What SDPA is given on a GPU that lacks the kernel, and whether it is as on a CPU."""
    from sft import attention

    class OnGpu(torch.Tensor):
        is_cuda = True

    torch.manual_seed(0)
    states = [torch.randn(1, heads, sum(LENGTHS), 16) for heads in (4, 2, 2)]
    starts = torch.tensor([0, *LENGTHS], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    where = {"scaling": 0.25, "cu_seq_lens_q": starts, "max_length_q": max(LENGTHS)}
    expected, _ = attention.varlen_attention(None, *states, None, **where)
    attention._kernel_can, given = lambda query, dropout: False, []
    attend = attention.F.scaled_dot_product_attention

    def noting(query, key, value, **options):
        given.append({"heads": key.shape[1], "enable_gqa": options["enable_gqa"]})
        return attend(query, key, value, **options)

    attention.F.scaled_dot_product_attention = noting
    found, _ = attention.varlen_attention(
        None, *(one.as_subclass(OnGpu) for one in states), None, **where
    )
    return given, torch.allclose(found.as_subclass(torch.Tensor), expected, atol=1e-6)


def test_other_kernels_of_a_gpu_get_a_key_for_each_head(project):
    given, is_as_on_a_cpu = in_project(project, without_that_kernel)
    assert given == [{"heads": 4, "enable_gqa": False}] * len(LENGTHS)
    assert is_as_on_a_cpu


class Largest(TorchDispatchMode):
    """Notes the most elements that a tensor has had."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if torch.is_tensor(tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def largest_tensor(attention: str) -> int:
    from sft.trainer import LogitsWhereTrained

    model, collator = twin("padding_free", attention)
    torch.manual_seed(0)
    rows = [torch.randint(3, 1000, (40,)).tolist() for _ in range(50)]
    features = [{"input_ids": ids, "labels": [-100] * 38 + ids[38:]} for ids in rows]
    batch = LogitsWhereTrained(collator)(features)
    with Largest() as largest:
        model(**batch, num_items_in_batch=torch.tensor(100)).loss.backward()
    return largest.elements


def test_no_mask_of_tokens_by_tokens_is_ever_made(project):
    tokens = 50 * 40
    assert in_project(project, largest_tensor, "eager") >= tokens**2  # the instrument sees one
    assert in_project(project, largest_tensor, "sdpa") < tokens**2 / 8


def logits_of_the_second_example() -> list:
    from sft.trainer import LogitsWhereTrained

    model, collator = twin("padding_free")
    seen = []
    for first in (3, 4):
        rows = examples()
        rows[0]["input_ids"][0] = first
        with torch.no_grad():
            logits = model.eval()(**LogitsWhereTrained(collator)(rows)).logits
        seen.append(logits.reshape(-1, logits.shape[-1]))
    own = LENGTHS[0] - 2
    return [
        float((seen[0][:own] - seen[1][:own]).abs().max()),
        bool(torch.equal(seen[0][own:], seen[1][own:])),
    ]


@pytest.mark.parametrize("base_model", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_no_example_sees_another(bake, base_model):
    project = bake.project(base_model=base_model, collator="padding_free")
    own, others_are_equal = in_project(project, logits_of_the_second_example)
    assert own > 0 and others_are_equal


def without_bounds() -> str:
    model, collator = twin("padding_free")
    with pytest.raises(ValueError) as refused:
        model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=2)
    model.set_attn_implementation("sdpa")
    model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=2)
    return str(refused.value)


def test_without_bounds_it_says_what_to_do(project):
    assert 'set_attn_implementation("sdpa")' in in_project(project, without_bounds)


# ---------------------------------------------------------------- the order of the rows


def sampled(lengths: list, step: int, batch: int, seed: int = 0, epoch: int = 0) -> list:
    sampler = module("padding_free").EvenSampler(np.array(lengths), step, batch, seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert len(sampler) == len(order)
    return order


def orders() -> dict:
    rng = np.random.default_rng(0)
    lengths = (rng.lognormal(5, 0.8, 1003).astype(int) + 8).tolist()
    return {
        "lengths": lengths,
        "one by eight": sampled(lengths, 8, 1),
        "eight by one": sampled(lengths, 8, 8),
        "two": sampled(lengths, 16, 2),
        "again": sampled(lengths, 16, 2),
        "next epoch": sampled(lengths, 16, 2, epoch=1),
        "other seed": sampled(lengths, 16, 2, seed=1),
        "few": sampled(lengths[:5], 16, 2),
    }


def test_each_row_comes_once_and_another_order_each_epoch(project):
    made = in_project(project, orders)
    for name, order in made.items():
        if name not in ("lengths", "few"):
            assert sorted(order) == list(range(1003)), name
    assert sorted(made["few"]) == list(range(5))
    assert made["two"] == made["again"]
    assert made["two"] != made["next epoch"] and made["two"] != made["other seed"]
    first, second = (frozenset(made[name][:16]) for name in ("two", "next epoch"))
    assert first != second


def test_a_step_has_the_same_rows_however_they_are_dealt_out(project):
    made = in_project(project, orders)
    for start in range(0, 1000, 8):
        one, other = (set(made[n][start : start + 8]) for n in ("one by eight", "eight by one"))
        assert one == other


def test_steps_and_batches_have_about_equal_work(project):
    made = in_project(project, orders)
    lengths = np.array(made["lengths"])

    def spread(order, size):
        whole = len(order) // 16 * 16
        tokens = lengths[order[:whole]].reshape(-1, size).sum(1)
        return tokens.std() / tokens.mean()

    by_lot = np.random.default_rng(1).permutation(1003)
    assert spread(made["two"], 16) < 0.4 * spread(by_lot, 16)
    assert spread(made["two"], 2) < 0.75 * spread(by_lot, 2)
