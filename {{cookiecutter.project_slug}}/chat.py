"""Talk to the result of a training.

python chat.py                                         type, or paste texts of several lines
python chat.py --system_prompt "Answer in French."     any key of config.yaml

  --prompt            answer this whole message and stop; without it, each column is asked for
  --base              ask the base model
  --model             the folder to load, such as outputs/merged; without it, output_dir/final
  --max_new_tokens    the most that an answer may have; 512
  --sample            sample, as the model's own settings say, instead of taking the likeliest token
  --temperature       sample; the lower, the likelier the tokens
  --top_p             sample from the likeliest tokens that have this probability together
  --save              add the chat to this .jsonl file as a row of `messages`
"""

import json
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, TextStreamer
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.adapter import load_trained
from sft.chat_template import embed_new_tokens
from sft.config import harmless, load_config, parse, run, say
from sft.format import IS_CHAT, typed_message
from sft.model import load_model, load_tokenizer
from sft.stop_tokens import stop_at, stop_tokens


def main(argv: list[str]) -> str:
    """Answer `--prompt`, or each message that is typed; returns the last answer."""
    own = {"prompt": "", "model": "", "base": False, "max_new_tokens": 512, "sample": False}
    own |= {"temperature": 0.0, "top_p": 0.0, "save": ""}
    options, overrides = parse(argv, __doc__, **own)
    if options.temperature < 0 or not 0 <= options.top_p <= 1:
        raise SystemExit("temperature must be above 0, and top_p from 0 to 1.")
    args, training_args = load_config(overrides)
    folder = Path(options.model or Path(training_args.output_dir) / "final")
    if options.base:
        tokenizer, model = (
            load_tokenizer(args.base_model_path, args.revision, args.chat_template),
            load_model(args),
        )
        embed_new_tokens(model, tokenizer, args)
        stop_at(model, stop_tokens(tokenizer))
    elif folder.is_dir():
        tokenizer, model = load_tokenizer(str(folder)), load_trained(folder, args)
    else:
        raise SystemExit(f"{folder} does not exist; run train.py, or name a folder with --model.")
    model.eval()
    if model.device != training_args.device:  # a quantized model is there, and may not be moved
        model.to(training_args.device)

    first = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
    given = {key: getattr(options, key) for key in ("temperature", "top_p")}
    how = {key: value for key, value in given.items() if value}
    how |= {"max_new_tokens": options.max_new_tokens, "do_sample": options.sample or bool(how)}
    messages, answer, chats = first, "", []
    try:
        for prompt in prompts(options.prompt, partial(typed_message, args=args)):
            messages = [*(messages if IS_CHAT else first), {"role": "user", "content": prompt}]
            answer = reply(model, tokenizer, messages, args.chat_template_kwargs, **how)
            messages.append({"role": "assistant", "content": answer})
            chats = [*([] if IS_CHAT else chats), messages]
    finally:  # after Ctrl-C, too
        if options.save and chats:
            Path(options.save).parent.mkdir(parents=True, exist_ok=True)
            with open(options.save, "a", encoding="utf-8", newline="\n") as file:
                file.writelines(json.dumps({"messages": chat}) + "\n" for chat in chats)
    return answer


def prompts(given: str, typed: Callable) -> Iterator[str]:
    """What is given, or all of a pipe; else each message that is typed, up to an empty line."""
    if not given and sys.stdin.isatty():
        say("An empty line or Ctrl-D ends it.")
        with suppress(EOFError, KeyboardInterrupt):
            while True:
                yield typed(read)
    elif prompt := given or sys.stdin.read().strip():
        yield prompt


def read(name: str = "") -> str:
    """A typed line, or all lines of a pasted text: those that are there at once.

    Raises:
        EOFError: it is empty.
    """
    lines = [input(f"{name}> ")]
    with suppress(OSError, EOFError):  # Windows selects no terminals
        while select.select([sys.stdin], [], [], 0.05)[0]:
            lines.append(input())
    if text := "\n".join(lines).strip():
        return text
    raise EOFError


class Answer(TextStreamer):
    """Prints an answer while it is generated; nothing in it reaches the terminal as a command."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        super().on_finalized_text(harmless(text), stream_end)


def reply(model: PreTrainedModel, tokenizer: Tokenizer, messages: list, extra: dict, **how) -> str:
    """Print and return the model's next turn, up to its end-of-turn token."""
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", **extra
    ).to(model.device)
    streamer = Answer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    output = model.generate(**inputs, streamer=streamer, **how)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


if __name__ == "__main__":
    run(main)
