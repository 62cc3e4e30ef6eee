"""The mask on chat templates of every shape: each reply and its end, to the token."""

import pytest

from conftest import in_project
from support.masks import (
    CHATML,
    CONTROL,
    FAMILIES,
    THINKING,
    THOUGHT,
    TWO_TURNS,
    chat,
    tokenizer_with,
    trained,
    with_options,
)


@pytest.fixture(scope="module")
def project(bake_once):
    return bake_once.project(project_slug="masks", dataset_format="messages")


@pytest.mark.parametrize("name", FAMILIES)
def test_each_reply_and_its_end_is_trained_on_and_nothing_else(project, name):
    template, expected = FAMILIES[name]
    assert in_project(project, trained, template, CONTROL, "</s>", TWO_TURNS) == expected


def test_the_last_reply_alone(project):
    how = {"turns": "last"}
    assert in_project(project, with_options, CHATML, TWO_TURNS, how) == ["Me<|im_end|>"]


def test_a_template_needs_no_eos_where_it_ends_turns_itself(project):
    learnt = in_project(project, with_options, CHATML, TWO_TURNS, {}, None)
    assert learnt == ["Hello<|im_end|>", "Me<|im_end|>"]


def test_an_earlier_call_of_a_tool_is_read_where_the_last_reply_is_trained_on(project):
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    messages = [*chat("user: Who?"), call, *chat("tool: You", "assistant: Me")]
    assert in_project(project, with_options, CHATML, messages, {"turns": "last"}) == [
        "Me<|im_end|>"
    ]


def test_white_space_that_the_template_trims_is_no_message_dropped(project):
    template, _ = FAMILIES["contents are trimmed"]
    messages = chat("user: Hi ", "assistant: Hello\n")
    assert in_project(project, with_options, template, messages, {}) == ["Hello<|im_end|>"]


def test_no_token_crosses_the_border_between_prompt_and_reply(project):
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ ' a' if m.role == 'assistant' }}{{ m.content }}"
        "</s>{% endfor %}{% if add_generation_prompt %}<|assistant|> a{% endif %}"
    )
    messages = chat("user: Hi", "assistant: nd so")
    assert in_project(project, with_options, template, messages, {}) == ["nd so</s>"]


def test_a_reply_may_read_like_what_the_template_writes_around_it(project):
    template = FAMILIES["the last turn ends otherwise"][0]
    learnt = in_project(
        project,
        with_options,
        template,
        chat("user: Hi", "assistant: final", "user: final", "assistant: final"),
        {},
    )
    start = "<|channel|>final<|message|>final"
    assert learnt == [f"{start}</s>"] * 2


def test_a_turn_that_ends_in_several_control_tokens_ends_at_eos(project):
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>"
        "{{ '</s>' if m.role == 'assistant' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    learnt = in_project(project, with_options, template, TWO_TURNS, {})
    assert learnt == ["Hello<|end|></s>", "Me<|end|></s>"]


def test_the_end_goes_to_eos_where_that_is_after_the_last_turn_alone(project):
    template = CHATML.replace("\n{% endfor %}", "{{ '</s>' if loop.last }}\n{% endfor %}")
    assert template != CHATML
    one_turn = chat("user: Hi", "assistant: Hello")
    assert in_project(project, with_options, template, one_turn, {}) == ["Hello<|im_end|></s>"]


def test_a_reply_may_go_on_like_what_the_template_begins_it_with(project):
    template = (
        "{% for m in messages %}<|{{ m.role }}|>"
        "{{ '- ' if m.role == 'assistant' }}{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    learnt = in_project(project, with_options, template, chat("user: Hi", "assistant: - - -"), {})
    assert learnt == ["- - - -<|end|>"]


def test_a_reply_that_the_template_drops_later_is_trained_on_as_the_last(project):
    template = (
        "{% for m in messages %}<|{{ m.role }}|>"
        "{{ m.content if loop.last or m.role == 'user' }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    messages = chat("user: Hi", "assistant: Yes", "user: Yes", "assistant: Me")
    learnt = in_project(project, with_options, template, messages, {})
    assert learnt == ["Yes<|end|>", "Me<|end|>"]


def test_a_prompt_may_hold_the_marker_that_replies_are_found_with(project):
    messages = chat("user: \u2060reply\u2060", "assistant: Hello")
    assert in_project(project, with_options, CHATML, messages, {}) == ["Hello<|im_end|>"]


def test_a_reply_without_prompt_is_trained_on_from_its_first_word(project):
    thought = "<think>\n\n</think>\n\n"
    for turns, leads in (
        (["assistant: Hello"], [""]),
        (["user: Hi", "assistant: Hello", "assistant: Hello"], [thought, ""]),
    ):
        learnt = in_project(project, with_options, THINKING, chat(*turns), {})
        assert learnt == [f"{lead}Hello<|im_end|>" for lead in leads]


def test_a_reply_after_another_is_trained_on_from_its_own_words(project):
    turns = chat("user: Hm.", "assistant: Hello", f"assistant: {THOUGHT}")
    learnt = in_project(project, with_options, CHATML, turns, {})
    assert learnt == ["Hello<|im_end|>", f"{THOUGHT}<|im_end|>"]
    call = {"role": "assistant", "tool_calls": [{"name": "Hi"}]}
    template = CHATML.replace("{{ m.content }}", "{{ m.content or m.tool_calls | tojson }}")
    for messages in ([call], [*turns[:2], call]):
        said = in_project(project, with_options, template, messages, {})
        assert "depends on the reply" in said


def test_a_reply_of_weight_0_is_read_but_not_learnt(project):
    first = [*TWO_TURNS[:2], {**TWO_TURNS[2], "weight": 0}, *TWO_TURNS[3:]]
    last = [*TWO_TURNS[:4], {**TWO_TURNS[4], "weight": 0}]
    control = [CHATML, CONTROL, "</s>"]
    assert in_project(project, trained, *control, first) == ["Me<|im_end|>"]
    assert in_project(project, trained, *control, last) == ["Hello<|im_end|>"]
    none = [{**message, "weight": 0} for message in TWO_TURNS]
    assert "no assistant turn" in in_project(project, trained, *control, none)


def test_thinking_is_trained_on_where_the_template_keeps_it(project):
    inline = chat("user: Who?", f"assistant: {THOUGHT}")
    beside = [*inline[:1], {"role": "assistant", "content": "Me", "reasoning_content": "Hm."}]
    for messages in (inline, beside):
        assert in_project(project, with_options, THINKING, messages, {}) == [THOUGHT + "<|im_end|>"]
    assert in_project(project, with_options, CHATML, inline, {}) == [THOUGHT + "<|im_end|>"]


def test_thinking_is_trained_on_where_nothing_prompts_for_the_reply(project):
    messages = chat(f"assistant: {THOUGHT} ")
    assert in_project(project, with_options, CHATML, messages, {}) == [THOUGHT + " <|im_end|>"]


def test_an_empty_thought_that_the_prompt_supplies_is_not_trained_on(project):
    template, _ = FAMILIES["the generation prompt opens the thought"]
    messages = chat("user: Who?", "assistant: <think>\n\n</think>\n\nMe")
    assert in_project(project, with_options, template, messages, {}) == ["Me<|im_end|>"]


def test_a_thought_that_is_none_is_no_thought(project):
    reply = {"role": "assistant", "content": "Me", "reasoning_content": None}
    messages = [*chat("user: Who?"), reply]
    assert in_project(project, with_options, CHATML, messages, {}) == ["Me<|im_end|>"]


def test_what_tools_answer_may_be_written_as_json(project):
    template = CHATML.replace("m.content", "m.content | tojson if m.role == 'tool' else m.content")
    messages = chat("user: Hi", "assistant: a", 'tool: {"it": "é"}', "assistant: Me")
    learnt = in_project(project, with_options, template, messages, {})
    assert learnt == ["a<|im_end|>", "Me<|im_end|>"]


def test_control_tokens_need_not_be_special_nor_all_be_seen(project):
    assert in_project(project, with_added_tokens) == [["Me<end>"], ["Me\n</s>"], "plain text"]


def with_added_tokens() -> list:
    from tokenizers import AddedToken

    from sft.mask import MaskError, encode

    learnt, messages = [], chat("user: Who?", "assistant: Me")
    plain, _ = FAMILIES["no end at all"]
    for template, token in (
        (CHATML.replace("<|im_end|>", "<end>"), AddedToken("<end>", special=False)),
        (plain, AddedToken("\n", special=False)),
        (CHATML.replace("<|im_end|>", "<end>"), AddedToken("<end>", single_word=True)),
    ):
        tokenizer = tokenizer_with(template, CONTROL, "</s>")
        tokenizer.add_tokens([token])
        try:
            labels = encode(messages, tokenizer)["labels"]
        except MaskError as error:
            learnt.append(str(error)[-len("plain text") :])
        else:
            learnt.append([tokenizer.decode([token for token in labels if token != -100])])
    return learnt


def test_a_control_token_that_swallows_white_space_stays_with_its_own_side(project):
    assert in_project(project, with_swallowing_tokens) == ["Hello<|end|>", "Me<|end|>"]


def with_swallowing_tokens() -> list[str]:
    from itertools import groupby

    from tokenizers import AddedToken

    from sft.mask import encode

    names = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    tokenizer = tokenizer_with(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        [AddedToken(name, rstrip=True, special=True) for name in names],
        "</s>",
    )
    example = encode([*TWO_TURNS[:4], *chat("assistant:   Me")], tokenizer)
    runs = groupby(example["labels"], key=lambda label: label != -100)
    return [tokenizer.decode(list(run)).strip() for learnt, run in runs if learnt]


def test_the_prompt_of_each_reply_is_its_own(project):
    """Here the prompt supplies the empty thought where the user asks for it, and only there."""
    thought = "<think>\n\n</think>\n\n"
    template = CHATML.replace(
        "{{ m.content", "{{ '" + thought + "' if m.role == 'assistant' }}{{ m.content"
    ).replace(
        "assistant\n{% endif %}",
        "assistant\n{{ '" + thought + "' if '/fast' in messages[-1].content }}{% endif %}",
    )
    users = ["user: Hi", "user: Who? /fast", "user: And?", "user: Bye /fast", "user: Bye"]
    messages = [turn for user in users for turn in chat(user, "assistant: Me")]
    learnt = in_project(project, with_options, template, messages, {})
    slow, fast = f"{thought}Me<|im_end|>", "Me<|im_end|>"
    assert learnt == [slow, fast, slow, fast, slow]


def in_a_batch() -> list:
    from sft.mask import encode, encode_batch

    tokenizer = tokenizer_with(CHATML, CONTROL, "</s>")
    good, bad, none = TWO_TURNS, chat("user: Hi"), ValueError("no conversation")
    # a call in a user's turn, which templates pass over, and without arguments
    odd = [{**good[0], "tool_calls": [{"function": {"name": "f"}}]}, *good[1:]]
    examples = encode_batch([bad, good, none, odd], tokenizer, turns="last")
    assert examples[1] == examples[3] == [encode(good, tokenizer, turns="last")]
    assert examples[2] is none
    return [str(example) for example in examples if isinstance(example, ValueError)]


def test_a_row_with_an_error_keeps_its_place_in_a_batch(project):
    assert in_project(project, in_a_batch) == ["no assistant turn to train on", "no conversation"]


def after_escaped_words() -> list[list[int]]:
    from sft.mask import encode

    tokenizer = tokenizer_with(CHATML, CONTROL, "</s>")
    forged = chat("user: Hi", "assistant: <|im_end|>")
    found = []
    for _ in range(2):
        found.append(encode(TWO_TURNS, tokenizer)["input_ids"])
        encode(forged, tokenizer, control_tokens="escape")
        tokenizer.backend_tokenizer.encode_special_tokens = True  # as escaping may leave it
    return found


def test_control_tokens_are_tokens_after_some_were_escaped(project):
    before, after = in_project(project, after_escaped_words)
    assert before == after


def test_what_a_template_writes_after_the_last_turn_alone_is_not_trained_on(project):
    template = CHATML + "{% if not add_generation_prompt %}\nBye{% endif %}"
    learnt = in_project(project, with_options, template, TWO_TURNS, {})
    assert learnt == ["Hello<|im_end|>", "Me<|im_end|>"]


def alone_and_in_a_batch(refused: list) -> tuple:
    from sft.mask import encode_batch

    refuses = "{{ raise_exception('No system role') if messages[0].role == 'system' }}"
    template = refuses + "{{ date }}\n{{ tools }}\n" + CHATML
    tokenizer = tokenizer_with(template, CONTROL, "</s>")
    plain, twice = chat("user: Hi", "assistant: Hello"), chat("assistant: Hello", "assistant: Me")
    dated = [
        {"messages": plain, "chat_template_kwargs": {"date": date}}
        for date in ("May 1", "May 2", 1, True, 1.0)  # the last three are equal, and no more
    ]
    a, b = ("type", "function"), ("function", {"name": "f"})
    dated += [{"messages": plain, "tools": [dict(pairs)]} for pairs in ((a, b), (b, a))]
    rows = [plain, *dated, *refused, twice, plain, chat("user: Who?", *2 * ["assistant: Me"])]
    alone = [encode_batch([row], tokenizer)[0] for row in rows]
    return [str(found) for found in alone], [str(one) for one in encode_batch(rows, tokenizer)]


@pytest.mark.parametrize("refused", [[], [TWO_TURNS]])
def test_a_row_in_a_batch_is_masked_as_it_is_alone(project, refused):
    alone, in_batch = in_project(project, alone_and_in_a_batch, refused)
    assert alone == in_batch
    assert len({*alone}) == 10 + len(refused)
    assert ["No system role" in one for one in alone[8:-3]] == [True for _ in refused]


def slow_in_a_batch() -> list[list[dict]]:
    from sft.mask import encode_batch
    from sft.mask.template import TooSlow

    tokenizer = tokenizer_with(CHATML, CONTROL, "</s>")
    whole, apply = encode_batch([TWO_TURNS] * 2, tokenizer), tokenizer.apply_chat_template

    def slow(conversations, **kwargs):
        if len(conversations) > 1 and isinstance(conversations[0], list):
            raise TooSlow("20 seconds")
        return apply(conversations, **kwargs)

    tokenizer.apply_chat_template = slow
    return [whole, encode_batch([TWO_TURNS] * 2, tokenizer)]


def test_the_time_for_a_conversation_is_not_that_for_a_batch(project):
    fast, slow = in_project(project, slow_in_a_batch)
    assert fast == slow


def words_and_their_ends(added: list, *turns: str) -> list[list[str]]:
    """What is trained on, an example each, where words are tokens and others are unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from sft.mask import encode_examples

    known = "<unk> user assistant Hi foobar done bye".split()
    vocabulary = {word: number for number, word in enumerate(known)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<unk>", "<s>", "<e>"])
    backend.add_tokens(added)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<e>", unk_token="<unk>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.role }} {{ m.content }}<e>\n{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant {% endif %}"
    )
    examples = encode_examples(chat(*turns), tokenizer)
    labels = [[label for label in one["labels"] if label != -100] for one in examples]
    return [tokenizer.convert_ids_to_tokens(one) for one in labels]


def test_what_reads_like_a_control_token_and_is_none_moves_no_border(project):
    from tokenizers import AddedToken

    turns = "user: Hi", "assistant: foobar done", "user: zzz Hi", "assistant: bye"
    foo = AddedToken("foo", single_word=True)  # which foobar is not, and zzz is unknown
    expected = [["foobar", "done", "<e>", "bye", "<e>"]]
    assert in_project(project, words_and_their_ends, [foo], *turns) == expected
    assert in_project(project, words_and_their_ends, [], *turns) == expected
