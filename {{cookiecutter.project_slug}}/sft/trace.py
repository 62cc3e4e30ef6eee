"""The memory of one training step, counted instead of calculated: no GPU, no weights.

PyTorch's fake tensors have a shape and no content. On them, the model's real class takes two steps
with this project's own quantization, adapter, collator and Trainer. Each storage counts from the
operation that makes it to the last reference to it. Layers are alike: a model of two of them and
one of three tell what each further layer adds (a few more where they are of several kinds).

It covers whatever architecture transformers has, mixtures of experts too, and takes seconds where
sft/vram.py takes a thousandth of one.
"""

import copy
import json
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import fields
from functools import partial
from io import StringIO
from math import prod
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    TrainingArguments,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.quantizers import AutoHfQuantizer

from sft.adapter import add_adapter
from sft.collator import get_collator
from sft.config import ProjectArguments, load_config
from sft.quantization import quantization_config
from sft.trainer import Trainer
from sft.twin import build_tokenizer
from sft.vram import WORKSPACE, Estimate

ROUND = 512  # bytes; PyTorch's allocator hands out multiples of it


class Untraceable(ValueError):
    """One sentence on why the memory of a model cannot be counted."""


def trace(
    config: PretrainedConfig, args, training_args: TrainingArguments, trained_share: float
) -> Estimate:
    """What `sft.vram.estimate` calculates, counted.

    Args:
        config: of the base model.
        args: the project's own values; every row is `max_length` long.
        training_args: those of the run, but for the CPU.
        trained_share: the share of tokens that have a label.

    Raises:
        Untraceable: the layers differ from one another.
    """
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or [""] * text.num_hidden_layers
    first, last = kinds[0], kinds[-1]
    once = [kind for kind in dict.fromkeys(kinds) if kind not in (first, last)]
    short_kinds = [first, *once, last]  # each kind is there: some make a thing that all of it share
    further = Counter(kinds) - Counter(short_kinds)

    def with_one_more(kind: str) -> list[str]:
        return [first, *once, kind, last]

    whole, least = _parameters(config), _parameters(_with_layers(config, short_kinds))
    added = {k: _parameters(_with_layers(config, with_one_more(k))) - least for k in further}
    of_last = least - _parameters(_with_layers(config, short_kinds[:-1]))
    alike = added.get(last, of_last) == of_last
    if not alike or whole != least + sum(n * added[kind] for kind, n in further.items()):
        raise Untraceable(
            f"The layers of this {config.model_type} differ from one another: a few of them "
            "cannot stand for all, and the memory is not known before it is measured."
        )

    def step(layer_types: list[str]) -> _Step:
        return _Step(_with_layers(config, layer_types), args, training_args, trained_share)

    short = step(short_kinds)
    longer = {kind: step(with_one_more(kind)) for kind in further}

    def at_depth(value: Callable[[_Step], int]) -> int:
        """A size in the short model, and what each further layer adds to it."""
        return value(short) + sum(n * (value(longer[k]) - value(short)) for k, n in further.items())

    def moment(name: str) -> int:
        return at_depth(lambda step: step.peaks[name])

    def backward(end: str, *more: str) -> int:
        """The most at an end of the layers, and in the one beside it, which has two neighbours."""
        beside = [moment(end) + one.peaks["between"] - one.peaks[end] for one in longer.values()]
        return max([moment(end), *beside, *map(moment, more)])

    moments = {
        "loss": max(moment("forward"), moment("head")),
        "a layer's backward": backward("last layer"),
        "end of backward": backward("first layer", "embeddings"),
        "optimizer step": moment("optimizer step"),
    }
    moments = {name: size + WORKSPACE for name, size in moments.items()}
    parts = {name: at_depth(lambda step, name=name: step.always[name]) for name in short.always}
    parts["workspace"] = WORKSPACE
    peak_at = max(moments, key=moments.get)
    peak = moments[peak_at]
    parts["gradients, activations, logits"] = peak - sum(parts.values())
    return Estimate(
        parts={name: size for name, size in parts.items() if size},
        moments=moments,
        peak=peak,
        peak_at=peak_at,
        parameters=whole,
        trainable=at_depth(lambda step: step.trainable),
        quantized=at_depth(lambda step: step.quantized),
    )


def trace_settings(shape: dict, settings: dict) -> Estimate:
    """`trace` for the content of a config.json and settings as `sft.vram.estimate` takes them.

    Raises:
        Untraceable: transformers has no such model, or fake tensors cannot take its step.
    """
    kind = shape.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise Untraceable(f"This version of transformers has no model of the type {kind!r}.")
    numbers = {k: v for k, v in shape.items() if k not in ("model_type", "architectures")}
    try:
        config = AutoConfig.for_model(kind, **numbers)
        _parameters(config)
    except Exception as error:  # no language model, or numbers that do not go together
        raise Untraceable(
            f"The config.json is of no causal language model that can be made ({_short(error)})."
        ) from error
    words = []
    known = {field.name for field in (*fields(ProjectArguments), *fields(TrainingArguments))}
    for key, value in settings.items():
        if key not in known or value is None:
            continue
        if key in ("activation_checkpointing", "optim") and value == "auto":
            value = {"optim": "adamw_torch_fused"}.get(key, True)  # as sft/vram.py counts them
        if isinstance(value, list):
            words += [f"--{key}", *map(str, value)]
        else:
            words.append(
                f"--{key}={json.dumps(value) if isinstance(value, (dict, bool)) else value}"
            )
    args, training_args = load_config([*words, "--use_cpu=true", "--bf16=true"], for_training=True)
    try:
        return trace(config, args, training_args, settings.get("trained_share", 0.25))
    except Untraceable:
        raise
    except Exception as error:  # whatever the code of a model says to tensors without content
        raise Untraceable(
            f"A training step of {kind} cannot be traced ({_short(error)}); its memory is not "
            "known before it is measured."
        ) from error


def _short(error: Exception) -> str:
    """The first line of what an error says, in one breath, without its full stop."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:160].rstrip(". ")


def _with_layers(config: PretrainedConfig, kinds: Sequence[str]) -> PretrainedConfig:
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = len(kinds)
    if getattr(text, "layer_types", None):
        text.layer_types = list(kinds)
    return config


def _parameters(config: PretrainedConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


class _Step:
    """The second step of a training run, when the optimizer has its state. All sizes in bytes.

    Attributes:
        always: weights, adapter and optimizer state.
        peaks: the most that was alive in forward and the loss, in the backward of the head, of the
            last layer, of those between, of the first, of the embeddings, and in the optimizer.
        trainable, quantized: how many parameters are trained, and stored in fewer bits.
    """

    def __init__(self, config, args, training_args: TrainingArguments, trained_share: float):
        model, self.quantized = _on_meta(config, args)
        collator = get_collator(build_tokenizer(), model)
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        with tempfile.TemporaryDirectory() as folder:
            training_args = copy.copy(training_args)
            training_args.output_dir, training_args.report_to = folder, []
            training_args.eval_strategy = "no"
            with fake, mock.patch.object(Trainer, "_move_model_to_device"):
                _to_fake(model)
                trainer = Trainer(model=model, args=training_args, data_collator=collator)
            for group in trainer.create_optimizer().param_groups:
                if group.get("foreach", 0) is None:  # a GPU's default: all parameters at once
                    group["foreach"] = not group["fused"]
            rows = _rows(args.max_length, training_args.per_device_train_batch_size, trained_share)
            with redirect_stderr(StringIO()):  # nobody wants to see these rows
                batch = trainer.data_collator(rows)
            batch.pop("attention_mask", None)  # of ones alone, which transformers leaves out
            labels = int((batch["labels"] != -100).sum())
            with fake, _as_on_a_card():
                self._take(trainer, batch, labels)

    def _take(self, trainer: Trainer, batch: dict, labels: int) -> None:
        args, model = trainer.args, trainer.model
        model.config.use_cache = False
        if args.activation_checkpointing:
            model.activation_checkpointing_enable(args.activation_checkpointing_kwargs)
        prepared = trainer.accelerator.prepare_model(model, device_placement=False)  # autocast
        trained = [p for p in model.parameters() if p.requires_grad]
        live = _Live(model, labels)
        adapter = sum(live.size(p) for n, p in model.named_parameters() if "lora_" in n)
        self.always = {"base weights": live.total - adapter, "adapter": adapter}
        _mark_layers(model, live)
        with live:
            for batches in (1, min(args.gradient_accumulation_steps, 2)):
                live.peaks.clear()
                for _ in range(batches):
                    live.place = "forward"
                    trainer.training_step(prepared, dict(batch), labels)
                live.place = "optimizer step"
                if args.max_grad_norm:
                    trainer.accelerator.clip_grad_norm_(trained, args.max_grad_norm)
                trainer.optimizer.step()
                trainer.optimizer.zero_grad()
        state = [t for s in trainer.optimizer.state.values() for t in tree_iter(s)]
        self.always["optimizer state"] = sum(
            live.size(t) for t in state if isinstance(t, torch.Tensor)
        )
        self.peaks, self.trainable = live.peaks, sum(p.numel() for p in trained)


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and the most of them at each place.

    Attributes:
        place: where in the step we are.
        peaks: the largest total at each place.
    """

    def __init__(self, model: PreTrainedModel, labels: int):
        super().__init__()
        self.sizes, self.total, self.peaks, self.place = {}, 0, {}, ""
        self.labels = labels
        for tensor in _tensors(model):
            self._add(tensor)

    @staticmethod
    def size(tensor: torch.Tensor) -> int:
        return -(-tensor.untyped_storage().nbytes() // ROUND) * ROUND

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = self.size(tensor)
            self.total += self.sizes[key]
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.total -= self.sizes.pop(key)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if (
            function is torch.ops.aten.index.Tensor
            and getattr(args[1][0], "dtype", 0) == torch.bool
        ):
            # how much of a mask is true is not in its shape: as much as there are labels
            positions = torch.empty(self.labels, dtype=torch.long)
            args = (args[0], [positions] * args[1][0].dim())
        output = function(*args, **(kwargs or {}))
        for tensor in tree_iter(output):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor)
        if self.place == "forward" and torch._C._current_graph_task_id() != -1:  # not any more
            self.place = "head"
        more = _more_on_a_card(function.name(), args)
        self.peaks[self.place] = max(self.total + more, self.peaks.get(self.place, 0))
        return output


def _more_on_a_card(operation: str, args: tuple) -> int:
    """Bytes that a GPU works with inside one operation, where the CPU does not."""
    if operation == "bitsandbytes::gemm_4bit":  # unpacks the weight
        return 2 * prod(args[2])
    if operation == "aten::_softmax_backward_data":  # multiplies first, then answers in 16 bits
        return 2 * args[0].numel()
    return 0


def _rows(length: int, number: int, trained_share: float) -> list[dict]:
    """Rows whose last tokens are trained."""
    trained = round(trained_share * length)
    ids = [1] * length
    return [{"input_ids": ids, "labels": [-100] * (length - trained) + ids[:trained]}] * number


def _on_meta(config: PretrainedConfig, args) -> tuple[PreTrainedModel, int]:
    """The model as sft/model.py loads it, with its adapter, and how much of it is quantized."""
    dtype, quantized = getattr(torch, args.dtype), 0
    quantization = quantization_config(dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=args.attn_implementation
        )
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
        return add_adapter(model, args).train(), quantized


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


def _mark_layers(model: PreTrainedModel, live: _Live) -> None:
    """Have `live.place` say, in backward, which layer it is in."""
    layers = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    places = ["first layer", *["between"] * (len(layers) - 2), "last layer"]

    def enter(place: str, *_) -> None:
        live.place = place

    def enter_with_gradient(of, place: str) -> None:
        of = of[0] if isinstance(of, tuple) else of
        if of.requires_grad:
            of.register_hook(partial(enter, place))

    def enter_recomputed(place: str, *_) -> None:
        if live.place not in ("forward", "optimizer step"):
            live.place = place

    for layer, place in zip(layers, places, strict=True):
        # a checkpointed layer is computed once more, before its gradient arrives or after
        layer.register_forward_pre_hook(partial(enter_recomputed, place))
        layer.register_forward_hook(lambda *call, place=place: enter_with_gradient(call[-1], place))
    layers[0].register_forward_pre_hook(lambda _, inputs: enter_with_gradient(inputs, "embeddings"))


def _dropout(states, p=0.5, training=True, inplace=False):
    return torch.native_dropout(states, p, True)[0] if training and p else states


@contextmanager
def _as_on_a_card():
    """What a GPU would do, and fake tensors on the CPU would not."""
    with (
        mock.patch.object(FakeTensor, "is_cuda", True),
        mock.patch("torch.cuda.get_device_capability", lambda *_: (8, 0)),
        # with a mask of a byte a number; on the CPU it is of the number's own width
        mock.patch("torch.nn.functional.dropout", _dropout),
        # it looks whether rows are packed; into fake ones it cannot look
        mock.patch("transformers.masking_utils.find_packed_sequence_indices", lambda *_: None),
    ):
        yield
