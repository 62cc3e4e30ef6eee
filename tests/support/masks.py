"""What the tests of the mask share: chat templates of every shape, and what is trained on."""

import sys
from itertools import groupby


def tokenizer_with(template: str, control: list[str], eos: str | None):
    from sft.twin import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": control})
    tokenizer.add_tokens(["<think>", "</think>", "</tool_call>"])
    tokenizer.chat_template, tokenizer.eos_token = template, eos
    return tokenizer


def trained(
    template: str, control: list[str], eos: str, messages: list, options: dict | None = None, **how
) -> list[str] | str:
    """The texts that are trained on, in order, or the sentence of the refusal.

    The project's own oracle has to find nothing wrong with them.
    """
    from sft.mask import MaskError, encode_examples

    how |= options or {}
    tokenizer = tokenizer_with(template, control, eos)
    try:
        examples = encode_examples(messages, tokenizer, **how)
    except MaskError as error:
        return str(error)
    if not how.keys() & {"max_length", "control_tokens"}:  # the ids are to be others
        assert not judged(messages, examples, tokenizer, **how)
    found = []
    for example in examples:
        ids, labels = example["input_ids"], example["labels"]
        assert len(ids) == len(labels)
        assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
        start = 0
        for is_trained, run in groupby(labels, key=lambda label: label != -100):
            end = start + len([*run])
            found += [tokenizer.decode(ids[start:end])] if is_trained else []
            start = end
    return found


def judged(messages: list[dict], examples: list[dict], tokenizer, turns="all", **conversation):
    """What the project's oracle says of the examples."""
    sys.path.insert(0, "tests")
    from oracle import judge

    last = max(at for at, one in enumerate(messages) if one["role"] == "assistant")
    conversation["messages"] = messages[: last + 1]
    return judge(conversation, examples, tokenizer, turns)


def chat(*turns: str) -> list[dict]:
    """Turns written as "user: Hi"."""
    parts = [turn.partition(": ") for turn in turns]
    return [{"role": role, "content": content} for role, _, content in parts]


TWO_TURNS = chat("system: Be brief.", "user: Hi", "assistant: Hello", "user: Who?", "assistant: Me")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# earlier thoughts are taken out, and an answer without one gets an empty one at the end
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% set answer = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n')"
    " if '</think>' in m.content else m.reasoning_content or '' %}"
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ answer }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILIES = {
    "headers of control tokens": (CHATML, ["Hello<|im_end|>", "Me<|im_end|>"]),
    "an empty thought before the last answer": (
        THINKING,
        ["<think>\n\n</think>\n\nHello<|im_end|>", "<think>\n\n</think>\n\nMe<|im_end|>"],
    ),
    "the generation prompt opens the thought": (
        THINKING.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}"),
        ["Hello<|im_end|>", "Me<|im_end|>"],
    ),
    "contents are trimmed": (
        CHATML.replace("m.content", "m.content | trim"),
        ["Hello<|im_end|>", "Me<|im_end|>"],
    ),
    "plain words for headers, EOS for the end": (
        "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}"
        "{{ '</s>' if m.role == 'assistant' else '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
        [" Hello</s>", " Me</s>"],
    ),
    "no end after the last turn": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        "{{ '</s>' if m.role == 'assistant' and not loop.last }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        ["Hello</s>", "Me</s>"],
    ),
    "no end at all": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ["Hello\n</s>", "Me\n</s>"],
    ),
    "the next turn's token is no end": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        ["Hello</s>", "Me</s>"],
    ),
    "the last turn ends otherwise": (
        "{% for m in messages %}<|start|>{{ m.role }}"
        "{{ '<|channel|>final' if m.role == 'assistant' }}<|message|>{{ m.content }}"
        "{{ '</s>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        ["<|channel|>final<|message|>Hello</s>", "<|channel|>final<|message|>Me</s>"],
    ),
    "turns end with plain words, too": (
        "{% for m in messages %}<|open|>{{ m.role }}<|sep|>{{ m.content }}"
        "<|close|>{{ m.role }}<|sep|><|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|open|>assistant<|sep|>{% endif %}",
        ["Hello<|close|>assistant<|sep|><|end|>", "Me<|close|>assistant<|sep|><|end|>"],
    ),
    "the next turn is always opened": (
        CHATML.replace("if add_generation_prompt", "if true").replace("<|im_end|>", "</s>"),
        ["Hello</s>", "Me</s>"],
    ),
    "EOS behind the end": (
        CHATML.replace("<|im_end|>\n{% endfor", "<|im_end|></s>\n{% endfor"),
        ["Hello<|im_end|></s>", "Me<|im_end|></s>"],
    ),
    "two control tokens end a turn": (
        CHATML.replace("<|im_end|>", "<|end|><|close|>"),
        ["Hello<|end|><|close|>", "Me<|end|><|close|>"],
    ),
    "plain headers, no end": (
        "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n{% endif %}",
        ["Hello\n\n</s>", "Me\n\n</s>"],
    ),
    "a control token and words for a header, no end": (
        "{% for m in messages %}<|open|>{{ m.role }}\n{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|open|>assistant\n{% endif %}",
        ["Hello\n</s>", "Me\n</s>"],
    ),
    "the generation prompt has another header": (
        CHATML.replace("assistant\n{% endif %}", "ai\n{% endif %}"),
        ["Hello<|im_end|>", "Me<|im_end|>"],
    ),
    "EOS opens the turns, too": (
        "{% for m in messages %}</s><|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
        "</s><|assistant|>{{ '\n' }}",
        ["Hello</s>", "Me</s>"],
    ),
    "BOS in front": ("<s>" + CHATML, ["Hello<|im_end|>", "Me<|im_end|>"]),
}
CONTROL = """<s> </s> <|im_start|> <|im_end|> <|system|> <|user|> <|assistant|> <|start|> <|end|>
<|channel|> <|message|> <|open|> <|sep|> <|close|>""".split()


def with_options(template: str, messages: list, how: dict, eos: str | None = "</s>"):
    return trained(template, CONTROL, eos, messages, **how)


THOUGHT = "<think>\nHm.\n</think>\n\nMe"
