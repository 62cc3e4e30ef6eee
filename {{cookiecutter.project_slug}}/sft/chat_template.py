"""A base model's chat template, whose control tokens are found or learnt."""

import re
from itertools import chain
from os.path import expanduser
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.config import ROOT, ProjectArguments

CHATML = ROOT / "base_model" / "twin_chat_template.jinja"
CONTROL_TOKEN = r"<\|[^\s|<>{}]+\|>|<(?:start|end)_of_\w+>"


def set_chat_template(tokenizer: Tokenizer, name: str) -> None:
    """Give it "chatml" or the template in a file, and the control tokens that this names.

    `tokenizer.new_tokens` is the ids of those that it had not. Exits where it has no template.
    """
    if not name and not tokenizer.chat_template:
        what = f"The tokenizer of {tokenizer.name_or_path!r}"
        raise SystemExit(f"{what} has no chat template; set chat_template: chatml.")
    if not name:
        return
    file = CHATML if name == "chatml" else Path(expanduser(name))
    try:
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = f"{error} (chatml, or a file with a template in Jinja)"
        raise SystemExit(f"chat_template {name!r} cannot be read: {why}.") from None
    named = dict.fromkeys(re.findall(CONTROL_TOKEN, tokenizer.chat_template))
    missing = [token for token in named if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens(missing, special_tokens=True)
    tokenizer.new_tokens = tokenizer.convert_tokens_to_ids(missing)


def make_room(model: PreTrainedModel, tokens: dict[str, list[int]] | list[int] | None) -> None:
    """Resize the embeddings if one of these tokens has none; a mapping has them by layer."""
    tokens = [*chain(*tokens.values())] if isinstance(tokens, dict) else tokens or []
    if 1 + max(tokens, default=-1) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(1 + max(tokens), mean_resizing=False)


@torch.no_grad()
def embed_new_tokens(model: PreTrainedModel, tokenizer: Tokenizer, args: ProjectArguments) -> None:
    """Start the embeddings of new tokens at the mean, and have an adapter train these rows, too."""
    new = getattr(tokenizer, "new_tokens", [])
    if not new:
        return
    make_room(model, new)
    both = (model.get_input_embeddings(), model.get_output_embeddings())
    for embeddings in both:
        embeddings.weight[new] = embeddings.weight[: min(new)].mean(dim=0)
    if args.adapter:
        names = {module: name.split(".")[-1] for name, module in model.named_modules()}
        is_tied = both[0].weight is both[1].weight
        rows = {names[one]: new for one in (both[:1] if is_tied else both)}
        args.adapter["trainable_token_indices"] = rows
