"""Conversations as other tools write them: tools, calls, what else the chat template is given."""

import json

import pytest

from conftest import in_project

SCHEMA = {
    "name": "weather",
    "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = {"name": "weather", "arguments": {"city": "Bonn"}}
TOOLS = [{"type": "function", "function": SCHEMA}]
CALLS = [{"type": "function", "function": CALL}]
USER = {"role": "user", "content": "Is it raining?"}
ANSWER = {"role": "tool", "content": '{"rain": true}'}
END = {"role": "assistant", "content": "Yes."}
CONVERSATION = {
    "messages": [USER, {"role": "assistant", "tool_calls": CALLS}, ANSWER, END],
    "tools": TOOLS,
    "chat_template_kwargs": {},
}


def openai(tools=TOOLS, **reply) -> dict:
    return {"messages": [USER, {"role": "assistant", **reply}, ANSWER, END], "tools": tools}


def sharegpt(called, tools, call="function_call", answer="observation") -> dict:
    turns = [
        ("human", "Is it raining?"),
        (call, called),
        (answer, '{"rain": true}'),
        ("gpt", "Yes."),
    ]
    return {
        "messages": [{"from": name, "value": value} for name, value in turns],
        "tools": tools,
        "system": "",
    }


ALIKE = {
    "OpenAI's": openai(tool_calls=CALLS),
    "content null": openai(tool_calls=CALLS, content=None),
    "content empty": openai(tool_calls=CALLS, content=""),
    "calls and tools as JSON text": openai(json.dumps(TOOLS), tool_calls=json.dumps(CALLS)),
    "each of them as JSON text": openai([json.dumps(SCHEMA)], tool_calls=[json.dumps(CALL)]),
    "without type": openai([{"function": SCHEMA}], tool_calls=[{"function": CALL}]),
    "the function alone": openai([SCHEMA], tool_calls=[CALL]),
    "OpenAI's older": openai(function_call=CALL, content=None),
    "ShareGPT's": sharegpt(json.dumps(CALL), json.dumps([SCHEMA])),
    "ShareGPT's, of several": sharegpt(json.dumps([CALL]), json.dumps(TOOLS)),
    "ShareGPT's, no text": sharegpt(CALL, [SCHEMA]),
    "ms-swift's": sharegpt(json.dumps(CALL), json.dumps(TOOLS), "tool_call", "tool_response"),
    "with Arrow's nulls": {
        "messages": [
            {**USER, "tool_calls": None, "name": None},
            {
                "role": "assistant",
                "content": None,
                "name": None,
                "tool_calls": [
                    {
                        "id": None,
                        "type": "function",
                        "function": {
                            "name": "weather",
                            "arguments": {"city": "Bonn", "unit": None, "box": None},
                        },
                    }
                ],
            },
            {**ANSWER, "tool_calls": None},
            {**END, "tool_calls": []},
        ],
        "tools": [{**TOOLS[0], "function": {**SCHEMA, "strict": None}}],
        "chat_template_kwargs": {"enable_thinking": None},
        "system": None,
    },
}


def conversations(rows: list[dict], *options: str) -> list:
    """What becomes of each row: its conversation, or why it has none."""
    from sft.config import project_arguments
    from sft.files import plain_row
    from sft.format import to_conversation

    args, found = project_arguments([*options]), []
    for row in rows:
        try:
            found.append(to_conversation(plain_row(row), args))
        except ValueError as error:
            found.append(str(error))
    return found


@pytest.fixture(scope="module")
def project(bake_once):
    return bake_once.project(
        project_slug="others", dataset_format="messages", quantization="none", collator="seq2seq"
    )


def test_each_form_of_a_call_is_the_same_conversation(project):
    found = in_project(project, conversations, [*ALIKE.values()])
    assert {name: one for name, one in zip(ALIKE, found, strict=True) if one != CONVERSATION} == {}


def say(*turns: tuple, **beside) -> dict:
    return {"messages": [{"from": name, "value": value} for name, value in turns], **beside}


ASK, REPLY = ("human", "Hi"), ("gpt", "Hello")
TWO = json.dumps([CALL, CALL])
# what a row holds -> what the chat template is given, by a path into it
READ = {
    "several calls": (say(ASK, ("function_call", TWO)), "messages.1.tool_calls", CALLS * 2),
    "calls one after the other": (
        say(ASK, *[("tool_call", json.dumps(CALL))] * 2), "messages.1.tool_calls", CALLS * 2
    ),
    "a thought before a call": (
        say(ASK, ("function_call", f"<think>\nRain?\n</think>\n\n{json.dumps(CALL)}")),
        "messages.1",
        {"role": "assistant", "content": "<think>\nRain?\n</think>", "tool_calls": CALLS},
    ),
    "text beside a call": (
        openai(content="I look.", tool_calls=CALLS), "messages.1.content", "I look."
    ),
    "arguments as JSON text are the mask's": (
        openai(tool_calls=[{"function": {"name": "f", "arguments": '{"a": null}'}}]),
        "messages.1.tool_calls.0.function.arguments",
        '{"a": null}',
    ),
    "a call's id": (
        openai(tool_calls=[{"id": "call_1", **CALLS[0]}]), "messages.1.tool_calls.0.id", "call_1"
    ),
    "Hermes' calls are text": (
        say(ASK, ("gpt", f"<tool_call>\n{CALL}\n</tool_call>"), ("tool", "{}"), REPLY),
        "messages.1.content",
        f"<tool_call>\n{CALL}\n</tool_call>",
    ),
    "Hermes' tools are in its system turn": (
        say(("system", f"<tools>{SCHEMA}</tools>"), ASK, REPLY, tools=json.dumps(TOOLS)),
        "tools",
        None,
    ),
    "a user's <tools> are none": (say(("human", "<tools>?"), REPLY, tools=TOOLS), "tools", TOOLS),
    "no tools": (say(ASK, REPLY, tools="[]"), "tools", None),
    "a system column": (
        say(ASK, REPLY, system="Be brief."),
        "messages.0",
        {"role": "system", "content": "Be brief."},
    ),
    "a system turn wins": (
        say(("system", "Be kind."), ASK, REPLY, system="Be brief."),
        "messages.0.content",
        "Be kind.",
    ),
    "config.yaml's switches": (
        say(ASK, REPLY), "chat_template_kwargs", {"enable_thinking": False, "date": "today"}
    ),
    "a row's switches win": (
        say(ASK, REPLY, chat_template_kwargs={"enable_thinking": True}),
        "chat_template_kwargs",
        {"enable_thinking": True, "date": "today"},
    ),
    "a row's switches as JSON text": (
        say(ASK, REPLY, chat_template_kwargs='{"date": "1 May"}'),
        "chat_template_kwargs",
        {"enable_thinking": False, "date": "1 May"},
    ),
}  # fmt: skip
REFUSED = {
    "tools that are text": (say(ASK, REPLY, tools="weather"), "column 'tools'"),
    "tools that are a number": (say(ASK, REPLY, tools=5), "column 'tools'"),
    "tools cut off": (say(ASK, REPLY, tools=json.dumps(TOOLS)[:-2]), "column 'tools'"),
    "tools without names": (say(ASK, REPLY, tools=[{"parameters": {}}]), "column 'tools'"),
    "one tool of none": (say(ASK, REPLY, tools=[*TOOLS, None]), "column 'tools'"),
    "a call cut off": (
        say(ASK, ("function_call", '{"name": "f", ')), "in column 'messages': turn 2"
    ),
    "an empty call": (say(ASK, ("function_call", "")), "in column 'messages': turn 2"),
    "a call after a call of nothing": (
        say(ASK, ("function_call", json.dumps(CALL)), ("function_call", "")),
        "in column 'messages': turn 3",
    ),
    "calls without a name": (openai(tool_calls=[{"id": "1"}]), "in column 'messages': turn 2"),
    "calls that are text": (openai(tool_calls="weather"), "in column 'messages': turn 2"),
    "no turn": (say(ASK) | {"messages": [USER, "Hi"]}, "in column 'messages': turn 2"),
    "a system column of turns": (say(ASK, REPLY, system=[{}]), "column 'system' is list, not text"),
    "switches that are a list": (
        say(ASK, REPLY, chat_template_kwargs=["a"]), "column 'chat_template_kwargs'"
    ),
    "switches that are text": (
        say(ASK, REPLY, chat_template_kwargs="no"), "column 'chat_template_kwargs'"
    ),
}  # fmt: skip
OPTIONS = ["--chat_template_kwargs={enable_thinking: false, date: today}"]


def at(found: object, path: str) -> object:
    for part in path.split("."):
        found = found[int(part)] if isinstance(found, list) else found.get(part)
    return found


def test_what_stands_beside_the_turns_is_read(project):
    found = in_project(project, conversations, [row for row, _, _ in READ.values()], *OPTIONS)
    cases = zip(READ.items(), found, strict=True)
    given = {name: (at(one, path), wanted) for (name, (_, path, wanted)), one in cases}
    assert {name: pair for name, pair in given.items() if pair[0] != pair[1]} == {}


def test_config_yaml_s_system_prompt_is_for_rows_without_their_own(project):
    rows = [say(ASK, REPLY, system=system) for system in ("", None, "Be brief.")]
    found = in_project(project, conversations, rows, "--system_prompt=Be kind.")
    firsts = [one["messages"][0]["content"] for one in found]
    assert firsts == ["Be kind.", "Be kind.", "Be brief."]


def test_a_cell_that_is_none_of_these_is_named_with_its_column_and_turn(project):
    found = in_project(project, conversations, [row for row, _ in REFUSED.values()])
    pairs = zip(REFUSED.items(), found, strict=True)
    wrong = {name: one for (name, (_, words)), one in pairs if words not in one}
    assert wrong == {} and all("\n" not in one for one in found)


def loaded(paths: list) -> list:
    """The conversations of each dataset, or the words that it is refused with."""
    from sft.config import project_arguments
    from sft.files import plain_row
    from sft.format import to_conversation
    from sft.rows import load_rows

    found = []
    for path in paths:
        args = project_arguments([f"--dataset={path}"])
        found.append([to_conversation(plain_row(row), args) for row in load_rows(args)["train"]])
    return found


def test_columns_beside_the_turns_are_read_from_each_kind_of_dataset_and_not_required(
    project, tmp_path
):
    from datasets import Dataset

    without = {"messages": [USER, END]}
    whole = {**CONVERSATION, "chat_template_kwargs": {"date": "today"}}
    other = json.loads(json.dumps(whole).replace('"city"', '"town"'))
    bare = {"messages": [USER, END], "chat_template_kwargs": {}}
    text = [json.dumps(row) for row in (without, {**whole, "more": 1}, other)]
    (tmp_path / "mixed.jsonl").write_text("\n".join(text))
    (tmp_path / "bare.jsonl").write_text(text[0])
    first = {**without, **dict.fromkeys(whole.keys() - without.keys())}
    arrow = Dataset.from_list([first, whole, other])  # with nulls for the keys of the others
    arrow.to_parquet(tmp_path / "mixed.parquet")
    arrow.to_json(tmp_path / "arrow.jsonl")
    arrow.save_to_disk(tmp_path / "saved")
    names = ["mixed.jsonl", "mixed.parquet", "arrow.jsonl", "saved", "bare.jsonl"]
    *mixed, alone = in_project(project, loaded, [f"{tmp_path / name}" for name in names])
    assert alone == [bare] and mixed == [[bare, whole, other]] * 4


def unrolled(conversations: list, tokenizer, *options, **how) -> list:
    """In place of the mask: one example for each reply, of as many tokens as there are turns."""
    found = []
    for one in conversations:
        if isinstance(one, ValueError):
            found.append(one)
            continue
        ends = [at for at, turn in enumerate(one["messages"]) if turn["role"] == "assistant"]
        of_row = [{"input_ids": [5] * (at + 1), "labels": [-100] * at + [5]} for at in ends]
        found.append([{**example, "shortened": False} for example in of_row])
    return found


def reported(rows: list, *options: str) -> tuple:
    """The examples by split, and what is said of them."""
    from datasets import Dataset

    from sft import examples
    from sft.config import project_arguments
    from sft.twin import build_tokenizer

    examples.encode_batch = unrolled
    given = {"train": Dataset.from_list(rows, on_mixed_types="use_json")}
    args = project_arguments(["--max_skipped=1", *options])
    made, reports = examples.make_examples(given, build_tokenizer(), args)
    said = {split: (report.figures(), report.skipped) for split, report in reports.items()}
    return {split: these.to_list() for split, these in made.items()}, said


def talk(replies: int, word: str = "Hi") -> dict:
    return say(*[("human", word), REPLY] * replies)


def test_rows_and_examples_are_counted_apart_and_a_row_keeps_its_number(project):
    rows = [talk(2), talk(3), {"messages": []}, talk(1)]
    made, said = in_project(project, reported, rows, "--test_size=0")
    figures, skipped = said["train"]
    assert len(made["train"]) == 6
    assert (figures["rows"], figures["used"]) == ("4", "3")
    assert figures["examples made of these"] == "6"
    # 2 + 4, 2 + 4 + 6 and 2 tokens, and 4 + 6 + 2 with one example each
    assert figures["times the tokens of one a row"] == f"{20 / 12:.2f}"
    assert figures["median length, tokens"] == "3" and figures["longest, tokens"] == "6"
    assert figures["trained tokens"] == "6" and figures["% of all tokens"] == "30"  # of 20
    assert [number for those in skipped.values() for number, _ in those] == [3]
    _, said = in_project(project, reported, [talk(1)] * 3, "--test_size=0")
    assert not {"examples made of these", "times the tokens of one a row"} & said["train"][0].keys()


def test_all_examples_of_a_row_and_of_its_equals_are_on_one_side(project):
    rows = [talk(1 + n % 3, f"Say {n // 2}") for n in range(24)]
    rows[5] = rows[4] = talk(40, "Say 2")
    for size in ("0.1", "0.5"):
        made, said = in_project(project, reported, rows, f"--test_size={size}")
        sizes = {split: int(figures["rows"]) for split, (figures, _) in said.items()}
        assert sum(sizes.values()) == 24 and sum(map(len, made.values())) == 48 - 5 + 80
        assert sizes["evaluation"] == pytest.approx(24 * float(size), abs=1)
        assert said["evaluation"][0]["of these also trained on"] == "0"


def test_rows_to_evaluate_that_are_also_trained_on_are_counted_once(project):
    said = in_project(project, overlapping, [talk(3), talk(1)], [talk(3), talk(3), talk(2)])
    assert said["of these also trained on"] == "2"


def overlapping(train: list, evaluation: list) -> dict:
    from datasets import Dataset

    from sft import examples
    from sft.config import project_arguments
    from sft.twin import build_tokenizer

    examples.encode_batch = unrolled
    rows = {"train": Dataset.from_list(train), "evaluation": Dataset.from_list(evaluation)}
    _, reports = examples.make_examples(rows, build_tokenizer(), project_arguments([]))
    return reports["evaluation"].figures()


def previewed(path: str) -> tuple:
    import contextlib
    import io

    import preview

    from sft import examples
    from sft.twin import build_tokenizer

    examples.encode_batch = unrolled
    options = ["--dataset", path, "--max_skipped=1", "--chat_template_kwargs={messages: 1, x_y: 1}"]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        page = preview.main(["--smoke", *options])
    with contextlib.redirect_stderr(io.StringIO()) as drawn:
        two = {"input_ids": [65, 66, 67, 68], "labels": [-100, 66, -100, 68]}
        preview.show("two replies", two, build_tokenizer())
    return said.getvalue(), page.read_text(encoding="utf-8"), drawn.getvalue()


def test_the_preview_names_row_and_example_and_marks_where_the_prompt_ends(project, tmp_path):
    rows = [talk(2), {"messages": "Hi"}, talk(1)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    terminal, page, drawn = in_project(project, previewed, str(tmp_path / "rows.jsonl"))
    for title in ("row 1, example 1 of 2", "row 1, example 2 of 2", "row 2 is skipped", "row 3"):
        assert title in terminal and title in page
    assert "row 3, " not in terminal
    assert "does not read 'x_y'" in terminal and terminal.count("does not read") == 1
    assert drawn.count("▌▶") == 2 and drawn.count("▶") == 3  # one of each pair in the legend
    assert terminal.count("▌▶") == 3 + 3 and page.count("<b>⟩</b><i") == 3
    assert page.index("⟩</b><i") < page.index('<i class="on" data')


def given_to_the_mask(rows: list, *options: str) -> list:
    from sft import examples
    from sft.config import project_arguments

    seen = []
    examples.encode_batch = lambda conversations, *_, **how: seen.extend(conversations) or []
    try:
        args = project_arguments([*options])
        columns = {key: [row.get(key) for row in rows] for row in rows for key in row}
        examples._encode_batch(columns, [*range(len(rows))], None, args)
    except ValueError:  # there is no example for them
        pass
    return seen


@pytest.mark.parametrize("form", ["messages", "prompt_response"])
def test_training_asks_with_the_switches_of_config_yaml(bake_once, form):
    project = bake_once.project(project_slug=f"others-{form}", dataset_format=form)
    row = {**ALIKE["OpenAI's"], "dialogue": "d", "summary": "s"}
    (given,) = in_project(project, given_to_the_mask, [row], *OPTIONS)
    assert given["chat_template_kwargs"] == {"enable_thinking": False, "date": "today"}
    assert given.get("tools") == (TOOLS if form == "messages" else None)


def asked_by_chat(options: list[str]) -> str:
    """The prompt that chat.py gives the model."""
    import torch

    import chat
    from sft.twin import build_tokenizer

    prompts, tokenizer = [], build_tokenizer()
    tokenizer.chat_template += "{{ 'PLAIN' if enable_thinking is false else 'THINKING' }}"

    class Model:
        device = torch.device("cpu")

        def eval(self):
            return self

        def generate(self, input_ids, **how):
            prompts.append(tokenizer.decode(input_ids[0]))
            return input_ids

    chat.load_trained, chat.load_tokenizer = lambda *_: Model(), lambda *_: tokenizer
    chat.main(["--prompt=Hi", "--model=data", "--use_cpu", *options])
    return prompts[0]


@pytest.mark.parametrize("options, ending", [(OPTIONS, "PLAIN"), ([], "THINKING")])
def test_chat_asks_with_the_switches_of_config_yaml(project, options, ending):
    assert in_project(project, asked_by_chat, options).endswith(ending)


def what_is_missing(written: str) -> str:
    from sft.mask.template import missing_part

    call = {"function": {"name": "find", "arguments": {"place": "Zürich\nWest"}}}
    return missing_part({"role": "assistant", "tool_calls": [call]}, "", "", written)


@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_a_call_is_found_as_json_of_either_kind(project, ensure_ascii):
    written = json.dumps({"place": "Zürich\nWest"}, ensure_ascii=ensure_ascii)
    assert in_project(project, what_is_missing, f"find {written}") == ""
    assert in_project(project, what_is_missing, "find {'place': 'Bern'}") == "calls"
