"""Published peaks of GPU memory against the same steps traced on fake tensors, without a GPU.

python bench/published.py                 all of published_peaks.json; writes results/published.json
python bench/published.py --only 36 41    these records, with every moment's peak; writes nothing

Each peak was measured by others, with versions and settings of their own. Here the model's real
class takes the same step with two layers and with three, under the counter of a generated project
(sft/count.py), and each moment of the step is continued to the model's depth. No number is fitted.
What differs between then and now, or between a GPU and fake tensors, is taken the way it was:

- the loss of transformers 4.45 and of 4.48, with copies of the logits in float32 (`loss_of`)
- checkpointing that is reentrant where nothing else was said, transformers 4's default
- fms-acceleration's kernels for loss, norms and 4-bit adapters, by what they keep (`fuse`)
- FlashAttention and two softmax kernels, by what they allocate (`FlashAttention`, `HalfSoftmax`)
- cuBLAS's workspace (`WORKSPACE`)

Not counted is what the allocator leaves over in a block: one of more than 1 MiB is split only if
more than 1 MiB remains, which depends on the order in which 4-bit weights were loaded.
"""

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from math import ceil
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from counts import bake
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.tuners_utils import BaseTunerLayer
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    BitsAndBytesConfig,
)

FOLDER = tempfile.TemporaryDirectory()
PROJECT = bake(Path(FOLDER.name), collator="seq2seq")
sys.path.insert(0, str(PROJECT))
from sft import count  # noqa: E402

BENCH = Path(__file__).resolve().parent
PEAKS, RESULTS = BENCH / "published_peaks.json", BENCH / "results" / "published.json"
GIB = 2**30
WORKSPACE = 2 * 8320 * 2**10  # cuBLAS's, for the thread of forward and that of backward
ROUND = 512  # bytes; PyTorch's allocator hands out multiples of it


class Blocks(count.Sizes):
    """Bytes as PyTorch's allocator hands them out; nothing is known of what they grow with."""

    def grows_with(self, size: int) -> tuple[str, int]:
        return "1", ceil(size / ROUND) * ROUND


class Live(count._Live):
    """The most bytes at each place of a step, weights and optimizer included."""

    def __init__(self, layers: int):
        super().__init__([], Blocks(0, 0, 0, 0, {}))
        self.layers = ["first layer", *["between"] * (layers - 2), "last layer"]
        self.peaks = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = super().__torch_dispatch__(function, types, args, kwargs)
        (place, layer), total = self.moments.pop()
        if place in ("start", "forward", "loss"):
            place = "forward" if torch._C._current_graph_task_id() == -1 else "head"
        elif place == "backward":
            place = self.layers[layer]
        now = total.total()
        if function.name() == "aten::_softmax_backward_data":  # which was of float32, not 16 bits
            now += args[0].nbytes // 2
        self.peaks[place] = max(now, self.peaks.get(place, 0))
        return output


class HalfSoftmax(torch.autograd.Function):
    """On a GPU, softmax of float16 to float32 is one operation, and so is its backward."""

    @staticmethod
    def forward(ctx, scores):
        output = torch.empty_like(scores, dtype=torch.float32)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx, upstream):
        (output,) = ctx.saved_tensors
        product = upstream * output
        return torch.empty_like(product, dtype=torch.float16)


def softmax(scores, dim=None, _stacklevel=3, dtype=None, plain=F.softmax):
    if scores.dtype == torch.float16 and dtype == torch.float32:
        return HalfSoftmax.apply(scores)
    return plain(scores, dim, _stacklevel, dtype)


def trace(shape: dict, settings: SimpleNamespace, layers: int) -> Live:
    """The second of two training steps of a model with so many layers, when Adam has its state."""
    model = on_meta(shape, settings, layers)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        count.to_fake(model, fake)
    with fake, count.as_on_a_gpu(), mock.patch("torch.nn.functional.softmax", softmax):
        model.config.use_cache = False
        model.train()
        if settings.fused:
            fuse(model, settings)
        if settings.checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": settings.reentrant})
            if settings.lora:
                model.enable_input_require_grads()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, foreach=True)
        size = settings.batch, settings.length
        batch = [torch.zeros(size, dtype=torch.long) for _ in range(3)]  # ids, labels, mask
        ids, labels, _ = batch
        live = Live(layers)
        count._Step.watch_layers(SimpleNamespace(model=model, live=live, trained=[]))
        with live:
            for tensor in (*count.tensors_of(model), *batch):
                tensor.detach()  # counts from here on
            kept = None
            for _ in range(2):
                live.peaks.clear()
                live.place = "start", None
                with torch.autocast("cpu", torch.bfloat16, enabled=settings.autocast):
                    loss, logits = loss_of(model, ids, labels, settings)
                kept = logits if settings.keep_outputs else None  # until the next step's are there
                del logits
                loss.backward()
                if not settings.keep_outputs:  # the Trainer's way
                    del loss
                live.place = "optimizer", None
                torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
                optimizer.step()
                optimizer.zero_grad()
            del kept
    return live


def on_meta(shape: dict, settings: SimpleNamespace, layers: int) -> torch.nn.Module:
    """The base model, quantized and prepared as the settings say, without content."""
    config = AutoConfig.for_model(
        shape["arch"],
        hidden_size=shape["hidden"],
        num_hidden_layers=layers,
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        intermediate_size=shape["inter"],
        vocab_size=shape["vocab"],
        tie_word_embeddings=shape["tied"],
        max_position_embeddings=8192,
        sliding_window=None,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with (
        mock.patch.object(count, "quantization_config", partial(quantization_config, settings)),
        mock.patch.object(count, "add_adapter", adapted),
    ):
        return count.model_on_meta(config, settings)[0]


def quantization_config(settings: SimpleNamespace, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if not settings.nf4:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=settings.double_quant,
        bnb_4bit_compute_dtype=dtype,
    )


def adapted(model: torch.nn.Module, settings: SimpleNamespace) -> torch.nn.Module:
    """The model prepared for training, with LoRA if it had it."""
    for layer in model.model.layers:
        # before 4.48, Mistral's class gave the kernel a key and a value for every query head
        is_mistral = model.config.model_type == "mistral"
        layer.self_attn.repeat_heads = is_mistral and settings.version == "4.45"
    if settings.nf4 and settings.kbit_upcast:  # all that is not quantized to float32
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if not settings.lora:
        return model
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=16,
        lora_dropout=settings.dropout,
        target_modules=settings.targets,
        task_type="CAUSAL_LM",
    )
    with torch.device("meta"):
        model = get_peft_model(model, lora)
    if settings.trl_cast:
        # embeddings and head back to bfloat16; adapters stay in float32, whatever `lora_fp32` says:
        # between steps, these runs hold more than the other nf4 runs by the norms' 2 bytes alone
        for name, module in model.named_modules():
            if name.endswith(("lm_head", "embed_tokens")):
                module.to(torch.bfloat16)
    return model


def loss_of(
    model: torch.nn.Module, ids: torch.Tensor, labels: torch.Tensor, settings: SimpleNamespace
):
    """The loss, and the logits that the model's output holds beside it."""
    if settings.version == "5":
        output = model(input_ids=ids, labels=labels, num_items_in_batch=ids.numel())
        return output.loss, output.logits
    causal = model.get_base_model() if settings.lora else model
    hidden = causal.model(input_ids=ids).last_hidden_state
    if settings.fused:
        rows = hidden[:, :-1].reshape(-1, hidden.shape[-1])
        return FusedCrossEntropy.apply(rows, causal.lm_head.weight), None
    # as it was: the logits whole in float32, then a copy of all but the last
    logits = causal.lm_head(hidden)
    if causal.config.model_type == "granite":
        logits = logits / causal.config.logits_scaling
    scores = logits.float()
    if settings.version == "4.45":  # which had the loss in the model, and only one name for logits
        del logits
    shifted = scores[:, :-1].contiguous().view(-1, scores.shape[-1])
    return F.cross_entropy(shifted, labels[:, 1:].reshape(-1)), None


class FusedCrossEntropy(torch.autograd.Function):
    """Head and loss in chunks of rows, with the gradients worked out in forward (Liger's way)."""

    @staticmethod
    def forward(ctx, hidden, weight):
        rows, vocab = hidden.shape[0], weight.shape[0]
        gradient = torch.zeros_like(hidden)
        of_weight = torch.zeros_like(weight) if weight.requires_grad else None
        losses = torch.zeros(rows)
        chunk = ceil(rows / ceil(vocab / hidden.shape[1]))
        chunk = 1 << (chunk - 1).bit_length()
        for start in range(0, rows, chunk):
            part = hidden[start : start + chunk].to(weight.dtype)
            logits = part @ weight.t()
            logits = logits.float().to(weight.dtype)  # the kernel writes gradients over the logits
            gradient[start : start + chunk] = logits @ weight
            if of_weight is not None:
                of_weight += logits.t() @ part
        ctx.save_for_backward(gradient, of_weight)
        return losses.sum()

    @staticmethod
    def backward(ctx, upstream):
        return ctx.saved_tensors


class FusedNorm(torch.autograd.Function):
    """RMS normalization that keeps its input and one number a row."""

    @staticmethod
    def forward(ctx, states, weight):
        ctx.save_for_backward(states, weight, torch.empty(states.shape[:-1]))
        return torch.empty_like(states)

    @staticmethod
    def backward(ctx, upstream):
        _, weight, _ = ctx.saved_tensors  # the states' gradient is written over the upstream one
        return upstream, torch.empty_like(weight) if ctx.needs_input_grad[1] else None


class FusedLora(torch.autograd.Function):
    """A 4-bit product and its adapter in one: keeps what is dropped out, and no mask."""

    @staticmethod
    def forward(ctx, states, layer, a, b):
        dropped = F.dropout(states, layer.lora_dropout["default"].p)
        output = layer.base_layer(states)
        output += dropped @ a.t().to(states.dtype) @ b.t().to(states.dtype)
        ctx.save_for_backward(states, dropped, a, b)
        return output

    @staticmethod
    def backward(ctx, upstream):
        states, dropped, a, b = (t.flatten(0, 1) if t.dim() == 3 else t for t in ctx.saved_tensors)
        flat = upstream.flatten(0, 1)
        through = flat @ b.to(flat.dtype)
        of_a, of_b = through.t() @ dropped, flat.t() @ (dropped @ a.t().to(flat.dtype))
        weight = torch.empty(flat.shape[1], states.shape[1], dtype=flat.dtype)  # unpacked
        of_states = flat @ weight
        del weight
        of_states += (dropped != 0) * (through @ a.to(flat.dtype))
        of_states = of_states.unflatten(0, upstream.shape[:2])
        return of_states, None, of_a.to(a.dtype), of_b.to(b.dtype)


def fuse(model: torch.nn.Module, settings: SimpleNamespace) -> None:
    """What fms-acceleration's kernels replace beside the loss."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(
                lambda norm, states: FusedNorm.apply(states, norm.weight), module
            )
        elif settings.nf4 and isinstance(module, BaseTunerLayer):
            a, b = module.lora_A["default"], module.lora_B["default"]
            module.forward = partial(
                lambda layer, a, b, states: FusedLora.apply(states, layer, a.weight, b.weight),
                *(module, a, b),
            )


class FlashAttention(torch.autograd.Function):
    """What the CUDA kernel of FlashAttention 2 allocates."""

    @staticmethod
    def forward(ctx, query, key, value):
        output = torch.empty_like(query)
        sums = torch.empty(query.shape[0], query.shape[2], query.shape[1])
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx, upstream):
        query, key, value, output, sums = ctx.saved_tensors
        gradients = [torch.empty_like(t) for t in (query, key, value)]
        summed = torch.empty_like(query, dtype=torch.float32), torch.empty_like(sums)
        if key.shape[2] != query.shape[2]:  # a gradient for each query head, added up in the end
            wide = torch.empty_like(query), torch.empty_like(query)
            groups = key.shape[2], query.shape[2] // key.shape[2]
            for gradient, each in zip(gradients[1:], wide, strict=True):
                gradient.copy_(each.unflatten(2, groups).sum(3))
        del summed
        return tuple(gradients)


def flash(module, query, key, value, attention_mask, **kwargs):
    """As transformers calls it: rows before heads."""
    if module.repeat_heads:
        key, value = (t.repeat_interleave(module.num_key_value_groups, 1) for t in (key, value))
    # what norms in float32 have widened, transformers narrows again for the kernel
    query, key, value = (t.to(torch.bfloat16).transpose(1, 2) for t in (query, key, value))
    return FlashAttention.apply(query, key, value), None


AttentionInterface.register("kernel_shapes", flash)
AttentionMaskInterface.register("kernel_shapes", lambda *_, **__: None)


def moments(shape: dict, settings: SimpleNamespace) -> dict[str, int]:
    """The peak of each moment of the step at the model's depth, in bytes."""
    two, three = trace(shape, settings, 2), trace(shape, settings, 3)
    further = shape["layers"] - 2

    def at_depth(value: Callable[[Live], int]) -> int:
        return value(two) + further * (value(three) - value(two))

    found = {place: at_depth(lambda live, place=place: live.peaks[place]) for place in two.peaks}
    # a layer with neighbours on both sides: next to the last, and next to the first one
    for end in ("last layer", "first layer"):
        found[f"next to {end}"] = found[end] + three.peaks["between"] - three.peaks[end]
    return {place: size + WORKSPACE for place, size in found.items()}


def read_settings(record: dict) -> SimpleNamespace:
    """The code path that a record's settings stand for."""
    given = record["settings"]
    t4 = record["source"].startswith("fitcheck")
    lora = given.get("method") != "full"
    # of transformers: at its loss, 4.48 has 14 bytes a logit and 4.45 has 12
    version = "5" if t4 else "4.48" if given.get("logit_bytes") == 14 else "4.45"
    return SimpleNamespace(
        dtype="float16" if t4 else "bfloat16",
        batch=given["batch"],
        length=given["seq"],
        attn_implementation=given["attn"] if t4 else "kernel_shapes",
        checkpointing=given.get("ckpt", True),
        reentrant=given.get("reentrant", True),
        lora=lora,
        rank=given.get("rank"),
        targets=given.get("targets"),
        dropout=given.get("lora_dropout", 0.0),
        nf4=given.get("quant") == "nf4",
        double_quant=given.get("double_quant", False),
        kbit_upcast=given.get("kbit_upcast", False),
        trl_cast=given.get("trl_cast", False),
        autocast=given["autocast"],
        keep_outputs=given.get("keep_outputs", False),
        version=version,
        fused=given.get("fused_ce", False),
    )


def group_of(record: dict) -> str:
    given = record["settings"]
    if record["source"].startswith("fitcheck"):
        return f"T4, {given['quant']}"
    if given.get("fused_ce"):
        return "A100, fused loss"
    return "A100, autocast" if given["autocast"] else "A100, 16 bits"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=int, nargs="+", help="numbers of records")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # of peft's calls, at transformers
    known = json.loads(PEAKS.read_text(encoding="utf-8"))
    results, seen = [], {}
    for number, record in enumerate(known["records"]):
        if only and number not in only:
            continue
        settings = read_settings(record)
        shape = known["shapes"][known["models"][record["model"]]]
        key = str((settings, shape))
        if key not in seen:
            seen[key] = moments(shape, settings)
        found = seen[key]
        where = max(found, key=found.get)
        predicted = round(found[where] / GIB, 3)
        error = predicted / record["measured_gib"] - 1
        print(
            f"{number:2} {group_of(record):16} {record['model'].split('/')[-1]:28} "
            f"{settings.batch:2} x {settings.length:4} {settings.attn_implementation[:5]:5} "
            f"{record['measured_gib']:7.3f} {predicted:7.3f} {error:+7.2%}  {where}",
            flush=True,
        )
        if only:
            print("  ", ", ".join(f"{place} {size / GIB:.3f}" for place, size in found.items()))
        results.append(
            {k: record[k] for k in ("source", "model", "settings", "measured_gib")}
            | {
                "group": group_of(record),
                "predicted_gib": predicted,
                "error": round(error, 4),
                "moment": where,
            }
        )
    groups = {}
    for result in results:
        groups.setdefault(result["group"], []).append(abs(result["error"]))
    groups["all"] = [abs(result["error"]) for result in results]
    for name, errors in groups.items():
        print(
            f"{name:18} {len(errors):2} records, mean {mean(errors):.2%}, worst {max(errors):.2%}"
        )
    if not only:
        lines = ",\n".join(f" {json.dumps(result)}" for result in results)
        RESULTS.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
