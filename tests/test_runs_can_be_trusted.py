"""A killed run goes on to the same end; accumulation and processes do not change what is learnt."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import MENUS, in_project

SMALL = [
    "--max_steps=12",
    "--save_steps=3",
    "--eval_steps=6",
    "--logging_steps=1",
    "--gradient_accumulation_steps=1",
    "--per_device_train_batch_size=2",
    "--learning_rate=1e-2",
    "--dataset=data/sample.jsonl",
    "--train_split=train[:24]",
    "--base_model_path=twin",
    "--use_cpu=true",
    "--test_size=0.334",  # 16 rows train and 8 evaluate: whole batches on two processes, too
]


def make_twin() -> None:
    from sft.twin import build_twin

    build_twin("twin", "")


@pytest.fixture(scope="module")
def project(bake_once):
    project = bake_once.project(
        project_slug="trusted", quantization="none", collator="padding_free"
    )
    in_project(project, make_twin)
    return project


def run(options: list, kill_at: int | None = None, number: int = signal.SIGKILL) -> dict:
    from transformers import TrainerCallback

    import train

    steps = []

    class Killer(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)
            if state.global_step == kill_at:
                os.kill(os.getpid(), number)

    trainers = []

    class Trainer(train.Trainer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs, callbacks=[Killer()])
            trainers.append(self)

    train.Trainer = Trainer
    final = train.main(options)
    summary = json.loads((final.parent / "summary.json").read_text())
    log = trainers[0].state.log_history
    losses = [entry["loss"] for entry in log if "loss" in entry]
    return summary | {"losses": losses, "steps taken": steps}


def rows_of_logits(options: list) -> tuple[int, int]:
    """How many the loss was computed from in one step, and how many tokens were trained."""
    import torch
    from torch.nn import functional

    seen, cross_entropy = [], functional.cross_entropy

    def watched(logits, target, **kwargs):
        seen.append((len(logits), int((target != -100).sum())))
        return cross_entropy(logits, target, **kwargs)

    torch.nn.functional.cross_entropy = watched
    run(options)
    return seen[0]


def test_training_computes_logits_for_trained_tokens_alone(project):
    options = [*SMALL, "--max_steps=1", "--output_dir=logits"]
    rows, trained = in_project(project, rows_of_logits, options)
    assert rows == trained > 0


def order_of_rows(options: list) -> tuple[list, list]:
    """Lengths of the rows as training takes them, and as the collator's sampler has them."""
    import train
    from sft.collator import EvenSampler
    from sft.row_report import column

    seen = []

    class Trainer(train.Trainer):
        def train(self, **kwargs):
            batches = self.get_train_dataloader()
            lengths = column(self.train_dataset, "length")
            starts = [batch["cu_seq_lens_q"].diff().tolist() for batch in batches]
            wanted = EvenSampler(lengths, 4, 2, self.args.seed)
            seen.append([n for batch in starts for n in batch])
            seen.append([int(lengths[row]) for row in wanted])
            return super().train(**kwargs)

    train.Trainer = Trainer
    train.main(options)
    return seen[0], seen[1]


def test_rows_come_in_the_order_that_the_collator_wants(project):
    options = ["--max_steps=1", "--gradient_accumulation_steps=2", "--output_dir=order"]
    taken, wanted = in_project(project, order_of_rows, [*SMALL, *options])
    assert taken == wanted and len(set(wanted)) > 1


def sampler_of(options: list) -> tuple[str, list, list]:
    """The class of the training sampler and the lengths that it has, beside the rows' own."""
    import train
    from sft.row_report import column

    seen = []

    class Trainer(train.Trainer):
        def train(self, **kwargs):
            sampler = self._get_train_sampler()
            lengths = column(self.train_dataset, "length").tolist()
            seen.extend([type(sampler).__name__, list(sampler.lengths), lengths])
            return super().train(**kwargs)

    train.Trainer = Trainer
    train.main(options)
    return tuple(seen)


def test_the_sampling_strategy_of_config_yaml_comes_before_the_collators(project):
    options = ["--max_steps=1", "--output_dir=sorted", "--train_sampling_strategy=group_by_length"]
    name, lengths, own = in_project(project, sampler_of, [*SMALL, *options])
    assert name == "LengthGroupedSampler" and lengths == own


def metrics_at_evaluation(options: list) -> dict:
    """Those of `compute_metrics`, given to the Trainer as an owner would in train.py."""
    import torch.nn.functional as F

    import train

    class Trainer(train.Trainer):
        def __init__(self, **kwargs):
            super().__init__(
                **kwargs,
                preprocess_logits_for_metrics=lambda x, y: F.cross_entropy(x, y, reduction="none"),
                compute_metrics=lambda p: {"mean": p.predictions.mean(), "n": len(p.label_ids)},
            )

    train.Trainer = Trainer
    final = train.main(options)
    log = json.loads((final.parent / "checkpoint-12/trainer_state.json").read_text())["log_history"]
    return [entry for entry in log if "eval_loss" in entry][-1]


def test_metrics_at_evaluation_see_each_trained_token_beside_its_logits(project):
    seen = in_project(project, metrics_at_evaluation, [*SMALL, "--output_dir=metrics"])
    assert seen["eval_mean"] == pytest.approx(seen["eval_loss"], rel=1e-5) and seen["eval_n"] > 100


def test_with_smoothed_labels_the_loss_has_the_logits_it_wants(project):
    options = [*SMALL, "--max_steps=3", "--label_smoothing_factor=0.1", "--output_dir=smooth"]
    assert in_project(project, run, options)["losses"][-1] > 0


@pytest.fixture(scope="module")
def killed(project):
    """A run that was killed after its steps 3 and 6 were saved."""
    with pytest.raises(AssertionError, match="exit code -9"):
        in_project(project, run, [*SMALL, "--output_dir=killed"], 8)
    return project / "killed"


def test_a_killed_run_goes_on_by_itself_and_ends_at_the_same_loss(project, killed):
    whole = in_project(project, run, [*SMALL, "--output_dir=whole"])
    shutil.copytree(killed, project / "copy")
    # what a kill in the middle of saving leaves behind
    (project / "copy/checkpoint-9").mkdir()
    (project / "copy/checkpoint-9/adapter_model.safetensors").write_bytes(b"half")
    resumed = in_project(project, run, [*SMALL, "--output_dir=copy"])
    assert resumed["steps taken"] == [7, 8, 9, 10, 11, 12]
    assert resumed["losses"] == pytest.approx(whole["losses"], rel=1e-6)
    assert resumed["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-6)
    assert whole["losses"][-1] < whole["losses"][0]


def test_a_run_whose_batches_have_similar_lengths_goes_on_in_its_order(project):
    """Killed in its second epoch, whose order nothing random of the first one decides."""
    options = [*SMALL, "--train_sampling_strategy=group_by_length"]
    with pytest.raises(AssertionError, match="exit code -9"):
        in_project(project, run, [*options, "--output_dir=grouped"], 11)
    resumed = in_project(project, run, [*options, "--output_dir=grouped"])
    whole = in_project(project, run, [*options, "--output_dir=grouped_whole"])
    assert resumed["steps taken"] == [10, 11, 12]
    assert resumed["losses"] == pytest.approx(whole["losses"], rel=1e-6)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_saves_a_checkpoint_and_the_same_command_goes_on(project, name):
    options = [*SMALL, f"--output_dir={name}"]
    number = getattr(signal, name)
    with pytest.raises(AssertionError, match="SystemExit: Stopped at step 4 of 12; the same"):
        in_project(project, run, options, 4, number)
    assert "once more ends at once" in (project / "log").read_text()
    assert not (project / name / "final").exists()
    resumed = in_project(project, run, options)
    assert resumed["steps taken"] == [5, 6, 7, 8, 9, 10, 11, 12]


def signal_twice() -> None:
    from types import SimpleNamespace
    from unittest.mock import patch

    from sft.stopping import Stopping

    Stopping().on_train_begin(None, None, None)
    with patch("sft.stopping.time", SimpleNamespace(monotonic=iter([0, 0.5, 5]).__next__)):
        for _ in range(2):  # as torchrun does
            signal.raise_signal(signal.SIGTERM)
        print("still here", flush=True)
        signal.raise_signal(signal.SIGTERM)


def test_a_second_signal_ends_the_run_at_once_but_not_torchruns_copy_of_the_first(project):
    with pytest.raises(AssertionError, match="exit code -15"):
        in_project(project, signal_twice)
    assert "still here" in (project / "log").read_text()


# what is evaluated falls, and higher counts as better: only the first evaluation, at step 3, is
NO_BETTER = ["--eval_steps=3", "--load_best_model_at_end=true", "--greater_is_better=true"]


def said_of_the_end(steps: list[int]) -> list[str]:
    from transformers import TrainerState

    from sft import stopping

    said = []
    stopping.say = said.append
    one = stopping.Stopping()
    one.received = True
    for step in steps:
        try:
            one.say_why(TrainerState(global_step=step, max_steps=5))
        except SystemExit as ended:
            said.append(str(ended))
    return said


def test_a_signal_in_the_last_step_finds_the_run_finished(project):
    (before,) = in_project(project, said_of_the_end, [4, 5])
    assert "Stopped at step 4 of 5" in before


def test_evaluations_that_get_no_better_end_a_run_as_finished(project):
    options = [*SMALL, *NO_BETTER, "--early_stopping_patience=1", "--output_dir=early"]
    first = in_project(project, run, options)
    assert first["steps taken"] == [1, 2, 3, 4, 5, 6]
    assert "Finished at step 6 of 12: evaluations got no better" in (project / "log").read_text()
    with pytest.raises(AssertionError, match="SystemExit: 0"):
        in_project(project, run, options)
    with pytest.raises(AssertionError, match="early_stopping_patience was 1, and now it is 2"):
        in_project(project, run, [*options, "--early_stopping_patience=2"])
    shutil.rmtree(project / "early/final")  # killed before it was written
    again = in_project(project, run, options)
    assert again["steps taken"] == [4, 5, 6]
    assert again["losses"] == pytest.approx(first["losses"], rel=1e-6)
    assert again["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-6)


def test_a_killed_run_goes_on_counting_evaluations_that_got_no_better(project):
    options = [*SMALL, *NO_BETTER, "--early_stopping_patience=2", "--output_dir=counting"]
    with pytest.raises(AssertionError, match="exit code -9"):
        in_project(project, run, options, 8)
    assert in_project(project, run, options)["steps taken"] == [7, 8, 9]


def run_out_of_memory(options: list, gib: float) -> tuple[str, str]:
    """What is printed, and the last sentence, where a step needs more than the card has."""
    import contextlib
    import io

    import torch

    import train
    from sft.machine import Card

    class Trainer(train.Trainer):
        def training_step(self, *args, **kwargs):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    train.Trainer = Trainer
    train.find_card = lambda: Card(name="T4", gib=gib, bf16=False, tf32=False)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        last = what_is_said(options)
    return printed.getvalue(), last


@pytest.mark.parametrize("option", ["--auto_find_batch_size=false", "--auto_find_batch_size"])
def test_out_of_memory_ends_with_what_helps_on_that_card(project, option):
    options = [*SMALL, "--output_dir=full", "--activation_checkpointing=false", option]
    printed, last = in_project(project, run_out_of_memory, options, 0.4)
    assert "With these settings a card of" in printed and "won't" in printed
    assert "What would help to fit 0.4 GB" in printed
    assert "activation_checkpointing: true" in printed and "max_length: 512" in printed
    assert last.startswith("Out of memory") and len(last.splitlines()) == 1
    assert not (project / "full/final").exists()


def rotate() -> list[str]:
    from sft.checkpoints import delete_older

    for age, name in enumerate(["9", "6", "3", "12", "best"]):  # the clock went back
        folder = Path("rotated") / f"checkpoint-{name}"
        folder.mkdir(parents=True)
        os.utime(folder, (age * 100, age * 100))
    delete_older(Path("rotated/checkpoint-9"), None, 2)
    left = sorted(path.name for path in Path("rotated").iterdir())
    delete_older(Path("rotated/checkpoint-9"), "./rotated/checkpoint-6", 1)
    assert left == sorted(path.name for path in Path("rotated").iterdir())  # the best stays
    return left


def test_old_checkpoints_go_by_step_and_a_users_own_stay(project):
    left = ["checkpoint-12", "checkpoint-6", "checkpoint-9", "checkpoint-best"]
    assert in_project(project, rotate) == left


def test_a_run_whose_loss_is_not_a_number_stops_and_saves_nothing(project):
    options = [*SMALL, "--learning_rate=1e30", "--max_grad_norm=0", "--output_dir=diverged"]
    said = in_project(project, what_is_said, options)
    assert "not finite at step" in said and "learning_rate" in said
    left = {path.name for path in (project / "diverged").iterdir()}
    assert left <= {".lock", "run.json", "checkpoint-3"}


def hold_and_decide(options: list) -> str:
    """What a second process is told while this one writes to the folder."""
    import train

    Path("held").mkdir()
    program = "import filelock; x = filelock.FileLock('held/.lock'); x.acquire(); print(); input()"
    other = subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True)
    other.stdout.readline()  # it has the lock
    with pytest.raises(SystemExit) as refused:
        train.main(options)
    other.kill()
    other.wait()
    train.main([*options, "--max_steps=1"])  # the lock died with its process
    return str(refused.value)


def test_two_runs_do_not_share_a_folder(project):
    said = in_project(project, hold_and_decide, [*SMALL, "--output_dir=held"])
    assert said == "A run is at work in held; give this one its own --output_dir."


def test_a_finished_run_is_left_as_it_is(project):
    options = [*SMALL, "--output_dir=finished"]
    first = in_project(project, run, options)
    with pytest.raises(AssertionError, match="SystemExit: 0"):
        in_project(project, run, options)
    assert "holds a finished run" in (project / "log").read_text()
    with pytest.raises(AssertionError, match="final is of another run: r was 16, and now it is 8"):
        in_project(project, run, [*options, "--r=8"])
    # killed after the last step, before the end: the steps from the checkpoint before are repeated
    shutil.rmtree(project / "finished/final")
    again = in_project(project, run, options)
    assert again["steps taken"] == [10, 11, 12]
    assert again["losses"] == pytest.approx(first["losses"], rel=1e-6)


def decide(cases: list[tuple[list, str, str]]) -> list[str]:
    """What train.py says of each case: other options, and a file and what became of it."""
    import contextlib
    import io

    from sft.checkpoints import checkpoint_to_resume, describe_run
    from sft.config import load_config
    from sft.examples import make_examples
    from sft.machine import choose
    from sft.model import load_tokenizer
    from sft.rows import load_rows

    args, _ = load_config(SMALL, choose)
    examples, _ = make_examples(load_rows(args), load_tokenizer("twin"), args)
    words = []
    for options, name, how in cases:
        file = Path(name or "train.py")
        before, rows = file.read_bytes(), dict(examples)
        if how == "other rows":
            rows["train"] = rows["train"].select(range(1, 16))
        elif how is not None:
            damage(file, how)
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            try:
                args, training_args = load_config([*SMALL, "--output_dir=killed", *options], choose)
                run = describe_run(training_args, args, rows)
                said.write(f"resumes {checkpoint_to_resume(training_args, args, run)}")
            except SystemExit as refusal:
                said.write(f"refused: {refusal}")
            finally:
                file.write_bytes(before)
        words.append(said.getvalue())
    return words


SAVED = """adapter_model.safetensors adapter_config.json optimizer.pt scheduler.pt rng_state.pth
trainer_state.json manifest.json""".split()
HOW = ("missing", "", "half", "a bit", "{}")
DAMAGES = [(name, how) for name in SAVED for how in HOW]


def damage(file: Path, how: str) -> None:
    held = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "half":
        file.write_bytes(held[: len(held) // 2])
    elif how == "a bit":
        file.write_bytes(held[:-9] + bytes([held[-9] ^ 1]) + held[-8:])
    else:
        file.write_text(how)


def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(project, killed):
    (killed / "checkpoint-best").mkdir(exist_ok=True)  # a user's own
    (killed / "checkpoint-7").mkdir(exist_ok=True)
    cases = [([], f"killed/checkpoint-6/{name}", how) for name, how in DAMAGES]
    for said, (_, name, how) in zip(in_project(project, decide, cases), cases, strict=True):
        assert "checkpoint-7 is passed over: manifest.json is missing" in said
        named = Path(name).name if how != "a bit" else ""  # the manifest's own bit is any file's
        assert f"checkpoint-6 is passed over: {named}" in said, (name, how, said)
        assert said.endswith("resumes killed/checkpoint-3"), (name, how, said)
    (killed / "checkpoint-7").rmdir()


def test_a_damaged_best_model_is_not_forgotten(project):
    """transformers would go on, and end with the last model in its place."""
    best = ["--load_best_model_at_end=true", "--eval_steps=3", "--greater_is_better=true"]
    with pytest.raises(AssertionError, match="exit code -9"):  # the loss falls: step 3 is "best"
        in_project(project, run, [*SMALL, *best, "--output_dir=best"], 8)
    case = ([*best, "--output_dir=best"], "best/checkpoint-3/adapter_model.safetensors", "missing")
    (said,) = in_project(project, decide, [case])
    assert "checkpoint-6 is passed over: the best model so far, best/checkpoint-3, is" in said
    assert said.endswith("resumes None")


ANOTHER = {  # options, a file, what becomes of it -> what is named
    "--r=8": "r was 16, and now it is 8",
    "--weight_decay=0.5": "weight_decay was 0.0, and now it is 0.5",
    "--adam_beta2=0.9": "adam_beta2 was 0.999",
    "--label_smoothing_factor=0.2": "label_smoothing_factor",
    "--max_grad_norm=0.01": "max_grad_norm",
    "--neftune_noise_alpha=5": "neftune_noise_alpha",
    "--lr_scheduler_kwargs={num_cycles: 2}": "lr_scheduler_kwargs",
    "--train_sampling_strategy=group_by_length": "train_sampling_strategy",
    "--dataloader_drop_last=true": "dataloader_drop_last",
    "--bf16=true": "bf16 was False",
    "--data_seed=3": "data_seed",
    "--max_length=77": "max_length",
    ("train.py", "print()"): "train.py changed",
    ("sft/mask/tokens.py", "half"): "sft/mask/tokens.py changed",
    ("twin/model.safetensors", "a bit"): "the base model's model.safetensors changed",
    ("twin/chat_template.jinja", ""): "the base model's chat_template.jinja changed",
    ("twin/tokenizer.json", "half"): "the base model's tokenizer.json changed",
    ("train.py", "other rows"): "the train rows changed",
}
THE_SAME = [
    "--logging_steps=2",
    "--save_steps=4",
    "--save_total_limit=5",
    "--eval_steps=3",
    "--per_device_eval_batch_size=1",
    "--dataset_num_proc=1",
    "--dataloader_num_workers=1",
    "--report_to=none",
    "--run_name=again",
    "--activation_checkpointing=true",
    "--resume_from_checkpoint=killed/checkpoint-6/",
]


def what_makes_the_run(options: list[str]) -> tuple[list[dict], dict]:
    """How the config of its base model is loaded, and what `describe_run` says of the run."""
    from types import SimpleNamespace

    from sft import checkpoints
    from sft.config import load_config

    read = []
    checkpoints.load = lambda kind, path, **how: read.append(how) or SimpleNamespace(_commit_hash=7)
    args, training_args = load_config(["--use_cpu=true", "--base_model_path=org/none", *options])
    return read, checkpoints.describe_run(training_args, args, {})


def test_a_base_model_on_the_hub_is_known_by_its_commit(project):
    read, run = in_project(project, what_makes_the_run, ["--revision=v2"])
    assert read == [{"revision": "v2"}] and run["the base model's commit"] == 7


def test_the_adapter_that_a_run_starts_from_is_known_by_its_content(project, tmp_path):
    hashes = set()
    for content in (b"one", b"two", b"one"):
        (tmp_path / "adapter_model.safetensors").write_bytes(content)
        _, run = in_project(project, what_makes_the_run, [f"--adapter_path={tmp_path}"])
        hashes.add(run["the adapter it starts from"])
    assert len(hashes) == 2


def test_what_would_learn_something_else_does_not_go_on(project, killed):
    cases = [([key], "", None) if isinstance(key, str) else ([], *key) for key in ANOTHER]
    # a checkpoint that is named passes the same checks
    by_name = "--resume_from_checkpoint=killed/checkpoint-3"
    cases += [([*options, by_name], *rest) for options, *rest in cases[:3]]
    wanted = [*ANOTHER.values(), *list(ANOTHER.values())[:3]]
    said = in_project(project, decide, cases)
    for words, (options, file, _), named in zip(said, cases, wanted, strict=True):
        assert "refused: killed/checkpoint-" in words and named in words, (options, file, words)


def test_what_learns_the_same_goes_on(project, killed):
    cases = [([option], "", None) for option in THE_SAME]
    cases += [(["--accept_changed_code=true"], "train.py", "print()")]
    for words, case in zip(in_project(project, decide, cases), cases, strict=True):
        assert words.endswith("resumes killed/checkpoint-6"), (case, words)


NOT_RESUMED = {
    "--resume_from_checkpoint=nowhere": "resume_from_checkpoint 'nowhere' is no checkpoint",
    "--save_only_model=true": "save_only_model leaves nothing to resume from",
}


def test_what_cannot_be_resumed_is_refused(project, killed):
    said = in_project(project, decide, [([option], "", None) for option in NOT_RESUMED])
    for words, wanted in zip(said, NOT_RESUMED.values(), strict=True):
        assert wanted in words


def test_accumulated_small_batches_learn_what_one_large_batch_learns(project):
    def with_batches(size: int, accumulation: int) -> dict:
        sizes = [
            f"--per_device_train_batch_size={size}",
            f"--gradient_accumulation_steps={accumulation}",
        ]
        options = [*SMALL, "--max_steps=4", *sizes, f"--output_dir=batch{size}"]
        return in_project(project, run, options)

    large, small = with_batches(8, 1), with_batches(1, 8)
    assert small["losses"] == pytest.approx(large["losses"], rel=1e-5)
    assert small["eval_loss"] == pytest.approx(large["eval_loss"], rel=1e-5)


def test_the_evaluation_loss_does_not_depend_on_the_batch_size(project):
    seen = [
        in_project(
            project,
            run,
            [*SMALL, "--max_steps=2", f"--per_device_eval_batch_size={n}", f"--output_dir=eval{n}"],
        )["eval_loss"]
        for n in (1, 3)
    ]
    assert seen[0] == pytest.approx(seen[1], rel=1e-6)


def test_two_processes_learn_what_one_learns_resumed_or_not(project):
    # of 7 rows the first process takes all; those of the second are repeated, and do not count
    rows = [*SMALL, "--train_split=train[:16]", "--eval_split=train[16:23]"]
    rows += ["--per_device_eval_batch_size=8"]
    one = in_project(project, run, [*rows, "--per_device_train_batch_size=4", "--output_dir=one"])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc_per_node=2", "train.py", *rows, "--output_dir=two"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    two = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert two.returncode == 0, two.stderr[-3000:]
    manifest = json.loads((project / "two/checkpoint-12/manifest.json").read_text())
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= manifest["files"].keys()
    checkpoint = project / "two/checkpoint-12/trainer_state.json"
    log = json.loads(checkpoint.read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses == pytest.approx(one["losses"], rel=1e-4)
    summary = json.loads((project / "two/summary.json").read_text())
    assert summary["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-5)

    shutil.rmtree(project / "two/final")
    shutil.rmtree(project / "two/checkpoint-12")  # it stopped amid the third epoch
    again = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert "Going on from two/checkpoint-9" in again.stderr, again.stderr[-3000:]
    log = json.loads(checkpoint.read_text())["log_history"]
    assert [entry["loss"] for entry in log if "loss" in entry] == losses


PUBLISHED = {  # a base's files as transformers 4 wrote them
    "config.json": {"rope_theta": 20000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
}


def merge_and_compare() -> dict:
    import torch
    from transformers import AutoModelForCausalLM

    import export
    import train
    from sft.adapter import load_trained
    from sft.config import load_config

    shutil.copytree("twin", "published")
    for name, older in PUBLISHED.items():
        values = json.loads(Path("twin", name).read_text()) | older
        values.pop("rope_parameters", None)
        Path("published", name).write_text(json.dumps(values))
    train.main([*SMALL, "--base_model_path=published", "--output_dir=merging"])
    merged = export.main(["--output_dir=merging", "--use_cpu=true"])  # the adapter knows its base
    adapted = load_trained(Path("merging/final"), load_config(SMALL)[0])
    alone = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        wanted, got = adapted(ids).logits, alone(ids).logits
        with adapted.disable_adapter():
            unadapted = adapted(ids).logits
    return {
        "off": float((wanted - got).abs().max()),
        "moved": float((wanted - unadapted).abs().max()),
        "files": sorted(path.name for path in merged.iterdir()),
        "eos": alone.generation_config.eos_token_id,
        "published": {name: json.loads((merged / name).read_text()) for name in PUBLISHED},
        "dtype": str(AutoModelForCausalLM.from_pretrained(merged).dtype),
    }


@pytest.mark.parametrize("quantization", MENUS["quantization"])
def test_the_merged_folder_is_the_adapted_model(bake, quantization):
    project = bake.project(quantization=quantization, lora_targets="all_linear")
    in_project(project, make_twin)
    seen = in_project(project, merge_and_compare)
    # bfloat16 rounds, and int8 rounds activations, too, which a merged model does not
    assert seen["off"] < (0.25 if quantization == "int8" else 0.1) * seen["moved"], seen
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(seen["files"])
    assert seen["eos"] == [2] and seen["dtype"] == "torch.bfloat16"
    # who reads the base reads this: transformers 4 does not know how 5 writes RoPE
    for name, older in PUBLISHED.items():
        assert older.items() <= seen["published"][name].items(), name


def kill_merge() -> None:
    import export

    run([*SMALL, "--max_steps=1", "--output_dir=stopped"])
    export.share_files = lambda _: signal.raise_signal(signal.SIGKILL)  # when all is written
    export.main(["--output_dir=stopped"])


def merge_twice() -> str:
    import export

    export.main(["--output_dir=stopped"])
    with pytest.raises(SystemExit) as refused:
        export.main(["--output_dir=stopped"])
    return str(refused.value)


def test_a_merged_folder_is_whole_or_not_there(project):
    with pytest.raises(AssertionError, match="exit code -9"):
        in_project(project, kill_merge)
    assert not (project / "stopped/merged").exists()
    assert "stopped/merged is there already; delete it" in in_project(project, merge_twice)
    assert "loads by itself: python chat.py" in (project / "log").read_text()
    merged = {path.name for path in (project / "stopped").glob("merged*")}
    assert merged == {"merged"}


def room_needed(there: int, limit: int, spread: bool = False) -> float:
    """How many numbers a trained parameter a disk must have room for, with checkpoints on it."""
    from types import SimpleNamespace

    import torch

    from sft import checkpoints

    out = Path(f"room-{there}-{limit}-{spread}")
    for step in range(1, there + 1):
        (out / f"checkpoint-{step}").mkdir(parents=True)
    out.mkdir(exist_ok=True)
    model = torch.nn.Linear(100, 1, bias=False)
    args = SimpleNamespace(output_dir=str(out), save_total_limit=limit)
    checkpoints.spread_by = lambda: spread
    for free in range(40 * 400):  # bytes: of each of 100 parameters, a number has 4
        checkpoints.shutil.disk_usage = lambda _, free=free: SimpleNamespace(free=free)
        try:
            checkpoints.check_disk(model, args)
        except SystemExit as refused:
            assert "lower save_total_limit or use another disk" in str(refused)
        else:
            return free / 400


def test_a_disk_without_room_for_the_checkpoints_is_refused(project):
    """3 numbers a parameter and checkpoint, of which one more than the limit is there at times."""
    assert in_project(project, room_needed, 0, 2) == 3 * 3
    assert in_project(project, room_needed, 2, 2) == 3  # those that are there have their room
    assert in_project(project, room_needed, 5, 2) == 3
    assert in_project(project, room_needed, 0, 2, True) == 4 * 3  # spread weights are saved twice


def settings_spread_by(way: str) -> dict:
    from sft import checkpoints
    from sft.config import load_config

    checkpoints.spread_by = lambda: way
    args, training_args = load_config(["--use_cpu=true"])
    return checkpoints.all_settings(training_args, args)


def test_a_checkpoint_of_spread_weights_is_of_another_run(project):
    alone, spread = (in_project(project, settings_spread_by, way) for way in ("", "FSDP"))
    assert spread["fsdp"] is True and alone["fsdp"] != spread["fsdp"]


def shown_by_a_run(options: list) -> str:
    import contextlib
    import io

    import train

    with contextlib.redirect_stderr(io.StringIO()) as shown:
        train.main(options)
    return shown.getvalue()


def test_a_run_ends_with_its_figures(project):
    shown = in_project(project, shown_by_a_run, [*SMALL, "--max_steps=1", "--output_dir=shown"])
    figures = dict(re.findall(r"│ (.+?) +│ (\S+) +│", shown.partition("Result")[2]))
    assert figures["steps"] == "1" and float(figures["eval loss"]) > 0
    assert "Reload what was saved" not in shown  # only --smoke does that


def run_json(use_cpu: bool, *words: str) -> dict:
    from transformers import AutoTokenizer

    from sft import report
    from sft.config import load_config
    from sft.machine import Card

    report.find_card = lambda: Card(name="T4", gib=15, bf16=False, tf32=False)
    args, training_args = load_config(["--use_cpu=true", *words])
    training_args.use_cpu = use_cpu
    Path(training_args.output_dir).mkdir(parents=True, exist_ok=True)
    report.write_run(training_args, args, {}, AutoTokenizer.from_pretrained("twin"))
    return json.loads(Path(training_args.output_dir, "run.json").read_text())


def test_run_json_names_the_card_that_is_used(project):
    assert "T4" in in_project(project, run_json, False)["machine"]
    assert "T4" not in in_project(project, run_json, True)["machine"]


def test_run_json_has_values_that_json_does_not_know(project):
    found = in_project(project, run_json, True, "--chat_template_kwargs={today: 2026-01-31}")
    assert found["settings"]["chat_template_kwargs"] == {"today": "2026-01-31"}


def ended_by(error: BaseException, *interrupted: str) -> object:
    from sft.config import run

    def main(_):
        raise error

    try:
        run(main, *interrupted)
    except SystemExit as ended:
        return ended.code
    except OSError:
        return "a traceback"


def test_ctrl_c_ends_a_script_as_shells_expect(project):
    assert in_project(project, ended_by, KeyboardInterrupt()) == 128 + signal.SIGINT
    assert in_project(project, ended_by, KeyboardInterrupt(), "Stopped.") == "Stopped."


def test_a_full_disk_ends_a_script_in_a_sentence_and_a_fault_of_ours_in_a_traceback(project):
    full, missing = OSError(errno.ENOSPC, "No space left", "outputs/a"), OSError(errno.ENOENT, "")
    assert "'outputs/a': make room or permit it" in in_project(project, ended_by, full)
    assert in_project(project, ended_by, missing) == "a traceback"


WRONG = {
    "a misspelt LoRA target": (["--target_modules", "q_proj", "gate_porj"], "gate_porj is in no"),
    "a target that is not linear": (["--target_modules", "embed_tokens"], "embed_tokens is in no"),
    "a rank of nothing": (["--r=0"], "r must be a whole number from 1"),
    "a key that does not exist": (["--learning_rat=1"], "nearest is 'learning_rate'"),
    "a word for a number": (["--max_length=long"], "max_length must be a whole number, not 'long'"),
    "a model that is not there": (["--base_model_path=./nowhere"], "./nowhere"),
    "the best of none": (
        ["--load_best_model_at_end=true", "--save_steps=6", "--test_size=0"],
        "load_best_model_at_end needs an evaluation",
    ),
    "saved when best": (
        ["--save_strategy=best", "--metric_for_best_model=loss", "--eval_strategy=no"],
        "save_strategy needs an",
    ),
    "early stopping without the best": (
        ["--early_stopping_patience=3"],
        "early_stopping_patience needs load_best_model_at_end",
    ),
    "no column": (["--prompt_template={question}"], "no column 'question'"),
}


@pytest.mark.parametrize("options, sentence", WRONG.values(), ids=WRONG.keys())
def test_a_mistake_ends_in_one_sentence(project, options, sentence):
    said = in_project(project, what_is_said, [*SMALL, "--output_dir=wrong", *options])
    assert sentence in said and len(said.splitlines()) == 1
    assert not (project / "wrong/final").exists()


def test_half_a_download_of_the_base_model_ends_in_one_sentence(project):
    shutil.copytree(project / "twin", project / "half")
    damage(project / "half/model.safetensors", "half")
    options = [*SMALL, "--output_dir=wrong", "--base_model_path=half"]
    said = in_project(project, what_is_said, options)
    assert said.startswith("base_model_path 'half' cannot be loaded: ") and "\n" not in said


def test_a_lora_target_that_the_model_lacks_is_found_before_weights_are_read(project):
    shutil.copytree(project / "twin", project / "bare")
    (project / "bare/model.safetensors").unlink()
    options = [*SMALL, "--base_model_path=bare", "--target_modules", "q_proj", "gate_porj"]
    said = in_project(project, what_is_said, [*options, "--dataset=nowhere.jsonl"])
    assert "gate_porj is in no block of this model; it has" in said


def what_is_said(options: list) -> str:
    import train

    with pytest.raises(SystemExit) as refused:
        train.main(options)
    return str(refused.value)
