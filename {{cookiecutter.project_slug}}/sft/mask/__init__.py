"""Conversations to `input_ids` and `labels`: the loss mask.

The model is trained on the assistant's replies and their ends alone: there a label is the token
itself, and elsewhere -100, which the loss ignores.

Only the chat template knows what a prompt looks like and how a reply ends, so we ask it. At
inference it renders the messages so far with a generation prompt: each reply is trained after just
these tokens. Mostly the text of the whole conversation has every reply after its own prompt, and is
one example. Where it has not, since templates drop earlier thoughts or move the system text, the
conversation is unrolled: one example for each reply.

Where any of this fails, a `MaskError` says why: a mask is right, or there is none.
"""

from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.mask.batch import encode_batch
from sft.mask.conversation import MaskError

__all__ = ["MaskError", "encode", "encode_batch", "encode_examples"]


def encode(messages: list[dict], tokenizer: Tokenizer, *args, **kwargs) -> dict:
    """The one example of a conversation: what `encode_examples` returns, without the list.

    Raises:
        MaskError: there is no mask that is sure to be right, or one example does not serve.
    """
    example, *others = encode_examples(messages, tokenizer, *args, **kwargs)
    if others:
        raise MaskError(f"{1 + len(others)} examples instead of one", "use encode_examples")
    return example


def encode_examples(
    messages: list[dict],
    tokenizer: Tokenizer,
    max_length: int | None = None,
    turns: str = "all",
    truncation_mode: str = "drop",
    control_tokens: str = "refuse",
    tools: list[dict] | None = None,
    chat_template_kwargs: dict | None = None,
) -> list[dict]:
    """A conversation as examples of `input_ids` and `labels`, two lists of equal length.

    Args:
        messages: `[{"role": ..., "content": ...}, ...]`; what follows the last reply is left out.
        max_length: in tokens; None for any length.
        turns: "all" trains on every reply of the assistant, "last" on the last one only.
        truncation_mode: of a longer conversation "drop" keeps nothing, "truncate_prompt" the newest
            turns, then the end of the prompt, "keep_start" the oldest turns.
        control_tokens: text that reads like a control token: "refuse" it, or "escape" it, which
            spells it out in ordinary tokens.
        tools: what the model may call, as `apply_chat_template` takes it.
        chat_template_kwargs: what else the template takes, such as `{"enable_thinking": False}`.

    Returns:
        One example where one text serves all replies, else one for each. Beside the lists it says
        whether something was left out: `shortened`.

    Raises:
        MaskError: there is no mask that is sure to be right.
    """
    conversation = {"messages": messages, "tools": tools}
    conversation["chat_template_kwargs"] = chat_template_kwargs
    how = (max_length, turns, truncation_mode, control_tokens)
    (examples,) = encode_batch([conversation], tokenizer, *how)
    if isinstance(examples, ValueError):
        raise examples
    return examples
