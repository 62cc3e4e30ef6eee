"""Conversations to `input_ids` and `labels`: the loss mask.

The model is to learn the assistant's replies and where they end, nothing else: a label is the token
itself where it is learnt, and -100 where the loss passes over it. Where a reply stands is the chat
template's secret, so we ask the template. `locate` renders the conversation again with the reply
swapped for a marker: what stands left and right of the marker is the template's own text, what is
left over in the real text is the reply. The real text is tokenized once, and the tokenizer's
offsets carry the reply from characters to tokens.

Where any of this does not hold, a `MaskError` says why: there is a mask that is right, or none.
"""

from typing import NamedTuple

from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.control_tokens import ControlTokens, hide_forged, tokenize_escaped
from sft.conversation import MaskError, attempt, check, check_text, render, shorten, thinking
from sft.end_of_turn import end_of_earlier, end_of_last

MARK = "\u2060reply\u2060"  # word joiners: a template that trims the reply leaves the marker whole


def encode(
    messages: list[dict],
    tokenizer: Tokenizer,
    max_length: int | None = None,
    turns: str = "all",
    truncation_mode: str = "drop",
    control_tokens: str = "refuse",
) -> dict[str, list[int]]:
    """`input_ids`, `attention_mask` and `labels` of one conversation, three lists of equal length.

    Args:
        messages: `[{"role": ..., "content": ...}, ...]`; what follows the last reply is left out.
        max_length: in tokens; `truncation_mode` says what is left out of a longer conversation.
        turns: "all" trains on each of the assistant's replies, "last" on the last alone.
        control_tokens: "refuse" a text with the name of one in it, or "escape" it.

    Raises:
        MaskError: no mask can be made that is sure to be right.
    """
    example = encode_batch([messages], tokenizer, turns, control_tokens)[0]
    if isinstance(example, MaskError):
        raise example
    length = len(example["input_ids"])
    while max_length is not None and len(example["input_ids"]) > max_length:
        excess = len(example["input_ids"]) - max_length
        messages = shorten(messages, excess, tokenizer, truncation_mode)
        if messages is None:
            raise MaskError("longer than max_length", f"{length} tokens, {max_length} allowed")
        example = encode(messages, tokenizer, None, turns, "drop", control_tokens)
    return example


def encode_batch(
    conversations: list[list[dict]], tokenizer: Tokenizer, turns: str, control_tokens: str
) -> list[dict | MaskError]:
    """What `encode` makes of each conversation, whatever its length, or what it raises."""
    control = ControlTokens(tokenizer)
    found = [attempt(find_replies, m, control, turns, control_tokens) for m in conversations]
    texts = ["" if isinstance(result, MaskError) else result.text for result in found]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    tokens = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [
        result if isinstance(result, MaskError) else attempt(label, result, *pair, control)
        for result, pair in zip(found, tokens, strict=True)
    ]


class Rendering(NamedTuple):
    """A conversation as the template writes it; a span is (first character, end)."""

    text: str
    replies: list[tuple[int, int]]  # of each reply, with its end of turn; the last comes first
    is_ended: bool  # whether the template itself ends the last reply
    forged: list[tuple[int, int]]  # of a row's own words that look like control tokens


def find_replies(messages, control: ControlTokens, turns: str, policy: str) -> Rendering:
    """Render a conversation and find the replies to train on, each with its end of turn."""
    messages, trained = check(messages, turns)
    real = render(control.tokenizer, messages)
    check_text(real, messages, control.tokenizer, MARK)
    messages, text, forged = hide_forged(messages, real, control, policy)
    replies, last = [], None
    for at in reversed(trained):
        start, end = locate(messages, at, text, control.tokenizer)
        if last is None:
            last = end_of_last(messages, text, start, end, control)
            stop = end + len(last) if last else len(text)  # but for white space, that is the end
        else:
            stop = end + len(end_of_earlier(messages[at + 1], text, end, last, control))
        replies.append((start, stop))
    return Rendering(real, replies, bool(last), forged)


def locate(messages: list[dict], at: int, text: str, tokenizer: Tokenizer) -> tuple[int, int]:
    """Where the reply `messages[at]` stands in `text`, from the end of the generation prompt on."""
    where, content = f"message {at + 1}", messages[at]["content"]
    thought, tag, answer = content.rpartition("</think>")  # where templates take it apart
    is_plain = thought.lstrip().startswith("<think>") and content.count("think>") == 2
    marked = {**messages[at], "content": thought + tag + MARK}
    swapped = render(tokenizer, [*messages[:at], marked, *messages[at + 1 :]])
    before, mark, after = swapped.partition(MARK)
    start, end = len(before), len(text) - len(after)
    if not mark or not text.startswith(before) or not text.endswith(after):
        raise MaskError("the chat template depends on the reply", f"{where} cannot be located")
    if text[start:end].strip() != answer.strip():
        raise MaskError("the chat template rewrites the reply", f"{where}: {answer.strip()[:40]!r}")

    # what inference supplies is not to be learnt; what it does not supply is, such as the empty
    # thought that a template writes before an answer without one
    opens = at and messages[at - 1]["role"] != "assistant"
    prompt = render(tokenizer, messages[:at], add_generation_prompt=True) if opens else ""
    fits = True
    if prompt and text.startswith(prompt) and len(prompt) <= start:
        start = len(prompt)
    elif tag:  # a thought has to be learnt as it stands
        start = len(text[:end].rstrip()) - len(content.strip())
        supplied = len(prompt) > start and text.startswith(prompt[: start + 1])
        fits = text.startswith(content.strip(), start) and not supplied
    fits &= not tag or is_plain or content.strip() in text[start:end]
    written = text[start:end].rstrip().removesuffix(answer.strip())
    if not fits or any(part not in written for part in thinking(messages[at])):
        raise MaskError(
            "the chat template drops the thinking", f"{where}, or does not prompt for it"
        )
    return start, end


def label(rendering: Rendering, ids, offsets, control: ControlTokens) -> dict[str, list[int]]:
    """Labels for the tokens of the replies; `offsets` has the (first character, end) of each."""
    if rendering.forged:
        ids, offsets = tokenize_escaped(rendering.text, rendering.forged, control)
    labels = [-100] * len(ids)
    for start, stop in rendering.replies:
        for position, (left, right) in enumerate(offsets):
            # a token across the border belongs to the reply, unless it is a control token
            across = left < start and ids[position] in control.ids
            if left < stop and right > start and not across:
                labels[position] = ids[position]
    if not rendering.is_ended:  # the model would never learn to stop
        if control.eos is None:
            raise MaskError("no end-of-turn token", "neither template nor tokenizer has one")
        ids, labels = [*ids, control.eos_id], [*labels, control.eos_id]
    if next(token for token in reversed(labels) if token != -100) not in control.ids:
        raise MaskError("no end-of-turn token", "the tokenizer takes it for plain text")
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
