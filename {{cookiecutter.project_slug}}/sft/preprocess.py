"""Conversations to `input_ids` and `labels`: the loss mask.

The model is to learn the assistant's replies and where they end, nothing else. A label is the token
itself where it is learnt and -100 where the loss passes over it. Where a reply begins and ends is
the chat template's secret, so we ask the template: the conversation is rendered once as it is and
once with the reply swapped for a marker. What stands left and right of the marker is the template's
own text; what is left over in the real rendering is the reply.

The rendering is tokenized once, by the tokenizer's own offsets characters become tokens, and a
conversation for which any of this does not hold is refused with a reason, never trained on.
"""

import inspect
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from sft.dataset import columns, to_messages

MARK = "\u2060<reply>\u2060"  # word joiners: templates that trim a reply leave the marker whole


FEATURES = Features(
    {
        "input_ids": List(Value("int32")),
        "labels": List(Value("int32")),
        "reason": Value("string"),
        "length": Value("int32"),
        "trained": Value("int32"),
    }
)


class MaskError(ValueError):
    """This conversation cannot be trained on: `reason` in few words, then the detail."""

    def __init__(self, reason: str, detail: str = ""):
        self.reason = reason
        super().__init__(f"{reason}: {detail}" if detail else reason)


def encode(
    messages: list[dict],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    turns: str = "all",
) -> dict[str, list[int]]:
    """`input_ids`, `attention_mask` and `labels` of one conversation, three lists of equal length.

    Args:
        messages: `[{"role": ..., "content": ...}, ...]`; what follows the last reply is left out.
        max_length: in tokens; a longer conversation is refused, never cut.
        turns: "all" trains on each of the assistant's replies, "last" on the last alone.

    Raises:
        MaskError: no mask can be made that is sure to be right.
    """
    replies = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not replies:
        raise MaskError("no assistant turn")
    messages = messages[: replies[-1] + 1]
    _no_control_tokens(messages, tokenizer)
    text = _render(tokenizer, messages)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    input_ids, offsets = list(encoding["input_ids"]), encoding["offset_mapping"]
    labels = [-100] * len(input_ids)
    added = {
        index for index, token in tokenizer.added_tokens_decoder.items() if token.content.strip()
    }

    for number in replies if turns == "all" else replies[-1:]:
        start, end = _reply_span(messages, number, text, tokenizer)
        reply = [
            position
            for position, (left, right) in enumerate(offsets)
            # a token across the border belongs to the reply, unless it is a control token
            if left < end and right > start and (left >= start or input_ids[position] not in added)
        ]
        stop = _stop(input_ids, offsets, text, end, added, tokenizer.eos_token_id)
        for position in reply + stop:
            labels[position] = input_ids[position]
        if number == replies[-1] and not stop:
            if text[end:].strip():
                raise MaskError("no end-of-turn token", "the template ends a reply with plain text")
            if tokenizer.eos_token_id is None:
                raise MaskError(
                    "no end-of-turn token", "neither the template nor the tokenizer has one"
                )
            input_ids.append(tokenizer.eos_token_id)  # else the model would never learn to stop
            labels.append(tokenizer.eos_token_id)
        elif number == replies[-1] and _text_after(stop, offsets, text, input_ids, added):
            raise MaskError(
                "text after the end of turn", "the template closes the last reply with it"
            )

    if max_length is not None and len(input_ids) > max_length:
        raise MaskError("longer than max_length", f"{len(input_ids)} tokens, {max_length} allowed")
    return {"input_ids": input_ids, "attention_mask": [1] * len(input_ids), "labels": labels}


def _no_control_tokens(messages: list[dict], tokenizer: PreTrainedTokenizerBase) -> None:
    """In a row's text `<|im_end|>` would become the control token itself, and forge a turn."""
    control = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for number, message in enumerate(messages, start=1):
        for token in control:
            if token in str(message["content"]):
                raise MaskError("control token in the text", f"message {number} holds {token}")


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict], **kwargs) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
    except Exception as error:  # templates raise what they like
        raise MaskError("refused by the chat template", str(error)) from error


def _reply_span(messages, number: int, text: str, tokenizer) -> tuple[int, int]:
    """Where reply `number` stands in `text`, from the end of the generation prompt on."""
    content = messages[number]["content"]
    thought, tag, answer = content.rpartition("</think>")  # templates look for a leading thought
    if not answer.strip():
        raise MaskError("empty reply", f"message {number + 1}")
    marked = {**messages[number], "content": thought + tag + MARK}
    rendered = _render(tokenizer, [*messages[:number], marked, *messages[number + 1 :]])
    before, found, after = rendered.partition(MARK)
    start, end = len(before), len(text) - len(after)
    framed = text.startswith(before) and text.endswith(after) and start <= end
    if not found or MARK in after or not framed:
        raise MaskError(
            "the template depends on the reply", f"message {number + 1} cannot be located"
        )
    if text[start:end].strip() != answer.strip():
        raise MaskError("the template rewrites the reply", f"message {number + 1}: {answer[:40]!r}")
    if number and messages[number - 1]["role"] != "assistant":
        # what inference supplies is not to be learnt; what it does not supply is, such as the empty
        # thought that a template writes before an answer without one
        prompt = _render(tokenizer, messages[:number], add_generation_prompt=True)
        if text.startswith(prompt) and len(prompt) <= start:
            start = len(prompt)
    thoughts = (thought.split("<think>")[-1], messages[number].get("reasoning_content") or "")
    if any(part.strip() and part.strip() not in text[start:end] for part in thoughts):
        raise MaskError("the template drops the thinking", f"message {number + 1}")
    return start, end


def _stop(input_ids, offsets, text: str, end: int, added: set[int], eos: int | None) -> list[int]:
    """Positions from the reply's end through its end-of-turn token; none if there is none.

    That token is the first control token behind the reply, or EOS if control tokens lead up to it.
    """
    run, stop = [], []
    for position, (left, right) in enumerate(offsets):
        if left < end:
            continue
        if input_ids[position] not in added and text[left:right].strip():
            break
        run.append(position)
        if input_ids[position] == eos:
            return run
        if input_ids[position] in added and not stop:
            stop = list(run)
    return stop


def _text_after(stop, offsets, text: str, input_ids, added: set[int]) -> bool:
    return any(
        text[left:right].strip() and input_ids[position] not in added
        for position, (left, right) in enumerate(offsets)
        if position > stop[-1]
    )


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The control tokens that the model learns to end its turn with."""
    example = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    labels = encode(example, tokenizer)["labels"]
    control = {*tokenizer.added_tokens_decoder, tokenizer.eos_token_id}
    return [label for label in labels if label in control]


@dataclass
class Report:
    """What became of the rows of one split."""

    rows: int
    set_aside: dict[str, int]  # reason -> rows
    lengths: list[int]  # tokens, one number a row that is used
    trained: list[int]  # tokens with a label, likewise


def preprocess(rows: Dataset, tokenizer: PreTrainedTokenizerBase, args) -> tuple[Dataset, Report]:
    """Encode all rows; those that cannot be trained on are set aside and counted by reason.

    Raises:
        SystemExit: a column is missing, or no row is left.
    """
    missing = [column for column in columns(args) if column not in rows.column_names]
    if missing:
        raise SystemExit(
            f"dataset {args.dataset!r} has no column {missing[0]!r}; "
            f"it has {', '.join(rows.column_names)}."
        )
    encoded = rows.map(
        _encode_row,
        fn_kwargs={"tokenizer": tokenizer, "args": args},
        remove_columns=rows.column_names,
        features=FEATURES,  # not to be guessed from the first rows, which may all be set aside
        desc="Tokenizing and masking",
        # the cache must forget when the tokenizer, the template, a setting or this code changes
        new_fingerprint=_fingerprint(rows, tokenizer, args),
    )
    reasons = encoded["reason"]
    used = encoded.select([index for index, reason in enumerate(reasons) if not reason])
    set_aside = dict(
        Counter(reason.partition(":")[0] for reason in reasons if reason).most_common()
    )
    if len(used) == 0:
        first = next(index for index, reason in enumerate(reasons) if reason)
        raise SystemExit(
            f"No row of {args.dataset!r} can be trained on; row {first + 1}: {reasons[first]}."
        )
    report = Report(len(rows), set_aside, list(used["length"]), list(used["trained"]))
    return used.remove_columns(["reason", "length", "trained"]), report


def _encode_row(row: dict, tokenizer: PreTrainedTokenizerBase, args) -> dict:
    try:
        encoded = encode(to_messages(row, args), tokenizer, args.max_length, args.turns)
    except ValueError as error:
        return {"input_ids": [], "labels": [], "reason": str(error), "length": 0, "trained": 0}
    input_ids, labels = encoded["input_ids"], encoded["labels"]
    trained = sum(label != -100 for label in labels)
    row = {"input_ids": input_ids, "labels": labels, "reason": ""}
    return {**row, "length": len(input_ids), "trained": trained}


def _fingerprint(rows: Dataset, tokenizer: PreTrainedTokenizerBase, args) -> str:
    files = (__file__, inspect.getfile(to_messages))
    code = [Path(file).read_text(encoding="utf-8") for file in files]
    vocabulary = tokenizer.backend_tokenizer.to_str()
    return Hasher.hash([rows._fingerprint, vocabulary, tokenizer.chat_template, vars(args), code])
