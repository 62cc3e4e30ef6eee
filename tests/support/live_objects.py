"""Every value of config.yaml and every keyword given to a library, proven on the live objects.

tests/matrix.py calls `watch` before a combination is trained and `check_live_objects` after: what
was really built is held against config.yaml, and against other values than those it has, since a
key that is ignored is not noticed where the library's default is the same.
"""

import hashlib
import json
import re
import typing
from contextlib import contextmanager
from dataclasses import fields, replace
from enum import Enum
from functools import cache
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import yaml

from conftest import another_value

TWIN = "outputs/smoke/twin"
IMPORTS = re.compile(r"^\s*(?:from|import) ([\w.]+)(?: import (\([^)]*\)|.*))?", re.M)


def watch(seen: dict) -> None:
    """Note in `seen` what is given to the libraries while the combination is trained."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin, Trainer

    import chat
    import train

    calls = seen["calls"] = {"model": [], "tokenizer": [], "generate": [], "chat": []}
    smoke_overrides, chat_main, fit = train.smoke_overrides, chat.main, Trainer.train

    def noted(kind: str, function):
        def noting(*args, **kwargs):
            result = function(*args, **kwargs)
            calls[kind].append((args, kwargs, result))
            return result

        return noting

    def words(argv: list[str]) -> list[str]:
        seen["words"] = smoke_overrides(argv)
        return seen["words"]

    def fitting(trainer, *args, **kwargs):
        seen["use_cache"] = trainer.model.config.use_cache
        return fit(trainer, *args, **kwargs)

    for owner, kind in ((AutoModelForCausalLM, "model"), (AutoTokenizer, "tokenizer")):
        owner.from_pretrained = staticmethod(noted(kind, owner.from_pretrained))
    GenerationMixin.generate = noted("generate", GenerationMixin.generate)
    chat.main = noted("chat", chat_main)
    train.smoke_overrides, Trainer.train = words, fitting


def check_live_objects(answers: dict, seen: dict, final: Path, notes: Path) -> None:
    """What was trained is what config.yaml says; with other values it would be what those say.

    Args:
        notes: a folder; a check that was right is not made again with the same content.
    """
    from sft.config import load_config

    check_every_key_arrives()
    check_values_of_answers(answers)
    check_training_arguments(seen)
    check_optimizer(seen["trainer"])
    check_order_of_rows(answers, seen["trainer"])
    check_rows(seen)
    check_prompt_and_revision(answers, seen)
    names = {"base_model_path", "report_to"}  # which the twin and the run's words replace
    values = {key: value for key, value in config().items() if key not in names}
    words = [word.replace(str(Path.cwd()), ".") for word in seen["words"]]
    tokenizer = [f"{TWIN}/tokenizer.json", f"{TWIN}/tokenizer_config.json"]
    tokenizer += [f"{TWIN}/chat_template.jinja"]
    rows = ["sft/rows.py", "sft/source.py", "sft/examples.py", "data/sample.jsonl", *tokenizer]
    once(notes, check_keys_of_rows, answers, seen, reads=rows, given=[values, words])
    check_evaluation_loss(seen, final)
    check_summary(seen["trainer"])
    check_records(seen, final)
    check_room(seen["trainer"])
    check_chat(seen, final)
    check_answers(answers, seen, final)
    weights = [f"{TWIN}/config.json", f"{TWIN}/model.safetensors"]
    if answers["lora_targets"] != "full":
        check_adapter(seen["model"], load_config(["--use_cpu=true"])[0])
        first = {n: one.numpy().tobytes() for n, one in seen["before"].items() if ".lora_A." in n}
        adapter = ["sft/adapter.py", *weights]
        once(notes, check_first_adapter, seen, reads=adapter, given=[values, first])
    loading = ["sft/adapter.py", "sft/stop_tokens.py", *weights, *tokenizer]
    once(notes, check_loading, answers, seen, reads=loading, given=values)
    check_dtypes()
    twin = ["sft/twin.py", "sft/model.py", "base_model/config.json", "data/sample.jsonl"]
    once(notes, check_twin_and_tokenizer, reads=[*twin, *weights, *tokenizer])
    assert seen["tokenizer"].padding_side == "right" and seen["tokenizer"].pad_token
    assert seen["use_cache"] is False and seen["model"].config.use_cache is True


def once(notes: Path, check, *args, reads: list[str], given=None) -> None:
    """Make a check, unless it was right before with the very same content.

    Args:
        reads: the project's files that it depends on; the modules that they import are added.
        given: what else it depends on.
    """
    waiting, found = [*reads], {}
    while waiting:
        file = waiting.pop()
        if file not in found:
            found[file], imported = content(file)
            waiting += imported
    about = repr([check.__name__, sorted(found.items()), given])
    note = notes / hashlib.sha256(about.encode()).hexdigest()
    if not note.exists():
        check(*args)
        note.touch()


@cache
def content(file: str) -> tuple[str, list[str]]:
    """A hash of a file's content, and the modules that it may import of the project."""
    if not Path(file).is_file():
        return "", []
    text, imported = Path(file).read_bytes(), []
    for module, names in IMPORTS.findall(text.decode()) if file.endswith(".py") else ():
        inside = [f"{module}.{name}" for name in re.findall(r"\w+", names)]
        for place in (one.replace(".", "/") for one in (module, *inside)):
            imported += [f"{place}.py", f"{place}/__init__.py"]
    return hashlib.sha256(text).hexdigest(), imported


# --- config.yaml ---------------------------------------------------------------------------------


def config() -> dict:
    return yaml.safe_load(Path("config.yaml").read_text(encoding="utf-8"))


def value_of(key: str, seen: dict) -> str:
    """What the run's words say of the key, the last of them; else config.yaml."""
    said = [word.partition("=")[2] for word in seen["words"] if word.startswith(f"--{key}=")]
    return said[-1] if said else str(config()[key])


def plain(value):
    return value.value if isinstance(value, Enum) else value


def check_every_key_arrives() -> None:
    """Each key of config.yaml, given another value, has that on the objects made of it."""
    from sft.config import load_config

    others = {key: another(key, value) for key, value in config().items()}
    with config_of(others):
        args, training_args = load_config(["--use_cpu=true"])
    objects = [args, training_args, SimpleNamespace(**args.adapter)]
    for key, value in others.items():
        found = [plain(getattr(one, key)) for one in objects if hasattr(one, key)]
        if key == "report_to":  # a list of trackers, empty for none
            found = [one[0] if one else "none" for one in found]
        assert found and all(one == value for one in found), f"{key} is {found}, not {value!r}"


def check_values_of_answers(answers: dict) -> None:
    """Where an answer decides a value of config.yaml, it is that one."""
    full, values = answers["lora_targets"] == "full", config()
    decided = [values[key] for key in ("dtype", "learning_rate", "optim")]
    assert decided == (
        ["float32", 2e-5, "auto"] if full else ["bfloat16", 2e-4, "adamw_torch_fused"]
    )
    kwargs = {"use_reentrant": answers["quantization"] == "int8"}
    assert values["activation_checkpointing_kwargs"] == kwargs


@contextmanager
def config_of(values: dict):
    """config.yaml with these values, for a while."""
    file = Path("config.yaml")
    before = file.read_text(encoding="utf-8")
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    try:
        yield
    finally:
        file.write_text(before, encoding="utf-8")


def another(key: str, value):
    """Another value that the key may have."""
    from transformers import TrainingArguments

    from sft.config import ProjectArguments

    if key == "report_to":
        return "none" if value != "none" else "tensorboard"
    if value == -1:
        return 5
    listed = {each.name: each.metadata.get("choices") or () for each in fields(TrainingArguments)}
    if others := [choice for choice in listed.get(key, ()) if choice != value]:
        return others[0]
    for owner in (ProjectArguments, TrainingArguments):
        hint = hints(owner).get(key)
        choices = [plain(one) for part in [hint, *typing.get_args(hint)] for one in members(part)]
        others = [choice for choice in choices if choice != value]
        if others:
            return others[0]
    if value == "auto":
        return True
    return another_value(value)


hints = cache(typing.get_type_hints)


def members(hint) -> list:
    """The values that a type allows, if it lists them."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        return list(hint)
    return list(typing.get_args(hint)) if typing.get_origin(hint) is typing.Literal else []


def check_training_arguments(seen: dict) -> None:
    """The Trainer works with config.yaml's values, except for what this run's words replaced."""
    arguments = seen["trainer"].args
    replaced = {word.removeprefix("--").partition("=")[0] for word in seen["words"]}
    for key, value in config().items():
        if hasattr(arguments, key) and key not in replaced and value != "auto":
            found = plain(getattr(arguments, key))
            assert found == value, f"{key} of the Trainer is {found!r}, not {value!r}"
    checkpointing = config()["activation_checkpointing_kwargs"]
    layers = [m for m in seen["model"].modules() if hasattr(m, "_gradient_checkpointing_func")]
    assert layers, "nothing is checkpointed"
    for layer in layers:
        assert layer.gradient_checkpointing
        given = layer._gradient_checkpointing_func.keywords
        assert checkpointing.items() <= given.items(), given


def check_optimizer(trainer) -> None:
    optimizer, values = trainer.optimizer.optimizer, config()
    assert type(optimizer).__name__ == "AdamW" and optimizer.defaults["fused"], optimizer
    schedule = trainer.lr_scheduler.lr_lambdas[0]
    assert values["lr_scheduler_type"] in schedule.func.__name__
    assert schedule.keywords["num_training_steps"] == trainer.state.max_steps
    assert schedule.keywords["num_warmup_steps"] == 1  # a share, rounded up
    assert set(trainer.lr_scheduler.base_lrs) == {values["learning_rate"]}
    groups = [set(map(id, group["params"])) for group in optimizer.param_groups]
    trained = {id(p) for p in trainer.model.parameters() if p.requires_grad}
    assert set.union(*groups) == trained


# --- rows, evaluation, chat ----------------------------------------------------------------------


def check_order_of_rows(answers: dict, trainer) -> None:
    """The padding-free collator's order is by length, for these steps and this seed."""
    if answers["collator"] != "padding_free":
        return
    sampler, args = trainer._get_train_sampler(), trainer.args
    assert sampler.lengths.tolist() == [len(row["input_ids"]) for row in trainer.train_dataset]
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    given = (sampler.rows_per_step, sampler.rows_per_batch, sampler.seed)
    assert given == (step, args.per_device_train_batch_size, args.seed)


def check_rows(seen: dict) -> None:
    """Each row is trained on or evaluated on, never both."""
    trainer = seen["trainer"]
    trained, held_out = (
        [tuple(row["input_ids"]) for row in rows]
        for rows in (trainer.train_dataset, trainer.eval_dataset)
    )
    assert not set(trained) & set(held_out), "a row is trained on and evaluated on"
    rows = len(Path("data/sample.jsonl").read_text(encoding="utf-8").splitlines())
    rows = min(rows, 64)  # of a smoke run
    share = float(value_of("test_size", seen))
    assert len(trained) + len(held_out) == rows
    assert len(held_out) == max(1, round(share * rows)), len(held_out)


def check_prompt_and_revision(answers: dict, seen: dict) -> None:
    tokenizer = seen["tokenizer"]
    texts = [tokenizer.decode(row["input_ids"]) for row in seen["trainer"].train_dataset]
    prompt = value_of("system_prompt", seen)
    is_text = answers["dataset_format"] == "text"  # has no turns
    assert is_text or any(f"<|im_start|>system\n{prompt}<|im_end|>" in text for text in texts)
    path, revision = (value_of(key, seen) for key in ("base_model_path", "revision"))
    (named, *_), given, _ = seen["calls"]["tokenizer"][0]
    assert (named, given["revision"]) == (path, revision)


def check_keys_of_rows(answers: dict, seen: dict) -> None:
    """What decides over rows and their masks, with other values than the run's."""
    from datasets import Dataset

    import sft.rows
    import sft.source
    from sft.config import load_config
    from sft.examples import make_examples
    from sft.files import plain_row

    tokenizer = seen["tokenizer"]
    rows = sft.rows.load_rows(load_config(seen["words"])[0])["train"].select(range(8))
    asked = []

    def found(*args):
        asked.append(args)
        return {"a": rows, "b": rows}

    load, sft.source.load_from_hub = sft.source.load_from_hub, found
    words = ["--dataset=a/b", "--dataset_config=c", "--train_split=a[:5]", "--eval_split=b[:3]"]
    splits = sft.rows.load_rows(load_config([*seen["words"], *words])[0])
    sft.source.load_from_hub = load
    assert {name: len(these) for name, these in splits.items()} == {"train": 5, "evaluation": 3}
    assert [words[:2] for words in asked] == [("a/b", "c")]

    def examples(rows=rows, **values) -> tuple[list, object]:
        words = [f"--{key}={value}" for key, value in {"test_size": 0, **values}.items()]
        used, reports = make_examples(
            {"train": rows}, tokenizer, load_config([*seen["words"], *words])[0]
        )
        return list(used["train"]), reports["train"]

    whole, _ = examples()
    lengths = [len(one["input_ids"]) for one in whole]
    limit = max(lengths) - 1
    if answers["dataset_format"] == "text":
        pieces, _ = examples(max_length=limit)
        assert len(pieces) == len(whole) + lengths.count(limit + 1)
        assert sum(len(one["input_ids"]) for one in pieces) == sum(lengths)
    else:
        short, report = examples(max_length=limit, truncation_mode="truncate_prompt")
        assert len(short) == len(whole) and report.shortened
        assert max(len(one["input_ids"]) for one in short) <= limit
        fewer, _ = examples(max_length=limit, max_skipped=1)
        assert len(fewer) == sum(length <= limit for length in lengths)
    first, second = (plain_row(rows[at]) for at in (0, 1))
    forged = Dataset.from_list([forging(first, answers), second])
    for control_tokens, used in (("refuse", 1), ("escape", 2)):
        these, _ = examples(forged, control_tokens=control_tokens, max_skipped=1)
        assert len(these) == used, control_tokens
    if answers["dataset_format"] == "messages":
        last, _ = examples(turns="last")
        assert sum(map(trained, last)) < sum(map(trained, whole))


def forging(row: dict, answers: dict) -> dict:
    """The row with a control token in its prompt."""
    if column := {"prompt_response": "dialogue", "text": "text"}.get(answers["dataset_format"]):
        return row | {column: row[column] + "<|im_end|>"}
    turns = [dict(turn) for turn in row["messages"]]
    next(turn for turn in turns if turn["role"] == "user")["content"] += "<|im_end|>"
    return row | {"messages": turns}


def trained(example: dict) -> int:
    """Tokens with a label."""
    return sum(label != -100 for label in example["labels"])


def check_evaluation_loss(seen: dict, final: Path) -> None:
    """The mean over the trained tokens of all held-out rows; and the rest of the summary."""
    import torch

    trainer, total, tokens = seen["trainer"], 0.0, 0
    for row in trainer.eval_dataset:
        batch = seen["collator"]([{key: row[key] for key in ("input_ids", "labels")}])
        with torch.no_grad():
            loss = trainer.model(**batch, num_items_in_batch=torch.tensor(1)).loss
        total, tokens = total + float(loss), tokens + int((batch["labels"][:, 1:] != -100).sum())
    summary = json.loads((final.parent / "summary.json").read_text(encoding="utf-8"))
    assert abs(summary["eval_loss"] - total / tokens) < 1e-3, (summary, total / tokens)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert summary["loss"] == logged[-1]
    assert summary["steps"] == trainer.state.max_steps == trainer.state.global_step
    assert summary["rows_used"] == len(trainer.train_dataset)


def check_summary(trainer) -> None:
    """The last figures of the log are shown, and a GPU's peak beside the counted one."""
    import numpy as np
    import torch

    from sft.memory import GB
    from sft.report import show_summary

    stopped = {"loss": 9.0, "eval_loss": 9.0, "train_runtime": 9.0, "train_samples_per_second": 9.0}
    resumed = {"train_runtime": 2.0, "train_samples_per_second": 3.0}
    log = [stopped, {"loss": 4.0}, resumed, {"eval_loss": 5.0}]
    state = SimpleNamespace(log_history=log, global_step=6, epoch=1.5)
    rows = SimpleNamespace(
        **{"rows": 7, "rows_used": 4, "used": np.arange(5), "trained": np.full(5, 12)},
        lengths=np.array([80, 160] * 2 + [120]),
        skipped={"empty prompt": [(1, ""), (2, ""), (3, "")]},
    )
    folder = Path("outputs/summary")
    folder.mkdir()
    args = SimpleNamespace(
        **{"device": torch.device("cuda"), "output_dir": folder, "optim": trainer.args.optim},
        activation_checkpointing=True,
    )
    with (
        patch("torch.cuda.max_memory_allocated", return_value=2 * GB),
        patch("torch.cuda.max_memory_reserved", return_value=3 * GB),
        patch("sft.report.count_for", return_value="a count"),
        patch("sft.report.memory", return_value=SimpleNamespace(peak=5 * GB)) as counted,
    ):
        finished = SimpleNamespace(state=state, args=args, is_fsdp_enabled=False)
        show_summary(finished, rows, ["--max_length=77"])
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8")) == {
        **{
            "rows_used": 4,
            "rows_seen": 6,
            "rows_skipped": 3,
            "skipped: empty prompt": 3,
            "examples": 5,
            "trained_tokens_seen": 90,
            "steps": 6,
        },
        **{"seconds": 2.0, "tokens_per_second": 360.0, "loss": 4.0, "eval_loss": 5.0},
        **{"peak_memory_gb": 2.0, "peak_memory_reserved_gb": 3.0, "peak_memory_counted_gb": 5.0},
    }
    (count, values), _ = counted.call_args
    given = [values[key] for key in ("activation_checkpointing", "optim", "max_length")]
    assert given == [True, trainer.args.optim.value, 160]
    assert count == "a count" and values["trained_share"] == 0.1


def check_records(seen: dict, final: Path) -> None:
    """The run says what it is, and has the log to compare it by."""
    run = json.loads((final.parent / "run.json").read_text(encoding="utf-8"))
    for key in ("learning_rate", "max_length", "seed"):
        assert f"{run['settings'][key]}" == f"{value_of(key, seen)}", key
    state = json.loads((final.parent / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["log_history"] == seen["trainer"].state.log_history


def check_room(trainer) -> None:
    """A disk with room for all checkpoints, and for one more while it is written, is enough."""
    from sft.checkpoints import check_disk

    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    size = sum(p.numel() * p.element_size() for p in trained)
    # with the optimizer's two, and weights that are spread once more as they are spread
    for spread, parts in (("", 3), ("FSDP", 4)):
        for limit, copies in ((1, 2), (4, 5), (None, 3)):
            args = SimpleNamespace(save_total_limit=limit, output_dir=trainer.args.output_dir)
            needed = parts * size * copies
            for free in (needed, needed - 1):
                usage, refused = SimpleNamespace(free=free), False
                with patch("shutil.disk_usage", return_value=usage):
                    with patch("sft.checkpoints.spread_by", return_value=spread):
                        try:
                            check_disk(trainer.model, args)
                        except SystemExit:
                            refused = True
                assert refused is (free < needed), (spread, limit, free)


def check_chat(seen: dict, final: Path) -> None:
    """The model was given the conversation up to where it answers, and its answer came back."""
    tokenizer = seen["tokenizer"]
    (argv, _, said), (given, kwargs, output) = (
        seen["calls"]["chat"][0],
        seen["calls"]["generate"][-1],
    )
    words = dict(word.removeprefix("--").split("=", 1) for word in argv[0])
    prompt, limit = words["prompt"], int(words["max_new_tokens"])
    system = {"role": "system", "content": value_of("system_prompt", seen)}
    messages = [system, {"role": "user", "content": prompt}]
    wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = kwargs["input_ids"][0].tolist()
    assert tokenizer.decode(ids) == wanted, tokenizer.decode(ids)
    assert kwargs["attention_mask"].all() and not given[0].training
    saved = json.loads((final / "generation_config.json").read_text(encoding="utf-8"))
    assert given[0].generation_config.eos_token_id == saved["eos_token_id"]
    assert kwargs["max_new_tokens"] == limit and kwargs["do_sample"] is False
    assert (
        kwargs["streamer"].skip_prompt and kwargs["streamer"].decode_kwargs["skip_special_tokens"]
    )
    new = output[0, len(ids) :]
    assert 0 < len(new) <= limit
    assert said == tokenizer.decode(new, skip_special_tokens=True)


def check_answers(answers: dict, seen: dict, final: Path) -> None:
    """Base and tuned model answered the prompt of a held-out row, and both are written down."""
    tokenizer, (example,) = seen["tokenizer"], seen["trainer"].eval_dataset.select([0])
    (row,) = map(json.loads, (final.parent / "answers.jsonl").read_text("utf-8").splitlines())
    saved = json.loads((final / "generation_config.json").read_text("utf-8"))
    ends_of_turn, whole = saved["eos_token_id"], tokenizer.decode(example["input_ids"])
    assert whole.startswith(f"{row['prompt']}{row['reference']}<|im_end|>"), (whole, row)
    ends = "" if answers["dataset_format"] == "text" else "<|im_start|>assistant\n"
    assert row["prompt"].endswith(ends) and row["reference"], row
    for name, (_, kwargs, output) in zip(
        ("base", "tuned"), seen["calls"]["generate"][-3:-1], strict=True
    ):
        ids = kwargs["input_ids"][0].tolist()
        assert tokenizer.decode(ids) == row["prompt"] and kwargs["do_sample"] is False
        said = output[0, len(ids) :].tolist()
        stopped = any(token in ends_of_turn for token in said)
        end = next((n for n, one in enumerate(said, start=1) if one in ends_of_turn), len(said))
        text = tokenizer.decode(said[:end], skip_special_tokens=True)
        assert row[name].pop("seconds") > 0
        assert row[name] == {"text": text, "stopped": stopped, "tokens": end}, row[name]
    assert row["reference"] in unescape((final.parent / "answers.html").read_text("utf-8"))


# --- the model -----------------------------------------------------------------------------------


def check_first_adapter(seen: dict) -> None:
    import torch
    from transformers import set_seed

    from sft.adapter import add_adapter
    from sft.config import load_config
    from sft.model import load_model

    args, training_args = load_config(["--use_cpu=true", f"--base_model_path={TWIN}"])
    set_seed(training_args.seed)
    again = add_adapter(load_model(args), args).state_dict()
    for name, tensor in seen["before"].items():
        if ".lora_A." in name:
            assert torch.equal(tensor, again[name]), "the adapter does not begin with the seed"


def check_loading(answers: dict, seen: dict) -> None:
    """Base model, tokenizer and adapter, loaded with other values, are as those say."""
    import torch
    from accelerate import PartialState

    from sft.adapter import add_adapter
    from sft.config import load_config
    from sft.model import load_model, load_tokenizer
    from sft.stop_tokens import stop_at, stop_tokens

    args, _ = load_config(["--use_cpu=true", f"--base_model_path={TWIN}"])
    other = replace(args, attn_implementation="eager", revision="other")
    model = load_model(other, torch.bfloat16)
    load_tokenizer(TWIN, "other")
    given = seen["calls"]["model"][-1][1]
    for _, kwargs, _ in (seen["calls"]["model"][-1], seen["calls"]["tokenizer"][-1]):
        assert kwargs["revision"] == "other" and kwargs["trust_remote_code"] is False, kwargs
    assert given["use_safetensors"] is True
    assert model.config._attn_implementation == "eager"
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    if answers["quantization"] != "none":
        assert given["device_map"] == {"": PartialState().device}
    for name, module in model.named_modules():
        check_quantized(answers["quantization"], name, module)
    if answers["lora_targets"] != "full":
        r, lora_alpha = (args.adapter[key] for key in ("r", "lora_alpha"))
        changes = {"r": r // 2, "lora_alpha": lora_alpha * 3, "lora_dropout": 0.25}
        other = replace(args, adapter=args.adapter | changes)
        model = add_adapter(model, other)
        check_adapter(model, other)
        # a block that is computed again has gradients only if its input has
        assert model.get_input_embeddings()(torch.tensor([1])).requires_grad
    ends = stop_tokens(seen["tokenizer"])
    assert ends == [seen["tokenizer"].convert_tokens_to_ids("<|im_end|>")]
    model.generation_config.eos_token_id = 7
    assert stop_at(model, ends).eos_token_id == [*ends, 7]


def check_dtypes() -> None:
    """A GPU computes in the dtype of config.yaml, or in float16 where it lacks bfloat16."""
    import torch

    from sft.machine import Card, supported_dtype

    on_gpu, path = SimpleNamespace(device=torch.device("cuda")), "no/such-model"
    for has_bfloat16 in (True, False):
        card = Card(name="", gib=8, bf16=has_bfloat16, tf32=False)
        with (
            patch("sft.machine.PartialState", lambda: on_gpu),
            patch("sft.machine.find_card", lambda card=card: card),
        ):
            asked = [
                SimpleNamespace(dtype=kind, base_model_path=path)
                for kind in ("bfloat16", "float16", "float32")
            ]
            found = [supported_dtype(args) for args in asked]
        half = torch.bfloat16 if has_bfloat16 else torch.float16
        assert found == [half, torch.float16, torch.float32]


def check_twin_and_tokenizer() -> None:
    """A twin is the same at each run; a tokenizer pads on the right, with whatever token."""
    from sft.model import load_tokenizer
    from sft.twin import build_twin

    build_twin(Path("outputs/again"), config()["base_model_path"])
    first, again = (Path(f, "model.safetensors") for f in (TWIN, "outputs/again"))
    assert first.read_bytes() == again.read_bytes()
    file = Path("outputs/again/tokenizer_config.json")
    settings = json.loads(file.read_text(encoding="utf-8")) | {"padding_side": "left"}
    del settings["pad_token"]
    file.write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = load_tokenizer("outputs/again")
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("right", "<|im_end|>")


def check_quantized(quantization: str, name: str, module) -> None:
    """The number format of one linear layer; its arithmetic is in bfloat16."""
    import torch

    if not hasattr(module, "in_features") or name == "lm_head":
        return
    if quantization == "nf4":
        state = module.weight.quant_state
        assert state.quant_type == "nf4" and state.nested and state.blocksize == 64, state.as_dict()
        assert module.compute_dtype == state.dtype == torch.bfloat16, module.compute_dtype
    elif quantization == "int8":
        assert module.weight.dtype == torch.int8 and not module.state.has_fp16_weights
        assert module.state.threshold == 6.0


def check_adapter(model, args) -> None:
    """LoRA of rank `r`, scaled by lora_alpha / r, with that dropout, on each targeted layer."""
    import torch

    r, lora_alpha, lora_dropout = (args.adapter[key] for key in ("r", "lora_alpha", "lora_dropout"))
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    assert layers
    for layer in layers:
        dropout = layer.lora_dropout["default"]
        assert getattr(dropout, "p", 0.0) == lora_dropout, dropout
        assert layer.scaling["default"] == lora_alpha / r, layer.scaling
        assert len(layer.lora_A["default"].weight) == r
        assert layer.lora_A["default"].weight.dtype == torch.float32
    kept = model.peft_config["default"]
    assert kept.task_type == "CAUSAL_LM"
    assert (kept.r, kept.lora_alpha, kept.lora_dropout) == (r, lora_alpha, lora_dropout)
