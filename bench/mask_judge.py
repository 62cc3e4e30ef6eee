"""What a chat template says is to be trained on: a judge that shares no code with sft/mask.

Each text that is trained on is held against the template's text of the messages through its own
reply. Before it come the very tokens of the prompt that a chat would send, then what the template
writes after that prompt, found with a sentinel for the reply, to the end of the turn, and no more.
"""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from functools import cache, partial
from itertools import groupby, product
from os.path import commonprefix

SENTINEL = "Qz0zQ"
TAG = re.compile(r"[<\[][^<>\[\]]*[>\]]")
THINK = re.compile(r"[<\[]\|?(/|END_)?[^<>\[\]]*think[^<>\[\]]*[>\]]\s*", re.IGNORECASE)
FIELDS = ("reasoning_content", "reasoning", "thinking")


class Judge:
    """What one template and tokenizer make of conversations."""

    def __init__(self, tokenizer, tools: list[dict] | None = None):
        self.tokenizer, self.tools, self.eos = tokenizer, tools, tokenizer.eos_token or ""
        added = [one for one in tokenizer.added_tokens_decoder.values() if one.content.strip()]
        names = sorted({one.content for one in added} | {self.eos} - {""}, key=len, reverse=True)
        self.control = re.compile("|".join(map(re.escape, names)) or "(?!)")
        self.closing = (*(one.content for one in added if one.special), self.eos or "\0")
        self.ids = cache(partial(tokenizer.encode, add_special_tokens=False))
        self.render = cache(self._render)

    def text(self, messages: list[dict], ask: bool = False) -> str:
        """As the template writes it; "" where it refuses."""
        return self.render(json.dumps(messages), ask)

    def _render(self, messages: str, ask: bool) -> str:
        how = {"tokenize": False, "tools": self.tools, "add_generation_prompt": ask}
        try:
            return self.tokenizer.apply_chat_template(json.loads(messages), **how)
        except Exception:  # templates raise what they like
            return ""

    def writes(self, messages: list[dict]) -> bool:
        """Whether what others say is in the text."""
        said = [one["content"].strip() for one in messages if one["role"] != "assistant"]
        texts = [self.text(form) for form in forms(messages)]
        return any(all(words in text for words in said) for text in texts)

    def wanted(self, messages: list[dict]) -> Iterator[tuple[str, str, str]]:
        """For the last reply the prompt, what is trained on after it, what may follow that."""
        for *before, reply in forms(messages):
            is_asked = bool(before) and before[-1]["role"] != "assistant"
            prompt = self.text(before, ask=True) if is_asked else None
            find = self.in_calls if reply.get("tool_calls") else self.in_words
            for shape, start, end in find(before, reply, prompt or ""):
                text = self.text([*before, shape])
                for place, lead in leads(prompt, text[:start], split(shape)[0]):
                    for stop, closing in self.ends(text, end, before, shape):
                        yield place, lead + text[start:stop] + closing, text[stop:]

    def in_words(self, before: list[dict], reply: dict, prompt: str) -> Iterator[tuple]:
        """A reply in the forms that the template writes, and from where to where its answer is."""
        thought, answer = split(reply)
        inline = reply["content"].removesuffix(answer)
        in_field = (reply | dict.fromkeys(FIELDS, thought), "")
        for shape, lead in [in_field, (reply, inline)] if thought else [(reply, inline)]:
            marked = self.text([*before, {**shape, "content": lead + SENTINEL}]).split(SENTINEL)
            shape = {**shape, "content": lead + answer}
            text = self.text([*before, shape])
            start, end = len(marked[0]), len(text) - len(marked[-1])
            is_there = len(marked) == 2 and marked[0] + text[start:end] + marked[1] == text
            if is_there and text[start:end].strip() == answer.strip():
                yield shape, start, end
                if marked[0].count(thought) > prompt.count(thought):
                    return  # in a field: so it is no part of the answer

    def in_calls(self, before: list[dict], reply: dict, prompt: str) -> Iterator[tuple]:
        """From where its text differs from the prompt to the last of what its calls say."""
        text = self.text([*before, reply])
        start = end = after(prompt, text)
        if closed := THINK.match(text, start):
            start = closed.end() if closed[1] else start
        for call in reply["tool_calls"]:
            given = call["function"]["arguments"]
            values = json.loads(given) if isinstance(given, str) else given
            if given != values and any(f'\\"{key}\\"' in text[start:] for key in values):
                return  # JSON text of JSON text
            for word in (call["function"]["name"], *values, *values.values()):
                ways = (json.dumps(word, ensure_ascii=flag).strip('"') for flag in (False, True))
                places = [text.rfind(way, start) + len(way) for way in {*ways, str(word)}
                          if way in text[start:]]  # fmt: skip
                if not places:
                    return
                end = max(end, *places)
        if (reply["content"] or "") in text[start:]:
            yield reply, start, end

    def ends(self, text: str, end: int, before: list[dict], reply: dict) -> Iterator[tuple]:
        """Where the turn ends, and EOS if it is not in the text. What could follow tells it."""
        longer = self.text([*before, reply, *following(reply)]) or text
        shared = after(longer, text, self.control)
        asked = self.text(before or following({}), ask=True)
        tokens = [*self.control.finditer(text, end)]
        headers = (one.end() for one in tokens if asked.endswith(text[one.end() :]))
        if header := next((at for at in headers if text[at:].strip()), None):
            shared, tokens = header, [one for one in tokens if one.end() <= header]
        if reply.get("tool_calls"):
            stop = len((text[:shared] if shared >= end else text).rstrip())
            yield stop, "" if text[:stop].endswith(self.closing) else self.eos
            return
        own = [token for token in tokens if token.end() <= shared] or tokens
        stop = own[0].start() if own else end
        if not own:
            yield from [(len(text), self.eos), (end, self.eos)]
        elif not text[end:stop].strip():
            for token in own:  # one after another, to the end of text if need be
                stop = token.end() if token.start() == stop else stop
            yield stop, ""
            if self.eos and (eos := re.compile(rf"\s*{re.escape(self.eos)}").match(text, stop)):
                yield eos.end(), ""
            if self.control.sub("", text[end:shared]).strip():  # words end it, too
                yield own[-1].end(), ""

    def verdict(self, messages: list[dict], examples: list[dict]) -> str:
        """ "right", or what is wrong."""
        replies = [at for at, one in enumerate(messages) if one["role"] == "assistant"]
        trained = [(example, *run) for example in examples for run in runs(example["labels"])]
        if len(trained) != len(replies):
            return f"wrong: {len(trained)} texts for {len(replies)} replies"
        for at, (example, start, end) in zip(replies, trained, strict=True):
            ids, labels, decode = example["input_ids"], example["labels"], self.tokenizer.decode
            if len(ids) != len(labels) or labels[start:end] != ids[start:end]:
                return "wrong: labels that are not the tokens"
            wanted = self.wanted(messages[: at + 1])
            found = [one for one in wanted if self.ids(one[0]) == ids[:start]]
            said = f"{decode(ids[:start])[-40:]!r}, then {decode(ids[start:end])!r}"
            if not found:
                return f"off: after {said}"
            rest = "" if any(label != -100 for label in labels[end:]) else decode(ids[end:]).strip()
            for prompt, own, tail in found:
                whole = self.ids(prompt + own)
                is_kept = whole[:start] == ids[:start]  # no token spans the border
                same = whole == ids[:end] if is_kept else decode(whole) == decode(ids[:end])
                if same and rest in tail:
                    break
            else:
                return f"wrong: after {said}"
        return "right"


def following(reply: dict) -> list[dict]:
    """What could come after a reply: what its tools answer, or the user."""
    called = [(call["id"], call["function"]["name"]) for call in reply.get("tool_calls") or []]
    answer = {"role": "tool", "content": "SUNNY17"}
    answers = [{**answer, "tool_call_id": number, "name": name} for number, name in called]
    return answers or [{"role": "user", "content": "And then?"}]


def forms(messages: list[dict]) -> Iterator[list[dict]]:
    """The messages as templates may read calls: mappings or JSON text, and content "" or null."""
    has_calls = any(message.get("tool_calls") for message in messages)
    for as_text, empty in product((False, True), ("", None)) if has_calls else [(False, "")]:
        form = deepcopy(messages)
        for message in form:
            for call in message.get("tool_calls") or []:
                message["content"] = message["content"] or empty
                given = call["function"]["arguments"]
                given = json.loads(given) if isinstance(given, str) else given
                given = json.dumps(given, ensure_ascii=False) if as_text else given
                call["function"]["arguments"] = given
        yield form


def split(reply: dict) -> tuple[str, str]:
    """Its thought and its answer."""
    content = reply["content"] or ""
    inline = re.fullmatch(r"\s*<think>(.*?)</think>\s*(.*)", content, re.DOTALL)
    thought, answer = inline.groups() if inline else ("", content)
    return (reply.get("reasoning_content") or thought).strip(), answer


def leads(prompt: str | None, own: str, thought: str) -> Iterator[tuple[str, str]]:
    """The prompt, and what of the text before an answer is trained on.

    Where the text does not go on from the prompt, that may be tags and the thought alone.
    """
    if prompt is None:  # no chat asks here, so there is the text alone
        yield own, ""
        return
    at = after(prompt, own)
    goes_on, rest = own.startswith(prompt), own[at:]
    tag = [one for one in THINK.finditer(prompt) if one.end() == len(prompt)]
    opened = tag[0][0] if tag and not tag[0][1] else ""
    starts = {0} if goes_on else {len(rest), *(one.start() for one in TAG.finditer(rest))}
    starts |= {rest.rfind(thought)} if thought in rest and not goes_on else set()
    for lead in (rest[start:] for start in starts):
        closes = [bool(one[1]) for one in THINK.finditer(opened + lead)]
        is_whole = closes == [False, True] * (len(closes) // 2) or goes_on and closes == [False]
        plain = "" if goes_on else TAG.sub("", lead.replace(thought, "")).strip()
        if is_whole and not plain and thought in lead and not (opened and closes == [False]):
            yield prompt, lead
    if opened and not (thought and thought in rest) and not (goes_on and rest.strip()):
        name = opened.strip()  # the template leaves it open
        end = name.replace("START", "END") if "START" in name else f"{name[0]}/{name[1:]}"
        for before, between in product(("", "\n"), ("", "\n", "\n\n")):
            yield prompt, thought + before + end + between


def after(prompt: str, text: str, unit: re.Pattern = TAG) -> int:
    """To where both are the same: not into a tag, or a token."""
    at = len(commonprefix([prompt, text]))
    return next((one.start() for one in unit.finditer(prompt) if one.start() < at < one.end()), at)


def runs(labels: list[int]) -> list[tuple[int, int]]:
    """From where to where there are labels."""
    groups = groupby(range(len(labels)), key=lambda at: labels[at] != -100)
    spans = [[*span] for is_trained, span in groups if is_trained]
    return [(span[0], span[-1] + 1) for span in spans]
