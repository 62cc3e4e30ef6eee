"""The model card: what those who get the model should know of its training."""

import json
import re
from contextlib import suppress
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HTTPError
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.config import ROOT, harmless, read_values, say

PLACES = "base_model_path dataset eval_dataset chat_template adapter_path output_dir".split()
SHOWN = 3  # answers


def write_card(folder: Path, home: Path, tokenizer: Tokenizer, readers: str = "") -> None:
    """Write README.md into a model's folder, of the run in `home`; no path of a machine in it."""
    files = {file.name: file.read_text(encoding="utf-8") for file in home.glob("*.json*")}
    if "run.json" not in files:
        return say(f"{home} has no run.json, so that there is no model card.")
    run, summary, scores = (
        json.loads(files.get(f"{name}.json", "{}")) for name in ("run", "summary", "evaluation")
    )
    answers = files.get("evaluation.jsonl", files.get("answers.jsonl", "")).splitlines()[:SHOWN]
    was = run["settings"]
    base, data = named(was["base_model_path"])[0], named(was["dataset"])
    library = "peft" if (folder / "adapter_config.json").exists() else "transformers"
    library = "gguf" if any(folder.glob("*.gguf")) else library
    about = ModelCardData(
        base_model=base if "/" in base else None,
        datasets=[one for one in data if "/" in one] or None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=["sft"],
        **licence(was["base_model_path"]),
    )
    chat = [{"role": "system", "content": was["system_prompt"]}] if was["system_prompt"] else []
    chat.append({"role": "user", "content": was.get("prompt_template", "{your message}")})
    how = {"tokenize": False, "add_generation_prompt": True, **was["chat_template_kwargs"]}
    settings = {key: was[key] for key in read_values([]) if key in was and key not in PLACES}
    card = ModelCard.from_template(
        about,
        template_path=ROOT / "sft/card.md.jinja",
        base=base,
        data=data,
        readers=readers,
        kwargs=was["chat_template_kwargs"],
        prompt=tokenizer.apply_chat_template(chat, **how),
        run=run,
        summary=summary,
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        rows=re.sub("rows of .*, ", "rows, ", scores.get("rows", "")),
        scores={Path(name).name: found for name, found in scores.get("models", {}).items()},
        answers=[*map(json.loads, answers)],
    )
    (folder / "README.md").write_text(harmless(str(card)), encoding="utf-8")


def named(places: str | list) -> list[str]:
    """Names on the Hub as they are; of paths, which nobody else has, the last part."""
    places = [places] if isinstance(places, str) else places
    places = [one["path"] if isinstance(one, dict) else one for one in places]
    on_hub = [re.fullmatch(r"[\w.-]+/[\w.-]+", one) and not Path(one).exists() for one in places]
    return [one if is_id else Path(one).name for one, is_id in zip(places, on_hub, strict=True)]


def licence(base: str) -> dict[str, str]:
    """What the base's own card says of its licence; {} where there is none to be had."""
    file = Path(base, "README.md")
    with suppress(OSError, ValueError, HTTPError):
        data = ModelCard.load(file if file.exists() else base).data.to_dict()
        return {key: data[key] for key in data if re.match("license(_name|_link)?$", key)}
    return {}
