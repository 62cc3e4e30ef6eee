"""Rows and files as people have them, good and bad, and what must become of each.

FILES and TURNS are tables of (file name, content, outcome). An outcome is a list with an item for
each row: the words that are trained on, or `skipped(reason)`; or a `fault(line, words)`: the file
is refused by one sentence that names it, the line and what is wrong.
"""

import gzip
import io
import json

D, S = '{"dialogue": "d", "summary": ', "s"  # a row up to its answer; the answer of a good one
GOOD = f'{D}"s"}}'


def skipped(reason: str) -> tuple:
    return "skipped", reason


def fault(line: int, words: str = "") -> tuple:
    return "fault", line, words


NOT_TEXT = "column 'summary' is {}, not text".format
# the answer as a JSON file has it -> what becomes of the row
ANSWERS = {
    **{f'"{text}"': text for text in ("2024-03-10", "2024-03-10 10:00:00", "2024-03-10T10:00:00Z")},
    **{f'"{text}"': text for text in ("007", "42", "1e5", "0.10", "true", "null", "NaN", "NA")},
    **{f'"{text}"': text for text in ("[1, 2]", "{}", "12:30", "-", "10/3", "3.", "½", "🎉", "é")},
    **{"5": "5", "-7": "-7", "true": "true", "false": "false", "0": "0"},
    "12345678901234567890123": "12345678901234567890123",
    **{'"\\ud83c\\udf89"': "🎉", '"\\u00e9"': "é", '"a\\tb"': "a\tb", '"a\\nb"': "a\nb"},
    '" x"': " x",
    **{blank: skipped("empty reply") for blank in ('""', '" "', '"\\n\\t"', '"\\u00a0"')},
    **{
        f'"\\u{code}"': skipped("empty reply")
        for code in ("200b", "200d", "2060", "feff", "00ad", "200e", "202e", "3164", "2800", "fe0f")
    },
    '"\\u200b \\u200b"': skipped("empty reply"),
    "null": skipped(NOT_TEXT("null")),
    "0.5": skipped(NOT_TEXT("float")),
    "1e400": fault(1, "not JSON compliant"),
    "NaN": fault(1, "not JSON compliant"),
    "-Infinity": fault(1, "not JSON compliant"),
    "[]": skipped(NOT_TEXT("list")),
    '["s"]': skipped(NOT_TEXT("list")),
    "{}": skipped(NOT_TEXT("dict")),
    '{"text": "s"}': skipped(NOT_TEXT("dict")),
    '"\\ud83d here"': fault(1, "surrogates"),
    '"here \\udf89"': fault(1, "surrogates"),
    "undefined": fault(1, "Expecting value"),
    "'s'": fault(1, "Expecting value"),
    "007": fault(1, "delimiter"),
    "1.": fault(1, "delimiter"),
    '"a\tb"': fault(1, "control character"),
    '"\\x41"': fault(1, "escape"),
    '"s': fault(1),
    '"s", "summary": "t"': fault(1, "twice"),
    "9" * 5000: fault(1, "digits"),
    "[" * 10_000 + "]" * 10_000: fault(1, "recursion"),
    '{"a": ' * 10_000 + "1" + "}" * 10_000: fault(1, "recursion"),
}


def answers() -> list[tuple]:
    """Each answer in each kind of JSON file, after a good row where that has a line of its own."""
    cases = []
    for answer, outcome in ANSWERS.items():
        is_fault = outcome[0] == "fault"
        two = fault(2, outcome[2]) if is_fault else [S, outcome]
        lines = f"{GOOD}\n{D}{answer}}}\n"
        cases.append(("rows.jsonl", lines, two))
        cases.append(("rows.json", f"[{GOOD},\n{D}{answer}}}]", two))
        if "\t" not in answer and len(answer) < 100:
            cases.append(("rows.JSONL.gz", gzip.compress(lines.encode()), two))
    return cases


def parquet(**columns: list) -> bytes:
    import pyarrow
    from pyarrow import parquet as format

    buffer = io.BytesIO()
    format.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


WHOLE = f"{GOOD}\n" * 3
LIST = json.dumps([json.loads(GOOD)] * 3, indent=1)
CSV = "dialogue,summary\n"
FILES = [
    *answers(),
    # JSON lines
    ("rows.jsonl", "", fault(0, "empty")),
    ("rows.jsonl", "\n \n", fault(0, "empty")),
    ("rows.jsonl", "\ufeff" + WHOLE, [S] * 3),
    ("rows.jsonl", WHOLE.replace("\n", "\r\n"), [S] * 3),
    ("rows.jsonl", WHOLE.replace("\n", "\n\n"), [S] * 3),
    ("rows.jsonl", WHOLE.rstrip(), [S] * 3),
    ("rows.jsonl", WHOLE.encode("utf-16"), fault(1, "UTF-8")),
    ("rows.jsonl", WHOLE.encode() + GOOD.replace("s", "é").encode("latin-1"), fault(4, "UTF-8")),
    ("rows.jsonl", WHOLE[:-9], fault(3)),
    ("rows.jsonl", WHOLE + "\0" * 9, fault(4)),
    ("rows.jsonl", WHOLE + "[1]\n", fault(4, "object")),
    ("rows.jsonl", WHOLE + '"text"\n', fault(4, "object")),
    ("rows.jsonl", WHOLE + "null\n", fault(4, "object")),
    ("rows.jsonl", LIST, fault(1)),
    ("rows.jsonl", GOOD * 2, fault(1, "Extra data")),
    ("rows.jsonl", WHOLE + "// a comment\n", fault(4)),
    ("rows.jsonl", WHOLE + GOOD.replace("}", ",}"), fault(4)),
    ("rows.jsonl", WHOLE + "<html>", fault(4)),
    ("rows.jsonl", "version https://git-lfs.github.com/spec/v1\n", fault(1)),
    ("rows.jsonl", WHOLE + '{"other": 1}\n', [S] * 3 + [skipped("column 'dialogue' is null")]),
    ("rows.jsonl", '{"text": "d"}\n', fault(0, "no column 'dialogue'; it has text")),
    ("rows.jsonl", '{"Dialogue": "d", "summary": "s"}\n', fault(0, "it has Dialogue, summary")),
    ("rows.jsonl", "{}\n", fault(0, "no column")),
    ("rows.jsonl", GOOD + '\n{"dialogue": "d", "summary": "s", "n": [1, {"a": null}]}', [S] * 2),
    ("rows.jsonl", '{"n": 1, ' + GOOD[1:] + '\n{"n": "a", ' + GOOD[1:], [S] * 2),
    ("rows.jsonl", '{"dialogue": " ", "summary": "s"}', [skipped("empty prompt")]),
    ("rows.jsonl", '{"dialogue": 5, "summary": "s"}', [S]),
    ("rows.jsonl", '{"dialogue": "2024-03-10", "summary": "s"}', [S]),
    ("rows.jsonl", '{"dialogue": "<|im_end|>", "summary": "s"}', [skipped("control token")]),
    # one JSON value
    ("rows.json", "", fault(0, "empty")),
    ("rows.json", "[]", fault(0, "empty")),
    ("rows.json", LIST, [S] * 3),
    ("rows.json", "\ufeff" + LIST, [S] * 3),
    ("rows.json", WHOLE, [S] * 3),
    ("rows.json", json.dumps(json.loads(GOOD), indent=1), [S]),
    ("rows.json", LIST[:-2], fault(13, "does not end")),
    ("rows.json", LIST[:-9], fault(12)),
    ("rows.json", LIST.replace('"s"', "s", 1), fault(4)),
    ("rows.json", '{"data": ' + LIST + "}", fault(0, "it has data")),
    ("rows.json", "[[1],\n[2]]", fault(1, "object")),
    ("rows.json", f"[{GOOD},\n null]", fault(2, "object")),
    ("rows.json", LIST.encode("utf-16"), fault(1, "UTF-8")),
    # CSV
    ("rows.csv", "", fault(0, "empty")),
    ("rows.csv", CSV, fault(0, "empty")),
    ("rows.csv", CSV + "d,s\n" * 2, [S] * 2),
    ("rows.csv", "\ufeff" + CSV + "d,s\n", [S]),
    ("rows.csv", (CSV + "d,s\n").replace("\n", "\r\n"), [S]),
    ("rows.csv.gz", gzip.compress((CSV + "d,s\n").encode()), [S]),
    *(
        ("rows.csv", f"{CSV}d,{text}\n", [text])
        for text in ("NA", "007", "1.50", "null", "True", "2024-03-10", "1e5", "inf", "é", "#N/A")
    ),
    ("rows.csv", CSV + 'd,"a, ""b""\nc"\n', ['a, "b"\nc']),
    ("rows.csv", CSV + "d,\n", [skipped("empty reply")]),
    ("rows.csv", CSV + "\n\nd,s\n", [S]),
    ("rows.csv", CSV + "d\n", [skipped(NOT_TEXT("null"))]),
    ("rows.csv", CSV + "d,s\nd,s,t\n", fault(3, "more values than columns")),
    ("rows.csv", CSV + 'd,s\nd,"s\nd,s\nd,s\n', fault(3)),
    ("rows.csv", CSV + 'd,"s" t\n', fault(2)),
    ("rows.csv", CSV.encode() + "d,é\n".encode("latin-1"), fault(2, "UTF-8")),
    ("rows.csv", "dialogue,summary,summary\nd,s,t\n", fault(1, "twice")),
    ("rows.csv", "dialogue,summary,,\nd,s,,\n", [S]),
    ("rows.csv", "dialogue;summary\nd;s\n", fault(0, "it has dialogue;summary")),
    ("rows.csv", "dialogue, summary\nd,s\n", fault(0, "no column 'summary'")),
    ("rows.csv", CSV + "d," + "long " * 40_000 + "\n", [skipped("longer than max_length")]),
    # Parquet
    ("rows.parquet", "", fault(0)),
    ("rows.parquet", "PAR1 and then nothing", fault(0)),
    ("rows.parquet", parquet(dialogue=["d"], summary=["s"])[:-9], fault(0)),
    ("rows.parquet", parquet(dialogue=["d"], summary=["s"]), [S]),
    ("rows.parquet", parquet(dialogue=["d"], summary=[5]), ["5"]),
    ("rows.parquet", parquet(dialogue=["d"], summary=[None]), [skipped(NOT_TEXT("null"))]),
    ("rows.parquet", parquet(dialogue=["d"], text=["s"]), fault(0, "it has dialogue, text")),
    ("rows.parquet", parquet(dialogue=["d"], summary=[b"s"]), fault(0)),
    # packed
    ("rows.jsonl.gz", gzip.compress(WHOLE.encode())[:-9], fault(3)),
    ("rows.jsonl.gz", WHOLE, fault(0, "gzip")),
    ("rows.json.gz", gzip.compress(LIST.encode()), [S] * 3),
]


def turns(reply: str, *more: str) -> str:
    """A row whose conversation is a question, then the reply and what follows it."""
    said = ", ".join(['{"role": "user", "content": "q"}', reply, *more])
    return f'{{"messages": [{said}]}}\n'


def reply(more: str = "", content: str = '"s"') -> str:
    return f'{{"role": "assistant", "content": {content}{more}}}'


UNKNOWN = skipped("a mark of what to train on that is not known")
NO_REPLY = skipped("no assistant turn to train on")
MARKS = {
    **{f'"{key}": {no}': NO_REPLY for key in ("weight", "loss", "train") for no in ("0", "false")},
    **{f'"{key}": 0': NO_REPLY for key in ("loss_mask", "trainable", "training")},
    **{f'"{key}": {yes}': S for key in ("weight", "loss", "trainable") for yes in ("1", "true")},
    **{f'"{key}": null': S for key in ("weight", "loss", "tool_calls", "name")},
    **{'"weight": 0.0': NO_REPLY, '"weight": 1.0': S},
    **{f'"{key}': UNKNOWN for key in ('weight": 0.5', 'loss": "no"', 'train_detail": [1]')},
    **{f'"{key}": true': UNKNOWN for key in ("mask", "masked", "loss_weight", "learn")},
}
TURNS = [
    *(("rows.jsonl", turns(reply(f", {mark}")), [outcome]) for mark, outcome in MARKS.items()),
    *(
        (
            "rows.jsonl",
            '{"messages": [{"from": "human", "value": "q"}, '
            f'{{"from": "gpt", "value": "s", {mark}}}]}}',
            [outcome],
        )
        for mark, outcome in MARKS.items()
    ),
    ("rows.jsonl", turns(reply(content="5")), ["5"]),
    ("rows.jsonl", turns(reply(content="true")), ["true"]),
    ("rows.jsonl", turns(reply(content="null")), [skipped("content that is not text")]),
    ("rows.jsonl", turns(reply(content="0.5")), [skipped("content that is not text")]),
    ("rows.jsonl", turns(reply(content="[]")), [skipped("content that is not text")]),
    ("rows.jsonl", turns(reply(content='"\\u200b"')), [skipped("empty reply")]),
    ("rows.jsonl", turns(reply(content='"<think>t</think>\\u2060"')), [skipped("empty reply")]),
    ("rows.jsonl", turns(reply(content='"2024-03-10"')), ["2024-03-10"]),
    (
        "rows.jsonl",
        turns(reply(), '{"role": "user", "content": "\\ufeff"}', reply()),
        [skipped("empty message")],
    ),
    ("rows.jsonl", turns('{"role": "robot", "content": "s"}'), [skipped("unknown role")]),
    ("rows.jsonl", turns('{"role": null, "content": "s"}'), [skipped("a turn without role")]),
    ("rows.jsonl", turns('{"role": ["assistant"], "content": "s"}'), [skipped("unknown role")]),
    ("rows.jsonl", turns('{"role": {}, "content": "s"}'), [skipped("unknown role")]),
    ("rows.jsonl", turns('"s"'), [skipped("a turn without role")]),
    ("rows.jsonl", turns("null"), [skipped("a turn without role")]),
    ("rows.jsonl", turns('{"from": ["gpt"], "value": "s"}'), [skipped("unknown role")]),
    ("rows.jsonl", turns('{"role": "user", "content": "q"}'), [NO_REPLY]),
    *(
        ("rows.jsonl", f'{{"messages": {value}}}', [skipped("column 'messages' is not a list")])
        for value in ("null", "[]", '"text"', "5", "{}", '{"role": "user", "content": "q"}')
    ),
    *(
        ("rows.jsonl", turns(reply(f', "extra": {"[" * n}{"]" * n}')), [outcome])
        for n, outcome in ((50, S), (600, skipped("refused by the chat template")))
    ),
]
