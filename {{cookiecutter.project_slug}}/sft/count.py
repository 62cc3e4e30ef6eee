"""The memory of one training step, counted: no GPU, no weights, the project's own code.

PyTorch's fake tensors have a shape and no content. On them the real model takes a training step
with this project's quantization, adapter, collator and Trainer, and each storage counts from the
operation that makes it to the last reference to it.

One count is good for all sizes. Batch, length, labels and rank are numbers with a prime factor that
is in no other size of the model, so the factors of a storage's bytes tell what it grows with:
8,192 * batch * length, say. And one layer of each kind is good for all of that kind.

`count` returns what sft/memory.py reads.
"""

import copy
import json
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterable
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from itertools import pairwise, product
from math import prod
from unittest import mock

import numpy as np
import torch
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
from sft.memory import FUSED, PAGED, read_config
from sft.quantization import quantization_config
from sft.trainer import Trainer
from sft.twin import build_tokenizer

Bytes = dict[tuple[str, str], float]  # (part, what it grows with) -> bytes for each of that
FIXED = "1"  # grows with nothing


class NotCountable(ValueError):
    """One sentence on why the memory of a model cannot be counted."""


def main(overrides: list[str]) -> None:
    """Print the count for config.yaml and these words as JSON."""
    values = read_values(overrides)
    shape = read_config(values)
    if shape.get("model_type") not in CONFIG_MAPPING:
        sys.exit(f"transformers has no model of the type {shape.get('model_type')!r} yet.")
    optims = {values["optim"], FUSED, *(() if "r" in values else (PAGED,))} - {"auto"}
    args, training_args = load_config([*overrides, "--use_cpu=true", "--bf16=true"])
    try:
        config = CONFIG_MAPPING[shape["model_type"]].from_dict(shape)
        print(json.dumps(count(config, args, training_args, sorted(optims))))
    except NotCountable as error:
        sys.exit(str(error))
    except Exception as error:  # whatever the code of a model says to tensors without content
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160].rstrip(". ")
        sys.exit(
            f"A step of {shape['model_type']} cannot be counted ({reason}); its memory is known "
            "only when it is measured."
        )


def count(
    config: PretrainedConfig,
    args: ProjectArguments,
    training_args: TrainingArguments,
    optims: list[str],
) -> dict:
    """What a training step takes, as a function of batch, length, labels and rank.

    Args:
        config: of the base model.
        args: the project's own values; `r` is replaced by a rank to count with.
        optims: names of optimizers to count, as `TrainingArguments.optim` has them.

    Returns:
        What `sft.memory.memory` reads: sums of bytes times what they grow with, such as
        {"1": 1024, "batch*length": 8192}, by part, by place in the step.

    Raises:
        NotCountable: the model's layers are not such that some can stand for all.
    """
    text = config.get_text_config()
    windows = {getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")}
    borders = [0, *sorted(n for n in windows if n), None]  # rows longer than that need a mask
    ranges = [Sizes.between(*pair, config) for pair in pairwise(borders)]
    step = _Step(config, args, training_args, ranges[0])
    found = {**step.always(), "optimizers": {optim: step.optimizer(optim) for optim in optims}}
    step.keep_one_layer_of_each_kind()
    for name, checkpointing in (("checkpointing", True), ("no checkpointing", False)):
        found[name] = {
            str(above): step.pieces(sizes, checkpointing)
            for above, sizes in zip(borders[:-1], ranges, strict=True)
        }
    return found | {"every_token": step.every_token}


@dataclass(frozen=True)
class Sizes:
    """Numbers to count with, each with a prime factor that is in no other size.

    Attributes:
        batch: rows of a batch.
        length: tokens of a row; a multiple of 256, for some models compute in blocks.
        labels: tokens of a row that are trained on.
        r: LoRA's rank.
        primes: of each of these.
    """

    batch: int
    length: int
    labels: int
    r: int
    primes: dict[str, int]

    @classmethod
    def between(cls, above: int, below: int | None, config: PretrainedConfig) -> "Sizes":
        """Sizes whose primes divide no number of `config`, with a length in that range."""
        others = [n for n in tree_iter(config.to_dict()) if type(n) is int and n > 1]
        free = [n for n in _primes(11, 9999) if all(other % n for other in others)]
        r, batch = [n for n in free if n > 100][:2]
        free = [n for n in free if n not in (r, batch)]
        step = 1 if below else 256
        least = max(above + 1, min(200, (below or 400) // 2))
        for length in range(-(-least // step) * step, below or above + 2**16, step):
            at = max((p for p in free if length % p == 0), default=0)
            # where all tokens are trained on, there is one label less: the last predicts nothing
            one_less = max((p for p in free if (length - 1) % p == 0), default=0)
            if at and one_less:
                labels = one_less * max((length - 1) // one_less // 4, 1)
                primes = {"batch": batch, "length": at, "labels": one_less, "r": r}
                return cls(batch, length, labels, r, primes)
        raise NotCountable(f"There is no length from {above} to {below} to count with.")

    def grows_with(self, size: int) -> tuple[str, float]:
        """What a number of bytes grows with, such as "batch*length", and the bytes for each."""
        factors, rest = [], size
        for name, prime in self.primes.items():
            while rest and rest % prime == 0:
                factors.append(name)
                rest //= prime
        return "*".join(factors) or FIXED, size / prod(getattr(self, name) for name in factors)


def _primes(low: int, high: int) -> list[int]:
    return [n for n in range(low, high) if all(n % d for d in range(2, int(n**0.5) + 1))]


class _Step:
    """The model, whole at first, and what its training steps take."""

    every_token = False  # whether the collator trains on all of a row

    def __init__(self, config, args, training_args: TrainingArguments, sizes: Sizes):
        if "r" in args.adapter:
            args = replace(args, adapter=args.adapter | {"r": sizes.r})
        self.sizes = sizes
        model, self.parameters, self.quantized = _on_meta(copy.deepcopy(config), args)
        self.model, collator = model, get_collator(build_tokenizer(), model)
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        training_args = copy.copy(training_args)
        training_args.report_to, training_args.eval_strategy = [], "no"
        with tempfile.TemporaryDirectory() as training_args.output_dir, self.fake:
            _to_fake(model)
            with mock.patch.object(Trainer, "_move_model_to_device"):
                self.trainer = Trainer(model=model, args=training_args, data_collator=collator)
        self.trainer.current_gradient_accumulation_steps = training_args.gradient_accumulation_steps
        self.prepared = self.trainer.accelerator.prepare_model(model, device_placement=False)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        model.config.get_text_config().use_cache = False

    def always(self) -> dict:
        """Exact counts, and the bytes of weights, adapter and gradients."""
        weights, gradients, trainable, counted = Counter(), Counter(), Counter(), set()
        for name, parameter in self.model.named_parameters():
            part = "adapter" if "lora_" in name else f"base weights, {_bits(parameter)} bits"
            self._add(weights, part, [parameter], counted)
            self._add(weights, "quantization scales", _hung_on(parameter), counted)
        self._add(weights, "buffers", self.model.buffers(), counted)
        for parameter in self.trained:
            grows_with, number = self.sizes.grows_with(parameter.numel())
            trainable[grows_with] += number
            self._add(gradients, "gradients", [parameter], set())
        return {
            "parameters": self.parameters,
            "trainable": dict(trainable),
            "quantized": self.quantized,
            "always": _by_part(weights),
            "gradients": _by_part(gradients)["gradients"],
        }

    def optimizer(self, name: str) -> dict:
        """Bytes of an optimizer's state, and the most that its step has in work besides."""
        trainer, args = self.trainer, self.trainer.args
        trainer.optimizer, args.optim = None, name.removeprefix("paged_")
        state, optimizer = Counter(), trainer.create_optimizer()
        for group in optimizer.param_groups:
            if group.get("foreach", 0) is None:  # a GPU's default: all parameters at once
                group["foreach"] = not group["fused"]
        with self.fake, _as_on_a_card():
            for parameter in self.trained:
                parameter.grad = torch.empty_like(parameter)
            optimizer.step()  # the first makes the state
            tensors = [tensor for of in optimizer.state.values() for tensor in tree_iter(of)]
            tensors = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]
            self._add(state, "state", tensors, set())
            gradients = [parameter.grad for parameter in self.trained]
            live = _Live([*_tensors(self.model), *gradients, *tensors], self.sizes)
            live.place = ("optimizer step", None)
            with live:
                if args.max_grad_norm:
                    trainer.accelerator.clip_grad_norm_(self.trained, args.max_grad_norm)
                optimizer.step()
        self.model.zero_grad()
        totals = [("optimizer step", _without_layer(total)) for _, total in live.moments]
        return {"state": _by_part(state)["state"], "step": _as_json(_highest(totals))}

    def keep_one_layer_of_each_kind(self) -> None:
        """Take layers out of the model: the first, the last and one of each kind between stay.

        `self.order` then has, for each layer of the whole model, the one that stands for it.
        """
        layers, text = _layers(self.model), self.model.config.get_text_config()
        kinds, last = [_kind(layer) for layer in layers], len(layers) - 1
        kept = [0, *{kind: at for at, kind in reversed([*enumerate(kinds)][1:-1])}.values(), last]
        kept = sorted({*kept})
        stand_in = {kinds[at]: number for number, at in enumerate(kept) if 0 < at < last}
        self.order = [0, *(stand_in[kind] for kind in kinds[1:-1]), len(kept) - 1][: len(layers)]
        for at in reversed(range(len(layers))):
            if at not in kept:
                del layers[at]
        for name, value in vars(text).items():
            if isinstance(value, list) and len(value) == last + 1:  # such as layer_types
                setattr(text, name, [value[at] for at in kept])

    def pieces(self, sizes: Sizes, checkpointing: bool) -> dict:
        """What is alive in forward and backward, where it may be the most.

        Returns:
            pieces of a step with one batch, and of one that adds to gradients of batches before.
        """
        trainer, model = self.trainer, self.model
        ids = [1] * sizes.length
        row = {"input_ids": ids, "labels": [-100] * (sizes.length - sizes.labels)}
        row["labels"] += ids[: sizes.labels]
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
        live, moments = _Live(_tensors(model), sizes, labels), {}
        with self.fake, _as_on_a_card(), live, _marking(model, live):
            for name in ("one batch", "more batches"):
                live.start()
                trainer.training_step(self.prepared, dict(batch), labels)
                moments[name] = live.moments
        model.zero_grad()
        return {n: _as_json(_highest(self._at_full_depth(these))) for n, these in moments.items()}

    def _at_full_depth(self, moments: list) -> list[tuple[str, Bytes]]:
        """What would be alive if every layer were there.

        Before a layer's backward the layers below it hold what they keep, and those above it have
        left what they leave.
        """
        layers, depth = range(max(self.order) + 1), len(self.order)
        backward = [place for place, _ in moments].index(("backward", layers[-1]))
        forward = max(n for n, (place, _) in enumerate(moments) if place[0] == "forward")
        end = max(n for n, (place, _) in enumerate(moments) if place == ("backward", 0))
        made, keep, left = (
            [_of_layer(moments[at][1], layer) for layer in layers]
            for at in (forward, backward - 1, end)
        )

        def others(layer: int, at: int, below: list[Bytes], above: list[Bytes]) -> Bytes:
            """What the layers beside one hold at full depth, without those that were counted."""
            total = Counter()
            for number, stand_in in enumerate(self.order):
                if number != at:
                    total.update((below if number < at else above)[stand_in])
            for other in layers:
                if other != layer:
                    total.subtract((below if other < layer else above)[other])
            return total

        full = []
        for phase, below, above in (
            ("forward", made, [Counter()] * depth),
            ("backward", keep, left),
        ):
            for layer in layers:
                total = [_without_layer(t) for place, t in moments if place == (phase, layer)]
                highest = [parts for _, parts in _highest([(phase, parts) for parts in total])]
                for at in [at for at, stand_in in enumerate(self.order) if stand_in == layer]:
                    beside = others(layer, at, below, above)
                    name = f"{phase} of layer {at + 1}"
                    full += [(name, Counter(parts) + beside) for parts in highest]
        for place, total in moments:
            if place[0] not in ("forward", "backward"):
                whole = Counter(_without_layer(total))
                for stand_in in self.order:
                    whole.update(_of_layer(total, stand_in))
                for layer in layers:
                    whole.subtract(_of_layer(total, layer))
                full.append((place[0], whole))
        return full

    def _add(self, total: Bytes, part: str, tensors: Iterable[torch.Tensor], counted: set) -> None:
        """Add the bytes of tensors whose storage is not in `counted` yet."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in counted:
                counted.add(storage._cdata)
                grows_with, size = self.sizes.grows_with(storage.nbytes())
                total[part, grows_with] += size


def _of_layer(total: Counter, layer: int) -> Counter:
    return Counter({key[1:]: size for key, size in total.items() if key[0] == layer})


def _without_layer(total: Counter) -> Counter:
    whole = Counter()
    for (_, *key), size in total.items():
        whole[tuple(key)] += size
    return whole


def _highest(totals: list[tuple[str, Bytes]]) -> list[tuple[str, Bytes]]:
    """Those that are the most for some batch, length, labels and rank."""
    names = sorted({grows_with for _, parts in totals for _, grows_with in parts})
    column = {name: number for number, name in enumerate(names)}
    table = np.zeros((len(totals), len(names)))
    for number, (_, parts) in enumerate(totals):
        for (_, grows_with), size in parts.items():
            table[number, column[grows_with]] += size
    points = [
        {FIXED: 1, "batch": batch, "length": length, "labels": share * length, "r": r}
        for batch, length, share, r in product(
            (1, 2, 4, 8, 32), [2**n for n in range(6, 17)], (0.02, 0.1, 0.25, 0.5, 1), (4, 64, 256)
        )
    ]
    values = [[prod(point[name] for name in key.split("*")) for key in names] for point in points]
    best = (np.array(values) @ table.T).argmax(axis=1)
    return [totals[number] for number in sorted({*best.tolist()})]


def _by_part(total: Bytes) -> dict[str, dict[str, float]]:
    parts = {}
    for (part, grows_with), size in total.items():
        if size > 0:
            whole = int(size) if size == int(size) else round(size, 3)
            parts.setdefault(part, {})[grows_with] = whole
    return parts


def _as_json(pieces: list[tuple[str, Bytes]]) -> list[dict]:
    return [{"at": name, "parts": _by_part(total)} for name, total in pieces]


_PARTS = {"start": "activations kept", "forward": "activations kept", "head": "logits and loss"}


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages that are made and still alive, after each operation.

    Attributes:
        place: where in the step we are: a phase, and the number of a layer or None.
        moments: after each operation the place, and (layer that made it, part, what it grows
            with) -> bytes.
    """

    def __init__(self, there: Iterable[torch.Tensor], sizes: Sizes, labels: int = 0):
        super().__init__()
        self.sizes, self.labels = sizes, labels
        self.weights = {tensor.untyped_storage()._cdata for tensor in there}
        self.alive = dict.fromkeys(self.weights)
        self.start()

    def start(self) -> None:
        """Count anew from here; what is alive already is not counted."""
        self.alive = dict.fromkeys(self.alive)  # not counted from here on
        self.place, self.total, self.moments = ("start", None), Counter(), []

    def _add(self, tensor: torch.Tensor, part: str) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.alive:
            grows_with, size = self.sizes.grows_with(storage.nbytes())
            key = (self.place[1], part, grows_with)
            self.alive[storage._cdata] = key, size
            self.total[key] += size
            weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, storage: int) -> None:
        if counted := self.alive.pop(storage, None):
            key, size = counted
            self.total[key] -= size

    def is_gradient(self, parameter: nn.Parameter) -> None:
        """The gradient of a parameter is complete: from here on it is kept as such."""
        storage = parameter.grad.untyped_storage()._cdata
        if counted := self.alive.get(storage):
            (layer, _, grows_with), size = counted
            self._drop(storage)
            self.alive[storage] = (layer, "gradients", grows_with), size
            self.total[layer, "gradients", grows_with] += size

    def _part(self, operation, args: tuple) -> str:
        if operation is torch.ops.aten._to_copy.default:
            if args[0].untyped_storage()._cdata in self.weights:
                return "16-bit copies of weights"
        return _PARTS.get(self.place[0], "activations in work")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if (
            function is torch.ops.aten.index.Tensor
            and getattr(args[1][0], "dtype", 0) == torch.bool
        ):
            # how much of a mask is true is not in its shape: as much as there are labels
            positions = torch.empty(self.labels, dtype=torch.long)
            args = (args[0], [positions] * args[1][0].dim())
        output = function(*args, **(kwargs or {}))
        part = self._part(function, args)
        for tensor in tree_iter(output):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor, part)
        more, total = _more_on_a_card(function.name(), args), Counter(self.total)
        if more:
            grows_with, size = self.sizes.grows_with(more)
            total[None, "unpacked weights", grows_with] += size
        self.moments.append((self.place, total))
        return output


def _more_on_a_card(operation: str, args: tuple) -> int:
    """Bytes that a GPU works with inside one operation, where the CPU does not."""
    if operation == "bitsandbytes::gemm_4bit":  # unpacks the weight
        return 2 * prod(args[2])
    if operation == "aten::_softmax_backward_data":  # multiplies first, then answers in 16 bits
        return 2 * args[0].numel()
    return 0


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    """The blocks of the language model.

    Raises:
        NotCountable: there are none of transformers' kind.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    lists = [module for module in base.get_decoder().modules() if isinstance(module, nn.ModuleList)]
    blocks = [one for one in lists if len(one) and isinstance(one[0], GradientCheckpointingLayer)]
    if not blocks:
        raise NotCountable(f"{type(base).__name__} has no list of layers to count.")
    return max(blocks, key=len)


def _kind(layer: nn.Module) -> str:
    """What tells a layer from others: its weights, and its modules' own settings, but its place."""
    weights = [(name, p.shape, p.dtype, p.requires_grad) for name, p in layer.named_parameters()]
    plain = (int, float, str, bool, type(None))
    settings = [
        (name, key, value)
        for name, module in layer.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, plain) and not key.startswith("_") and "idx" not in key
    ]
    return repr((weights, settings))


@contextmanager
def _marking(model: PreTrainedModel, live: _Live):
    """Have `live.place` say which layer we are in, and `live` know gradients when they are done."""
    hooks, layers = [], _layers(model)

    def enter(phase: str, layer: int | None, *_) -> None:
        live.place = phase, layer

    def before(layer: int, _, inputs: tuple) -> None:
        # a checkpointed layer is computed once more, in backward
        enter("backward" if torch._C._current_graph_task_id() != -1 else "forward", layer)
        if layer == 0 and inputs and inputs[0].requires_grad:
            inputs[0].register_hook(partial(enter, "embeddings", None))

    def after(layer: int, _, inputs: tuple, output) -> None:
        output = output[0] if isinstance(output, tuple) else output
        if output.requires_grad:
            output.register_hook(partial(enter, "backward", layer))
        if layer == len(layers) - 1 and live.place[0] == "forward":
            enter("head", None)

    for number, layer in enumerate(layers):
        hooks.append(layer.register_forward_pre_hook(partial(before, number)))
        hooks.append(layer.register_forward_hook(partial(after, number)))
    for parameter in model.parameters():
        if parameter.requires_grad:
            hooks.append(parameter.register_post_accumulate_grad_hook(live.is_gradient))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _bits(parameter: nn.Parameter) -> int:
    return 4 if hasattr(parameter, "quant_state") else 8 * parameter.element_size()


def _on_meta(config: PretrainedConfig, args) -> tuple[PreTrainedModel, int, int]:
    """The model as sft/model.py loads it with its adapter, its parameters, those quantized."""
    dtype, quantized = getattr(torch, args.dtype), 0
    quantization = quantization_config(dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=args.attn_implementation
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if quantization:
        quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
        quantizer.preprocess_model(model, device_map=None)
        for module in model.modules():
            if hasattr(getattr(module, "weight", None), "_quantize"):  # bitsandbytes' own
                quantized += module.weight.numel()
                module.weight.data = module.weight.data.to(dtype)
                module.weight._quantize("meta")
        model.hf_quantizer = quantizer
        quantizer.postprocess_model(model)
    with torch.device("meta"):
        return add_adapter(model, args).train(), parameters, quantized


def _tensors(model: PreTrainedModel):
    """Parameters, buffers and what bitsandbytes hangs on a parameter."""
    for parameter in model.parameters():
        yield parameter
        yield from _hung_on(parameter)
    yield from model.buffers()


def _hung_on(thing):
    for value in vars(thing).values():
        if isinstance(value, torch.Tensor):
            yield value
        elif type(value).__name__ == "QuantState":
            yield from _hung_on(value)


def _to_fake(model: PreTrainedModel) -> None:
    """Every tensor without content becomes a fake one on the CPU; what is shared stays shared."""
    made = {}  # with the old ones, which must live: addresses are used again

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in made:
            made[key] = tensor, torch.empty(tensor.shape, dtype=tensor.dtype)
        return made[key][1]

    def fake_parameter(old: torch.nn.Parameter) -> torch.nn.Parameter:
        if id(old) not in made:
            new = torch.nn.Parameter(fake(old), requires_grad=old.requires_grad)
            vars(new).update(vars(old))
            hang(new)
            made[id(old)] = old, new
        return made[id(old)][1]

    def hang(thing) -> None:
        for name, value in vars(thing).items():
            if isinstance(value, torch.Tensor):
                setattr(thing, name, fake(value))
            elif type(value).__name__ == "QuantState":
                hang(value)

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = fake_parameter(parameter)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake(buffer)
        if hasattr(module, "quant_state"):
            module.quant_state = module.weight.quant_state


def _dropout(states, p=0.5, training=True, inplace=False):
    return torch.native_dropout(states, p, True)[0] if training and p else states


@contextmanager
def _as_on_a_card():
    """What a GPU would do, and fake tensors on the CPU would not."""
    is_autocast_enabled = torch.is_autocast_enabled
    with (
        mock.patch.object(FakeTensor, "is_cuda", True),
        # peft looks whether a GPU's is on; if it is not, it casts LoRA's inputs itself
        mock.patch("torch.is_autocast_enabled", lambda *_: is_autocast_enabled("cpu")),
        mock.patch("torch.cuda.get_device_capability", lambda *_: (8, 0)),
        # with a mask of a byte a number; on the CPU it is of the number's own width
        mock.patch("torch.nn.functional.dropout", _dropout),
        # it looks whether rows are packed; into fake ones it cannot look
        mock.patch("transformers.masking_utils.find_packed_sequence_indices", lambda *_: None),
    ):
        yield


if __name__ == "__main__":
    main(sys.argv[1:])
