"""The model card: what those who get the model should know of its training."""

import json
import re
from contextlib import suppress
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.config import ROOT, harmless, one_line, read_values, say

PLACES = "base_model_path dataset eval_dataset chat_template adapter_path output_dir".split()
SHOWN = 3  # answers
SCORES = "\n## Scores\n"


def write_card(
    folder: Path, home: Path, tokenizer: Tokenizer, readers: str = "", only_scores: bool = False
) -> None:
    """Write README.md into a model's folder, of the run in `home`; no path of a machine in it.

    `only_scores` renews those, and the answers after them, of a card that may have been edited.
    """
    file = folder / "README.md"
    try:
        edited = file.read_text(encoding="utf-8") if only_scores else ""
        if only_scores and SCORES not in edited:
            return
        card = card_of(folder, home, tokenizer, readers)
        if only_scores:
            card = edited.partition(SCORES)[0] + SCORES + card.partition(SCORES)[2]
        file.write_text(card, encoding="utf-8")
    except Exception as error:  # whatever the base's files hold, it ends nothing else
        say(f"   No model card: {one_line(error)}")


def card_of(folder: Path, home: Path, tokenizer: Tokenizer, readers: str) -> str:
    """The text of the card, with scores where an evaluation is newer than the training."""

    def read(name: str) -> str:
        file = home / name
        return file.read_text(encoding="utf-8") if file.exists() else ""

    run, summary = json.loads(read("run.json")), json.loads(read("summary.json"))
    evaluation, trained = home / "evaluation.json", (home / "summary.json").stat().st_mtime_ns
    is_new = evaluation.exists() and evaluation.stat().st_mtime_ns >= trained
    scores = json.loads(evaluation.read_text(encoding="utf-8")) if is_new else {}
    answers = read("evaluation.jsonl" if is_new else "answers.jsonl").splitlines()[:SHOWN]
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
    settings = {key: one for key, one in settings.items() if not Path(str(one)).is_absolute()}
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
        scores=without_paths(scores.get("models", {})),
        answers=[without_paths(json.loads(answer)) for answer in answers],
    )
    return harmless(str(card))


def without_paths(of_models: dict) -> dict:
    """Those of the base and of this run's result: other models are named by their folders."""
    return {name: one for name, one in of_models.items() if not re.search(r"[/\\]", name)}


def named(places: str | list) -> list[str]:
    """Names on the Hub as they are; of paths, which nobody else has, the last part."""
    places = [places] if isinstance(places, str) else places
    places = [one["path"] if isinstance(one, dict) else one for one in places]
    on_hub = [re.fullmatch(r"[\w.-]+/[\w.-]+", one) and not Path(one).exists() for one in places]
    return [one if is_id else Path(one).name for one, is_id in zip(places, on_hub, strict=True)]


def licence(base: str) -> dict[str, str]:
    """What the base's own card says of its licence; {} where there is none to be had."""
    file = Path(base, "README.md")
    with suppress(Exception):  # none, none to be had, or one that nobody can read
        data = ModelCard.load(file if file.exists() else base).data.to_dict()
        return {key: data[key] for key in data if re.match("license(_name|_link)?$", key)}
    return {}
