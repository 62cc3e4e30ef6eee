"""A tiny twin of the base model for --smoke: its architecture with random weights, on a laptop.

--smoke changes the base model, dataset, device and a few numbers; all else is a real run's code.
"""

import json
import shutil
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sft.config import ROOT, one_line, project_arguments, say
from sft.source import is_local

SAMPLE = ROOT / "data" / "sample.jsonl"
CHAT_TEMPLATE = ROOT / "base_model" / "twin_chat_template.jinja"
TINY = {  # multiples of 64: quantized weights share a scale by blocks
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **{"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 64),
    **{"depth": 2, "num_heads": 4, "out_hidden_size": 64},  # of towers for images
}
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
            build_twin(ROOT / output_dir / "twin", args.base_model_path, 8 * args.max_length)
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


def build_twin(folder: Path, base_model_path: str, positions: int = 8192) -> None:
    """Save a random tiny model of the base model's architecture, with a tokenizer, in `folder`.

    Exits where the architecture cannot be made tiny.
    """
    local, bundled = ROOT / base_model_path / "config.json", ROOT / "base_model/config.json"
    shape = json.loads((local if local.exists() else bundled).read_text(encoding="utf-8"))
    tokenizer = build_tokenizer()
    tiny = TINY | {
        "max_position_embeddings": positions,
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": shape.get("tie_word_embeddings", False),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    try:
        config = AutoConfig.for_model(**shrink(shape, tiny))
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


def shrink(shape: dict, tiny: dict) -> dict:
    """The config.json of that architecture with `tiny` in place of sizes, nested ones included.

    All other values are the architecture's defaults.
    """
    small = tiny | {"model_type": shape["model_type"]}
    for key, kind in CONFIG_MAPPING[shape["model_type"]].sub_configs.items():
        part = {"model_type": getattr(kind, "model_type", "")} | (shape.get(key) or {})
        if part["model_type"] in CONFIG_MAPPING:
            small[key] = shrink(part, tiny)
    return small


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
