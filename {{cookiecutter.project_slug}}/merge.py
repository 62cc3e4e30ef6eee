"""Fold the adapter into the base model: one 16-bit folder that loads by itself.

    python merge.py                        output_dir/final  ->  output_dir/merged
    python merge.py --to /models/mine      to another folder
"""

import argparse
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import GenerationConfig

from sft.config import load_config, say
from sft.model import load_tokenizer, load_whole


def main(argv: list[str]) -> Path:
    """Merge, save, and return the folder."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--to", type=Path, help="the folder to write (output_dir/merged)")
    options, overrides = parser.parse_known_args(argv)
    args, training_args = load_config(overrides)
    final = Path(training_args.output_dir) / "final"
    if not (final / "adapter_config.json").exists():
        raise SystemExit(f"{final} holds no adapter; run train.py first.")
    to = options.to or final.parent / "merged"

    # quantized weights are rounded; adding to them would round the adapter, too
    base = load_whole(args.base_model_path, args, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(base, final).merge_and_unload()
    model.generation_config = GenerationConfig.from_pretrained(final)
    model.save_pretrained(to)
    load_tokenizer(str(final)).save_pretrained(to)
    say(f"{to} loads by itself: python chat.py --model {to}")
    return to


if __name__ == "__main__":
    main(sys.argv[1:])
