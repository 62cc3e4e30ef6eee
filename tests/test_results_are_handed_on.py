"""What export.py writes is right for its readers, whole or not there, and sent only after a yes."""

import builtins
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from jinja2 import Template

from conftest import in_project


@pytest.fixture(scope="module")
def project(bake_once):
    project = bake_once.project(project_slug="handed", quantization="none", collator="seq2seq")
    in_project(project, learn, project / "elsewhere")
    return project


LICENCE = "---\nlicense: other\nlicense_name: a-licence\nlicense_link: https://a.b/c\n---\n# It\n"


def learn(elsewhere: Path) -> None:
    """Train on a base and rows whose paths are this machine's, with a row that is skipped."""
    import train
    from sft.twin import build_twin

    build_twin(elsewhere / "base", "")
    (elsewhere / "base/README.md").write_text(LICENCE, encoding="utf-8")
    rows = Path("data/sample.jsonl").read_text(encoding="utf-8").splitlines()[:30]
    long = {key: "long " * 2000 for key in json.loads(rows[0])}
    (elsewhere / "my rows.jsonl").write_text("\n".join([*rows, json.dumps(long)]))
    where = [f"--base_model_path={elsewhere / 'base'}", f"--dataset={elsewhere / 'my rows.jsonl'}"]
    train.main([*where, "--max_steps=2", "--use_cpu", "--system_prompt=Be brief.", "--answers=1"])


# --- who reads the merged folder -----------------------------------------------------------------

PLAIN = {"rope_theta": 5e5, "rope_type": "default"}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}
LONG = {"long_factor": [1.5] * 32, "short_factor": [1.0] * 32}
NESTED = {"full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}}
NESTED |= {"sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}
PHI3 = {"model_type": "phi3", "hidden_size": 512, "num_attention_heads": 8}
READERS = {  # the base's config.json; what the folder's has for version 4, None if it cannot
    "RoPE's base": ({"model_type": "llama", "rope_parameters": PLAIN}, {"rope_theta": 5e5}),
    "scaled": (
        {"model_type": "llama", "rope_parameters": LLAMA3 | {"rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
    ),
    "a part of each head": (
        {"model_type": "phi", "rope_parameters": PLAIN | {"partial_rotary_factor": 0.5}},
        {"rope_theta": 5e5, "partial_rotary_factor": 0.5},
    ),
    "by layer": (
        {"model_type": "gemma3_text", "rope_parameters": NESTED},
        {
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "by layer, in a larger model": (
        {
            "model_type": "gemma3",
            "text_config": {"model_type": "gemma3_text", "rope_parameters": NESTED},
        },
        {
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "as version 4 wrote it": (
        PHI3 | {"rope_theta": 1e4, "rope_scaling": {"type": "longrope", **LONG}},
        {"rope_theta": 1e4, "rope_scaling": {"type": "longrope", **LONG}},
    ),
    "no key for it": (
        PHI3 | {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **LONG}},
        None,
    ),
    "other keys": ({"model_type": "gpt_neox", "rope_parameters": PLAIN}, None),
    "no RoPE": ({"model_type": "gpt2"}, {}),
    "stored quantized once": (
        {"model_type": "llama", "rope_theta": 5e5, "quantization_config": {"quant_method": "x"}},
        {"rope_theta": 5e5},
    ),
}


def spelled(base: dict) -> tuple[str, dict, dict]:
    """Of a model of that config with a token more: the readers, and its files of JSON."""
    from types import SimpleNamespace

    from transformers import AutoConfig

    from sft.twin import build_tokenizer
    from sft.version_4 import spell_for_version_4

    for name in ("base", "saved"):
        Path(name).mkdir(exist_ok=True)
    Path("base/config.json").write_text(json.dumps(base | {"vocab_size": 100}))
    Path("base/tokenizer_config.json").write_text(
        '{"tokenizer_class": "GPT2Tokenizer", "a": 1, "extra_special_tokens": ["<|more|>"]}'
    )
    config = AutoConfig.from_pretrained("base")
    for part in {id(one): one for one in (config, config.get_text_config())}.values():
        part.vocab_size, part.dtype = 101, "bfloat16"
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained("saved")
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|more|>"]})
    tokenizer.save_pretrained("saved")
    readers = spell_for_version_4(
        Path("saved"), SimpleNamespace(base_model_path="base", revision=None)
    )
    again = AutoConfig.from_pretrained("saved").get_text_config()
    ropes = [getattr(one, "rope_parameters", None) for one in (config.get_text_config(), again)]
    assert ropes[0] == ropes[1] and again.vocab_size == 101, ropes
    files = ("config.json", "tokenizer_config.json")
    return readers, *(json.loads(Path("saved", name).read_text()) for name in files)


@pytest.mark.parametrize("base, wanted", READERS.values(), ids=READERS)
def test_both_versions_read_the_folder_or_it_says_which(project, base, wanted):
    readers, config, tokenizer = in_project(project, spelled, base)
    assert ("transformers 5 alone" in readers) == (wanted is None)
    text = config.get("text_config", config)
    assert (wanted or {}).items() <= text.items() and "quantization_config" not in config
    assert "rope_scaling" not in text or "rope_scaling" in (wanted or text)
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert tokenizer["tokenizer_class"] == "GPT2Tokenizer" and tokenizer["a"] == 1
    assert tokenizer["additional_special_tokens"] == ["<|more|>"] and tokenizer["chat_template"]
    assert "extra_special_tokens" not in tokenizer  # a mapping in version 4
    assert "token_type_ids" not in tokenizer["model_input_names"]  # `generate` refuses them


# --- GGUF and Ollama -----------------------------------------------------------------------------

HEAD = "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] }}"
LLAMA = "{{ bos_token }}{% for message in messages %}" + HEAD + "<|eot_id|>{% endfor %}"
LLAMA += "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
GEMMA = """{{ bos_token }}{% set first = '' %}{% if messages[0]['role'] == 'system' -%}
{% set first = messages[0]['content'] + '\n\n' %}{% set messages = messages[1:] %}{% endif -%}
{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' -}}
{{ (first if loop.first else '') + message['content'] + '<end_of_turn>\n' }}{% endfor -%}
{{ '<start_of_turn>assistant\n' }}"""
COUNTS = "{% for message in messages %}{{ loop.index }} {{ message['content'] }}{% endfor %}"
NO_SYSTEM = "{{ raise_exception('no system') if messages[0]['role'] == 'system' }}" + LLAMA
CHAT_TEMPLATES = {"the twin's": None, "Llama": LLAMA, "Gemma": GEMMA}


def go_and_jinja(chat_template: str | None) -> tuple[str, str, list[tuple[list, str]]]:
    """Ollama's template, the BOS token, and chats with what the chat template makes of them."""
    from tokenizers.processors import TemplateProcessing

    from sft.modelfile import go_template
    from sft.twin import build_tokenizer

    tokenizer = build_tokenizer()
    if chat_template:  # whose tokenizers begin any text with it
        tokenizer.bos_token = "<|im_start|>"
        bos = (tokenizer.bos_token, tokenizer.bos_token_id)
        adds = TemplateProcessing(single=[bos[0], "$A"], special_tokens=[bos])
        tokenizer.backend_tokenizer.post_processor = adds
        tokenizer.chat_template = chat_template
    roles = ["user", "assistant", "user", "assistant", "user"]
    chats = [["user"], ["system", "user"], roles, ["system", *roles]]
    chats = [[{"role": r, "content": f'{r}, {n} "x"\n'} for n, r in enumerate(c)] for c in chats]
    how = {"tokenize": False, "add_generation_prompt": True}
    return (
        go_template(tokenizer, {}),
        tokenizer.bos_token if chat_template else "",
        [(chat, tokenizer.apply_chat_template(chat, **how)) for chat in chats],
    )


AS_JINJA = {
    r"\{\{range \$i, \$_ := \.Messages\}\}": "{% for m in messages %}",
    r'\{\{(else )?if eq \.Role "(\w+)"\}\}': r'{% \1if m.role == "\2" %}',
    r"\{\{if eq \$i 0\}\}": "{% if loop.first %}",
    r"\{\{else\}\}": "{% else %}",
    r"\{\{\.Content\}\}": "{{ m.content }}",
}


def written_by_go(template: str, messages: list[dict]) -> str:
    """What Go's text/template makes of it: the few words that it has are Jinja's as well."""
    for go, jinja in AS_JINJA.items():
        template = re.sub(go, jinja, template)
    template = template.replace("{% else if", "{% elif")
    ends = iter(["endif", "endif", "endfor"])
    template = re.sub(r"\{\{end\}\}", lambda _: f"{{% {next(ends)} %}}", template)
    return Template(template, keep_trailing_newline=True).render(messages=messages)


@pytest.mark.parametrize("chat_template", CHAT_TEMPLATES.values(), ids=CHAT_TEMPLATES)
def test_ollama_writes_what_the_chat_template_writes(project, chat_template):
    template, bos, chats = in_project(project, go_and_jinja, chat_template)
    assert not re.sub(r"\{\{.*?\}\}", "", template)  # no word of the template's stands for itself
    for messages, wanted in chats:
        assert bos + written_by_go(template, messages) == wanted


@pytest.mark.parametrize("chat_template", [COUNTS, NO_SYSTEM], ids=["counts", "no system"])
def test_a_chat_template_that_go_cannot_write_is_left_out(project, chat_template):
    lines, (said,) = in_project(project, modelfile_of, chat_template)
    greedy = ["PARAMETER temperature 0", "PARAMETER repeat_penalty 1"]  # as chat.py answers
    assert lines[0].split()[0] == "FROM"
    assert lines[1:] == ['PARAMETER stop "<|im_end|>"', *greedy, 'SYSTEM """Be brief."""']
    assert "has no TEMPLATE" in said


def test_a_chat_template_that_go_can_write_is_in_the_modelfile(project):
    lines, said = in_project(project, modelfile_of, next(iter(CHAT_TEMPLATES.values())))
    assert [line.split()[0] for line in lines if line[:1].isupper()][:2] == ["FROM", "TEMPLATE"]
    assert not said


def revision_that_is_read() -> list[str]:
    from types import SimpleNamespace

    from sft import version_4

    read = []
    version_4.cached_file = lambda path, name, revision="": read.append(revision)
    version_4.of_base("config.json", SimpleNamespace(base_model_path="org/some", revision="v2"))
    return read


def test_what_a_base_model_says_is_read_of_the_revision_that_was_trained(project):
    assert in_project(project, revision_that_is_read) == ["v2"]


def modelfile_of(chat_template: str | None) -> tuple[list[str], list[str]]:
    from types import SimpleNamespace

    from sft import modelfile
    from sft.twin import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    modelfile.stop_tokens = lambda _: [tokenizer.eos_token_id]
    args = SimpleNamespace(system_prompt="Be brief.", chat_template_kwargs={})
    said, modelfile.say = [], lambda text: said.append(text)
    return modelfile.modelfile("model.gguf", tokenizer, args).splitlines(), said


CONVERTER = """
import sys
from pathlib import Path
words = dict(word.split("=") for word in sys.argv[2:])
Path(words["--outfile"]).write_text("GGUF")
if {fails}:
    raise ValueError("no such model")
"""


def convert(place: str) -> str:
    import export

    try:
        export.main(["--to=gguf", *([f"--converter={place}"] if place else [])])
    except SystemExit as refused:
        return str(refused)
    return ""


def test_gguf_is_written_by_the_converter_that_is_found_or_not_at_all(project, tmp_path):
    said = in_project(project, convert, "")
    assert "git clone https://github.com/ggml-org/llama.cpp" in said and "\n" not in said
    assert not (project / "outputs/merged").exists()  # before the expensive part
    broken, works = tmp_path / "broken.py", tmp_path / "convert_hf_to_gguf.py"
    broken.write_text(CONVERTER.format(fails=True))
    assert "fails: ValueError: no such model" in in_project(project, convert, str(broken))
    assert not [*project.glob("outputs/gguf*")]
    works.write_text(CONVERTER.format(fails=False))
    os.environ["LLAMA_CPP"] = str(tmp_path)
    assert in_project(project, convert, str(works)) == ""
    del os.environ["LLAMA_CPP"]
    files = {file.name for file in (project / "outputs/gguf").iterdir()}
    assert files == {"model.gguf", "Modelfile", "README.md"}
    assert "outputs/gguf is there already" in in_project(project, convert, str(works))
    manifest = project / "outputs/merged/manifest.json"
    manifest.write_text(manifest.read_text().replace('"seed": 42', '"seed": 43'))
    (project / "outputs/gguf").rename(project / "outputs/before")
    assert "is of another run" in in_project(project, convert, str(works))


# --- the Hub -------------------------------------------------------------------------------------


def send(answer: str | None, there: str, words: list[str]) -> tuple[list, str]:
    """What the Hub is asked to do, where a person answers that, and what is said."""
    from types import SimpleNamespace

    import export

    asked, shown = [], []

    class Hub:
        def create_repo(self, name, **how):
            asked.append((name, how))
            return SimpleNamespace(repo_id=name)

        def model_info(self, name):
            return SimpleNamespace(private=there != "public")

        def upload_folder(self, allow_patterns, **how):
            asked.append((sorted(allow_patterns), how["repo_id"], how["folder_path"].name))
            if there == "down":
                raise OSError("the Hub is\ndown")

    def said(question: str) -> str:
        asked.append("\n".join([*shown, question]))
        if answer is None:
            raise EOFError
        return answer

    export.HfApi, builtins.input, export.say = Hub, said, shown.append
    try:
        export.main(["--to", "hub", "org/name", *words])
    except SystemExit as refused:
        return asked, str(refused)
    return asked, ""


MERGED = ["--folder=outputs/merged"]


@pytest.fixture(scope="module")
def merged(project):
    in_project(project, merge)


def merge() -> None:
    import export

    if not Path("outputs/merged").exists():
        export.main([])


@pytest.mark.parametrize("answer", ["", "n", "Y?", None])
def test_nothing_is_sent_without_a_yes(project, merged, answer):
    asked, said = in_project(project, send, answer, "", MERGED)
    assert len(asked) == 1 and "org/name, private? [y/N]" in asked[0]
    assert "\nmodel.safetensors\n" in asked[0]  # what would be sent
    assert said == "Nothing is sent."


def card_of_a_merge() -> str:
    """Merged once more: make mutants runs a test where it has seen it run what is broken."""
    shutil.rmtree("outputs/merged", ignore_errors=True)
    merge()
    return Path("outputs/merged/README.md").read_text(encoding="utf-8")


def test_the_card_of_a_merged_model_says_who_can_read_it(project):
    assert "For transformers 4 and 5." in in_project(project, card_of_a_merge)


def test_after_a_yes_a_private_repository_has_the_model_and_no_path(project, merged):
    question, created, (files, *where) = in_project(project, send, "yes", "", MERGED)[0]
    assert created == ("org/name", {"private": True, "exist_ok": True})
    assert where == ["org/name", "merged"]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= {*files}
    assert not {"manifest.json", "training_args.bin"} & {*files}
    for name in files:
        assert str(project).encode() not in (project / "outputs/merged" / name).read_bytes(), name
    question, created, _ = in_project(project, send, "y", "public", [*MERGED, "--public"])[0]
    assert "for all to see" in question and created[1]["private"] is False


REFUSED = {
    "a public one, unasked": ("public", MERGED, "org/name is there already, for all to see"),
    "the Hub is down": ("down", MERGED, "org/name: the Hub is down"),
    "a base that nobody else has": ("", [], "is for a base that only this machine has"),
    "no such folder": ("", ["--folder=nowhere"], "nowhere does not exist"),
}


@pytest.mark.parametrize("there, words, sentence", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_sent_is_refused_in_a_sentence(project, merged, there, words, sentence):
    asked, said = in_project(project, send, "y", there, words)
    assert sentence in said and "\n" not in said
    assert len(asked) < 3 or there == "down"


# --- the model card ------------------------------------------------------------------------------


def card_of(folder: str) -> tuple[dict, str]:
    """Metadata and text, as huggingface_hub reads them."""
    from huggingface_hub import ModelCard

    card = ModelCard.load(Path(folder, "README.md"))
    return card.data.to_dict(), card.text


def score() -> None:
    import evaluate

    evaluate.main(["--use_cpu", "--rows=1", "--max_new_tokens=4"])


def test_the_card_says_what_was_trained_and_holds_no_path(project):
    data, text = in_project(project, card_of, "outputs/final")
    assert data == {
        **{"library_name": "peft", "pipeline_tag": "text-generation", "tags": ["sft"]},
        **yaml.safe_load(LICENCE.split("---")[1]),
    }
    written = (project / "outputs/run.json").read_text()
    run = json.loads(written)
    assert len(written.splitlines()) > len(run["settings"])  # for people, and for diff
    for word in (
        *("base", "my rows.jsonl", "a-licence", "Be brief.", "learning_rate: ", "seed: 42"),
        *("| rows_used | 28 |", "| skipped: longer than max_length | 1 |", "{dialogue}"),
        *("transformers " + run["versions"]["transformers"], "reference:", "tuned:"),
    ):
        assert word in text, word
    assert "`python evaluate.py` has not been run" in text
    assert not re.search(r"[/\\](home|root|tmp|Users|work|elsewhere)\b", text)
    in_project(project, score)
    _, text = in_project(project, card_of, "outputs/final")
    assert "On the first 1 of" in text and "| final |" in text and "loss" in text
    assert not re.search(r"[/\\](home|root|tmp|Users|work|elsewhere)\b", text)
    assert in_project(project, whole, "outputs/final") == ""


def write_again(folder: str) -> None:
    from sft.card import write_card
    from sft.model import load_tokenizer

    write_card(Path(folder), Path("outputs"), load_tokenizer(folder))


def test_scores_come_into_an_edited_card_and_go_with_their_model(project):
    card = project / "outputs/final/README.md"
    in_project(project, write_again, "outputs/final")
    card.write_text(card.read_text().replace("\n## Prompt", "\nMine.\n\n## Prompt"))
    in_project(project, score)
    assert "\nMine.\n" in card.read_text() and "| final |" in card.read_text()
    later = (project / "outputs/evaluation.json").stat().st_mtime_ns + 1
    os.utime(project / "outputs/summary.json", ns=(later, later))  # as a longer run leaves it
    in_project(project, write_again, "outputs/final")
    assert "`python evaluate.py` has not been run" in card.read_text()
    card.write_text("Mine alone.")
    in_project(project, score)
    assert card.read_text() == "Mine alone."
    in_project(project, write_again, "outputs/final")


def test_a_card_of_the_base_that_nobody_can_read_ends_nothing(project):
    base = project / "elsewhere/base/README.md"
    base.write_text("---\ndescription: a: b\n---\n")
    in_project(project, write_again, "outputs/final")
    base.write_text(LICENCE)
    assert "learning_rate: " in (project / "outputs/final/README.md").read_text()


def whole(folder: str) -> str:
    from sft.checkpoints import _damage

    return _damage(Path(folder))


def run_the_words_of(folder: str) -> list[str]:
    """What the card's own lines of Python print."""
    text = card_of(folder)[1]
    lines = text[text.index("    from transformers") :].partition("\n## ")[0].splitlines()
    code = "\n".join(line[4:] for line in lines).replace("FOLDER OR NAME ON THE HUB", folder)
    printed = []
    exec(code.replace("512", "4"), {"print": printed.append})
    return printed


@pytest.mark.parametrize("folder", ["outputs/final", "outputs/merged"])
def test_the_lines_of_the_card_load_the_model_and_ask_it(project, merged, folder):
    (answer,) = in_project(project, run_the_words_of, folder)
    assert isinstance(answer, str)


PLACES = {
    "an id": ("org/rows", ["org/rows"]),
    "a path": ("/a/b c/rows.jsonl", ["rows.jsonl"]),
    "a list": (["/a/x.csv", "org/rows"], ["x.csv", "org/rows"]),
    "a mix": ([{"path": "/a/x.csv", "weight": 0.5}, {"path": "org/rows"}], ["x.csv", "org/rows"]),
    "a path that is there": ("data/sample.jsonl", ["sample.jsonl"]),
}


@pytest.mark.parametrize("given, wanted", PLACES.values(), ids=PLACES)
def test_of_a_path_the_card_has_the_last_part(project, given, wanted):
    assert in_project(project, names, given) == wanted


def names(given: object) -> list[str]:
    from sft.card import named

    return named(given)
