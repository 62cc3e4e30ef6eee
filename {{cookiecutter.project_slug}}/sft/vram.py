"""How much GPU memory does one training step need? Standard library alone.

A step has four moments that can be its peak. Each holds what is always there (weights, adapter,
optimizer state) and what the moment itself adds:

    loss                every kept activation, and the logits where a token is trained: rows as
                        wide as the vocabulary
    a layer's backward  every kept activation, and one layer in work: the last, which comes first
    end of backward     the gradients, and one layer in work: the first
    optimizer step      all gradients

Training a parameter in float32 with AdamW takes 16 bytes: weight 4, gradient 4, two averages 8.
So full training of 8 billion parameters needs more than 100 GB before the first token, and
quantization cannot help: it shrinks weights that are frozen, for a number of 4 or 8 bits is too
coarse to take a gradient step. LoRA pays the 16 bytes too, but for one parameter in a hundred.

The bytes were counted in training steps of this code with the real model classes (sft/trace.py;
transformers 5.23, peft 0.21, bitsandbytes 0.50, torch 2.13), for one GPU. Fragments and CUDA's own
share: see `verdict`.
"""

from dataclasses import dataclass

GB = 2**30  # as card makers and nvidia-smi count: an "80 GB" card has 80 * 2**30 bytes

CONTEXT = GB // 2  # budget for CUDA's own kernels and handles; 0.14 GB were measured on a T4
WORKSPACE = 16 * 2**20  # of cuBLAS
MARGIN = 1.15  # the allocator reserves more than is in use: 1.06 to 1.25 times with sdpa

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes a number
NF4_SCALES = (1 + 4 / 256) / 64  # bytes a weight: 64 weights share one, double-quantized
NF4_TABLES = 2048  # bytes a matrix: what the 16 levels and the scales' 256 stand for
IN_8_BITS = 2 * (1 + 4 / 256)  # bytes a weight: two averages, of which 256 share a scale each
OPTIMIZERS = {  # (state in widths of the trained weight, state in bytes, temporary in widths)
    "adamw_torch_fused": (2, 0, 0),
    "adamw_torch": (2, 0, 1),  # all parameters at once, so a temporary as large as all of them
    "adamw_bnb_8bit": (0, IN_8_BITS, 0),
    "adamw_8bit": (0, IN_8_BITS, 0),
    "paged_adamw_8bit": (0, IN_8_BITS, 0),
    "sgd": (0, 0, 0),
}
OPTIMIZERS["auto"] = OPTIMIZERS["adamw_torch_fused"]  # what sft/machine.py takes where it fits
ANSWERS = {
    "quantization": ("nf4", "int8", "none"),
    "lora_targets": ("attention", "all_linear", "mlp", "full"),
    "collator": ("visual_check", "seq2seq", "padding_free", "manual_mask", "language_modeling"),
    "dtype": tuple(WIDTH),
    "optim": tuple(OPTIMIZERS),
}
# norms a layer; all of them are decoders whose layer is attention and a gated MLP
FAMILIES = {"llama": 2, "mistral": 2, "qwen2": 2, "qwen3": 2, "phi3": 2, "smollm3": 2, "granite": 2}
FAMILIES |= {"gemma2": 4, "gemma3_text": 4}
# mixtures are counted here, and traced by sft/trace.py: where the width of an expert and their
# number stand, and what peft calls an expert's gate, up and down
GATE_UP_DOWN = ("gate_proj", "up_proj", "down_proj")
MIXTURES = {
    "qwen3_moe": ("moe_intermediate_size", "num_experts", GATE_UP_DOWN),
    "olmoe": ("intermediate_size", "num_experts", GATE_UP_DOWN),
    "mixtral": ("intermediate_size", "num_local_experts", ("w1", "w3", "w2")),
}


@dataclass(frozen=True)
class Estimate:
    """Memory of one training step, in bytes.

    Attributes:
        parts: what the peak is made of, by name; they add up to `peak`.
        moments: what is allocated at each of the four moments, by name.
        peak: the largest of `moments`, comparable to torch.cuda.max_memory_allocated.
        peak_at: the name of that moment.
        parameters: exact number of parameters of the base model.
        trainable: exact number of trained parameters.
        quantized: number of parameters that are stored in 4 or 8 bits.
    """

    parts: dict[str, int]
    moments: dict[str, int]
    peak: int
    peak_at: str
    parameters: int
    trainable: int
    quantized: int

    def verdict(self, card_gib: float) -> str:
        """Whether a card of so many GB is enough: "fits", "tight" or "won't".

        "fits" has room for what the allocator reserves without using it, "tight" has not.
        """
        if MARGIN * self.peak + CONTEXT <= card_gib * GB:
            return "fits"
        return "tight" if self.peak + CONTEXT <= card_gib * GB else "won't"


def parameters(shape: dict) -> int:
    """The exact number of parameters of a model with that config.json.

    Raises:
        ValueError: an architecture that is not covered, or a number that is missing.
    """
    return _Model(shape).parameters


def trainable(shape: dict, target_modules: list[str] | None, r: int = 0) -> int:
    """The exact number of trained parameters: r * (in + out) for each LoRA target of each layer.

    Args:
        shape: the content of the base model's config.json.
        target_modules: names of linear layers; None for full training.
        r: the rank of LoRA.

    Raises:
        ValueError: as for `parameters`, or a target that the model lacks, or a rank below 1.
    """
    model = _Model(shape)
    target_modules = _spelt_out(shape, target_modules)
    if target_modules is None:
        return model.parameters
    sizes = {name: i + o for name, (i, o) in model.matrices.items()}
    sizes |= {name: n * (i + o) for name, (i, o, n) in (model.router | model.experts).items()}
    _need_targets(target_modules, sizes)
    return model.layers * _whole({"r": r}, "r") * sum(sizes[name] for name in {*target_modules})


def target_modules(shape: dict, lora_targets: str) -> list[str] | None:
    """The linear layers that an answer to `lora_targets` means; None for full training.

    Raises:
        ValueError: an architecture that is not covered, or an answer that does not exist.
    """
    _one_of("lora_targets", lora_targets, ANSWERS["lora_targets"])
    model = _Model(shape)
    answers = {"attention": model.attention, "mlp": model.mlp | model.experts}
    answers["all_linear"] = model.attention | model.router | answers["mlp"]
    return None if lora_targets == "full" else [*answers[lora_targets]]


def estimate(shape: dict, settings: dict) -> Estimate:
    """The memory that one training step takes on one GPU.

    It is that of the fullest batch: every row is `max_length` long. Where a padded batch has rows
    of other lengths, attention keeps a mask and repeats keys, which `verdict` leaves room for.
    Where sft/machine.py chooses (`auto`), it is that with checkpointing and adamw_torch_fused.

    Args:
        shape: the content of the base model's config.json.
        settings: the values of config.yaml and the answers `quantization`, `lora_targets` and
            `collator`; also, if known, `trained_share`: the share of tokens with a label (0.25
            unless said: a reply is often about a quarter of its conversation).

    Raises:
        ValueError: a shape or a setting that the formula does not cover, in one sentence.
    """
    for key, known in ANSWERS.items():
        _one_of(key, settings.get(key), known)
    model = _Model(shape)
    if model.experts:
        share = model.layers * sum(i * o for i, o in model.attention.values()) / model.parameters
        raise ValueError(
            f"{model.kind} is a mixture of experts, whose memory python vram.py --trace counts "
            f"(bitsandbytes quantizes {share:.0%} of it at most: experts stay in 16 bits)."
        )
    for key in ("use_liger_kernel", "torch_compile"):
        _need(not settings.get(key), key, "false", settings.get(key))
    H, q = model.hidden, model.queries
    full = settings["lora_targets"] == "full"
    quantization = "none" if full else settings["quantization"]  # trained weights cannot be
    padding_free = settings["collator"] == "padding_free"
    checkpointing, reentrant, dropout, share = _switches(settings)
    accumulates = _whole(settings, "gradient_accumulation_steps") > 1
    length = _whole(settings, "max_length")
    tokens = _whole(settings, "per_device_train_batch_size") * length  # the fullest batch

    # --- always there, whatever the batch ---
    s = WIDTH[settings["dtype"]]  # all that is not quantized, the residual stream included
    shapes = model.matrices.values()
    linear, rows = (
        model.layers * sum(n) for n in ([i * o for i, o in shapes], [o for _, o in shapes])
    )
    bits, overhead = {
        "nf4": (4, NF4_SCALES * linear + NF4_TABLES * model.layers * len(shapes)),
        "int8": (8, 4 * rows),  # a scale a row
        "none": (0, 0),
    }[quantization]
    quantized = linear if bits else 0
    names = None if full else _spelt_out(shape, settings.get("target_modules"))
    trained = trainable(shape, names, settings.get("r"))
    width = s if full else WIDTH["float32"]  # LoRA's own weights are float32
    averages, fixed, temporary = OPTIMIZERS[settings["optim"]]
    state = (averages * width + fixed) * trained
    if full and fixed:  # the Trainer leaves the embeddings' averages in float32
        state += (2 * WIDTH["float32"] - fixed) * model.vocab * H
    always = {
        f"base weights, {bits} bits": bits * quantized / 8,
        f"base weights, {8 * s} bits": s * (model.parameters - quantized),
        "quantization overhead": overhead,
        "adapter": 0 if full else width * trained,
        "optimizer state": state,
        "workspace": WORKSPACE,
    }
    gradients = width * trained

    # --- activations: what all layers keep until their backward, and what one works with ---
    one = _Layer(model, settings, s, quantization, {} if full else _targets(model, names))
    boundary = tokens * s * H  # all that a checkpoint keeps of a layer: its input
    to_the_end = 0  # what bitsandbytes keeps by itself escapes checkpoints, and even backward
    if one.inputs and not (checkpointing and reentrant):
        to_the_end = model.layers * tokens * (one.inputs + 2 * q * (not one.apart))
    scores = model.heads * tokens * (tokens if padding_free else length) * one.eager
    windows = model.windows if model.window <= length and not (padding_free or one.eager) else 0
    mask = length * length if windows else 0  # where windows end is told by a mask alone
    seen, through = (
        tokens * one.kept + (6 + 2 * model.capped) * scores,
        tokens * (2 * length + one.kept_for_mask) * (windows > 0),
    )
    layer = seen + through
    positions = tokens if padding_free else length  # rows of a padded batch share them
    rotations = positions * 4 * model.head_dim * (2 if model.kind == "gemma3_text" else 1)
    held = rotations + 32 * tokens + mask
    around = held + boundary + to_the_end
    if checkpointing:
        held += model.layers * boundary + to_the_end
    else:
        held += model.layers * seen + windows * through
    recomputed = layer if checkpointing else 0

    # --- copies of weights in 16 bits: autocast makes them of float32, bitsandbytes one by one ---
    frozen = 2 * linear if s == 4 and not bits and not full else 0
    cached = 2 * linear * (s == 4) if full else 2 * trained  # of trained ones, for a whole forward
    copies = frozen + cached
    of_a_layer = copies / model.layers
    in_forward, in_backward = (cached, of_a_layer) if checkpointing else (copies, copies)
    after_loss = 0 if checkpointing else copies
    of_head = 2 * model.vocab * H if s == 4 else 0
    buffer = 2 * max(i * o for i, o in shapes) if bits else 0

    # --- the head: logits only where a label is (LogitsWhereTrained) ---
    every = settings["collator"] == "language_modeling" or settings.get("label_smoothing_factor")
    labels = tokens * (1 if every else share)
    logits, a_logit = labels * model.vocab, 2 * model.capped  # bytes more: tanh keeps its answer
    normed = tokens * (4 + s * full) * H  # what the last norm keeps
    output = normed + (tokens + labels) * s * H + 2 * labels * H * (s == 4)  # and its output
    normed += 2 * labels * H * full

    # --- gradients: those of the end of the model come first ---
    earlier = gradients if accumulates else 0  # of the step's earlier batches
    table = width * model.vocab * H if full else 0  # of lm_head, or of the embeddings
    block = width * linear / model.layers if full else 0
    down = 0 if accumulates or not full else width * model.inner * H
    after_head = earlier + table * (model.tied or not accumulates)
    at_first = earlier or gradients - block - table * (not model.tied)
    tables = table * (2 * model.tied + accumulates)  # tied: two gradients and their sum at once

    # --- the four moments; where several things happen in one, the largest counts ---
    def moment(gradients, held=0, work=0, logits=0, copies=0, buffer=0, temporary=0):
        parts = always | {
            "optimizer state": state + temporary,
            "gradients": gradients,
            "activations kept": held,
            "activations in work": work,
            "logits and loss": logits,
            "16-bit copies": copies,
            "dequantization buffer": buffer,
        }
        return {name: round(size) for name, size in parts.items() if size}

    gate_up = 2 * model.inner * tokens
    in_mlp = tokens * one.backward
    in_attention = 8 * scores - tokens * one.of_mlp  # when backward is through the MLP
    first = layer - tokens * one.inputs
    by_moment = {
        "loss": [
            moment(earlier, held, checkpointing * tokens * one.forward, 0, in_forward),
            moment(earlier, held, checkpointing * (gate_up + output), 0, in_forward, buffer),
            moment(earlier, held, output, (10 + a_logit) * logits, in_forward + of_head),
            moment(earlier, held, normed, (12 + a_logit) * logits, after_loss + of_head),
            moment(earlier + table, held, normed, 2 * logits, after_loss + of_head * full),
        ],
        "a layer's backward": [
            moment(after_head + down, held, recomputed + in_mlp, 0, in_backward),
            moment(after_head + block, held, recomputed + in_attention, 0, in_backward),
            moment(earlier, held + recomputed, recomputed and boundary, 0, in_backward, buffer),
        ],
        "end of backward": [
            moment(at_first + down, around, first + in_mlp, 0, of_a_layer),
            moment(at_first + block, around, first + in_attention, 0, of_a_layer),
            moment(at_first, around, first + gate_up, 0, of_a_layer, buffer),
            moment(gradients + tables, around - boundary),
        ],
        "optimizer step": [moment(gradients, temporary=temporary * width * trained)],
    }
    largest = {name: max(parts, key=_total) for name, parts in by_moment.items()}
    moments = {name: _total(parts) for name, parts in largest.items()}
    peak_at = max(reversed(moments), key=moments.get)
    return Estimate(
        parts=largest[peak_at],
        moments=moments,
        peak=moments[peak_at],
        peak_at=peak_at,
        parameters=model.parameters,
        trainable=trained,
        quantized=quantized,
    )


class _Layer:
    """Bytes a token of one layer's activations, beside attention scores and masks.

    What is linear only passes a gradient on and keeps nothing, unless its weight is trained. What
    a norm, an activation function or a product needs in backward is kept.

    Attributes:
        kept: until the layer's backward.
        kept_for_mask: more of it where attention has a mask: keys are not shared then.
        of_mlp: of `kept`, what is gone when backward arrives at attention.
        inputs: of `kept`, what bitsandbytes keeps to multiply in 8 bits.
        forward, backward: what is worked with, at most.
        apart: whether the input of o_proj is a copy of what attention answered.
    """

    def __init__(self, model: "_Model", settings: dict, s: int, quantization: str, targets: dict):
        checkpointing, reentrant, dropout, _ = _switches(settings)
        H, q, kv, inner = model.hidden, model.queries, model.keys, model.inner
        norms, fused = model.norms, model.fused
        full = settings["lora_targets"] == "full"
        self.eager = settings.get("attn_implementation") == "eager"
        self.apart = fused or self.eager

        wide = 2 if s == 4 and quantization != "none" else 1  # bitsandbytes answers in float32
        norm = 4 * (H + 1) * norms / 2
        self.of_mlp = 6 * inner * wide + norm  # gate, up, and the activation function's answer
        kept = self.of_mlp + norm
        kept += 4 * (q + kv + model.heads + model.key_heads) * model.qk_norms
        if self.eager:  # keys and values are repeated for each head
            kept += 6 * q
        else:  # queries, keys, values, what came of them, and a sum a head
            kept += 4 * (q + kv + model.heads) + 2 * (q + kv) * fused
        self.kept_for_mask = 4 * (q - kv) if model.key_heads > 1 else 0
        self.forward = 6 * inner * wide + 4 * H
        self.backward = 6 * inner * wide + 2 * H
        if norms == 4 and not (full and s == 4):
            self.backward -= 4 * H  # backward is through the norm behind the MLP
        if full:  # the gradient of a weight needs the weight's input
            kept += {(2, 2): 8, (2, 4): 18, (4, 2): 20, (4, 4): 26}[norms, s] * H + 2 * inner
            kept += (2 if norms == 2 else 4) * (q + kv) * model.qk_norms
            kept += (2 * q - 6 * H * (s == 4)) * fused  # one input for q, k, v, one for gate, up
            self.forward += {(2, 2): 2, (2, 4): 4, (4, 2): 2, (4, 4): 12}[norms, s] * H
            self.forward += 4 * H * fused * (s == 4)
            self.backward -= 2 * inner + 2 * H * (s == 4)  # down_proj's input is there no longer
        # LoRA keeps its input for each target, dropout's mask, and what is between A and B
        lora = {n: (2 + (dropout > 0)) * i + 2 * settings["r"] for n, (i, _) in targets.items()}
        kept += sum(lora.values())
        of_mlp = sum(size for name, size in lora.items() if name in model.mlp)
        self.of_mlp += of_mlp
        if of_mlp:  # gradients in float32
            self.forward += 4 * H + 2 * inner
            self.backward += 8 * H + 4 * inner * (dropout > 0)
            self.backward += 6 * H * (norms == 4 and quantization != "int8")
        self.inputs = 4 * H + 2 * inner + 2 * q * self.apart if quantization == "int8" else 0
        self.kept = kept + self.inputs
        if self.inputs and checkpointing:  # of those, the ones behind are gone when backward comes
            if reentrant:
                self.backward -= 2 * inner + 4 * H * (dropout > 0) if of_mlp else -2 * H
            else:
                self.backward -= 2 * inner + (2 * H if of_mlp else 4 * H)


class _Model:
    """The numbers of a config.json.

    Attributes:
        matrices: (in, out) of a block's linear layers by name, as `attention` and `mlp` are.
        experts: (in, out, number) of the matrices that a block of a mixture has beside those, as
            peft names them: gate and up are stored as one, and get an adapter each for all of it.
    """

    def __init__(self, shape: dict):
        self.kind = kind = shape.get("model_type")
        mixture = MIXTURES.get(kind)
        if not mixture and any("expert" in key and value for key, value in shape.items()):
            raise ValueError(
                f"The memory estimate has no formula for {kind}, a mixture of experts; "
                "count it with python vram.py --trace."
            )
        _one_of("model_type", kind, [*FAMILIES, *MIXTURES], "; count others with vram.py --trace")
        self.hidden = H = _whole(shape, "hidden_size")
        self.inner = inner = _whole(shape, mixture[0] if mixture else "intermediate_size")
        self.layers = _whole(shape, "num_hidden_layers")
        self.vocab = _whole(shape, "vocab_size")
        self.heads = _whole(shape, "num_attention_heads")
        numbers = {"num_key_value_heads": self.heads, "head_dim": H // self.heads}
        numbers |= {key: value for key, value in shape.items() if value is not None}
        self.head_dim = _whole(numbers, "head_dim")
        self.key_heads = _whole(numbers, "num_key_value_heads")
        self.queries = q = self.heads * self.head_dim
        self.keys = kv = self.key_heads * self.head_dim
        self.window, self.windows = _window(shape, self.layers)
        self.norms = FAMILIES.get(kind, 2)
        self.qk_norms = kind in ("qwen3", "gemma3_text", "qwen3_moe")
        self.capped = kind == "gemma2"  # logits and scores go through tanh
        self.fused = kind == "phi3"  # q, k, v are one matrix, gate and up another
        self.tied = bool(shape.get("tie_word_embeddings", kind in ("gemma2", "gemma3_text")))

        if self.fused:
            entry = {"qkv_proj": (H, q + 2 * kv)}
            gate_up = {"gate_up_proj": (H, 2 * inner)}
        else:
            entry = {"q_proj": (H, q), "k_proj": (H, kv), "v_proj": (H, kv)}
            gate_up = {"gate_proj": (H, inner), "up_proj": (H, inner)}
        self.attention = entry | {"o_proj": (q, H)}
        self.mlp = {} if mixture else gate_up | {"down_proj": (inner, H)}
        self.matrices = self.attention | self.mlp
        self.experts, self.router, extra = {}, {}, 0
        if mixture:
            number = _whole(shape, mixture[1])
            gate, up, down = mixture[2]
            self.experts = {gate: (H, 2 * inner, number), up: (H, 2 * inner, number)}
            self.experts[down] = (inner, H, number)
            self.router = {"gate": (H, number, 1)}
            extra = number * (3 * H * inner + H)
        biases = q + 2 * kv if kind == "qwen2" else 0
        if shape.get("attention_bias") and kind not in ("qwen2", "mistral", "mixtral", "phi3"):
            biases += sum(o for _, o in self.attention.values())
        if shape.get("mlp_bias") and kind in ("llama", "smollm3", "granite"):
            biases += sum(o for _, o in self.mlp.values())
        norms = self.norms * H + (2 * self.head_dim if self.qk_norms else 0)
        norms += q + kv if kind == "olmoe" else 0
        block = sum(i * o for i, o in self.matrices.values()) + extra + biases + norms
        tables = 1 if self.tied else 2  # the embeddings and lm_head
        self.parameters = self.layers * block + H + tables * self.vocab * H


def _window(shape: dict, layers: int) -> tuple[int, int]:
    """The sliding window in tokens, 0 for none, and how many layers look through it."""
    kind, window = shape["model_type"], shape.get("sliding_window") or 0
    if kind == "qwen2" and not shape.get("use_sliding_window"):
        window = 0
    if types := shape.get("layer_types"):
        number = sum(one == "sliding_attention" for one in types)
    elif kind in ("gemma2", "gemma3_text"):  # every so many layers one sees everything
        every = shape.get("sliding_window_pattern") or {"gemma2": 2, "gemma3_text": 6}[kind]
        number = layers - layers // every
    else:
        number = layers
    return (window, number) if window and number else (0, 0)


def _total(parts: dict[str, int]) -> int:
    return sum(parts.values())


def _targets(model: _Model, names) -> dict[str, tuple[int, int]]:
    """(in, out) of each linear layer of a block that gets an adapter, by name."""
    _need_targets(names, model.matrices)
    return {name: model.matrices[name] for name in names}


def _spelt_out(shape: dict, names):
    """The layers' names for a word such as attention."""
    known = isinstance(names, list) and len(names) == 1 and names[0] in ANSWERS["lora_targets"]
    return target_modules(shape, names[0]) if known else names


def _need_targets(names, known) -> None:
    _need(isinstance(names, list) and names, "target_modules", "a list of names", names)
    for name in names:
        _one_of("each of target_modules", name, known)


def _switches(settings: dict) -> tuple[bool, bool, float, float]:
    """Checkpointing and its kind, LoRA's dropout, the share of tokens with a label."""
    on = settings.get("activation_checkpointing", False)
    on = True if on == "auto" else on
    _need(isinstance(on, bool), "activation_checkpointing", "true, false or auto", on)
    kind = settings.get("activation_checkpointing_kwargs") or {}
    right = isinstance(kind, dict) and not {"offload", "every_n_layers"} & {*kind}
    _need(right, "activation_checkpointing_kwargs", "without offload and every_n_layers", kind)
    dropout, share = settings.get("lora_dropout", 0), settings.get("trained_share", 0.25)
    right = isinstance(dropout, (int, float)) and 0 <= dropout < 1
    _need(right, "lora_dropout", "a share from 0 to below 1", dropout)
    right = isinstance(share, (int, float)) and 0 < share <= 1
    _need(right, "trained_share", "a share above 0 and at most 1", share)
    return on, bool(kind.get("use_reentrant")), dropout, share


def _whole(values: dict, key: str) -> int:
    value = values.get(key)
    _need(type(value) is int and value > 0, key, "a positive whole number", value)
    return value


def _one_of(key: str, value, known, more: str = "") -> None:
    _need(value in [*known], key, f"one of {', '.join(known)}", value, more)


def _need(right, key: str, what: str, value, more: str = "") -> None:
    if not right:
        raise ValueError(f"The memory estimate needs {key} to be {what}, not {value!r}{more}.")
