"""Talk to the result of a training.

python chat.py                                         a conversation; an empty line ends it
python chat.py --system_prompt "Answer in French."     any key of config.yaml

  --prompt            answer this and stop
  --model             the folder to load, such as outputs/merged; without it, output_dir/final
  --max_new_tokens    the most that an answer may have; 512
  --sample            sample instead of taking the likeliest token
"""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from transformers import PreTrainedModel, TextStreamer
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.adapter import load_trained
from sft.config import harmless, load_config, parse, run
from sft.model import load_tokenizer


def main(argv: list[str]) -> str:
    """Answer `--prompt`, or each line that is typed; returns the last answer."""
    options, overrides = parse(argv, __doc__, prompt="", model="", max_new_tokens=512, sample=False)
    args, training_args = load_config(overrides)
    folder = Path(options.model or Path(training_args.output_dir) / "final")
    if not folder.is_dir():
        raise SystemExit(f"{folder} does not exist; run train.py, or name a folder with --model.")
    tokenizer = load_tokenizer(str(folder))
    model = load_trained(folder, args).eval()
    if model.device != training_args.device:  # a quantized model is there, and may not be moved
        model.to(training_args.device)

    messages = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
    how = {"max_new_tokens": options.max_new_tokens, "do_sample": options.sample}
    answer = ""
    for prompt in prompts(options.prompt):
        messages.append({"role": "user", "content": prompt})
        answer = reply(model, tokenizer, messages, args.chat_template_kwargs, **how)
        messages.append({"role": "assistant", "content": answer})
    return answer


def prompts(given: str) -> Iterator[str]:
    """What is given, or all of a pipe; else each line that is typed, up to an empty one."""
    if not given and sys.stdin.isatty():
        with suppress(EOFError, KeyboardInterrupt):
            while line := input("> ").strip():
                yield line
    elif prompt := given or sys.stdin.read().strip():
        yield prompt


class Answer(TextStreamer):
    """Prints an answer while it is generated; nothing in it reaches the terminal as a command."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        super().on_finalized_text(harmless(text), stream_end)


def reply(model: PreTrainedModel, tokenizer: Tokenizer, messages: list, asked: dict, **how) -> str:
    """Print and return the model's next turn, up to its end-of-turn token."""
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True, **asked
    ).to(model.device)
    streamer = Answer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    output = model.generate(**inputs, streamer=streamer, **how)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


if __name__ == "__main__":
    run(main)
