"""How much GPU memory does one training step need? Standard library alone.

A step has four moments that can be its peak. Each holds what is always there (weights, adapter,
optimizer state) and what the moment itself adds:

    loss                     every kept activation, and the logits where a token is trained: rows
                             as wide as the vocabulary
    backward, last layer     every kept activation, and one layer in work
    backward, first layer    the gradients, and one layer in work
    optimizer step           all gradients

Training a parameter in float32 with AdamW takes 16 bytes: weight 4, gradient 4, two averages 8.
So full training of 8 billion parameters needs more than 100 GB before the first token, and
quantization cannot help: it shrinks weights that are frozen, for a number of 4 or 8 bits is too
coarse to take a gradient step. LoRA pays the 16 bytes too, but for one parameter in a hundred.

The bytes were counted in traced training steps of the real model classes (transformers 5.23, peft
0.21, bitsandbytes 0.50, torch 2.13), for one GPU. Fragments and CUDA's own share: see `verdict`.
"""

from dataclasses import dataclass

GB = 2**30  # as card makers and nvidia-smi count: an "80 GB" card has 80 * 2**30 bytes

CONTEXT = GB // 2  # budget for CUDA's own kernels and handles; 0.14 GB were measured on a T4
WORKSPACE = 16 * 2**20  # of cuBLAS
MARGIN = 1.15  # the allocator reserves more than is in use: 1.06 to 1.25 times with sdpa

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes a number
NF4 = 0.5 + (1 + 4 / 256) / 64  # bytes a weight: 4 bits, and double-quantized scales of 64 weights
OPTIMIZERS = {  # (state in widths of the trained weight, state in bytes, temporary in widths)
    "adamw_torch_fused": (2, 0, 0),
    "adamw_torch": (2, 0, 1),  # all parameters at once, so a temporary as large as all of them
    "adamw_bnb_8bit": (0, 2.03, 0),  # two averages of one byte, and the scales of their blocks
    "adamw_8bit": (0, 2.03, 0),
    "paged_adamw_8bit": (0, 2.03, 0),
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
    """

    parts: dict[str, int]
    moments: dict[str, int]
    peak: int
    peak_at: str
    parameters: int
    trainable: int

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
    if target_modules is None:
        return model.parameters
    targets = _targets(model, target_modules)
    return model.layers * _whole({"r": r}, "r") * sum(i + o for i, o in targets)


def target_modules(shape: dict, lora_targets: str) -> list[str] | None:
    """The linear layers that an answer to `lora_targets` means; None for full training.

    Raises:
        ValueError: an architecture that is not covered, or an answer that does not exist.
    """
    _one_of("lora_targets", lora_targets, ANSWERS["lora_targets"])
    model = _Model(shape)
    answers = {"attention": model.attention, "mlp": model.mlp, "all_linear": model.matrices}
    return None if lora_targets == "full" else [*answers[lora_targets]]


def estimate(shape: dict, settings: dict) -> Estimate:
    """The memory that one training step takes on one GPU.

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
    H, q, kv, inner = model.hidden, model.queries, model.keys, model.inner
    full = settings["lora_targets"] == "full"
    quantization = "none" if full else settings["quantization"]  # trained weights cannot be
    padding_free = settings["collator"] == "padding_free"
    checkpointing, reentrant, dropout, share = _switches(settings)
    accumulates = _whole(settings, "gradient_accumulation_steps") > 1
    length = _whole(settings, "max_length")
    tokens = _whole(settings, "per_device_train_batch_size") * length  # the fullest batch

    # --- always there, whatever the batch ---
    s = WIDTH[settings["dtype"]]  # all that is not quantized, the residual stream included
    linear = model.layers * sum(i * o for i, o in model.matrices.values())
    rows = model.layers * sum(o for _, o in model.matrices.values())  # each has a scale in int8
    weights = {"nf4": NF4 * linear, "int8": linear + 4 * rows, "none": s * linear}[quantization]
    names = None if full else settings.get("target_modules")
    targets = [] if full else _targets(model, names)
    trained = trainable(shape, names, settings.get("r"))
    width = s if full else WIDTH["float32"]  # LoRA's own weights are float32
    averages, fixed, temporary = OPTIMIZERS[settings["optim"]]
    always = {
        "base weights": weights + s * (model.parameters - linear),
        "adapter": 0 if full else width * trained,
        "optimizer state": (averages * width + fixed) * trained,
        "cuBLAS workspace": WORKSPACE,
    }
    if full and fixed:  # the Trainer leaves the embeddings' averages in float32
        always["optimizer state"] += (2 * WIDTH["float32"] - fixed) * model.vocab * H
    gradients = width * trained

    # --- activations of one layer: bytes a token that wait for backward, and that it works with ---
    wide = 2 if s == 4 and quantization != "none" else 1  # bitsandbytes answers in float32, too
    kept = 4 * H * model.norms + 4 * (q + kv) + 6 * inner * wide  # norms; q, k, v; gate and up
    kept += 4 * (q + kv) * model.qk_norms + 2 * (q + kv) * model.fused
    work = 6 * inner * wide + 2 * H
    if full:  # the gradient of a weight needs the weight's input
        kept += {(2, 2): 8, (2, 4): 18, (4, 2): 20, (4, 4): 26}[model.norms, s] * H + 2 * inner
        kept += 2 * (q + kv) * model.qk_norms
    kept += sum((2 + (dropout > 0)) * i for i, _ in targets)  # LoRA's input, dropout's mask
    if any(o >= inner for _, o in targets):  # gate and up
        work += 8 * H
    inputs = 4 * H + 2 * inner if quantization == "int8" else 0  # bitsandbytes keeps each input
    scores = 0
    if settings.get("attn_implementation") == "eager":  # all others never hold length x length
        scores = model.heads * tokens * (tokens if padding_free else length)
    layer = tokens * (kept + inputs) + 6 * scores
    work = max(tokens * work, 8 * scores - tokens * 6 * inner)
    boundary = tokens * s * H  # all that a checkpoint keeps of a layer: its input
    held = model.layers * (boundary if checkpointing else layer)
    if checkpointing and not reentrant and inputs:  # what bitsandbytes keeps escapes them
        held += model.layers * tokens * (inputs + 2 * q)
    recomputed = layer if checkpointing else 0

    # --- copies of weights in 16 bits: autocast makes them of float32, bitsandbytes one by one ---
    copies = 2 * linear if s == 4 and quantization == "none" else 0
    held_copies = 0 if checkpointing else copies
    cached_copies = copies if full else held_copies  # those of trained weights last for a forward
    head_copy = 2 * model.vocab * H if s == 4 else 0
    largest = 0 if quantization == "none" else max(i * o for i, o in model.matrices.values())

    # --- the four moments; where two things happen in one, the larger counts ---
    def moment(gradients, held=0, work=0, logits=0, copies=0, temporary=0) -> dict[str, int]:
        parts = always | {
            "optimizer state": always["optimizer state"] + temporary,
            "gradients": gradients,
            "activations kept": held,
            "activations in work": work,
            "logits and loss": logits,
            "16-bit copies": copies,
        }
        return {name: round(size) for name, size in parts.items()}

    logits = tokens * model.vocab  # for the tokens that have a label (LogitsWhereTrained)
    logits *= 1 if settings["collator"] == "language_modeling" else share
    output = 4 * tokens * H  # of the last layer and of the norm after it
    earlier = gradients if accumulates else 0  # of the step's earlier batches
    head = width * model.vocab * H if full else 0  # gradient of lm_head, or of the embeddings
    block = width * linear / model.layers if full else 0  # gradients of one layer
    tables = head * (2 * model.tied + accumulates)  # tied: two gradients and their sum at once
    early = earlier + head * (model.tied or not accumulates)  # lm_head's is there first
    late = earlier or gradients - block - head * (not model.tied)  # those of the end are to come
    of_a_layer = copies / model.layers
    gate_up = 2 * inner * tokens
    by_moment = {
        "loss": _larger(
            moment(earlier, held, output, 10 * logits, cached_copies + head_copy),
            moment(earlier, held, output, 12 * logits, held_copies + head_copy),
        ),
        "backward, last layer": _larger(
            moment(early, held, recomputed + work, copies=held_copies or of_a_layer),
            moment(earlier, held, recomputed + boundary + gate_up, copies=2 * largest),
        ),
        "backward, first layer": _larger(
            moment(late, boundary, layer + work, copies=of_a_layer),
            moment(gradients + tables),
        ),
        "optimizer step": moment(gradients, temporary=temporary * width * trained),
    }
    moments = {name: sum(parts.values()) for name, parts in by_moment.items()}
    peak_at = max(reversed(moments), key=moments.get)
    parts = by_moment[peak_at]
    return Estimate(parts, moments, moments[peak_at], peak_at, model.parameters, trained)


class _Model:
    """The numbers of a config.json; `matrices` has (in, out) of a block's linear layers."""

    def __init__(self, shape: dict):
        kind = shape.get("model_type")
        if any("expert" in key and value for key, value in shape.items()):
            raise ValueError(
                f"{kind} is a mixture of experts, which the memory estimate does not cover; "
                "choose a dense base model."
            )
        _one_of("model_type", kind, FAMILIES)
        self.hidden = H = _whole(shape, "hidden_size")
        self.inner = inner = _whole(shape, "intermediate_size")
        self.layers = _whole(shape, "num_hidden_layers")
        self.vocab = _whole(shape, "vocab_size")
        self.heads = _whole(shape, "num_attention_heads")
        numbers = {"num_key_value_heads": self.heads, "head_dim": H // self.heads}
        numbers |= {key: value for key, value in shape.items() if value is not None}
        head_dim = _whole(numbers, "head_dim")
        self.queries = q = self.heads * head_dim
        self.keys = kv = _whole(numbers, "num_key_value_heads") * head_dim
        self.norms = FAMILIES[kind]
        self.qk_norms = kind in ("qwen3", "gemma3_text")
        self.fused = kind == "phi3"  # q, k, v are one matrix, gate and up another
        self.tied = bool(shape.get("tie_word_embeddings", kind in ("gemma2", "gemma3_text")))

        if self.fused:
            entry = {"qkv_proj": (H, q + 2 * kv)}
            gate_up = {"gate_up_proj": (H, 2 * inner)}
        else:
            entry = {"q_proj": (H, q), "k_proj": (H, kv), "v_proj": (H, kv)}
            gate_up = {"gate_proj": (H, inner), "up_proj": (H, inner)}
        self.attention = entry | {"o_proj": (q, H)}
        self.mlp = gate_up | {"down_proj": (inner, H)}
        self.matrices = self.attention | self.mlp
        biases = q + 2 * kv if kind == "qwen2" else 0
        if shape.get("attention_bias") and kind not in ("qwen2", "mistral", "phi3"):
            biases += sum(o for _, o in self.attention.values())
        if shape.get("mlp_bias") and kind in ("llama", "smollm3", "granite"):
            biases += sum(o for _, o in self.mlp.values())
        norms = self.norms * H + 2 * head_dim * self.qk_norms
        block = sum(i * o for i, o in self.matrices.values()) + biases + norms
        tables = 1 if self.tied else 2  # the embeddings and lm_head
        self.parameters = self.layers * block + H + tables * self.vocab * H


def _larger(*moments: dict[str, int]) -> dict[str, int]:
    return max(moments, key=lambda parts: sum(parts.values()))


def _targets(model: _Model, names) -> list[tuple[int, int]]:
    """(in, out) of each linear layer of a block that gets an adapter."""
    _need(isinstance(names, list) and names, "target_modules", "a list of names", names)
    for name in names:
        _one_of("each of target_modules", name, model.matrices)
    return [model.matrices[name] for name in dict.fromkeys(names)]


def _switches(settings: dict) -> tuple[bool, bool, float, float]:
    """Checkpointing and its kind, LoRA's dropout, the share of tokens with a label."""
    on = settings.get("activation_checkpointing", False)
    on = True if on == "auto" else on
    _need(isinstance(on, bool), "activation_checkpointing", "true, false or auto", on)
    kind = settings.get("activation_checkpointing_kwargs") or {}
    _need(isinstance(kind, dict), "activation_checkpointing_kwargs", "a mapping", kind)
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


def _one_of(key: str, value, known) -> None:
    _need(value in [*known], key, f"one of {', '.join(known)}", value)


def _need(right, key: str, what: str, value) -> None:
    if not right:
        raise ValueError(f"The memory estimate needs {key} to be {what}, not {value!r}.")
