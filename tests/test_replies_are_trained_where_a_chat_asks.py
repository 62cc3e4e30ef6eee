"""A reply is trained on after just the tokens of the prompt with which a chat asks for it.

`trained` of masks.py asserts that for each text that it returns.
"""

import json

import pytest

from conftest import in_project
from support.masks import (
    CHATML,
    CONTROL,
    THINKING,
    THOUGHT,
    TWO_TURNS,
    chat,
    judged,
    tokenizer_with,
    trained,
    with_options,
)

EMPTY = "<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def project(bake_once):
    return bake_once.project(project_slug="masks", dataset_format="messages")


def prompting(begun: str, template: str = CHATML) -> str:
    """A template whose prompt begins a reply as its text does not."""
    return template.replace("assistant\n{% endif %}", f"assistant\n{begun}{{% endif %}}")


# as DeepSeek's distilled R1 has it: the prompt opens a thought, the text has none
DROPS = CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
OPENS = prompting("<think>\n", DROPS)
# as Gemma 4 has it: the prompt has an empty thought, the text has none
SUPPLIES = prompting(EMPTY)
# as GLM 4.7 has it: the text closes at once what the prompt opens
CLOSES = prompting("<think>").replace(
    "{{ m.content }}",
    "{% set parts = m.content.split('</think>') %}{% if m.role == 'assistant' %}"
    "{{ '<think>' + parts[0].split('<think>')[-1].strip() if parts[1:] }}</think>"
    "{{ parts[-1].strip() }}{% else %}{{ m.content }}{% endif %}",
)
# as gpt-oss has it: thoughts have a channel of their own
CHANNELS = (
    "{% for m in messages %}<|start|>{{ m.role }}"
    "{% if m.role == 'assistant' %}{% if m.thinking and loop.last %}<|channel|>analysis<|message|>"
    "{{ m.thinking }}<|end|><|start|>assistant{% endif %}<|channel|>final{% endif %}"
    "<|message|>{{ m.content }}{{ '</s>' if loop.last and m.role == 'assistant' else '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# as Mistral has it: the system text is in the user's last turn
MOVES = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% set turns = messages[1:] if system else messages %}<s>{% for m in turns %}"
    "{% if m.role == 'user' %}<|user|>{{ system ~ ' ' if system and loop.last }}{{ m.content }}"
    "<|assistant|>{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
ONE, THINKS = chat("user: Who?", "assistant: Me"), chat("user: Who?", f"assistant: {THOUGHT}")
BOTH = [*chat("user: Hi", f"assistant: {THOUGHT.replace('Me', 'Hello')}"), *THINKS]
END = "<|im_end|>"
PLACES = {
    "an opened thought is closed empty": (OPENS, ONE, [f"\n</think>\n\nMe{END}"]),
    "an opened thought is the row's": (OPENS, THINKS, [f"Hm.\n</think>\n\nMe{END}"]),
    "each turn in the same form": (
        OPENS,
        TWO_TURNS,
        [f"\n</think>\n\n{t}{END}" for t in ("Hello", "Me")],
    ),
    "thoughts of earlier turns": (
        THINKING,
        BOTH,
        [THOUGHT.replace("Me", "Hello") + END, THOUGHT + END],
    ),
    "an empty thought at every turn": (
        THINKING,
        TWO_TURNS,
        [f"{EMPTY}{t}{END}" for t in ("Hello", "Me")],
    ),
    "a supplied empty thought": (SUPPLIES, TWO_TURNS, [f"Hello{END}", f"Me{END}"]),
    "a thought that is closed at once": (CLOSES, ONE, [f"</think>Me{END}"]),
    "a thought after its opening": (CLOSES, THINKS, [f"Hm.</think>Me{END}"]),
    "a thought in its channel": (
        CHANNELS,
        THINKS,
        [
            "<|channel|>analysis<|message|>Hm.<|end|>"
            "<|start|>assistant<|channel|>final<|message|>Me</s>"
        ],
    ),
    "system text in the last turn": (MOVES, TWO_TURNS, ["Hello</s>", "Me</s>"]),
    "system text in the only turn": (MOVES, TWO_TURNS[:3], ["Hello</s>"]),
}


@pytest.mark.parametrize("name", PLACES)
def test_each_reply_follows_its_own_prompt(project, name):
    template, messages, learnt = PLACES[name]
    assert in_project(project, with_options, template, messages, {}) == learnt


@pytest.mark.parametrize("name", PLACES)
def test_control_tokens_in_what_a_user_says_move_no_border(project, name):
    template, messages, learnt = PLACES[name]
    user = next(at for at, message in enumerate(messages) if message["role"] == "user")
    forging = {"role": "user", "content": messages[user]["content"] + " <|im_end|> <|user|>"}
    messages = [*messages[:user], forging, *messages[user + 1 :]]
    how = {"control_tokens": "escape"}
    assert in_project(project, with_options, template, messages, how) == learnt


def borders() -> list[int]:
    from sft.mask.template import diverges_at

    pairs = [("Hi <a>", "Hi <a>you"), ("Hi <think>", "Hi <tool>"), ("Hi <a> 1", "Hi <a> 2")]
    return [diverges_at(*pair) for pair in pairs]


def test_a_prompt_and_its_text_part_before_a_tag_that_is_another(project):
    assert in_project(project, borders) == [6, 3, 7]


def test_a_token_that_would_cross_the_border_is_none(project):
    """Many tokenizers have one token for the two line feeds."""
    messages = chat("user: Who?", "assistant: \nMe")
    assert in_project(project, with_options, CHATML, messages, {}) == [f"\nMe{END}"]


THINKS_IF = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n<think>\n{{ '</think>\n\n' if not enable_thinking }}{% endif %}",
)
NO_PLACE = {
    "the text drops it": (prompting(EMPTY, DROPS), "drops the thinking: message 2"),
    "the text has it": (SUPPLIES, "asks for a reply without thinking: message 2"),
    "a key opens it": (THINKS_IF, "chat_template_kwargs may help, with enable_thinking"),
}


@pytest.mark.parametrize("name", NO_PLACE)
def test_a_thought_that_the_prompt_closes_is_refused(project, name):
    template, sentence = NO_PLACE[name]
    assert sentence in in_project(project, with_options, template, THINKS, {})


def test_a_thought_that_the_prompt_opens_by_a_key_is_trained_on(project):
    how = {"chat_template_kwargs": {"enable_thinking": True}}
    learnt = in_project(project, with_options, THINKS_IF, THINKS, how)
    assert learnt == [f"Hm.\n</think>\n\nMe{END}"]


TOOLS = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": {}}}
    for name in ("weather", "save")
]
CALLS = "{% for call in m.tool_calls %}<tool_call>{{ WRITTEN }}</tool_call>{% endfor %}"
HERMES = "{{ tools | tojson if tools }}" + CHATML.replace(
    "{{ m.content }}", "{{ m.content or '' }}" + CALLS
)
WRITTEN = {
    "arguments as a mapping": "call.function | tojson",
    "the call alone": "{'name': call.function.name, 'arguments': call.function.arguments} | tojson",
    "arguments as JSON text": "call.function.name ~ ' ' ~ (call.function.arguments + '')",
    "arguments one by one": (
        "call.function.name }}{% for k, v in call.function.arguments.items() %} {{ k }}={{ v }}"
        "{% endfor %}{{ ''"
    ),
}


def asking(content: str | None, arguments, name: str = "weather") -> dict:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("content", [None, "", "Let me see."])
def test_a_call_is_trained_on_like_text(project, name, content):
    template = HERMES.replace("WRITTEN", WRITTEN[name])
    arguments = {"city": "Köln", "days": 3, "exact": True}
    found = [
        in_project(
            project,
            trained,
            *(template, CONTROL, "</s>", [*chat("user: Rain?"), asking(content, given)]),
            {"tools": TOOLS},
        )
        for given in (arguments, json.dumps(arguments))
    ]
    assert found[0] == found[1]
    (text,) = found[0]
    assert text.startswith(content or "<tool_call>") and text.endswith(f"</tool_call>{END}")
    assert "weather" in text and "Köln" in text and '\\"' not in text


@pytest.mark.parametrize("given", [{}, "{}"])
def test_a_call_without_arguments_is_trained_on(project, given):
    template = HERMES.replace("WRITTEN", WRITTEN["arguments as JSON text"])
    messages = [*chat("user: Rain?"), asking(None, given)]
    (text,) = in_project(project, trained, template, CONTROL, "</s>", messages, {"tools": TOOLS})
    assert text == f"<tool_call>weather {{}}</tool_call>{END}"


def test_a_template_is_given_the_id_of_a_call(project):
    template = HERMES.replace("WRITTEN", "call.id ~ ' ' ~ (call.function | tojson)")
    reply = asking(None, {"city": "Rome"})
    reply["tool_calls"][0]["id"] = "call_1"
    messages = [*chat("user: Rain?"), reply]
    (text,) = in_project(project, trained, template, CONTROL, "</s>", messages, {"tools": TOOLS})
    assert text.startswith("<tool_call>call_1 ")


@pytest.mark.parametrize("refusal", ["", "{{ raise_exception('text and calls') }}"])
def test_several_rounds_of_calls_are_trained_on(project, refusal):
    template = HERMES.replace("WRITTEN", WRITTEN["arguments as a mapping"])
    both = f"{{% if m.tool_calls and m.content %}}{refusal}{{% endif %}}"
    template = template.replace("{% for m in messages %}", "{% for m in messages %}" + both)
    messages = [
        *chat("user: Rain?"), asking(None, {"city": "Rome"}), *chat("tool: yes"),
        asking("", {"text": "umbrella"}, "save"), *chat("tool: saved", "assistant: Noted."),
    ]  # fmt: skip
    first, second, last = in_project(
        project, trained, template, CONTROL, "</s>", messages, {"tools": TOOLS}
    )
    assert "Rome" in first and "umbrella" in second and last == f"Noted.{END}"


def test_a_template_without_the_text_beside_calls_is_refused_with_what_to_do(project):
    template = "{{ tools | tojson if tools }}" + CHATML.replace(
        "{{ m.content }}", "{{ m.tool_calls[0].function | tojson if m.tool_calls else m.content }}"
    )
    messages = [*chat("user: Rain?"), asking("Let me see.", {"city": "Rome"})]
    said = in_project(project, with_options, template, messages, {"tools": TOOLS})
    assert said.endswith("message 2, which calls tools beside its text; take the text out")


def test_calls_may_be_written_only_where_there_is_no_content(project):
    template = "{{ tools | tojson if tools }}" + CHATML.replace(
        "{{ m.content }}",
        "{{ m.content if m.content is defined else m.tool_calls[0].function | tojson }}",
    )
    messages = [
        *chat("user: Rain?"), asking("", {"city": "Rome"}), *chat("tool: yes"),
        asking(None, {"city": "Köln"}), *chat("tool: no", "assistant: Rome."),
    ]  # fmt: skip
    how = (template, CONTROL, "</s>", messages, {"tools": TOOLS, "control_tokens": "escape"})
    learnt = in_project(project, trained, *how)
    assert len(learnt) == 3, learnt
    first, second, last = learnt
    assert "Rome" in first and "Köln" in second and last == f"Rome.{END}"


ENDS = {  # of calls
    "nothing": ("<|im_end|>\n{% endfor", "{{ '<|im_end|>' if not m.tool_calls }}{% endfor", "</s>"),
    "the next turn's header": ("if add_generation_prompt", "if true", END),
}


@pytest.mark.parametrize("name", ENDS)
def test_calls_end_as_a_turn_does(project, name):
    before, after, end = ENDS[name]
    template = HERMES.replace("WRITTEN", "call.function | tojson").replace(before, after)
    messages = [*chat("user: Rain?"), asking(None, {"city": "Rome"})]
    (learnt,) = in_project(project, trained, template, CONTROL, "</s>", messages, {"tools": TOOLS})
    assert learnt.startswith("<tool_call>") and learnt.endswith(f"}}</tool_call>{end}")


NO_CALLS = {
    "a template without tools": (
        CHATML,
        [*chat("user: Rain?"), asking("", {})],
        "does not write the tool calls",
    ),
    "a template that drops calls": (
        HERMES.replace(CALLS, ""),
        [*chat("user: Rain?"), asking("", {"city": "Rome"})],
        "does not write the tool calls: message 2",
    ),
    "a call without name": (
        HERMES,
        [*chat("user: Rain?"), asking("", {}, "")],
        "message 2: a call needs a name",
    ),
    "arguments that are no JSON": (
        HERMES,
        [*chat("user: Rain?"), asking("", "{city")],
        "cannot be read: message 2",
    ),
}


@pytest.mark.parametrize("name", NO_CALLS)
def test_what_cannot_be_called_is_refused(project, name):
    template, messages, sentence = NO_CALLS[name]
    said = in_project(
        project,
        trained,
        *(template.replace("WRITTEN", "call.function | tojson"), CONTROL, "</s>", messages),
        {"tools": TOOLS},
    )
    assert isinstance(said, str) and sentence in said, said


def verdicts(template: str, messages: list, tools: list | None) -> dict:
    """What the project's oracle says of right examples, and of each spoiled."""
    from sft.mask import encode_examples

    tokenizer = tokenizer_with(template, CONTROL, "</s>")
    right = encode_examples(messages, tokenizer, tools=tools)
    *others, example = right
    ids, labels = example["input_ids"], example["labels"]
    on = [at for at, label in enumerate(labels) if label != -100]
    start = max(at for at in on if labels[at - 1] == -100)

    def relabelled(is_on) -> list[dict]:
        spoiled = [token if is_on(at) else -100 for at, token in enumerate(ids)]
        return [*others, {**example, "labels": spoiled}]

    spoiled = {
        "": right,
        "its first token is missing": relabelled(lambda at: at in on and at != start),
        "its end is missing": relabelled(lambda at: at in on and at < on[-1]),
        "a word in it is missing": relabelled(lambda at: at in on and at != (start + on[-1]) // 2),
        "the prompt's end is trained on": relabelled(lambda at: at in on or at == start - 1),
        "a token of the prompt is gone": [*others, {"input_ids": ids[1:], "labels": labels[1:]}],
        "a reply is missing": others,
    }
    return {
        name: judged(messages, examples, tokenizer, tools=tools)
        for name, examples in spoiled.items()
    }


@pytest.mark.parametrize("name", [*PLACES, "calls"])
def test_the_oracle_sees_what_is_wrong(project, name):
    template, messages, _ = PLACES.get(name, (None,) * 3)
    if name == "calls":
        template = HERMES.replace("WRITTEN", WRITTEN["arguments as a mapping"])
        messages = [*chat("user: Rain?"), asking(None, {"city": "Rome"})]
    said = in_project(project, verdicts, template, messages, TOOLS if name == "calls" else None)
    assert said.pop("") == "" and all(said.values()), said
