"""What should be trained on, found in another way than sft/mask finds it.

Each reply is asked for as a chat asks: its labels have to follow just the tokens of that prompt.
Then the reply is swapped for a sentinel: what the template writes around it is all that may have
labels beside the reply's own words.
"""

import re

SENTINEL = "Qz0zQ"
TAG = re.compile(r"[<\[][^<>\[\]]*[>\]]")
MARKS = ("weight", "loss", "loss_mask", "train", "training", "trainable")


def judge(conversation: dict, examples: list[dict], tokenizer, turns: str) -> str | None:
    """What is wrong with a conversation's examples: "" for nothing, None if it cannot tell."""
    messages, tools = conversation["messages"], conversation.get("tools")
    kwargs = {"tools": tools, **conversation.get("chat_template_kwargs", {})}

    def template(messages: list[dict], **how) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs, **how)

    replies = [
        at
        for at, message in enumerate(messages)
        if message["role"] == "assistant" and all(message.get(mark, 1) for mark in MARKS)
    ]
    replies = replies if turns == "all" else replies[-1:]
    if any(at == 0 or messages[at - 1]["role"] == "assistant" for at in replies):
        return None  # no chat would ask for it
    trained = [(example, *run) for example in examples for run in runs(example["labels"])]
    if len(trained) != len(replies):
        return f"{len(trained)} texts are trained on, and there are {len(replies)} replies"
    for at, (example, start, end) in zip(replies, trained, strict=True):
        ids, labels = example["input_ids"], example["labels"]
        if labels[start:end] != ids[start:end]:
            return "a label is another token than its own"
        prompt = template(messages[:at], add_generation_prompt=True)
        if ids[:start] != tokenizer.encode(prompt, add_special_tokens=False):
            return f"trained on where no chat asks: after {tokenizer.decode(ids[:start])[-40:]!r}"
        if ids[end - 1] not in {*tokenizer.added_tokens_decoder, tokenizer.eos_token_id}:
            return "the model is not trained to stop"
        if wrong := judge_text(
            messages[at], tokenizer.decode(ids[start:end]), template, messages[:at]
        ):
            return wrong
    return ""


def judge_text(reply: dict, said: str, template, before: list[dict]) -> str:
    """What is wrong with the text that is trained on for a reply."""
    thought, tag, answer = (reply.get("content") or "").rpartition("</think>")
    lead, found, tail = said.rpartition(answer.strip())
    names = [call["function"]["name"] for call in reply.get("tool_calls", [])]
    if not found or any(name not in said for name in names):
        return f"not trained on, and part of a reply: {answer or names!r}"
    if names:
        return ""
    thoughts = [thought.rpartition("<think>")[2], reply.get("reasoning_content") or ""]
    for words in thoughts:
        lead = lead.replace(words.strip(), "", 1)
    around = template([*before, {"role": "assistant", "content": SENTINEL}])
    own, _, after = around.rpartition(SENTINEL)
    lead, tail = TAG.sub("", lead).strip(), TAG.sub("", tail).strip()
    if not own.rstrip().endswith(lead) or not TAG.sub("", after).strip().startswith(tail):
        return f"trained on, and not the assistant's: {lead or tail!r}"
    return ""


def runs(labels: list[int]) -> list[tuple[int, int]]:
    """From where to where there are labels, for each text that is trained on."""
    borders = [at for at in range(len(labels) + 1) if _has(labels, at - 1) != _has(labels, at)]
    return list(zip(borders[::2], borders[1::2], strict=True))


def _has(labels: list[int], at: int) -> bool:
    return 0 <= at < len(labels) and labels[at] != -100
