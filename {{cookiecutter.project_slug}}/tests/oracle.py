"""What should be trained on, found in another way than sft/mask finds it.

All that the messages say is swapped for sentinels at once. Between the sentinels is the
template's own text; with the real words put back in it has to be the real rendering, and every
character of that is known to be somebody's.
"""

import re
from functools import partial
from os.path import commonprefix

from jinja2 import TemplateError

SENTINEL = r"Qz\d+zQ"
THOUGHT = re.compile(r"(\s*<think>\s*)(\S.*?)(\s*</think>\s*)(.*)", re.DOTALL)


def judge(conversation: dict, example: dict, tokenizer, turns: str) -> str | None:
    """What is wrong with a mask: "" for nothing, None where the oracle cannot tell."""
    messages, tools = conversation["messages"], conversation.get("tools")
    kwargs = {"tokenize": False, "tools": tools, **conversation["chat_template_kwargs"]}
    template = partial(tokenizer.apply_chat_template, **kwargs)
    text = template(messages)
    try:
        classes = classify(messages, text, template, tokenizer, turns)
    except TemplateError:  # the template takes the whole, and not the parts
        return None
    if classes is None:
        return None
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, labels = encoded["input_ids"], example["labels"]
    if example["input_ids"] not in (ids, [*ids, tokenizer.eos_token_id]):
        return "the ids are not those of the template's text"
    pairs = zip(labels, example["input_ids"], strict=True)
    if any(label not in (-100, token) for label, token in pairs):
        return "a label is another token than its own"
    for (start, end), label in zip(encoded["offset_mapping"], labels, strict=False):
        kinds = set(classes[start:end])
        if kinds == {"reply"} and label == -100:
            return f"not trained on, and part of a reply: {text[start:end]!r}"
        if kinds == {"prompt"} and label != -100:
            return f"trained on, and not the assistant's: {text[start:end]!r}"
    trained = [label for label in labels if label != -100]
    if trained[-1] not in {*tokenizer.added_tokens_decoder, tokenizer.eos_token_id}:
        return "the model is not trained to stop"
    return ""


def classify(messages: list[dict], text: str, template, tokenizer, turns) -> list[str] | None:
    """For each character of `text`: "prompt", "reply", or "either"."""
    marked, words, owners = [], [], []  # sentinels stand for words, which are of messages
    for number, message in enumerate(messages):
        if message.keys() & {"reasoning_content", "tool_calls"} or not message["content"].strip():
            return None
        thought = THOUGHT.fullmatch(message["content"]) if message["role"] == "assistant" else None
        parts, content = thought.groups() if thought else ("", message["content"]), ""
        for literal, said in zip(parts[::2], parts[1::2], strict=True):
            content += f"{literal}Qz{len(words)}zQ"
            words.append(said.strip())
            owners.append(number)
        marked.append({**message, "content": content})

    between = re.split(SENTINEL, template(marked))
    if re.findall(SENTINEL, template(marked)) != [f"Qz{n}zQ" for n in range(len(words))]:
        return None  # something is dropped, moved, or written twice
    pattern = re.escape(between[0])
    for said, literal in zip(words, between[1:], strict=True):
        pattern += rf"(\s*?{re.escape(said)}\s*?)" + re.escape(literal)
    match = re.fullmatch(pattern, text)
    if match is None:
        return None

    classes = ["prompt"] * len(text)
    replies = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    for reply in replies if turns == "all" else replies[-1:]:
        groups = [at + 1 for at, number in enumerate(owners) if number == reply]
        start, end = match.start(groups[0]), match.end(groups[-1])
        before, after = between[groups[0] - 1], between[groups[-1]]
        # what inference does not supply may have labels: an empty thought, or the row's own <think>
        free = re.search(r"(<think>\s*)?$", before)[0]
        if reply and messages[reply - 1]["role"] != "assistant":
            supplied = re.split(SENTINEL, template(marked[:reply], add_generation_prompt=True))[-1]
            if before.startswith(supplied):
                free = before[len(supplied) :]
        classes[start - len(free) : start] = ["either"] * len(free)
        # so may the turn's end: what the template also writes where the conversation ends here, or
        # the next turn's first token, at which some models stop
        final = commonprefix([re.split(SENTINEL, template(marked[: reply + 1]))[-1], after])
        added = (token.content for token in tokenizer.added_tokens_decoder.values())
        blank = after[: len(after) - len(after.lstrip())]
        next_token = next((token for token in added if after.startswith(blank + token)), "")
        final = final.rstrip() or blank + next_token
        classes[end : end + len(final)] = ["either"] * len(final)
        # white space around the words may be the template's; the words are the assistant's
        said = text[start:end]
        left, right = len(said) - len(said.lstrip()), len(said.rstrip())
        classes[start:end] = ["either"] * len(said)
        classes[start + left : start + right] = ["reply"] * (right - left)
    return classes
