"""Files for transformers 4: what it reads, beside what version 5 has written."""

import json
from contextlib import suppress
from pathlib import Path

from transformers import AutoConfig
from transformers.utils import cached_file

from sft.config import ProjectArguments
from sft.model import load

BOTH, ONLY_5 = "transformers 4 and 5", "transformers 5 alone: version 4 would misread its RoPE"
ROPE = ("rope_theta", "rope_local_base_freq", "partial_rotary_factor", "rope_scaling")
UNKNOWN = "TokenizersBackend"  # to version 4


def spell_for_version_4(folder: Path, args: ProjectArguments) -> str:
    """Complete `tokenizer_config.json` and `config.json`; returns which versions read the folder.

    What else the base's own files say stays, since other programs may read it.
    """
    name = "tokenizer_config.json"
    old, new = of_base(name, args), json.loads((folder / name).read_text(encoding="utf-8"))
    for one in (old, new):
        if isinstance(one.get("extra_special_tokens"), list):  # a mapping of this name in version 4
            one["additional_special_tokens"] = one.pop("extra_special_tokens")
    if new["tokenizer_class"] == UNKNOWN:
        known = old.get("tokenizer_class", UNKNOWN)
        new["tokenizer_class"] = "PreTrainedTokenizerFast" if known == UNKNOWN else known
    new["chat_template"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    inputs = {"model_input_names": ["input_ids", "attention_mask"]}  # else it adds token types
    (folder / name).write_text(json.dumps(inputs | old | new, indent=2), encoding="utf-8")

    name, config = "config.json", load(AutoConfig, str(folder))
    old, new = of_base(name, args), json.loads((folder / name).read_text(encoding="utf-8"))
    old.pop("quantization_config", None)
    if old.get("model_type") != new["model_type"]:
        old = {}  # of which this is the text part
    new |= {"torch_dtype": new["dtype"], "tie_word_embeddings": config.tie_word_embeddings}
    was, text = (one.get("text_config", one) for one in (old, new))
    is_of_4 = was and "rope_parameters" not in was
    rope = {key: was[key] for key in ROPE if key in was} if is_of_4 else rope_of_version_4(text)
    text |= rope or {}
    (folder / name).write_text(json.dumps(old | new, indent=2), encoding="utf-8")
    return ONLY_5 if rope is None else BOTH


def rope_of_version_4(config: dict) -> dict | None:
    """`rope_parameters` as version 4's keys, without which it takes its defaults without a word.

    None where it has no keys for them, or other ones.
    """
    rope = config.get("rope_parameters") or {}
    full, local = rope.get("full_attention", rope), rope.get("sliding_attention", {})
    is_other = local and "gemma3" not in config["model_type"] or "neox" in config["model_type"]
    if rope and (is_other or full.get("rope_type") == "longrope" or "rope_theta" not in full):
        return None
    found = {key: full[key] for key in ROPE if key in full}
    found |= {"rope_local_base_freq": local["rope_theta"]} if local else {}
    scaling = {key: value for key, value in full.items() if key not in found}
    has_scaling = scaling.get("rope_type", "default") != "default"
    return found | ({"rope_scaling": scaling} if has_scaling else {})


def of_base(name: str, args: ProjectArguments) -> dict:
    """What a JSON file of the base says; {} where it has none."""
    with suppress(OSError, TypeError):
        file = cached_file(args.base_model_path, name, revision=args.revision)
        return json.loads(Path(file).read_text(encoding="utf-8"))
    return {}
