"""Is what a project trains on what the chat template says? Held against published templates.

    .venv/bin/python bench/masks.py --corpus FOLDER              rewrites bench/results/masks.md
    .venv/bin/python bench/masks.py --corpus FOLDER --only 'Qwen3|Llama'          only prints it

FOLDER has templates and tokenizers as published, and `corpus_lib.py`, which loads them and has the
conversations; those that call tools are here. `mask_judge.py` says what is right. Faults are
planted in what is right, to see that they are noticed.
"""

import argparse
import datetime
import json
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from pathlib import Path

from mask_judge import Judge, following, runs

BENCH = Path(__file__).resolve().parent
PROJECT = BENCH.parent / "{{cookiecutter.project_slug}}"


def calls(*functions: tuple, content: str | None = None) -> dict:
    made = [
        {"id": number, "type": "function", "function": {"name": name, "arguments": given}}
        for number, name, given in functions
    ]
    return {"role": "assistant", "content": content, "tool_calls": made}


def tool(name: str, **kinds: str) -> dict:
    made = {key: {"type": kind, "description": key} for key, kind in kinds.items()}
    parameters = {"type": "object", "properties": made, "required": [*made][:1]}
    told = {"name": name, "description": f"Does {name}.", "parameters": parameters}
    return {"type": "function", "function": told}


TOOLS = [tool("get_weather", city="string", days="integer"), tool("add_note", text="string")]
ASKED = {"role": "user", "content": "How is the weather in Qxcity?"}
DONE = {"role": "assistant", "content": "Done, 17 degrees."}
WEATHER = ("call00001", "get_weather", {"city": "Qxcity", "days": 3})
NOTE = ("call00002", "add_note", {"text": 'Zü "q"'})
ROUND = [ASKED, calls(WEATHER), *following(calls(WEATHER))]
CALLS = {
    "calls: null": [ASKED, calls(WEATHER)],
    "calls: empty": [ASKED, calls(WEATHER, content="")],
    "calls: text": [ASKED, calls(WEATHER, content="Let me look.")],
    "calls: JSON text": [ASKED, calls((*WEATHER[:2], json.dumps(WEATHER[2])))],
    "calls: quotes": [ASKED, calls(NOTE)],
    "calls: two": [ASKED, calls(WEATHER, NOTE)],
    "calls: round": [*ROUND, DONE],
    "calls: rounds": [*ROUND, calls(NOTE, content=""), *following(calls(NOTE)), DONE],
    "calls: later": [ASKED, DONE, {"role": "user", "content": "Tomorrow?"}, calls(WEATHER)],
    "calls: no arguments": [ASKED, calls((*WEATHER[:2], {}))],
}
REFUSED = "trunc|empty|only_newline|.*_has_special"
ODD = f"{REFUSED}|calls"
PARITY = r"(single|system|multi(3_system)?|think_inline(_multi)?)$"
TURNS = "think|trailing_user|two_assistants|assistant_first"
RATES = {  # kinds of conversation
    "ordinary conversations": f"(?!{ODD}|{TURNS})",
    "also thoughts, and turns that do not alternate": f"(?!{ODD})",
    "one or several turns, thoughts in the text (parity)": PARITY,
    "tool calls, where the template knows tools": "calls",
    "refused on purpose: too long, empty, forged control tokens": REFUSED,
}


def spoiled(examples: list[dict], control: dict) -> dict[str, list[dict]]:
    """The examples, each time with another fault in the last."""
    *others, example = examples
    ids, labels = example["input_ids"], example["labels"]
    *earlier, (first, end) = runs(labels)
    words = max((at + 1 for at in range(first, end) if ids[at] not in control), default=first)

    def trained(*spans: tuple[int, int]) -> list[dict]:
        on = {at for span in (*earlier, *spans) for at in range(*span)}
        made = [token if at in on else -100 for at, token in enumerate(ids)]
        return [*others, {"input_ids": ids, "labels": made}]

    def with_prompt(start: int, stop: int) -> list[dict]:
        new = [*ids[:start], *ids[stop:]], [*labels[:start], *labels[stop:]]
        return [*others, dict(zip(("input_ids", "labels"), new, strict=True))]

    return {
        "begins a token late": trained((first + 1, end)),
        "begins a token early": trained((first - 1, end)),
        "the end of turn is not trained on": trained((first, words)),
        "a token in the middle is not trained on": trained((first, end - 2), (end - 1, end)),
        "what follows is trained on": trained((first, end + 1)) if end < len(ids) else [],
        "another prompt: a token is missing": with_prompt(first // 2, first // 2 + 1),
        "another prompt: its last token is missing": with_prompt(first - 1, first),
        "labels of the next token": [*others, {"input_ids": ids, "labels": [*labels[1:], -100]}],
        "a reply is missing": others,
    }


def judge_pair(job: tuple) -> list[tuple]:
    """Template, conversation, verdict, whether the template can write it, and faults noticed."""
    corpus, record = job
    sys.path[:0] = [corpus, str(PROJECT)]
    import corpus_lib
    from transformers.utils import chat_template_utils

    from sft.mask import encode_examples

    class Stopped(datetime.datetime):  # some templates write the time
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    chat_template_utils.datetime = Stopped
    pair, found = corpus_lib.Pair(corpus, record), []
    plain, calling = Judge(pair.tok), Judge(pair.tok, TOOLS)
    knows = any(calling.wanted(CALLS["calls: null"])) and "add_note" in calling.text([ASKED])
    conversations = corpus_lib.conversations(*corpus_lib.guess_eot(pair))
    for kind, messages in (conversations | (CALLS if knows else {})).items():
        judge = calling if kind in CALLS else plain
        replies = [at for at, one in enumerate(messages) if one["role"] == "assistant"]
        messages, noticed = messages[: replies[-1] + 1], {}
        can = all(any(judge.wanted(messages[: at + 1])) for at in replies)
        can = can and judge.writes(messages)
        how = {"tools": judge.tools, "max_length": 100 if kind.startswith("trunc") else None}
        try:
            examples = encode_examples(deepcopy(messages), pair.tok, **how)
        except ValueError as error:
            verdict = f"refused: {error}"
        else:
            verdict = judge.verdict(messages, examples)
        if verdict == "right":
            cases = spoiled(examples, pair.tok.added_tokens_decoder).items()
            noticed = {name: judge.verdict(messages, bad) != "right" for name, bad in cases}
        found.append((record["name"], kind, verdict, can, noticed))
    return found


def page(found: list[tuple]) -> str:
    """Rates, faults, and what is not right."""
    wrong = sum(not re.match("right|refused", one[2]) for one in found)
    pairs = len({one[0] for one in found})
    lines = [
        "# Masks",
        "",
        f"Of {len(found):,} conversations, on {pairs} published chat templates with their",
        f"tokenizers, {wrong} are silently wrong. What *can be written*: the judge finds a form",
        "in which the template writes all messages and replies, where its prompt asks for it.",
        "",
        "```sh",
        ".venv/bin/python bench/masks.py --corpus FOLDER",
        "```",
        "",
        "| conversations | | right | of all | of what can be written | refused | silently wrong |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, kinds in RATES.items():
        some = [one for one in found if re.match(kinds, one[1])]
        right = sum(one[2] == "right" for one in some)
        refused = sum(one[2].startswith("refused") for one in some)
        can = sum(one[3] or one[2] == "right" for one in some)
        shares = f"{right / max(1, len(some)):.1%} | {right / max(1, can):.1%}"
        shares = " | " if kinds == REFUSED else shares
        counts = f"{refused} | {len(some) - right - refused}"
        lines.append(f"| {name} | {len(some)} | {right} | {shares} | {counts} |")
    lines += ["", "| planted fault | noticed | of |", "|---|---:|---:|"]
    for name in dict.fromkeys(name for one in found for name in one[4]):
        noticed = [one[4][name] for one in found if name in one[4]]
        lines.append(f"| {name} | {sum(noticed)} | {len(noticed)} |")
    lines += ["", "| not right | conversation | can be written | template |", "|---|---|---|---|"]
    causes = {}
    for template, kind, verdict, can, _ in found:
        if verdict != "right" and not re.match(REFUSED, kind):
            verdict = re.sub(r"\s+", " ", verdict).replace("|", "/")[:160]
            causes.setdefault((verdict, kind, "yes" if can else "no"), []).append(template)
    for cause, names in sorted(causes.items()):
        lines.append(f"| {' | '.join(cause)} | {', '.join(names)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--only", help="a pattern of names of templates")
    options = parser.parse_args()
    sys.path.insert(0, options.corpus)
    import corpus_lib

    records = corpus_lib.load_pairs(options.corpus, options.only)
    with ProcessPoolExecutor(2) as pool:
        jobs = [(options.corpus, record) for record in records]
        text = page([one for many in pool.map(judge_pair, jobs) for one in many])
    print(text)
    if not options.only:
        (BENCH / "results" / "masks.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
