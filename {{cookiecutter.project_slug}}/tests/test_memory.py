"""The memory count is of what is really built."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sft.adapter import add_adapter
from sft.config import ROOT, project_arguments, read_values
from sft.memory import count_for, memory

SHAPE = json.loads((ROOT / "base_model" / "config.json").read_text(encoding="utf-8"))
BUNDLED = [f"--base_model_path={SHAPE['_name_or_path']}"]


def test_parameters_and_trainable_parameters_are_exact():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(ROOT / "base_model"))
        parameters = sum(p.numel() for p in model.parameters())
        model = add_adapter(model, project_arguments(BUNDLED))
    found = memory(count_for(BUNDLED), read_values(BUNDLED))
    assert found.parameters == parameters
    assert found.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_step_with_the_libraries_of_today_takes_as_much():
    """A new version of a library may keep more, or less, than the one that was counted with."""
    command = [sys.executable, "-m", "sft.count", *BUNDLED]
    today = json.loads(subprocess.check_output(command, cwd=ROOT).splitlines()[-1])
    peaks = [memory(count, read_values(BUNDLED)).peak for count in (count_for(BUNDLED), today)]
    assert peaks[0] == pytest.approx(peaks[1], rel=0.01)
