"""A step's memory, counted on tensors without content: no GPU, the project's own code.

PyTorch's fake tensors have a shape and no content. On them the real model takes a training step
with this project's quantization, adapter, collator and Trainer, and each storage counts from the
operation that makes it to the last reference to it.

One count is good for all sizes. Batch, length, labels and rank are numbers with a prime factor that
is in no other size of the model, so the factors of a storage's bytes tell what it grows with:
8,192 * batch * length, say. And one layer of each kind is good for all layers of that kind.
"""

import json
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from itertools import pairwise, product
from math import prod
from unittest import mock

import numpy as np
import torch
from sympy import primefactors, primerange
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.quantizers import AutoHfQuantizer

from sft.adapter import add_adapter
from sft.collator import get_collator
from sft.config import ProjectArguments, load_config, read_values
from sft.memory import optimizers, read_config
from sft.quantization import quantization_config
from sft.trainer import Trainer
from sft.twin import build_tokenizer


def main(overrides: list[str]) -> None:
    """Print the count for config.yaml and these words as JSON."""
    values = read_values(overrides)
    shape, optims = read_config(values), optimizers(values)
    args, training_args = load_config([*overrides, "--use_cpu=true", "--bf16=true"])
    kind = shape.get("model_type")
    if kind not in CONFIG_MAPPING:
        sys.exit(f"This version of transformers has no model of the type {kind!r}.")
    try:
        print(json.dumps(count(to_config(shape), args, training_args, optims)))
    except Exception as error:  # whatever the code of a model says to tensors without content
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160].rstrip(". ")
        sys.exit(f"A step of {kind} cannot be counted ({reason}); only a GPU can tell its memory.")


def count(
    config: PretrainedConfig, args: ProjectArguments, training_args: TrainingArguments, optims: list
) -> dict:
    """What a training step takes, as a function of batch, length, labels and rank.

    Args:
        config: of the base model; it is changed.
        optims: names of optimizers to count, as `TrainingArguments.optim` has them.

    Returns:
        What `sft.memory.memory` reads: by place in the step and by part, bytes by what they grow
        with, such as {"1": 1024, "batch*length": 8192}.

    Raises:
        ValueError: the model is not made of layers, or its window leaves no length to count with.
    """
    text = config.get_text_config()
    text.use_cache = False
    windows = {getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")}
    most = getattr(text, "max_position_embeddings", None) or sys.maxsize
    # a row that is longer than a window needs a mask
    borders = [0, *sorted(window for window in windows if window and window < most), None]
    ranges = {str(low): Sizes.between(low, high, config) for low, high in pairwise(borders)}
    step = _Step(config, args, training_args, ranges["0"])
    found = {**step.always(), "optimizers": {optim: step.optimizer(optim) for optim in optims}}
    step.keep_one_layer_of_each_kind()
    step.watch_layers()
    for name, on in (("checkpointing", True), ("no checkpointing", False)):
        found[name] = {low: step.places(sizes, on) for low, sizes in ranges.items()}
    return found | {"every_token": step.every_token}


@dataclass(frozen=True)
class Sizes:
    """Numbers to count with, each with a prime factor that is in no other size.

    Attributes:
        length: tokens of a row; a multiple of 256, in whose blocks some models compute.
        labels: tokens of a row that are trained on.
        primes: that of each, by name.
    """

    batch: int
    length: int
    labels: int
    r: int
    primes: dict[str, int]

    @classmethod
    def between(cls, low: int, high: int | None, config: PretrainedConfig) -> "Sizes":
        """Sizes whose primes divide no number of `config`, for rows from `low` to `high` tokens."""
        others = prod({n for n in tree_iter(config.to_dict()) if type(n) is int and n > 1})
        r, batch = [prime for prime in primerange(100, 9999) if others % prime][:2]
        step = 1 if high else 256
        start = max(low + 1, min(200, (high or 400) // 2))
        for length in range(-(-start // step) * step, high or low + 2**16, step):
            # where all tokens are trained on, there is one label less: the last predicts nothing
            last, labels = (
                max((p for p in primefactors(n) if p > 10 and (others * r * batch) % p), default=0)
                for n in (length, length - 1)
            )
            if last and labels:
                names = {"batch": batch, "length": last, "labels": labels, "r": r}
                return cls(batch, length, labels * max(length // labels // 4, 1), r, names)
        raise ValueError(f"There is no length from {low} to {high} tokens to count with")

    def grows_with(self, size: int) -> tuple[str, float]:
        """What a size grows with, such as "batch*length" ("1" for nothing), and how fast."""
        factors, rest = [], size
        for name, prime in self.primes.items():
            while rest and rest % prime == 0:
                factors.append(name)
                rest //= prime
        return "*".join(factors) or "1", size / prod(getattr(self, name) for name in factors)

    def sum_of(self, tensors: Iterable[torch.Tensor]) -> dict[str, float]:
        """Their bytes by what they grow with; a storage that several share counts once."""
        total = Counter()
        for storage in {address(t): t.untyped_storage() for t in tensors}.values():
            grows_with, size = self.grows_with(storage.nbytes())
            total[grows_with] += size
        return _rounded(total)


class _Step:
    """The model, whole at first, and what its training steps take.

    Attributes:
        every_token: whether the collator trains on all of a row.
        order: for each layer of the whole model, the one that stands for it.
    """

    def __init__(self, config, args, training_args, sizes: Sizes):
        if "r" in args.adapter:
            args = replace(args, adapter=args.adapter | {"r": sizes.r, "adapter_path": ""})
        self.sizes, self.fake = sizes, FakeTensorMode(allow_non_fake_inputs=True)
        self.model, self.parameters, self.quantized = model_on_meta(config, args)
        self.live, self.every_token = None, False
        collator = get_collator(build_tokenizer(), self.model)
        training_args.report_to, training_args.eval_strategy = [], "no"
        with tempfile.TemporaryDirectory() as training_args.output_dir, self.fake:
            to_fake(self.model, self.fake)
            with mock.patch.object(Trainer, "_move_model_to_device"):
                self.trainer = Trainer(model=self.model, args=training_args, data_collator=collator)
        self.trainer.current_gradient_accumulation_steps = training_args.gradient_accumulation_steps
        self.under_autocast = self.trainer.accelerator.prepare_model(
            self.model, device_placement=False
        )
        self.trained = [p for p in self.model.parameters() if p.requires_grad]

    def always(self) -> dict:
        """Exact counts of parameters, and the bytes of weights, adapter and gradients."""
        parts = {"buffers": [*self.model.buffers()], "quantization scales": []}
        for name, parameter in self.model.named_parameters():
            bits = 4 if hasattr(parameter, "quant_state") else 8 * parameter.element_size()
            part = "adapter" if "lora_" in name else f"base weights, {bits} bits"
            parts.setdefault(part, []).append(parameter)
            hung = [owner[key] for owner, key in hung_on(parameter)]
            parts["quantization scales"] += [t for t in hung if address(t) != address(parameter)]
        trainable = Counter()
        for parameter in self.trained:
            grows_with, number = self.sizes.grows_with(parameter.numel())
            trainable[grows_with] += number
        return {
            "parameters": self.parameters,
            "quantized": self.quantized,
            "trainable": _rounded(trainable),
            "always": {part: self.sizes.sum_of(ones) for part, ones in parts.items() if ones},
            "gradients": self.sizes.sum_of(self.trained),
        }

    def optimizer(self, name: str) -> dict:
        """Bytes of an optimizer's state, and what its step has in work besides."""
        trainer, args = self.trainer, self.trainer.args
        trainer.optimizer, args.optim = None, name.removeprefix("paged_")
        optimizer = trainer.create_optimizer()
        for group in optimizer.param_groups:
            if group.get("foreach", 0) is None:  # a GPU's default: all parameters at once
                group["foreach"] = not group["fused"]
        with self.fake, as_on_a_gpu():
            for parameter in self.trained:
                parameter.grad = torch.empty_like(parameter)
            optimizer.step()  # the first makes the state
            state = [t for t in tree_iter([*optimizer.state.values()]) if torch.is_tensor(t)]
            gradients = [parameter.grad for parameter in self.trained]
            with _Live([*tensors_of(self.model), *gradients, *state], self.sizes) as live:
                live.place = ("optimizer step", None)
                if args.max_grad_norm:
                    trainer.accelerator.clip_grad_norm_(self.trained, args.max_grad_norm)
                optimizer.step()
        self.model.zero_grad()
        return {"state": self.sizes.sum_of(state), "step": _at_full_depth(live.moments, [])}

    def keep_one_layer_of_each_kind(self) -> None:
        """Take layers out of the model: the first, the last and one of each kind between stay."""
        layers, text = layers_of(self.model), self.model.config.get_text_config()
        depth, kinds = len(layers), [_kind(layer) for layer in layers]
        between = {kind: at for at, kind in reversed([*enumerate(kinds)][1:-1])}
        kept = sorted({0, *between.values(), depth - 1})
        stand_ins = [0, *(between[kind] for kind in kinds[1:-1]), depth - 1][:depth]
        self.order = [kept.index(at) for at in stand_ins]
        for at in sorted({*range(depth)} - {*kept}, reverse=True):
            del layers[at]
        for name, value in vars(text).items():
            if isinstance(value, list) and len(value) == depth:  # such as layer_types
                setattr(text, name, [value[at] for at in kept])

    def watch_layers(self) -> None:
        """Have `self.live` know in which layer we are, and when a gradient is complete."""
        layers = layers_of(self.model)

        def enter(phase: str, layer: int | None, *_) -> None:
            self.live.place = phase, layer

        def before(layer: int, _, inputs: tuple) -> None:
            # a checkpointed layer is computed once more, in backward
            enter("backward" if torch._C._current_graph_task_id() != -1 else "forward", layer)
            if layer == 0 and inputs and inputs[0].requires_grad:
                inputs[0].register_hook(partial(enter, "embeddings", None))

        def after(layer: int, _, inputs: tuple, output) -> None:
            output = output[0] if isinstance(output, tuple) else output
            if output.requires_grad:
                output.register_hook(partial(enter, "backward", layer))
            if layer == len(layers) - 1 and self.live.place[0] == "forward":
                enter("loss", None)

        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(before, number))
            layer.register_forward_hook(partial(after, number))
        for parameter in self.trained:
            parameter.register_post_accumulate_grad_hook(lambda one: self.live.is_gradient(one))

    def places(self, sizes: Sizes, checkpointing: bool) -> list[dict]:
        """Where forward and backward of one batch may hold the most, as `_at_full_depth` has it."""
        trainer, model, unseen = self.trainer, self.model, sizes.length - sizes.labels
        row = {"input_ids": [1] * sizes.length, "labels": [-100] * unseen + [1] * sizes.labels}
        with redirect_stderr(StringIO()):  # nobody wants to see these rows
            batch = trainer.data_collator([row] * sizes.batch)
        batch.pop("attention_mask", None)  # of ones alone, which transformers leaves out
        labels = int((batch["labels"] != -100).sum())
        if labels > sizes.batch * sizes.labels:
            self.every_token, sizes = True, replace(sizes, labels=sizes.length - 1)
        if checkpointing:
            model.activation_checkpointing_enable(trainer.args.activation_checkpointing_kwargs)
        else:
            model.activation_checkpointing_disable()
        self.live = _Live(tensors_of(model), sizes, labels)
        with self.fake, as_on_a_gpu(), self.live:
            trainer.training_step(self.under_autocast, dict(batch), labels)
        model.zero_grad()
        return _at_full_depth(self.live.moments, self.order)


def _at_full_depth(moments: list, order: list[int]) -> list[dict]:
    """Where a step may hold the most, and what, with every layer of the whole model in its place.

    While one layer computes, those below it hold what they made for backward, and in backward those
    above it hold what they leave: gradients.

    Args:
        moments: those of `_Live`.
        order: for each layer of the whole model, the one that stands for it.

    Returns:
        [{"at": place, "parts": {part: {what it grows with: bytes}}}, ...].
    """
    columns = dict.fromkeys(tuple(key) for _, total in moments for _, *key in total)
    columns = {key: number for number, key in enumerate(columns)}
    table = np.zeros((len(moments), len({*order}) + 1, len(columns)))  # the last is of no layer
    for row, (_, total) in zip(table, moments, strict=True):
        for (layer, *key), size in total.items():
            row[-1 if layer is None else layer, columns[tuple(key)]] = size
    places = [place for place, _ in moments]
    during = {phase: table[[one == phase for one, _ in places]] for phase in dict(places)}
    names, full = [], []
    for phase, layer in dict.fromkeys(places):
        rows = table[[place == (phase, layer) for place in places]]
        if layer is None:
            names += [phase] * len(rows)
            full += [*np.einsum("mlc,l->mc", rows, [*np.bincount(order), 1])]
            continue
        below = during["loss"][0 if phase == "forward" else -1]
        above = during["backward"][-1] * (phase == "backward")
        sums = rows.sum(axis=1)
        sums = sums[_highest(sums, columns)]
        there = below[:layer].sum(axis=0) + above[layer + 1 : -1].sum(axis=0)
        for at in np.flatnonzero(np.array(order) == layer):
            others = below[order[:at]].sum(axis=0) + above[order[at + 1 :]].sum(axis=0)
            names += [f"{phase} of layer {at + 1}"] * len(sums)
            full += [*(sums + others - there)]
    found = []
    for number in _highest(np.array(full), columns):
        parts = {}
        for (part, grows_with), size in zip(columns, full[number].tolist(), strict=True):
            parts.setdefault(part, {})[grows_with] = size
        parts = {part: grows for part, sizes in parts.items() if (grows := _rounded(sizes))}
        found.append({"at": names[number], "parts": parts})
    return found


def _rounded(sizes: dict[str, float]) -> dict[str, float]:
    """Those that are more than nothing; whole ones as such."""
    rounded = {name: round(size, 3) for name, size in sizes.items() if size > 0}
    return {name: int(size) if size % 1 == 0 else size for name, size in rounded.items()}


def _highest(totals: np.ndarray, columns: Iterable[tuple[str, str]]) -> list[int]:
    """The rows of `totals` that are the most for some batch, length, labels and rank.

    Also of those where all gradients are there from the start: of batches before.
    """
    points = [
        {"1": 1, "batch": batch, "length": length, "labels": share * length, "r": r}
        for batch, length, share, r in product(
            (1, 2, 4, 8, 32), [2**n for n in range(6, 17)], (0.02, 0.1, 0.25, 0.5, 1), (4, 64, 256)
        )
    ]
    values = [[prod(at[name] for name in key.split("*")) for _, key in columns] for at in points]
    is_gradient = [part == "gradients" for part, _ in columns]
    ways = totals, np.where(is_gradient, 0, totals)
    found = [np.einsum("pk,tk->pt", values, way).argmax(axis=1).tolist() for way in ways]
    return sorted({number for numbers in found for number in numbers})


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages that are made and still alive, after each operation.

    Args:
        there: tensors that are not counted.
        labels: how many tokens of the batch have one.

    Attributes:
        place: where in the step we are: a phase, and the number of a layer or None.
        moments: after each operation the place, and (layer that made it, part, what it grows
            with) -> bytes.
    """

    PARTS = {"start": "activations kept", "forward": "activations kept", "loss": "logits and loss"}

    def __init__(self, there: Iterable[torch.Tensor], sizes: Sizes, labels: int = 0):
        super().__init__()
        self.sizes, self.labels = sizes, labels
        self.there = {address(tensor): tensor for tensor in there}  # or an address is used again
        self.alive = dict.fromkeys(self.there)
        self.place, self.total, self.moments = ("start", None), Counter(), []

    def add(self, storage: int, key: tuple, size: float) -> None:
        self.alive[storage] = key, size
        self.total[key] += size

    def drop(self, storage: int) -> None:
        if counted := self.alive.pop(storage, None):
            self.total[counted[0]] -= counted[1]

    def is_gradient(self, parameter: nn.Parameter) -> None:
        """A parameter's gradient is complete: from here on it counts as such."""
        storage = address(parameter.grad)
        if counted := self.alive.get(storage):
            (layer, _, grows_with), size = counted
            self.drop(storage)
            self.add(storage, (layer, "gradients", grows_with), size)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        if name == "aten::index.Tensor" and getattr(args[1][0], "dtype", 0) == torch.bool:
            # how much of a mask is true is not in its shape: as much as there are labels
            positions = torch.empty(self.labels, dtype=torch.long)
            args = (args[0], [positions] * args[1][0].dim())
        output = function(*args, **(kwargs or {}))
        for tensor in tree_iter(output):
            if isinstance(tensor, torch.Tensor) and address(tensor) not in self.alive:
                storage, (phase, layer) = tensor.untyped_storage(), self.place
                grows_with, size = self.sizes.grows_with(storage.nbytes())
                key = (layer, self.PARTS.get(phase, "activations in work"), grows_with)
                self.add(storage._cdata, key, size)
                weakref.finalize(storage, self.drop, storage._cdata)
        total, more = Counter(self.total), 0  # what a GPU works with inside one operation
        if name == "bitsandbytes::gemm_4bit":  # the weight, unpacked
            more = 2 * prod(args[2])
        elif name == "aten::_softmax_backward_data":  # a product, before the answer in 16 bits
            more = 2 * args[0].numel()
        if more:
            grows_with, size = self.sizes.grows_with(more)
            total[None, "buffers", grows_with] += size
        self.moments.append((self.place, total))
        return output


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The blocks of the language model.

    Raises:
        ValueError: there are none of transformers' kind.
    """
    lists = [one for one in model.get_decoder().modules() if isinstance(one, nn.ModuleList)]
    blocks = [one for one in lists if len(one) and isinstance(one[0], GradientCheckpointingLayer)]
    if not blocks:
        raise ValueError("it has no list of layers")
    return max(blocks, key=len)


def _kind(layer: nn.Module) -> str:
    """What tells a layer from others: its weights and its modules' settings, but for its place."""
    weights = [(name, p.shape, p.dtype, p.requires_grad) for name, p in layer.named_parameters()]
    settings = [
        (name, key, value)
        for name, module in layer.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, (int, float, str, type(None))) and key[0] != "_" and "idx" not in key
    ]
    return repr((weights, settings))


# --- a model without content ---------------------------------------------------------------------


def to_config(shape: dict) -> PretrainedConfig:
    """What a config.json says, with its `{"__float__": "Infinity"}`."""
    return CONFIG_MAPPING[shape["model_type"]].from_dict(
        PretrainedConfig._decode_special_floats(shape)
    )


def model_on_meta(config, args: ProjectArguments) -> tuple[PreTrainedModel, int, int]:
    """The model as sft/model.py loads it, with its adapter; how many parameters it has, and how
    many of these are quantized."""
    dtype, quantized = getattr(torch, args.dtype), 0
    quantization = quantization_config(dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=dtype,
            attn_implementation=args.attn_implementation,
            trust_remote_code=False,
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if quantization:
        quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
        quantizer.preprocess_model(model, device_map=None)
        for module in model.modules():
            if hasattr(getattr(module, "weight", None), "_quantize"):  # bitsandbytes' own
                quantized += module.weight.numel()
                for parameter in module.parameters():  # as loading casts them
                    parameter.data = parameter.data.to(dtype)
                module.weight._quantize("meta")
        model.hf_quantizer = quantizer
        quantizer.postprocess_model(model)
    with torch.device("meta"):
        return add_adapter(model, args).train(), parameters, quantized


def address(tensor: torch.Tensor) -> int:
    """Of its storage, which views share."""
    return tensor.untyped_storage()._cdata


def tensors_of(model: PreTrainedModel) -> list[torch.Tensor]:
    """Parameters, buffers and what bitsandbytes hangs on a parameter."""
    return [owner[name] for owner, name in owners_of(model)]


def owners_of(model: PreTrainedModel) -> Iterator[tuple[dict, str]]:
    """(mapping, key) of each tensor of the model; what hangs on a tensor comes before it."""
    for module in model.modules():
        for owner in (module._parameters, module._buffers):
            for name, tensor in owner.items():
                if tensor is not None:
                    yield from hung_on(tensor)
                    yield owner, name


def hung_on(thing) -> Iterator[tuple[dict, str]]:
    """(mapping, key) of each tensor that bitsandbytes hangs on a parameter."""
    for name, value in vars(thing).items():
        if isinstance(value, torch.Tensor):
            yield vars(thing), name
        elif type(value).__name__ == "QuantState":
            yield from hung_on(value)


def to_fake(model: PreTrainedModel, mode: FakeTensorMode) -> None:
    """Every tensor on meta becomes a fake one on the CPU; what is shared stays shared."""
    made = {}  # old and new: the old ones must live, for an id is used again
    for owner, name in [*owners_of(model)]:
        old = owner[name]
        if id(old) not in made:
            new = FakeTensor(mode, old.data, "cpu")
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, requires_grad=old.requires_grad)
                vars(new).update(vars(old))
            made[id(old)] = old, new
        owner[name] = made[id(old)][1]


def _dropout(states, p=0.5, training=True, inplace=False):
    return torch.native_dropout(states, p, True)[0] if training and p else states


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Code that asks takes the way that it takes on a GPU."""
    is_autocast_enabled = torch.is_autocast_enabled
    with (
        mock.patch.object(FakeTensor, "is_cuda", True),
        mock.patch("torch.cuda.get_device_capability", lambda *_: (8, 0)),
        # an adapter's inputs are cast where a GPU's autocast is off
        mock.patch("torch.is_autocast_enabled", lambda *_: is_autocast_enabled("cpu")),
        # with a mask of a byte a number; on the CPU it is of the number's own width
        mock.patch("torch.nn.functional.dropout", _dropout),
        # it looks whether rows are packed; into fake ones it cannot look
        mock.patch("transformers.masking_utils.find_packed_sequence_indices", lambda *_: None),
    ):
        yield


if __name__ == "__main__":
    main(sys.argv[1:])
