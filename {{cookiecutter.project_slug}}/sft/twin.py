"""A tiny twin of the base model, for --smoke: its architecture with random weights, on a laptop.

--smoke changes the base model, dataset, device and a few numbers; all else is a real run's code.
"""

import re
import shutil
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sft.config import ROOT, one_line, project_arguments, say
from sft.memory import read_config
from sft.source import is_local

SAMPLE = ROOT / "data" / "sample.jsonl"
CHAT_TEMPLATE = ROOT / "base_model" / "twin_chat_template.jinja"
TINY = {  # multiples of 64: quantized weights share a scale by blocks
    64: """hidden_size moe_intermediate_size shared_expert_intermediate_size q_lora_rank
        kv_lora_rank hidden_size_per_layer_input out_hidden_size""",
    128: """intermediate_size mamba_d_ssm lru_width moe_shared_expert_intermediate_size""",
    16: """head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim linear_key_head_dim
        linear_value_head_dim""",
    # bitsandbytes on the CPU takes multiples of 32; heads of a state space are one by one in them
    32: """global_head_dim linear_num_value_heads mamba_n_heads mamba_num_heads n_mamba_heads""",
    8: "num_heads",  # of towers for images, and of Mamba 2: heads * width is hidden_size * expand
    4: """num_attention_heads mamba_d_head mamba_head_dim mamba_headdim num_experts
        num_local_experts n_routed_experts moe_num_experts""",
    2: """num_key_value_heads linear_num_key_heads n_groups mamba_n_groups mamba_ngroups
        num_experts_per_tok num_experts_per_token moe_k top_k_experts attn_layer_period
        expert_layer_period depth""",
    1: """n_group topk_group first_k_dense_replace num_dense_layers attn_layer_offset
        expert_layer_offset""",
    0: "num_kv_shared_layers",
}
TINY = {name: size for size, names in TINY.items() for name in names.split()}
PLAIN = (str, bool, type(None))
LARGEST = 50_000_000  # parameters of a twin
FEW = """
--max_steps=6 --logging_steps=1 --eval_steps=3 --save_steps=3 --num_train_epochs=1
--gradient_accumulation_steps=1 --report_to=none --activation_checkpointing=true --fp16=auto
--tf32=auto --answers=1
""".split()


def smoke_overrides(overrides: list[str], output_dir: Path = Path("outputs/smoke")) -> list[str]:
    """Build the twin and return the overrides that train it, offline and on the CPU."""
    args = project_arguments(overrides)
    say("Smoke: a tiny random model, which babbles, and up to 64 rows; 8 x max_length.")
    with PartialState(cpu=True).main_process_first():
        if PartialState().is_main_process:
            shutil.rmtree(ROOT / output_dir, ignore_errors=True)
            positions = 8 * args.max_length
            twin = ROOT / output_dir / "twin"
            build_twin(twin, args.base_model_path, positions, args.revision)
    local = is_local(args.dataset)
    splits = (args.train_split, args.eval_split) if local else ("train", "validation")
    train_split, eval_split = (split.partition("[")[0] for split in splits)
    return [
        *FEW,
        *overrides,
        f"--output_dir={output_dir}",
        f"--base_model_path={output_dir / 'twin'}",
        f"--dataset={args.dataset if local else SAMPLE}",
        f"--eval_dataset={args.eval_dataset if is_local(args.eval_dataset) else ''}",
        f"--train_split={train_split}[:64]",
        f"--eval_split={eval_split}[:16]",
        f"--max_length={8 * args.max_length}",
        "--use_cpu=true",
    ]


def build_twin(
    folder: Path, base_model_path: str, positions: int = 8192, revision: str = "main"
) -> None:
    """Save a random tiny model of the base model's architecture, with a tokenizer, in `folder`.

    Exits where there is no config.json of it, or the architecture cannot be made tiny.
    """
    shape = read_config({"base_model_path": base_model_path or "base_model", "revision": revision})
    tokenizer = build_tokenizer()
    tokens = {
        "max_position_embeddings": positions,
        **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), len(tokenizer)),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    try:
        config = AutoConfig.for_model(**shrink(shape, tokens))
        make = partial(AutoModelForCausalLM.from_config, config, trust_remote_code=False)
        with torch.device("meta"):
            if make().num_parameters() > LARGEST:
                raise ValueError("its parts stay large")
        model = make(dtype=torch.float32)
    except Exception as error:  # an architecture can ask anything of its sizes
        why = f"{shape.get('model_type')!r}: {one_line(error)}"
        raise SystemExit(f"--smoke has no tiny twin of the architecture {why}") from None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def shrink(shape: dict, tokens: dict) -> dict:
    """The config.json of that architecture with `TINY` sizes, and `tokens`, nested ones included.

    Switches and words are the model's own, and other numbers its architecture's defaults.
    """
    kind = CONFIG_MAPPING[shape["model_type"]]
    config = kind.from_dict(kind._decode_special_floats(shape))  # infinity
    shape, tiny = config.to_dict(), TINY.copy()
    small = {key: value for key, value in shape.items() if isinstance(value, PLAIN) or value == 0}
    if number := getattr(config, "num_hidden_layers", None):
        small |= layers_of_each_kind(shape, number)
    if getattr(config, "num_key_value_heads", 0) == getattr(config, "num_attention_heads", None):
        tiny["num_key_value_heads"] = tiny["num_attention_heads"]  # latent attention asks for it
    for key, size in tiny.items():
        named = config.attribute_map.get(key, key)
        # what is null or 0 is not there, but for what follows from other sizes
        if shape.get(named) or named in shape and key in ("head_dim", "num_key_value_heads"):
            small[named] = size
    for key, part in kind.sub_configs.items():
        nested = {"model_type": getattr(part, "model_type", "")} | (shape.get(key) or {})
        if shape.get(key) and nested["model_type"] in CONFIG_MAPPING:
            small[key] = shrink(nested, tokens)
    return small | tokens


def layers_of_each_kind(shape: dict, number: int) -> dict:
    """Of what a config.json says by layer, what it says of the first layer of each kind.

    Lists have a value for each layer, as `layer_types`, or the numbers of layers. At least two
    layers stay: their number is `num_hidden_layers`.
    """
    by_layer, of_numbers = {}, []
    for key, values in shape.items():
        if not isinstance(values, list) or not values or key.startswith("mtp_"):
            continue
        numbers = [value for value in values if type(value) is int]
        if re.search("layer|idx", key) and values == sorted({*numbers}):
            of_numbers.append(key)
            by_layer[key] = [layer in values for layer in range(number)]
        elif len(values) == number or "type" in key:  # some say a part that is repeated
            by_layer[key] = [values[layer % len(values)] for layer in range(number)]
    kinds = {}
    for layer in range(number):
        kinds.setdefault(repr([values[layer] for values in by_layer.values()]), layer)
    layers = [*kinds.values()] if len(kinds) > 1 else [*range(min(number, 2))]
    small = {key: [values[layer] for layer in layers] for key, values in by_layer.items()}
    for key in of_numbers:
        small[key] = [at for at, is_there in enumerate(small[key]) if is_there]
    return small | {"num_hidden_layers": len(layers)}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 1,024 tokens, trained on the bundled sample; it encodes every text."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        SAMPLE.read_text(encoding="utf-8").splitlines(),
        vocab_size=1024,
        min_frequency=0,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained.to_str()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE.read_text(encoding="utf-8"),
    )
