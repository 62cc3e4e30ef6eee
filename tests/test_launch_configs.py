"""The launch configs are understood by the installed accelerate, and start what they say."""

import subprocess

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

DDP = {"multi_gpu": True, "use_fsdp": False, "mixed_precision": "no"}
# what accelerate's launcher makes of each: processes on this machine, and how machines meet
STARTS = {
    "ddp": DDP | {"nproc_per_node": "2", "num_machines": 1},
    "fsdp2": DDP | {"nproc_per_node": "2", "num_machines": 1, "multi_gpu": False, "use_fsdp": True},
    "two_machines": DDP
    | {"nproc_per_node": "8", "nnodes": "2", "node_rank": 0}
    | {"rdzv_backend": "static", "rdzv_endpoint": "127.0.0.1:29500"},
}
SPREAD = {
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


@pytest.fixture(scope="module")
def launch(bake_once):
    return bake_once.project(project_slug="launch", quantization="none") / "launch"


def test_every_config_is_understood(launch):
    files = sorted({*launch.glob("*.yaml")} - {launch / "sky.yaml"})
    assert [file.stem for file in files] == sorted(STARTS)
    for file in files:
        config = load_config_from_file(str(file))  # refuses a key that it does not know
        machines = 2 if file.stem == "two_machines" else 1
        assert config.num_machines == machines and config.num_processes >= 2


@pytest.mark.parametrize("name", STARTS)
def test_it_starts_what_it_says(launch, name, monkeypatch):
    monkeypatch.setattr("accelerate.utils.launch.is_port_in_use", lambda port: False)
    words = ["--config_file", str(launch / f"{name}.yaml"), "train.py"]
    options, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    environment = prepare_multi_gpu_env(options)
    assert {key: getattr(options, key) for key in STARTS[name]} == STARTS[name]
    wanted = SPREAD if name == "fsdp2" else {}
    wanted = wanted | {"ACCELERATE_MIXED_PRECISION": "no"}
    assert {key: environment.get(key) for key in wanted} == wanted


def test_fsdp_keys_exist(launch):
    config = yaml.safe_load((launch / "fsdp2.yaml").read_text())["fsdp_config"]
    known = {"fsdp_version", *(f"fsdp_{n}" for n in vars(FullyShardedDataParallelPlugin()))}
    assert config.keys() <= known


CARDS = {  # what a run of these answers needs, as counted: the smallest card that is rented for it
    ("Qwen/Qwen3-8B", "nf4", "all_linear"): "L4",
    ("Qwen/Qwen3-32B", "nf4", "all_linear"): "L40S",
    ("Qwen/Qwen3-8B", "none", "full"): "H200",
}


@pytest.mark.parametrize("answers", CARDS)
def test_a_cloud_rents_a_card_that_holds_it(bake_once, answers):
    names = dict(zip(("base_model", "quantization", "lora_targets"), answers, strict=True))
    project = bake_once.project(project_slug="-".join(answers[1:]), **names)
    sky = yaml.safe_load((project / "launch/sky.yaml").read_text(encoding="utf-8"))
    assert next(iter(sky["resources"]["accelerators"])) == CARDS[answers]
    assert sky["setup"] == "pip install -e ."
    assert "train.py --output_dir /outputs" in sky["run"] and "/outputs" in sky["file_mounts"]
    # with the disk between, for checkpoints that are written amid a run
    assert sky["file_mounts"]["/outputs"]["mode"] == "MOUNT_CACHED"


def test_the_script_for_slurm_is_a_script(launch):
    subprocess.run(["bash", "-n", launch / "slurm.sh"], check=True)
