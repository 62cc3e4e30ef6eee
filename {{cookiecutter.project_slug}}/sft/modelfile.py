"""Ollama's Modelfile: the chat template in Go's language, the stop tokens, the system prompt."""

import json
import re
from contextlib import suppress
from os.path import commonprefix

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.config import ProjectArguments, say
from sft.stop_tokens import stop_tokens

OPEN, CLOSE = "{" * 2, "}" * 2
FORM = (
    '[range $i, $_ := .Messages][if eq .Role "system"]%s[.Content]%s'
    '[else if eq .Role "user"][if eq $i 0]%s[end]%s[.Content]%s[else][.Content]%s[end][end]'
)
CHAT = ["user", "assistant", "user", "assistant", "user"]


def modelfile(gguf: str, tokenizer: Tokenizer, args: ProjectArguments) -> str:
    """The Modelfile for the file `gguf` beside it."""
    lines = [f"FROM ./{gguf}"]
    with suppress(TemplateError, ValueError):
        lines.append(f'TEMPLATE """{go_template(tokenizer, args.chat_template_kwargs)}"""')
    if len(lines) == 1:
        say("The Modelfile has no TEMPLATE: this model's chat template looks at more than roles.")
    lines += [f"PARAMETER stop {json.dumps(tokenizer.decode(id))}" for id in stop_tokens(tokenizer)]
    lines += ["PARAMETER temperature 0", "PARAMETER repeat_penalty 1"]  # as chat.py: the likeliest
    lines += [f'SYSTEM """{args.system_prompt}"""'] if args.system_prompt else []
    return "\n".join([*lines, ""])


def go_template(tokenizer: Tokenizer, kwargs: dict) -> str:
    """Ollama's template: what is written around each role's text, found by chats of numbers.

    Raises:
        ValueError: it depends on more than the role.
        TemplateError: the chat template knows no system turns.
    """

    adds_bos = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id  # so does llama.cpp
    bos = tokenizer.bos_token if adds_bos else ""

    def around(roles: list[str]) -> list[str]:
        turns = [{"role": role, "content": f"({at})"} for at, role in enumerate(roles)]
        how = {"tokenize": False, "add_generation_prompt": True, **kwargs}
        return re.split(r"\(\d\)", tokenizer.apply_chat_template(turns, **how).removeprefix(bos))

    system, after_system, reply, next_turn, _ = around(["system", *CHAT[:3]])
    start, _ = around(CHAT[:1])
    ends = [text[::-1] for text in (after_system, next_turn, start)]
    user = commonprefix(ends)[::-1]  # what precedes each user's text
    after_system, done, start = (text[len(user) :][::-1] for text in ends)
    middle = [*[reply, done + user] * 2, reply]
    wanted = [start + user, *middle], [system, after_system + user, *middle]
    if (around(CHAT), around(["system", *CHAT])) != wanted:
        raise ValueError
    parts = (system, after_system, start, user, reply, done)
    form = FORM.replace("[", OPEN).replace("]", CLOSE)
    return form % tuple(part and f"{OPEN}{json.dumps(part)}{CLOSE}" for part in parts)
