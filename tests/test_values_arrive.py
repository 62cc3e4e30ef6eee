"""Each value of config.yaml and of the command line arrives as what it is, or is refused."""

import ast
import contextlib
import graphlib
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import MENUS, config_of, in_project


@pytest.fixture(scope="module")
def project(bake_once):
    return bake_once.project(project_slug="values", quantization="none", collator="seq2seq")


def says(script: str, words: list[str]) -> str:
    """What a script prints, or the sentence that it ends with."""
    main = __import__(script).main
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            main(words)
        except SystemExit as ended:
            return printed.getvalue() + (str(ended) if ended.code else "")
    return printed.getvalue()


OPTIONS = {
    "train": ["smoke"],
    "preview": ["smoke", "clean"],
    "chat": ["prompt", "base", "model", "max_new_tokens", "sample", "temperature", "top_p", "save"],
    "export": ["to", "folder", "public", "converter"],
}


def says_as_program(script: str, words: list[str]) -> str:
    """What `python script words` prints."""
    sys.argv = [script, *words]
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    return printed.getvalue()


@pytest.mark.parametrize("script", OPTIONS)
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_is_the_docstring_the_options_and_where_the_rest_is(project, script, word):
    shown = in_project(project, says_as_program, f"{script}.py", [word])
    assert shown.startswith(ast.get_docstring(ast.parse((project / f"{script}.py").read_text())))
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("  --")] == [
        f"--{name}" for name in OPTIONS[script]
    ]
    assert "config.yaml" in shown and "transformers.TrainingArguments" in shown
    assert len(shown.splitlines()) < 25


@pytest.mark.parametrize("script", OPTIONS)
def test_a_misspelt_option_is_refused_with_the_nearest(project, script):
    name = OPTIONS[script][0]
    said = in_project(project, says, script, [f"--{name}a", "x"])
    assert f"nearest is {name!r}" in said and len(said.splitlines()) == 1
    assert "nearest is 'max_length'" in in_project(project, says, script, ["--max_lengt=3"])


def defaults_that_are_refused() -> tuple[int, list[str]]:
    """How many keys of ours offer words, and those whose default is none of the words."""
    from dataclasses import fields
    from typing import Literal, get_args, get_origin, get_type_hints

    from sft.config import ProjectArguments

    kinds = get_type_hints(ProjectArguments)
    offers = [one for one in fields(ProjectArguments) if get_origin(kinds[one.name]) is Literal]
    return len(offers), [one.name for one in offers if one.default not in get_args(kinds[one.name])]


def defaults_of(keys: list[str]) -> dict:
    from dataclasses import fields

    from sft.config import ProjectArguments

    return {one.name: one.default for one in fields(ProjectArguments) if one.name in keys}


def test_a_key_that_is_left_out_is_what_config_yaml_said(project):
    keys = ["revision", "test_size", "control_tokens", "max_skipped", "truncation_mode"]
    said = config_of(project)
    assert in_project(project, defaults_of, keys) == {key: said[key] for key in keys}


@pytest.mark.parametrize("dataset_format", MENUS["dataset_format"])
def test_a_key_that_is_left_out_has_a_default_that_it_offers(bake_once, dataset_format):
    collator = "language_modeling" if dataset_format == "text" else "seq2seq"
    project = bake_once.project(
        project_slug=f"of-{dataset_format}", dataset_format=dataset_format, collator=collator
    )
    offers, refused = in_project(project, defaults_that_are_refused)
    assert offers and not refused


def test_rows_of_similar_length_share_a_batch_where_there_is_padding(project, bake_once):
    packed = bake_once.project(project_slug="packed", collator="padding_free")
    assert config_of(project)["train_sampling_strategy"] == "group_by_length"
    assert "train_sampling_strategy" not in config_of(packed)


def refused_by_the_adapter(keys: dict) -> str:
    from types import SimpleNamespace

    from sft.adapter import check_adapter

    try:
        check_adapter(SimpleNamespace(adapter=keys))
    except SystemExit as refused:
        return str(refused)
    return ""


def test_a_key_of_an_adapter_is_refused_where_there_is_none(bake_once):
    full = bake_once.project(project_slug="whole", quantization="none", lora_targets="full")
    assert "'r'" in in_project(full, values, ["--r=8"])
    assert in_project(full, refused_by_the_adapter, {}) == ""
    assert "'lora_alpha'" in in_project(full, refused_by_the_adapter, {"lora_alpha": 8})


def values(words: list[str]) -> dict | str:
    from sft.config import load_config

    try:
        args, training_args = load_config([*words, "--use_cpu=true"])
    except SystemExit as refused:
        return str(refused)
    found = vars(args) | args.adapter | training_args.to_dict()
    return json.loads(json.dumps(found, default=str))


ARRIVE = {
    "--include_num_input_tokens_seen all": ("include_num_input_tokens_seen", "all"),
    "--include_num_input_tokens_seen=non_padding": ("include_num_input_tokens_seen", "non_padding"),
    "--include_num_input_tokens_seen false": ("include_num_input_tokens_seen", "no"),
    "--learning_rate 1e-4": ("learning_rate", 1e-4),
    "--num_train_epochs=2": ("num_train_epochs", 2.0),
    "--seed 007": ("seed", 7),
    "--max_length=77": ("max_length", 77),
    "--logging_first_step": ("logging_first_step", True),
    "--remove_unused_columns=no": ("remove_unused_columns", False),
    "--run_name 007": ("run_name", "007"),
    "--run_name=gradient_checkpointing": ("run_name", "gradient_checkpointing"),
    "--run_name=null": ("run_name", "null"),
    "--system_prompt=--no: [yes": ("system_prompt", "--no: [yes"),
    "--system_prompt= a # b ": ("system_prompt", " a # b "),
    "--dataset_config=": ("dataset_config", ""),
    "--report_to none": ("report_to", []),
    "--report_to tensorboard wandb": ("report_to", ["tensorboard", "wandb"]),
    "--include_for_metrics loss": ("include_for_metrics", ["loss"]),
    '--lr_scheduler_kwargs={"num_cycles": 2}': ("lr_scheduler_kwargs", {"num_cycles": 2}),
    '--lr_scheduler_kwargs={"min_lr": 1e-5}': ("lr_scheduler_kwargs", {"min_lr": 1e-5}),
    "--lr_scheduler_kwargs={min_lr: -2.5e+3}": ("lr_scheduler_kwargs", {"min_lr": -2500.0}),
    "--eval_strategy no": ("eval_strategy", "no"),
    "--optim=adafactor": ("optim", "adafactor"),
    "--lr_scheduler_type linear": ("lr_scheduler_type", "linear"),
    "--activation_checkpointing auto": ("activation_checkpointing", False),  # the library's default
    "--gradient_checkpointing=true": ("activation_checkpointing", True),  # its older name
    "--target_modules q_proj": ("target_modules", ["q_proj"]),
    "--target_modules q_proj k_proj": ("target_modules", ["q_proj", "k_proj"]),
    "--lora_dropout 0": ("lora_dropout", 0.0),
}


@pytest.mark.parametrize("words, value", ARRIVE.items(), ids=ARRIVE)
def test_a_value_arrives_as_what_it_is(project, words, value):
    words = [words] if words.startswith(("--system", "--lr_scheduler_kw")) else words.split()
    found = in_project(project, values, words)
    assert found[value[0]] == value[1], found if isinstance(found, str) else found[value[0]]


REFUSED = {
    "--max_length=long": "max_length must be a whole number, not 'long'",
    "--max_length=0": "max_length must be above 0",
    "--max_length": "max_length must be a whole number",
    "--max_skipped=1.5": "max_skipped must be from 0 to 1",
    "--test_size=1": "test_size must be from 0 to below 1",
    "--dataset_num_proc=-1": "dataset_num_proc must be 0 or above",
    "--truncation_mode=cut": "must be drop or truncate_prompt, not 'cut'",
    "--tf32 perhaps": "tf32 must be true or false or auto, not 'perhaps'",
    "--bf16=1": "bf16 must be true or false",
    "--learning_rate fast": "learning_rate must be a number, not 'fast'",
    "--r many": "r must be a whole number, not 'many'",
    "--lr_scheduler_type=cosin": "lr_scheduler_type must be linear or cosine or",
    "--hub_token=hf_x": "set HF_TOKEN in the environment",
    "word": "'word' belongs to no key",
    "--use_dora=true": "There is no key 'use_dora'",
}


@pytest.mark.parametrize("words, sentence", REFUSED.items(), ids=REFUSED)
def test_a_wrong_value_is_refused_in_a_sentence(project, words, sentence):
    said = in_project(project, values, words.split())
    assert isinstance(said, str) and sentence in said and "\n" not in said


def edited(project: Path, old: str, new: str):
    """config.yaml with a line changed, for a while."""
    file = project / "config.yaml"
    before = file.read_text(encoding="utf-8")
    assert old in before
    stack = contextlib.ExitStack()
    stack.callback(file.write_text, before, encoding="utf-8")
    file.write_text(before.replace(old, new), encoding="utf-8")
    return stack


EDITS = {
    "a slip in one of ours": ("truncation_mode: ", "truncation_mod: ", "is 'truncation_mode'"),
    "a slip in the library's": ("learning_rate: ", "learning_rat: ", "is 'learning_rate'"),
    "a key that is gone": ("max_length: ", "# ", "config.yaml has no key 'max_length'"),
    "no YAML": ("seed: 42", "seed: [", "is not valid YAML in UTF-8: expected"),
    "text for a number": ("r: 16", "r: many", "r must be a whole number, not"),
    "a key of nobody": (
        "r: 16",
        "rank: 64",
        "There is no key 'rank'",
    ),
}


@pytest.mark.parametrize("old, new, sentence", EDITS.values(), ids=EDITS)
def test_what_is_wrong_in_config_yaml_is_named_before_a_model_is_loaded(
    project, old, new, sentence
):
    with edited(project, old, new):
        said = in_project(project, says, "train", ["--base_model_path=./nowhere"])
    assert sentence in said and len(said.splitlines()) == 1


def test_numbers_in_a_mapping_of_config_yaml_are_numbers(project):
    with edited(project, "seed: 42", "lr_scheduler_kwargs: {min_lr: 1e-5, late: .5E3, name: e5}"):
        found = in_project(project, values, [])
    assert found["lr_scheduler_kwargs"] == {"min_lr": 1e-5, "late": 500.0, "name": "e5"}


def trained_with(options: list[str]) -> dict:
    import train

    final = train.main(["--smoke", "--max_steps=2", "--eval_strategy=no", *options])
    from safetensors import safe_open

    file = final / "adapter_model.safetensors"
    names = list(safe_open(file, "pt").keys()) if file.exists() else []
    return {
        "log": json.loads((final.parent / "checkpoint-2/trainer_state.json").read_text()),
        "config": json.loads((final / "adapter_config.json").read_text()),
        "names": names,
    }


def test_any_field_of_lora_config_works_from_config_yaml(project):
    keys = "r: 16\nuse_dora: true\nmodules_to_save: [embed_tokens]\n"
    with edited(project, "r: 16", keys.strip()):
        seen = in_project(project, trained_with, ["--save_steps=2"])
    assert seen["config"]["use_dora"] is True and seen["config"]["r"] == 16
    assert any("lora_magnitude_vector" in name for name in seen["names"])
    assert any("embed_tokens" in name for name in seen["names"])


def test_tokens_per_second_are_logged_where_they_are_asked_for(project):
    options = ["--include_num_input_tokens_seen=all", "--save_steps=2"]
    log = in_project(project, trained_with, options)["log"]["log_history"]
    assert log[0]["train_tokens_per_second"] > 0 and log[1]["num_input_tokens_seen"] > 0


def conversations_with(*options: list[str]) -> list[tuple[list, dict]]:
    """What chat.py shows the model of a training that had no system prompt, and how it asks it."""
    import chat
    import train

    shown = []

    def reply(model, tokenizer, messages, asked, **how):
        shown.append((messages[:], how))
        return "Hm."

    train.main(["--smoke", "--max_steps=1", "--eval_strategy=no"])
    chat.reply = reply
    for words in options:
        words = ["--prompt", "42", "--output_dir=outputs/smoke", "--use_cpu", *words]
        assert chat.main(words) == "Hm."
    return shown


def test_chat_takes_another_system_prompt_samples_and_saves(project):
    plain = ["--max_new_tokens=7"]
    hot = ["--system_prompt", "Be brief.", "--temperature=0.7", "--top_p=0.9", "--save=new/a.jsonl"]
    shown = in_project(project, conversations_with, plain, hot, hot)
    turn, system = {"role": "user", "content": "42"}, {"role": "system", "content": "Be brief."}
    assert shown[0] == ([turn], {"max_new_tokens": 7, "do_sample": False})
    how = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 512, "do_sample": True}
    assert shown[1:] == [([system, turn], how)] * 2
    rows = map(json.loads, (project / "new/a.jsonl").read_text(encoding="utf-8").splitlines())
    row = {"messages": [system, turn, {"role": "assistant", "content": "Hm."}]}
    assert [*rows] == [row] * 2


@pytest.mark.parametrize("targets, r, alpha", [("all_linear", 16, 32), ("attention", 64, 16)])
def test_the_tutorials_adapter_is_the_tutorials_and_the_default_the_measured_one(
    bake_once, targets, r, alpha
):
    values = config_of(bake_once.project(project_slug=targets, lora_targets=targets))
    assert (values["r"], values["lora_alpha"]) == (r, alpha)


@pytest.mark.parametrize("words", ["--temperature=-1", "--top_p=2"])
def test_chat_refuses_a_way_to_sample_that_cannot_work(project, words):
    said = in_project(project, says, "chat", [words])
    assert "temperature must be above 0, and top_p from 0 to 1" in said and "\n" not in said


IMPORTED = """
import sys
import sft.config
print([name for name in {heavy} if name in sys.modules])
sft.config.read_values(["--max_length=3", "--lora_dropout", "1e-1"])
print([name for name in {heavy} if name in sys.modules])
sft.config.load_config(["--use_cpu=true"])
print([name for name in {rooms} if name in sys.modules])
"""


def test_values_are_read_without_torch_and_typed_without_model_and_mask(project):
    code = IMPORTED.format(
        heavy=("torch", "transformers", "peft", "datasets"),
        rooms=("sft.mask", "sft.adapter", "sft.model", "sft.examples"),
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True)
    assert run.stdout.split() == ["[]"] * 3, run.stdout + run.stderr[-2000:]


def test_no_import_runs_in_a_circle(project):
    imports = {}
    for file in [*project.glob("*.py"), *project.glob("sft/**/*.py")]:
        name = ".".join(file.relative_to(project).with_suffix("").parts).removesuffix(".__init__")
        nodes = [*ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
        found = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        imports[name] = {module for module in found if module.startswith("sft.")}
    assert "sft.format" in imports["sft.config"]
    order = [*graphlib.TopologicalSorter(imports).static_order()]  # refuses a circle
    rooms = ["rows", "model", "adapter", "report"]
    assert order.index("sft.config") < min(order.index(f"sft.{room}") for room in rooms)
