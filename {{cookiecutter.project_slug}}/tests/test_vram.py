"""The memory estimate counts what is really built, and vram.py shows that estimate."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from sft import vram
from sft.trace import trace_settings

ROOT = Path(__file__).parent.parent
SHAPE = json.loads((ROOT / "base_model/config.json").read_text(encoding="utf-8"))


@pytest.fixture
def settings():
    """config.yaml and the structural answers, for the model whose shape is in base_model/."""
    answers = json.loads((ROOT / "answers.json").read_text(encoding="utf-8"))["answers"]
    config = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    return answers | config | {"base_model_path": SHAPE["_name_or_path"]}


def test_parameters_and_trainable_parameters_are_exact(settings):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(ROOT / "base_model"))
        parameters = trainable = sum(p.numel() for p in model.parameters())
        if settings["lora_targets"] != "full":
            from peft import LoraConfig, get_peft_model

            from sft.adapter import layer_names

            names = layer_names(model, settings["target_modules"])
            lora = LoraConfig(r=settings["r"], target_modules=names)
            trainable, _ = get_peft_model(model, lora).get_nb_trainable_parameters()
    found = vram.estimate(SHAPE, settings)
    assert (found.parameters, found.trainable) == (parameters, trainable)


def test_the_peak_is_the_sum_of_its_parts_and_grows_with_the_batch(settings):
    one = vram.estimate(SHAPE, settings | {"per_device_train_batch_size": 1})
    many = vram.estimate(SHAPE, settings | {"per_device_train_batch_size": 64})
    assert one.peak == sum(one.parts.values()) == max(one.moments.values())
    weights = sum(size for name, size in one.parts.items() if name.startswith("base weights"))
    assert one.peak > weights > 0
    assert many.peak > one.peak


def test_a_traced_step_takes_as_much(settings):
    """A new version of a library may keep more, or less, than the formula knows of."""
    calculated = vram.estimate(SHAPE, settings)
    counted = trace_settings(SHAPE, settings)
    assert calculated.peak == pytest.approx(counted.peak, rel=0.01)


def test_the_command_shows_that_estimate(settings, tmp_path):
    command = [sys.executable, ROOT / "vram.py", "--json"]
    command += ["--base_model_path", settings["base_model_path"]]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    found = vram.estimate(SHAPE, settings)
    said = json.loads(run.stdout)
    assert said["peak"] == found.peak
    assert said["parts"] == found.parts


def test_a_misspelt_setting_is_refused_with_the_right_one():
    command = [sys.executable, ROOT / "vram.py", "--max_lenght", "512"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr == "There is no setting 'max_lenght'; the nearest is 'max_length'.\n"
