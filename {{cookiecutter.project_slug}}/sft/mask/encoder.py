"""Conversations to `input_ids` and `labels`: the loss mask.

The model is to learn the assistant's replies and where they end, nothing else: a label is the token
itself where it is learnt, and -100 where the loss passes over it. Where a reply stands is the chat
template's secret, so we ask the template. What it prompts a reply with ends where the reply begins,
and most replies stand there word for word. For the others `locate` renders the conversation again
with the reply swapped for a marker: what stands left and right of the marker is the template's own
text, what is left over in the real text is the reply. The real text is tokenized once, and
sft/mask/tokens.py carries the reply from characters to tokens.

Where any of this does not hold, a `MaskError` says why: there is a mask that is right, or none.

Conversations are rendered and tokenized by the batch: one call for many costs much less than many.
"""

from typing import NamedTuple

from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.mask.control_tokens import ControlTokens, Span, hide_forged, tokenize_escaped
from sft.mask.conversation import (
    MaskError,
    attempt,
    check,
    check_text,
    of_sound,
    render_each,
    shorten,
    thinking,
)
from sft.mask.end_of_turn import end_of_earlier, end_of_last
from sft.mask.tokens import Tokens

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
    encoder = Encoder(tokenizer, turns, control_tokens)
    example = encoder.encode(messages)
    if max_length is None:
        return example
    return encoder.fit(example, messages, max_length, truncation_mode)


def encode_batch(
    conversations: list[list[dict]], tokenizer: Tokenizer, turns: str, control_tokens: str
) -> list[dict | MaskError]:
    """What `encode` makes of each conversation, whatever its length, or what it raises."""
    return Encoder(tokenizer, turns, control_tokens).encode_batch(conversations)


class Rendering(NamedTuple):
    """A conversation as the template writes it; a span is (first character, end)."""

    messages: list[dict]
    trained: list[int]  # the positions of the replies to learn
    text: str
    searched: str  # the same, with what looks like a control token in a row's own words hidden
    forged: list[tuple[int, int]]  # where that stands


class Found(NamedTuple):
    """Where the replies of a conversation stand."""

    rendering: Rendering
    replies: list[tuple[int, int]]  # each with its end of turn; the last comes first
    is_ended: bool  # whether the template itself ends the last reply


class Encoder:
    """Encodes conversations, and keeps what is the same for all; arguments as of `encode`."""

    def __init__(self, tokenizer: Tokenizer, turns: str, control_tokens: str):
        self.tokenizer, self.turns, self.policy = tokenizer, turns, control_tokens
        self.control = ControlTokens(tokenizer)
        self.tokens = Tokens(tokenizer, self.control)

    def encode(self, messages: list[dict]) -> dict[str, list[int]]:
        """The example of one conversation, whatever its length.

        Raises:
            MaskError: there is none that is sure to be right.
        """
        example = self.encode_batch([messages])[0]
        if isinstance(example, ValueError):
            raise example
        return example

    def encode_batch(self, conversations: list[list[dict]]) -> list[dict | MaskError]:
        """What `encode` makes of each conversation, or what it raises."""
        checked = [attempt(check, messages, self.turns) for messages in conversations]
        return of_sound(self._label, of_sound(self._find, of_sound(self._render, checked)))

    def fit(self, example: dict, messages: list[dict], max_length: int, truncation_mode: str):
        """The example of the conversation, shortened if it has more than `max_length` tokens.

        Raises:
            MaskError: it has, and nothing may be left out, or what is left cannot be masked.
        """
        length = len(example["input_ids"])
        while len(example["input_ids"]) > max_length:
            excess = len(example["input_ids"]) - max_length
            messages = shorten(messages, excess, self.tokenizer, truncation_mode)
            if messages is None:
                raise MaskError("longer than max_length", f"{length} tokens, {max_length} allowed")
            example = self.encode(messages)
        return example

    def _render(self, checked: list[tuple[list[dict], list[int]]]) -> list[Rendering | MaskError]:
        texts = render_each(self.tokenizer, [messages for messages, _ in checked])
        return [attempt(self._hide, text, *pair) for text, pair in zip(texts, checked, strict=True)]

    def _hide(self, text: str, messages: list[dict], trained: list[int]) -> Rendering:
        check_text(text, messages, self.tokenizer, MARK)
        messages, searched, forged = hide_forged(messages, text, self.control, self.policy)
        return Rendering(messages, trained, text, searched, forged)

    def _find(self, renderings: list[Rendering]) -> list[Found | MaskError]:
        """The prompt shows where most last replies stand; others take another rendering."""
        places = [(r, at) for r in renderings for at in reversed(r.trained)]
        prompts = self._prompts(places)
        shown = [
            attempt(behind_prompt, r, at, prompt)
            for (r, at), prompt in zip(places, prompts, strict=True)
        ]
        hidden = [place for place, span in zip(places, shown, strict=True) if not span]
        marked = iter(render_each(self.tokenizer, [mark(r.messages, at) for r, at in hidden]))
        spans = iter(
            [
                span or attempt(locate, r.messages, at, r.searched, prompt, next(marked))
                for (r, at), prompt, span in zip(places, prompts, shown, strict=True)
            ]
        )
        return [
            attempt(find_replies, r, [next(spans) for _ in r.trained], self.control)
            for r in renderings
        ]

    def _prompts(self, places: list[tuple[Rendering, int]]) -> list[str | MaskError]:
        """What inference would prompt each reply with; "" where it would not ask for that one."""
        asked = [at > 0 and r.messages[at - 1]["role"] != "assistant" for r, at in places]
        before = [
            r.messages[:at] for (r, at), is_asked in zip(places, asked, strict=True) if is_asked
        ]
        prompts = iter(render_each(self.tokenizer, before, add_generation_prompt=True))
        return [next(prompts) if is_asked else "" for is_asked in asked]

    def _label(self, found: list[Found]) -> list[dict | MaskError]:
        tokens = self.tokens.encode_batch(
            [one.rendering.text for one in found], [one.replies for one in found]
        )
        return [
            attempt(label, one, *ids_and_places, self.tokens)
            for one, ids_and_places in zip(found, tokens, strict=True)
        ]


def mark(messages: list[dict], at: int) -> list[dict]:
    """The conversation with the answer of the reply `messages[at]` swapped for the marker."""
    thought, tag, _ = messages[at]["content"].rpartition("</think>")  # templates part it there
    marked = {**messages[at], "content": thought + tag + MARK}
    return [*messages[:at], marked, *messages[at + 1 :]]


def find_replies(rendering: Rendering, spans: list[Span | MaskError], control) -> Found:
    """The replies to train on, each with its end of turn; `spans` has them from the last one on."""
    messages, text = rendering.messages, rendering.searched
    replies, last = [], None
    for at, span in zip(reversed(rendering.trained), spans, strict=True):
        if isinstance(span, MaskError):
            raise span
        start, end = span
        if last is None:
            last = end_of_last(messages, text, start, end, control)
            stop = end + len(last) if last else len(text)  # but for white space, that is the end
        else:
            stop = end + len(end_of_earlier(messages[at + 1], text, end, last, control))
        replies.append((start, stop))
    return Found(rendering, replies, bool(last))


def behind_prompt(rendering: Rendering, at: int, prompt: str) -> Span | None:
    """Where the last reply stands, if its words are behind the prompt just once.

    Then the template has made nothing else of it. Behind an earlier one are other messages' words.
    """
    messages, text = rendering.messages, rendering.searched
    is_bare = messages[at].keys() == {"role", "content"}  # no thought stands beside the content
    if not prompt or not is_bare or at + 1 < len(messages) or not text.startswith(prompt):
        return None
    words, start = messages[at]["content"], len(prompt)
    first, last = text.find(words, start), text.rfind(words, start)  # they may overlap
    return (start, first + len(words)) if first == last >= 0 else None


def locate(messages: list[dict], at: int, text: str, prompt: str, swapped: str) -> Span:
    """Where the reply `messages[at]` stands in `text`, from the end of the generation prompt on.

    Args:
        prompt: the messages before it, rendered with a generation prompt; "" if inference has none.
        swapped: what `mark` made of the conversation, rendered.

    Raises:
        MaskError: the template makes something else of the reply, or drops its thought.
    """
    where, content = f"message {at + 1}", messages[at]["content"]
    thought, tag, answer = content.rpartition("</think>")  # where templates take it apart
    is_plain = thought.lstrip().startswith("<think>") and content.count("think>") == 2
    before, marker, after = swapped.partition(MARK)
    start, end = len(before), len(text) - len(after)
    if not marker or not text.startswith(before) or not text.endswith(after):
        raise MaskError("the chat template depends on the reply", f"{where} cannot be located")
    if text[start:end].strip() != answer.strip():
        raise MaskError("the chat template rewrites the reply", f"{where}: {answer.strip()[:40]!r}")

    # what inference supplies is not to be learnt; what it does not supply is, such as the empty
    # thought that a template writes before an answer without one
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


def label(found: Found, ids: list[int], places: list[Span], tokens: Tokens) -> dict[str, list[int]]:
    """Labels for the tokens of the replies; `places` has the (first token, end) of each.

    Raises:
        MaskError: no token of it says that the last reply ends.
    """
    control = tokens.control
    if found.rendering.forged:
        ids, offsets = tokenize_escaped(found.rendering.text, found.rendering.forged, control)
        places = tokens.by_offset(ids, offsets.__getitem__, found.replies)
    labels = [-100] * len(ids)
    for first, end in places:
        labels[first:end] = ids[first:end]
    if not found.is_ended:  # the model would never learn to stop
        if control.eos is None:
            raise MaskError("no end-of-turn token", "neither template nor tokenizer has one")
        ids, labels = [*ids, control.eos_id], [*labels, control.eos_id]
    if next(token for token in reversed(labels) if token != -100) not in control.ids:
        raise MaskError("no end-of-turn token", "the tokenizer takes it for plain text")
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
