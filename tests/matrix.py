"""Every combination of answers: generated, checked, trained, reloaded, and seen to take effect.

    .venv/bin/python tests/matrix.py                       all of them, as `make test` does
    .venv/bin/python tests/matrix.py --pairwise            few, which hold every pair of answers
    .venv/bin/python tests/matrix.py --only quantization=nf4 base_model=google/gemma-3-1b-it

A combination that fails is named with the command that runs it alone. Each runs in a process of its
own, forked from one that has imported torch and its like: nothing leaks into the next. All are
generated and looked at; models of one family whose tiny twins are equal, as Qwen3 of 8, 14 and 32
billion parameters, would train the same program on the same model, and one of them does.
"""

import argparse
import ast
import functools
import gc
import hashlib
import itertools
import json
import multiprocessing
import os
import runpy
import shutil
import ssl
import sys
import tempfile
import time
import traceback
from contextlib import chdir, suppress
from importlib import import_module
from importlib.machinery import SourceFileLoader
from multiprocessing import connection
from pathlib import Path
from types import CodeType

from conftest import PRELOAD, combinations, started
from support.live_objects import check_live_objects, watch
from support.rendering import check_render

TESTS = Path(__file__).resolve().parent
# elsewhere a process cannot fork, or not safely: each imports by itself
FORK = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
# the first has a learning rate of 0, and LoRA's A no gradient while B is 0; in the third all change
STEPS = ["--max_steps=3", "--eval_strategy=no", "--save_strategy=no", "--logging_steps=1"]
# several batches of rows that are held out; a system turn, in rows and in chat
STEPS += ["--test_size=0.08", "--system_prompt=Be brief."]
# what an answer promises: the class of the linear layers, and those that LoRA is on
PROMISED = {"nf4": "Linear4bit", "int8": "Linear8bitLt", "none": "Linear"}
LAYERS = {
    "attention": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj"},
}
OF_ITS_OWN = {  # a word of the model's name, and where its layers are others
    "Phi": {"attention": {"qkv_proj", "o_proj"}, "mlp": {"gate_up_proj", "down_proj"}},
    "GLM": {"mlp": {"gate_up_proj", "down_proj"}},
    "granite": {"mlp": {"input_linear", "output_linear"}},
    "Apertus": {"mlp": {"up_proj", "down_proj"}},
}


def main() -> int | str:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pairwise", action="store_true", help="every pair of answers at least once"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="PROMPT=ANSWER")
    parser.add_argument("--template", type=Path, default=TESTS.parent, help="another copy of it")
    parser.add_argument("--stop", action="store_true", help="at the first failure")
    options = parser.parse_args()
    wanted = dict(word.split("=", 1) for word in options.only)
    chosen = pairwise(combinations()) if options.pairwise else combinations()
    chosen = [one for one in chosen if wanted.items() <= one.items()]
    print(f"{len(combinations())} combinations are offered, {len(chosen)} are run.", flush=True)
    if not chosen:
        return "No combination has these answers; see the menus in cookiecutter.json."
    failed, done, same = run_all(chosen, options.template, options.stop)
    for answers, reason in failed:
        print(
            f"\n{'=' * 99}\nFAILED: {', '.join(answers.values())}\n{reason}\n"
            f"Alone: {command(answers)}"
        )
    print(
        f"\n{done - len(failed)} of {len(chosen)} combinations are right; {same} of them are"
        " another's program and twin, which was trained there."
    )
    return int(bool(failed))


def command(answers: dict) -> str:
    only = " ".join(f"{prompt}={answer}" for prompt, answer in answers.items())
    return f".venv/bin/python tests/matrix.py --only {only}"


def pairwise(every: list[dict]) -> list[dict]:
    """A few of `every` that hold each pair of answers that it holds: greedily."""
    pairs = [set(itertools.combinations(answers.items(), 2)) for answers in every]
    missing, chosen = set().union(*pairs), []
    while missing:
        pair = min(missing)  # any will do, but the same each time
        holding = (number for number, held in enumerate(pairs) if pair in held)
        best = max(holding, key=lambda number: len(pairs[number] & missing))
        chosen.append(every[best])
        missing -= pairs[best]
    return chosen


def run_all(
    chosen: list[dict], template: Path, stop: bool
) -> tuple[list[tuple[dict, str]], int, int]:
    """Run them side by side, with a line of progress; returns what failed, and why.

    The second value counts those that were run, the third those that another one had trained.
    """
    warm_up(chosen, template)
    waiting, running, failed, done, same = list(reversed(chosen)), {}, [], 0, 0
    began, terminal = time.monotonic(), sys.stdout.isatty()
    memory = "/dev/shm"  # files in it are made in no time
    if not os.path.isdir(memory) or shutil.disk_usage(memory).free < 2**30:
        memory = None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        while running or (waiting and not (stop and failed)):
            while waiting and len(running) < os.cpu_count() and not (stop and failed):
                answers = waiting.pop()
                running.update([start(answers, Path(folder), template)])
            for receiver in connection.wait(running):
                answers, child, home = running.pop(receiver)
                try:
                    reason, is_same = receiver.recv()
                except EOFError:
                    reason, is_same = "The process died.", False
                child.join()
                shutil.rmtree(home, ignore_errors=True)
                done, same = done + 1, same + is_same
                if reason:
                    failed.append((answers, reason))
                if terminal or done % 50 == 0 or done == len(chosen):
                    left = (time.monotonic() - began) / done * (len(chosen) - done)
                    line = (
                        f"{done} of {len(chosen)}, {len(failed)} failed, {left / 60:.1f} min left"
                    )
                    print(line, end="\r" if terminal else "\n", flush=True)
    return failed, done, same


def warm_up(chosen: list[dict], template: Path) -> None:
    """Do once what all processes need, and spare their garbage collectors to look at it."""
    for name in PRELOAD:
        import_module(name)
    from cookiecutter import hooks
    from huggingface_hub import get_session
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    ssl.create_default_context = functools.cache(ssl.create_default_context)
    get_session()  # reads all certificates
    get_checkpoint_conversion_mapping("llama")  # builds a table for all models
    hooks.run_script = lambda *_: None
    ast.parse = functools.cache(ast.parse)  # the hook reads all docstrings
    compile_each_text_once()
    for answers in {answer: one for one in chosen for answer in one.values()}.values():
        with tempfile.TemporaryDirectory() as home, suppress(AssertionError):
            project = bake(answers, Path(home), template)  # a failure is reported later
            for file in project.rglob("*.py"):
                ast.parse(file.read_text(encoding="utf-8"))
                SourceFileLoader("", "").source_to_code(file.read_bytes(), "")
    hooks.run_script = run_hook
    gc.collect()
    gc.freeze()


def compile_each_text_once() -> None:
    """A module's text is mostly that of another project's."""
    compile_now, compiled = SourceFileLoader.source_to_code, {}

    def compiling(loader, data, path, **kwargs):
        if data not in compiled:
            compiled[data] = compile_now(loader, data, path, **kwargs)
        return moved(compiled[data], path)

    def moved(code: CodeType, path: str) -> CodeType:
        inner = (moved(one, path) if isinstance(one, CodeType) else one for one in code.co_consts)
        return code.replace(co_filename=path, co_consts=tuple(inner))

    SourceFileLoader.source_to_code = compiling


def run_hook(script: str, cwd: str = ".") -> None:
    """As cookiecutter runs it, but in this process, which then forgets the project's modules."""
    from cookiecutter.exceptions import FailedHookException

    path, known = [*sys.path], len(sys.modules)
    sys.path[0] = str(Path(script).parent)
    try:
        with chdir(cwd):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise FailedHookException(f"Hook script failed (exit status: {ended.code})") from None
    finally:
        sys.path[:] = path
        # the last ones alone: looking at the others would copy memory that they share
        new = len(sys.modules) - known
        for name in [*itertools.islice(reversed(sys.modules), new)]:
            del sys.modules[name]


def start(answers: dict, folder: Path, template: Path) -> tuple:
    """A process for that combination, by the end of its pipe."""
    home = Path(tempfile.mkdtemp(dir=folder))
    receiver, child = started(FORK, report_to, answers, home, template)
    return receiver, (answers, child, home)


def report_to(sender, answers: dict, home: Path, template: Path) -> None:
    gc.disable()  # it ends before it has much to collect
    log = home / "log"
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1), os.dup2(file, 2)
    try:
        sender.send(("", not run_one(answers, home, template)))
    except BaseException:
        tail = log.read_text(errors="replace")[-2000:]
        sender.send((f"{traceback.format_exc()}--- the end of its output\n{tail}", False))


# --- one combination, in its own process ---------------------------------------------------------


def run_one(answers: dict, home: Path, template: Path) -> bool:
    """Generate it, look at its files, train it, and look at what was trained.

    Returns whether it was trained: not where another combination trains the same.
    """
    import torch
    import yaml

    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    yaml.SafeLoader = yaml.CSafeLoader  # reads the same, ten times as fast
    times = [time.monotonic()]
    project = bake(answers, home, template)
    times.append(time.monotonic())
    check_render(project, answers, home.parent)
    times.append(time.monotonic())
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_DATASETS_CACHE"] = str(home / "cache")
    os.chdir(project)
    sys.path.insert(0, str(project))
    is_first = note_once(home.parent / f"trained-{identity(answers, project)}")
    if is_first:
        train_and_look(answers, home.parent)
    times.append(time.monotonic())
    if os.environ.get("MATRIX_TIMES"):
        with open(os.environ["MATRIX_TIMES"], "a") as file:
            file.write(" ".join(f"{b - a:.2f}" for a, b in itertools.pairwise(times)) + "\n")
    return is_first


def identity(answers: dict, project: Path) -> str:
    """A digest of what the smoke run depends on: the code, the settings and the twin's config."""
    import yaml

    from sft.memory import read_config
    from sft.twin import shrink

    settings = yaml.safe_load((project / "config.yaml").read_text(encoding="utf-8"))
    names = ("base_model_path", "report_to")  # the second only names a tracker
    settings = {key: value for key, value in settings.items() if key not in names}
    twin = shrink(read_config({"base_model_path": "base_model"}), {})
    structure = [answers[prompt] for prompt in answers if prompt not in ("base_model", "tracking")]
    parts = [structure, settings, twin | {"_name_or_path": ""}]
    parts += [path.read_text(encoding="utf-8") for path in sorted(project.rglob("*.py"))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def note_once(note: Path) -> bool:
    """Whether no other process has made that file before."""
    try:
        note.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def bake(answers: dict, home: Path, template: Path) -> Path:
    """The project, made through pytest-cookies with its hooks."""
    from pytest_cookies.plugin import Cookies

    config = home / "config"
    config.write_text(
        f"replay_dir: {json.dumps(str(home / 'replay'))}\n"
        f"cookiecutters_dir: {json.dumps(str(home / 'cookiecutters'))}\n"
    )

    def new_folder(name: str) -> Path:
        (home / name).mkdir()
        return home / name

    result = Cookies(str(template), new_folder, config).bake(extra_context=answers)
    assert result.exception is None, result.exception
    return Path(result.project_path)


def train_and_look(answers: dict, notes: Path) -> None:
    import train
    from sft import answers as asked

    asked.to_question.__defaults__ = (4,)  # a few tokens of an answer prove as much as sixty
    seen = {}
    add_adapter, make_trainer = train.add_adapter, train.Trainer

    def adding(model, args):
        seen["base"] = linear_classes(model)
        model = add_adapter(model, args)
        seen["model"], seen["before"] = model, snapshot(model)
        return model

    def making(**kwargs):
        collator = kwargs["data_collator"]
        seen["tokenizer"], seen["rows"] = kwargs["processing_class"], kwargs["train_dataset"]
        seen["collator"] = collator
        trainer = seen["trainer"] = make_trainer(**kwargs)
        seen["model inputs"] = []
        run = trainer.train

        def training(**kwargs):
            watch = trainer.model.register_forward_pre_hook(
                lambda module, args, given: seen["model inputs"].append(given), with_kwargs=True
            )
            result = run(**kwargs)
            watch.remove()
            # now, for evaluation packs quantized weights in another way
            seen["after"], seen["logits"] = snapshot(trainer.model), logits(trainer.model, seen)
            return result

        trainer.train = training
        return trainer

    train.add_adapter, train.Trainer = adding, making
    train.plot_loss = lambda *_: None  # the project's own test draws it
    watch(seen)
    final = train.main(["--smoke", *STEPS])

    model, trainer = seen["model"], seen["trainer"]
    check_classes(answers, seen["base"], model)
    check_changed(answers, model, seen["before"], seen["after"])
    check_labels(answers, seen)
    check_inputs(answers, seen)
    logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    assert len(logs) >= 2, trainer.state.log_history
    for entry in logs:
        assert 0 < entry["grad_norm"] < float("inf") and 0 < entry["loss"] < 20, entry
    check_reload(final, seen)
    check_live_objects(answers, seen, final, notes)


def linear_classes(model) -> dict[str, str]:
    """The class of each linear layer, by its name."""
    return {n: type(m).__name__ for n, m in model.named_modules() if hasattr(m, "in_features")}


def snapshot(model) -> dict:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def layers_of(answers: dict) -> dict[str, set[str]]:
    """The linear layers of that architecture's blocks, by kind."""
    own = (layers for word, layers in OF_ITS_OWN.items() if word in answers["base_model"])
    return LAYERS | next(own, {})


def promised_targets(answers: dict) -> set[str]:
    """The linear layers that an answer of `lora_targets` means in that architecture."""
    names = layers_of(answers)
    return names.get(answers["lora_targets"], names["attention"] | names["mlp"])


def check_classes(answers: dict, classes: dict[str, str], model) -> None:
    """All linear layers of the blocks are quantized as chosen, and lm_head is not."""
    chosen = PROMISED[answers["quantization"]]
    for name, kind in classes.items():
        expected = "Linear" if name == "lm_head" else chosen
        assert kind == expected, f"{name} is {kind}, not {expected}"
    blocks = {name.rsplit(".", 1)[1] for name in classes if ".layers." in name}
    names = layers_of(answers)
    assert blocks == names["attention"] | names["mlp"], blocks
    assert "lm_head" in classes and len(classes) == 1 + 2 * len(blocks)


def check_changed(answers: dict, model, before: dict, after: dict) -> None:
    """What was to be trained has changed, and everything else is bit by bit as it was."""
    import torch

    changed = {name for name in after if not torch.equal(after[name], before[name])}
    if answers["lora_targets"] == "full":
        assert changed == {name for name, _ in model.named_parameters()} | tied(model), changed
        return
    adapted = {name for name in after if ".lora_A." in name or ".lora_B." in name}
    on = {name.split(".lora_")[0].split(".")[-1] for name in adapted}
    assert on == promised_targets(answers), f"LoRA is on {sorted(on)}"
    layers = {name.split(".layers.")[1].split(".")[0] for name in adapted}
    assert layers == {"0", "1"} and len(adapted) == 2 * 2 * len(on)
    assert changed == adapted, sorted(changed ^ adapted)[:5]


def tied(model) -> set[str]:
    return {"lm_head.weight"} if model.config.tie_word_embeddings else set()


def check_labels(answers: dict, seen: dict) -> None:
    """Labels of a batch are each reply with its end of turn, and nothing else; in any order."""
    tokenizer, rows = seen["tokenizer"], [dict(seen["rows"][number]) for number in range(3)]
    texts = [tokenizer.decode(row["input_ids"]) for row in rows]
    batch = seen["collator"](rows)
    if "attention_mask" in batch:  # is on what the examples have, and not on padding
        pairs = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
        assert sorted(ids[real].tolist() for ids, real in pairs) == sorted(
            row["input_ids"] for row in rows
        ), "attention_mask is not on the tokens of the examples"
    ids, labels = (batch[key].flatten().tolist() for key in ("input_ids", "labels"))
    if answers["collator"] == "language_modeling":
        real = batch["attention_mask"].flatten().tolist()
        expected = [token if is_real else -100 for token, is_real in zip(ids, real, strict=True)]
        assert labels == expected, "not every token is trained on"
        return
    learnt = [[]]
    for token, label in zip(ids, labels, strict=True):
        if label == -100:
            learnt.append([])
        else:
            assert label == token, "a label is another token than its own"
            learnt[-1].append(token)
    learnt = [tokenizer.decode(run) for run in learnt if run]
    turns = [part for text in texts for part in text.split("<|im_start|>assistant\n")[1:]]
    replies = [turn.partition("<|im_end|>")[0] + "<|im_end|>" for turn in turns]
    assert sorted(learnt) == sorted(replies), "labels are not the replies with their ends"
    in_file = Path("data/sample.jsonl").read_text(encoding="utf-8")
    for reply in replies:  # and those are what the file has as replies
        said = json.dumps(reply.removesuffix("<|im_end|>"), ensure_ascii=False)
        assert said in in_file or json.dumps(json.loads(said)) in in_file, said


def check_inputs(answers: dict, seen: dict) -> None:
    """What reached the model: logits where the next token is learnt, no padding where none is."""
    pad = seen["tokenizer"].pad_token_id
    assert len(seen["model inputs"]) >= 3
    for given in seen["model inputs"]:
        ids, where = given["input_ids"], given["logits_to_keep"]
        if answers["collator"] == "padding_free":
            assert len(ids) == 1 and (ids != pad).all(), "there is padding"
            assert "attention_mask" not in given and "cu_seq_lens_q" in given
        following = ids.roll(-1, dims=1)
        following = following[where] if where.dim() == 2 else following[0, where]
        assert following.equal(given["shift_labels"]), "not the next token is learnt"


def logits(model, seen: dict):
    import torch

    ids = seen["tokenizer"]("Hello, who are you?", return_tensors="pt")["input_ids"]
    way = model.config._attn_implementation
    model.set_attn_implementation("sdpa")  # of one row, whatever the collator's is
    with torch.no_grad():
        found = model.train()(input_ids=ids).logits.float()
    model.set_attn_implementation(way)
    return found


def check_reload(final: Path, seen: dict) -> None:
    """The saved folder, loaded again, answers as before, whatever config.yaml says by then."""
    import torch

    from sft.adapter import load_trained
    from sft.config import load_config

    args, _ = load_config(["--use_cpu=true", "--base_model_path=another/model"])
    again = logits(load_trained(final, args), seen)
    assert torch.allclose(again, seen["logits"], atol=1e-6), (again - seen["logits"]).abs().max()


if __name__ == "__main__":
    sys.exit(main())
