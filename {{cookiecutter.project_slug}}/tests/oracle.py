"""What should be trained on, found in another way than sft/mask finds it.

Each reply is asked for as a chat asks: its labels have to follow just the tokens of that prompt.
Then its answer is swapped for a sentinel: what the template writes around it is all that may have
labels beside the reply's own words.
"""

import json
import re
from contextlib import suppress
from itertools import pairwise
from unicodedata import normalize

SENTINEL = "Qz0zQ"
TAG = re.compile(r"[<\[][^<>\[\]]*[>\]]")
MARKS = ("weight", "loss", "loss_mask", "train", "training", "trainable")
FIELDS = ("reasoning_content", "reasoning", "thinking")


def judge(conversation: dict, examples: list[dict], tokenizer, turns: str) -> str | None:
    """What is wrong with a conversation's examples: "" for nothing, None if it cannot tell."""
    messages = conversation["messages"]
    kwargs = {"tools": conversation.get("tools"), **conversation.get("chat_template_kwargs", {})}

    def texts(messages: list[dict], **how) -> list[str]:
        """As the template writes them, whichever form of calls it reads."""
        forms = [[_with_calls(one, as_text) for one in messages] for as_text in (False, True)]
        found = []
        for form in [messages, *forms] if forms[0] != forms[1] else [messages]:
            with suppress(Exception):  # templates raise what they like
                found.append(tokenizer.apply_chat_template(form, tokenize=False, **kwargs, **how))
        return found

    replies = [
        at
        for at, message in enumerate(messages)
        if message["role"] == "assistant" and all(message.get(mark, 1) for mark in MARKS)
    ]
    replies = replies if turns == "all" else replies[-1:]
    asked = [at for at in replies if at and messages[at - 1]["role"] != "assistant"]
    trained = [(example, *run) for example in examples for run in runs(example["labels"])]
    if len(trained) != len(replies):
        many = f"{len(trained)} texts are trained on, and there are {len(replies)} replies"
        return many if asked == replies else None
    for at, (example, start, end) in zip(replies, trained, strict=True):
        ids, labels = example["input_ids"], example["labels"]
        if labels[start:end] != ids[start:end]:
            return "a label is another token than its own"
        prompts = texts(messages[:at], add_generation_prompt=True) if at in asked else []
        prompts = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
        if at in asked and ids[:start] not in prompts:
            return f"trained on where no chat asks: after {tokenizer.decode(ids[:start])[-40:]!r}"
        if ids[end - 1] not in {*tokenizer.added_tokens_decoder, tokenizer.eos_token_id}:
            return "the model is not trained to stop"
        if wrong := judge_text(messages[: at + 1], tokenizer.decode(ids[start:end]), texts):
            return wrong
    return ""


def judge_text(messages: list[dict], said: str, texts) -> str:
    """What is wrong with the text that is trained on for the last of the messages."""
    *before, reply = messages
    said, content = (normalize("NFC", text) for text in (said, reply.get("content") or ""))
    inline, tag, answer = content.rpartition("</think>")  # many tokenizers normalize
    thought = (inline or reply.get("reasoning_content") or "").rpartition("<think>")[2].strip()
    calls = _with_calls(reply, as_text=False).get("tool_calls") or []
    called = [[call["function"][key] for key in ("name", "arguments")] for call in calls]
    if not _is_in(said, own := [answer.strip(), thought, *called]):
        return f"not trained on, and part of a reply: one of {own}"
    if calls:
        others = [other["content"] for other in before if other["role"] != "assistant"]
        leaks = [text for text in others if text in said and not _is_in(str(own), text)]
        return f"trained on, and not the assistant's: {leaks}" if leaks else ""

    lead, _, tail = said.rpartition(answer.strip())

    def bare(text: str) -> str:
        start, _, end = text.rpartition(thought) if thought else ("", "", text)
        return "".join(TAG.sub("", start + end).split())

    inside = {**reply, "content": f"{inline}{tag}\n\n{SENTINEL}" if tag else SENTINEL}
    beside = {**reply, "content": SENTINEL, **dict.fromkeys(FIELDS, thought)}
    around = [text for swapped in (inside, beside) for text in texts([*before, swapped])]
    for own, _, after in (text.rpartition(SENTINEL) for text in around):
        if bare(own).endswith(bare(lead)) and bare(after).startswith(bare(tail)):
            return ""
    return f"trained on, and not the assistant's: {lead!r} or {tail!r}" if around else ""


def _with_calls(message: dict, as_text: bool) -> dict:
    """The message with what its calls pass as JSON text or as mappings."""
    calls = []
    for call in message.get("tool_calls") or []:
        function = {"arguments": {}, **call.get("function", call)}
        given = function["arguments"]
        given = json.loads(given) if isinstance(given, str) else given
        function["arguments"] = json.dumps(given, ensure_ascii=False) if as_text else given
        calls.append({**call, "function": function})
    return (
        message | {"content": message["content"] or "", "tool_calls": calls} if calls else message
    )


def _is_in(said: str, value) -> bool:
    """Whether all texts and numbers of a value are there, as JSON text or not."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return all(_is_in(said, one) for one in value)
    ways = (json.dumps(value, ensure_ascii=flag).strip('"') for flag in (False, True))
    return str(value) in said or any(way in said for way in ways)


def runs(labels: list[int]) -> list[tuple[int, int]]:
    """From where to where there are labels, for each text that is trained on."""
    pairs = enumerate(pairwise([-100, *labels, -100]))
    borders = [at for at, (last, this) in pairs if (last == -100) != (this == -100)]
    return list(zip(borders[::2], borders[1::2], strict=True))
