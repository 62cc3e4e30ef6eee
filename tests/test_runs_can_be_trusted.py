"""A killed run goes on to the same end; accumulation and processes do not change what is learnt."""

import json
import os
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


def run(options: list, kill_at: int | None = None) -> dict:
    from transformers import TrainerCallback

    import train

    steps = []

    class Killer(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)
            if state.global_step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

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


def test_a_killed_run_goes_on_by_itself_and_ends_at_the_same_loss(project):
    whole = in_project(project, run, [*SMALL, "--output_dir=whole"])
    options = [*SMALL, "--output_dir=killed"]
    with pytest.raises(AssertionError, match="exit code -9"):
        in_project(project, run, options, 8)
    # what a kill in the middle of saving leaves behind
    (project / "killed/checkpoint-9").mkdir()
    (project / "killed/checkpoint-9/adapter_model.safetensors").write_bytes(b"half")
    resumed = in_project(project, run, options)
    assert resumed["steps taken"] == [7, 8, 9, 10, 11, 12]
    assert resumed["losses"] == pytest.approx(whole["losses"], rel=1e-6)
    assert resumed["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-6)
    assert whole["losses"][-1] < whole["losses"][0]


def test_a_finished_run_is_left_as_it_is(project):
    options = [*SMALL, "--output_dir=finished"]
    first = in_project(project, run, options)
    with pytest.raises(AssertionError, match="SystemExit: 0"):
        in_project(project, run, options)
    assert "holds a finished run" in (project / "log").read_text()
    # killed after the last step, before the end: the steps from the checkpoint before are repeated
    shutil.rmtree(project / "finished/final")
    again = in_project(project, run, options)
    assert again["steps taken"] == [10, 11, 12]
    assert again["losses"] == pytest.approx(first["losses"], rel=1e-6)


def test_other_settings_do_not_go_on_from_that_run(project):
    in_project(project, run, [*SMALL, "--output_dir=first"])
    with pytest.raises(AssertionError, match="r was 64, and now it is 8"):
        in_project(project, run, [*SMALL, "--output_dir=first", "--r=8"])


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


def test_two_processes_learn_what_one_learns(project):
    one = in_project(project, run, [*SMALL, "--per_device_train_batch_size=4", "--output_dir=one"])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc_per_node=2", "train.py", *SMALL, "--output_dir=two"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    two = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert two.returncode == 0, two.stderr[-3000:]
    checkpoint = project / "two/checkpoint-12/trainer_state.json"
    log = json.loads(checkpoint.read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses == pytest.approx(one["losses"], rel=1e-4)
    summary = json.loads((project / "two/summary.json").read_text())
    assert summary["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-3)


def merge_and_compare() -> dict:
    import torch
    from transformers import AutoModelForCausalLM

    import merge
    import train
    from sft.adapter import load_trained
    from sft.config import load_config

    train.main([*SMALL, "--output_dir=merging"])
    merged = merge.main(["--output_dir=merging", "--use_cpu=true"])  # the adapter knows its base
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
    }


@pytest.mark.parametrize("quantization", MENUS["quantization"])
def test_the_merged_folder_is_the_adapted_model(bake, quantization):
    project = bake.project(quantization=quantization, lora_targets="all_linear")
    in_project(project, make_twin)
    seen = in_project(project, merge_and_compare)
    # bfloat16 rounds, and int8 rounds activations, too, which a merged model does not
    assert seen["off"] < (0.25 if quantization == "int8" else 0.1) * seen["moved"], seen
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(seen["files"])
    assert seen["eos"] == [2]


WRONG = {
    "a misspelt LoRA target": (["--target_modules", "q_proj", "gate_porj"], "gate_porj is in no"),
    "a target beside the blocks": (["--target_modules", "lm_head"], "lm_head is in no"),
    "a rank of nothing": (["--r=0"], "r must be a whole number from 1"),
    "a key that does not exist": (["--learning_rat=1"], "nearest is 'learning_rate'"),
    "a word for a number": (["--max_length=long"], "max_length must be a whole number, not 'long'"),
    "a model that is not there": (["--base_model_path=./nowhere"], "./nowhere"),
    "no column": (["--prompt_template={question}"], "no column 'question'"),
}


@pytest.mark.parametrize("options, sentence", WRONG.values(), ids=WRONG.keys())
def test_a_mistake_ends_in_one_sentence(project, options, sentence):
    said = in_project(project, what_is_said, [*SMALL, "--output_dir=wrong", *options])
    assert sentence in said and len(said.splitlines()) == 1
    assert not (project / "wrong/final").exists()


def what_is_said(options: list) -> str:
    import train

    with pytest.raises(SystemExit) as refused:
        train.main(options)
    return str(refused.value)
