"""Control tokens in a row's own words, which would forge a turn: refused, or hidden."""

import re

from sft.mask.conversation import MaskError, Row, render_one
from sft.mask.vocabulary import UNUSED, Settings, Vocabulary


def hide_forged(row: Row, settings: Settings) -> None:
    """Hides the control tokens in a row's own words, and notes where they are.

    No character moves: each is replaced by one that means nothing.

    Raises:
        MaskError: there are some, and they are to be refused or cannot be told from the template's.
    """
    vocabulary, hidden = settings.vocabulary, []
    for number, message in enumerate(row.messages, start=1):
        words, found = _hide({k: v for k, v in message.items() if k != "role"}, vocabulary)
        if found and settings.control_tokens == "refuse":
            detail = f"message {number} holds {found[0]}, which forges a turn"
            raise MaskError("control token in the text", detail)
        hidden.append({**message, **words})
    row.safe_messages, row.safe_text = hidden, row.text
    if hidden == row.messages:
        return
    text = render_one(hidden, vocabulary.tokenizer)
    if re.sub(f"{UNUSED}+", lambda m: row.text[slice(*m.span())], text) != row.text:
        raise MaskError("control token in the text", "the chat template hides where it stands")
    runs = [run.span() for run in re.finditer(f"{UNUSED}+", text)]
    row.safe_text = text
    row.forged = [t.span() for run in runs for t in vocabulary.special.finditer(row.text, *run)]


def _hide(words, vocabulary: Vocabulary) -> tuple:
    """Texts, also those inside lists and mappings, with the control tokens hidden; and these."""
    if isinstance(words, str):
        found = vocabulary.special.findall(words)
        if not found:
            return words, []
        return vocabulary.special.sub(lambda m: UNUSED * len(m[0]), words), found
    if isinstance(words, dict):
        parts = [_hide(value, vocabulary) for value in words.values()]
        hidden = dict(zip(words, (part for part, _ in parts), strict=True))
    elif isinstance(words, list):
        parts = [_hide(value, vocabulary) for value in words]
        hidden = [part for part, _ in parts]
    else:
        return words, []
    return hidden, [token for _, found in parts for token in found]
