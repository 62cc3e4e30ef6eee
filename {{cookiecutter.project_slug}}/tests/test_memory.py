"""The memory count is of what is really built, and vram.py shows it."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sft.adapter import add_adapter
from sft.config import ROOT, project_arguments, read_values
from sft.memory import count_for, fingerprint, memory

SHAPE = json.loads((ROOT / "base_model" / "config.json").read_text(encoding="utf-8"))
BUNDLED = [f"--base_model_path={SHAPE['_name_or_path']}"]


def run(*words) -> dict:
    """What Python prints as JSON, with these arguments."""
    done = subprocess.run([sys.executable, *words, *BUNDLED], capture_output=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def count():
    return count_for(BUNDLED)


def test_parameters_and_trainable_parameters_are_exact(count):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(ROOT / "base_model"))
        parameters = sum(p.numel() for p in model.parameters())
        model = add_adapter(model, project_arguments(BUNDLED))
    found = memory(count, read_values(BUNDLED))
    assert found.parameters == parameters
    assert found.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_peak_is_the_sum_of_its_parts_and_grows_with_the_batch(count):
    one, many = (
        memory(count, read_values([*BUNDLED, f"--per_device_train_batch_size={size}"]))
        for size in (1, 64)
    )
    assert one.peak == sum(one.parts.values()) < many.peak
    assert sum(size for name, size in one.parts.items() if name.startswith("base weights"))


def test_a_step_with_the_libraries_of_today_takes_as_much(count):
    """A new version of a library may keep more, or less, than the one that was counted with."""
    values = read_values(BUNDLED)
    now = memory(run("-m", "sft.count"), values)
    assert memory(count, values).peak == pytest.approx(now.peak, rel=0.01)


def test_the_command_shows_that_count(count):
    assert run("vram.py", "--json")["parts"] == memory(count, read_values(BUNDLED)).parts


def test_another_value_that_changes_memory_is_counted_anew_and_a_size_is_not():
    before = fingerprint(read_values(BUNDLED))
    assert fingerprint(read_values([*BUNDLED, "--max_length=77", "--seed=7"])) == before
    assert fingerprint(read_values([*BUNDLED, "--label_smoothing_factor=0.1"])) != before
