"""What is left out of a conversation that is too long, and how much work that takes."""

import random

import pytest

from conftest import in_project
from support.masks import CHATML, CONTROL, chat, tokenizer_with, trained, with_options


@pytest.fixture(scope="module")
def project(bake_once):
    return bake_once.project(project_slug="masks", dataset_format="messages")


LONG = chat(
    "system: Be brief.", "user: " + "one two three " * 30, "assistant: Hello",
    "user: " + "four five six " * 30, "assistant: Me",
)  # fmt: skip


def fitted(max_length: int, mode: str, messages: list) -> tuple:
    """The text that is left and the texts that are trained on, or the sentence of the refusal."""
    from sft.mask import MaskError, encode

    tokenizer = tokenizer_with(CHATML, CONTROL, "</s>")
    try:
        example = encode(messages, tokenizer, max_length, truncation_mode=mode)
    except MaskError as error:
        return str(error), []
    assert len(example["input_ids"]) <= max_length
    how = {"max_length": max_length, "truncation_mode": mode}
    return tokenizer.decode(example["input_ids"]), trained(CHATML, CONTROL, "</s>", messages, **how)


def test_a_conversation_that_is_too_long_is_dropped_unless_said_otherwise(project):
    said, _ = in_project(project, fitted, 100, "drop", LONG)
    assert "longer than max_length" in said and "100 allowed" in said


def test_the_prompt_is_shortened_from_its_oldest_turn_on(project):
    text, learnt = in_project(project, fitted, 200, "truncate_prompt", LONG)
    assert "Be brief." in text and "one two" not in text
    assert text.count("four five six") == 30 and learnt == ["Me<|im_end|>"]
    shorter, learnt = in_project(project, fitted, 60, "truncate_prompt", LONG)
    start, _, prompt = shorter.partition("user\n")
    assert start + "user\n" == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    assert prompt.endswith("four five six<|im_end|>\n<|im_start|>assistant\nMe<|im_end|>\n")
    assert 1 < prompt.count("four") < 30 and learnt == ["Me<|im_end|>"]
    said, _ = in_project(project, fitted, 10, "truncate_prompt", LONG)
    assert "longer than max_length" in said


def test_replies_that_are_not_learnt_are_no_reason_to_keep_a_turn(project):
    unlearnt = {"role": "assistant", "content": "No.", "weight": 0}
    messages = [*LONG[1:3], *chat("user: And?"), unlearnt]
    text, learnt = in_project(project, fitted, 60, "truncate_prompt", messages)
    assert 1 < text.count("two") < 30 and learnt == ["Hello<|im_end|>"]
    said, _ = in_project(project, fitted, 60, "keep_start", [*LONG[1:2], unlearnt, *LONG[3:]])
    assert "longer than max_length" in said


def test_what_stands_behind_the_last_reply_is_left_out(project):
    whole, _ = in_project(project, fitted, 1000, "drop", LONG)
    more = [*LONG, *chat("user: Bye")]
    assert in_project(project, fitted, 1000, "drop", more)[0] == whole
    shorter, _ = in_project(project, fitted, 60, "truncate_prompt", LONG)
    assert in_project(project, fitted, 60, "truncate_prompt", more)[0] == shorter


def test_what_just_fits_is_left_whole_and_what_does_not_tells_its_length(project):
    said, _ = in_project(project, fitted, 10, "truncate_prompt", LONG)
    length = int(said.split(": ")[1].split()[0])
    assert in_project(project, fitted, length, "drop", LONG)[1] == [
        "Hello<|im_end|>",
        "Me<|im_end|>",
    ]
    assert f"{length} tokens" in in_project(project, fitted, length - 1, "drop", LONG)[0]


def test_a_shortened_conversation_is_masked_as_a_whole_one_is(project):
    forged = chat("user: " + "one two " * 90, "assistant: Hm",
                  "user: <|im_end|>", "assistant: Ho", "user: Who?", "assistant: Me")  # fmt: skip
    how = {"max_length": 150, "truncation_mode": "truncate_prompt", "control_tokens": "escape"}
    learnt = in_project(project, with_options, CHATML, forged, {**how, "turns": "last"})
    assert learnt == ["Me<|im_end|>"]


def test_a_prompt_that_begins_with_several_tokens_a_character_gets_shorter(project):
    messages = chat("user: 🎉 Hi", "assistant: Me")
    said, _ = in_project(project, fitted, 1, "drop", messages)
    length = int(said.split(": ")[1].split()[0])
    text, _ = in_project(project, fitted, length - 1, "truncate_prompt", messages)
    assert "user\nHi<|im_end|>" in text


@pytest.mark.parametrize("max_length", [1000, 150])
def test_rows_are_trained_on_their_last_reply_alone_where_that_is_asked_for(project, max_length):
    turns = ["user: " + "one two " * 90, "assistant: Hm"] + ["user: Hi", "assistant: Hello"] * 2
    counts = [
        in_project(project, count_trained, chat(*turns), max_length, which)
        for which in ("all", "last")
    ]
    assert counts[0] > counts[1] > 0


def count_trained(messages: list, max_length: int, turns: str) -> int:
    from datasets import Dataset

    from sft.config import project_arguments
    from sft.examples import make_examples

    options = {"max_length": max_length, "turns": turns, "truncation_mode": "truncate_prompt"}
    options |= {"messages_column": "messages", "test_size": 0}
    args = project_arguments([f"--{key}={value}" for key, value in options.items()])
    rows = {"train": Dataset.from_list([{"messages": messages}])}
    _, reports = make_examples(rows, tokenizer_with(CHATML, CONTROL, "</s>"), args)
    return reports["train"].trained[0]


def test_instructions_and_replies_are_never_cut(project):
    developer = [{**LONG[0], "role": "developer"}, *LONG[1:]]
    text, _ = in_project(project, fitted, 60, "truncate_prompt", developer)
    assert "developer\nBe brief." in text
    reply = chat("assistant: " + "one two three " * 30)
    said, _ = in_project(project, fitted, 60, "truncate_prompt", reply)
    assert "longer than max_length" in said


def test_only_the_newest_turns_go_where_the_start_is_kept(project):
    text, learnt = in_project(project, fitted, 300, "keep_start", [*LONG, *LONG[1:3]])
    assert learnt == ["Hello<|im_end|>", "Me<|im_end|>"], text


def test_the_start_is_kept_up_to_a_reply_that_ends(project):
    text, learnt = in_project(project, fitted, 200, "keep_start", LONG)
    assert text.endswith("Hello<|im_end|>\n") and learnt == ["Hello<|im_end|>"]
    said, _ = in_project(project, fitted, 60, "keep_start", LONG)
    assert "longer than max_length" in said


def left_by_steps(conversations: list, mode: str) -> int:
    """How often turns were left out, once that was as much as leaving out one by one takes."""
    from sft.mask import MaskError, encode

    tokenizer = tokenizer_with(CHATML, CONTROL, "</s>")
    shortened = 0
    for messages, share in conversations:
        whole = encode(messages, tokenizer)
        limit = int(share * len(whole["input_ids"]))
        if mode == "keep_start":
            shorter = [messages[:at] for at in range(len(messages), 0, -2)]
        else:
            shorter = [messages[:1] + messages[at:] for at in range(1, len(messages), 2)]
        each = [{**encode(left, tokenizer), "shortened": left != messages} for left in shorter]
        expected = next((one for one in each if len(one["input_ids"]) <= limit), None)
        try:
            example = encode(messages, tokenizer, limit, truncation_mode=mode)
        except MaskError:
            assert expected is None
        else:
            shortened += expected is not None and expected["shortened"]
            assert example == expected or expected is None and mode == "truncate_prompt"
    return shortened


@pytest.mark.parametrize("mode", ["truncate_prompt", "keep_start"])
def test_no_more_turns_are_left_out_than_must_be(project, mode):
    draw = random.Random(0)
    conversations = []
    for _ in range(100):
        turns = ["system: Be brief."]
        for _ in range(draw.randint(1, 12)):
            sizes = draw.choice([(1, 3), (1, 60)])
            turns += ["user: " + "one two " * draw.randint(*sizes)]
            turns += ["assistant: " + "three " * draw.randint(*sizes)]
        if mode == "keep_start":
            turns = turns[1:]
        conversations.append((chat(*turns), draw.uniform(0.05, 1)))
    assert in_project(project, left_by_steps, conversations, mode) > 50


# earlier thoughts are taken out, so that each reply needs a text of its own
DROPS = CHATML.replace("m.content", "m.content.split('</think>')[-1]").replace(
    "assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"
)


def rendered(template: str, turns: int) -> dict:
    """How many messages the template is given, a turn, to encode and to shorten."""
    from sft.mask import encode_batch

    tokenizer = tokenizer_with(template, CONTROL, "</s>")
    apply, given = tokenizer.apply_chat_template, []

    def count(conversations, **kwargs):
        many = isinstance(conversations[0], list)
        given.extend(map(len, conversations) if many else [len(conversations)])
        return apply(conversations, **kwargs)

    tokenizer.apply_chat_template = count
    messages = chat("system: Be brief.", *["user: Hi", "assistant: Hello"] * turns)
    work = {}
    for mode in ("truncate_prompt", "keep_start", "drop"):
        given.clear()
        (examples,) = encode_batch([messages], tokenizer, 200, truncation_mode=mode)
        work[mode] = sum(given) / turns, [] if isinstance(examples, ValueError) else examples
    return work


@pytest.mark.parametrize("template, most, count", [(CHATML, 16, 1), (DROPS, 250, 300)])
def test_the_work_for_a_turn_does_not_grow_with_their_number(project, template, most, count):
    work = in_project(project, rendered, template, 300)
    assert max(messages for messages, _ in work.values()) < most, work
    (_, newest), (_, oldest), (_, none) = work.values()
    assert not none and len(newest) == count
    lengths = [len(example["input_ids"]) for example in newest]
    assert max(lengths) <= 200 and min(lengths[10:] or lengths) > 150
    texts = [example["input_ids"] for example in oldest]
    assert all(text not in texts[at + 1 :] for at, text in enumerate(texts))
    assert [example["shortened"] for example in oldest] == [False] * (len(texts) - 1) + [True]


def unrolled(messages: list, max_length: int) -> tuple[list, list]:
    """The examples of each reply, and those of the conversation where its last one is too long."""
    from sft.mask import encode_batch

    tokenizer = tokenizer_with(DROPS, CONTROL, "</s>")
    (whole,) = encode_batch([messages], tokenizer)
    (left,) = encode_batch([messages], tokenizer, max_length, truncation_mode="keep_start")
    assert len(whole[-1]["input_ids"]) > max_length
    return whole, left


def test_replies_that_fit_are_whole_where_the_last_one_does_not(project):
    messages = chat(*["user: Hi", "assistant: Hello"] * 3, "user: " + "one " * 90, "assistant: Me")
    whole, left = in_project(project, unrolled, messages, 100)
    assert len(left) == len(whole) - 1 == 3
    assert left == [*whole[:2], whole[2] | {"shortened": True}]  # of what came after it


def test_a_call_of_a_tool_needs_no_content_to_be_left_out(project):
    call = {"role": "assistant", "tool_calls": [{"name": "f"}]}
    messages = [*LONG[:2], call, *chat("tool: You"), *LONG[2:]]
    how = {"max_length": 200, "truncation_mode": "truncate_prompt", "turns": "last"}
    assert in_project(project, with_options, CHATML, messages, how) == ["Me<|im_end|>"]
