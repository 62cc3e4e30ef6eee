"""Control tokens in a row's own words, which would forge a turn: refused, or hidden."""

import re

from sft.mask.conversation import MaskError, Row
from sft.mask.rendering import render
from sft.mask.vocabulary import UNUSED, Settings


def hide_forged(row: Row, settings: Settings) -> None:
    """Hides the control tokens in a row's own words, and notes where they are.

    No character moves: each is replaced by one that means nothing.

    Raises:
        MaskError: there are some, and they are to be refused or cannot be told from the template's.
    """
    special, found = settings.vocabulary.special, []

    def hidden(words):
        """Texts, also those inside lists and mappings, without control tokens."""
        if isinstance(words, str):
            names = special.findall(words)
            found.extend(names)
            return special.sub(lambda name: UNUSED * len(name[0]), words) if names else words
        if isinstance(words, dict):
            return {key: hidden(value) for key, value in words.items()}
        return [hidden(value) for value in words] if isinstance(words, list) else words

    row.safe_text, row.safe_messages = row.text, []
    for number, message in enumerate(row.messages, start=1):
        row.safe_messages.append(hidden(message))
        if found and settings.control_tokens == "refuse":
            detail = f"message {number} holds {found[0]}, which forges a turn"
            raise MaskError("control token in the text", detail)
    if found:
        (text,) = render([row.safe_messages], settings.vocabulary.tokenizer)
        runs = [run.span() for run in re.finditer(f"{UNUSED}+", text)]
        if re.sub(f"{UNUSED}+", lambda run: row.text[slice(*run.span())], text) != row.text:
            raise MaskError("control token in the text", "the chat template hides where it is")
        row.forged = [token.span() for run in runs for token in special.finditer(row.text, *run)]
        row.safe_text = text
