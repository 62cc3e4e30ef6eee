"""The launch configs are understood by the installed accelerate, key by key."""

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin


@pytest.fixture(scope="module")
def launch(bake_once):
    return bake_once.project(project_slug="launch", quantization="none") / "launch"


def test_every_config_is_understood(launch):
    files = sorted(launch.glob("*.yaml"))
    assert [file.stem for file in files] == ["ddp", "fsdp2", "two_machines"]
    for file in files:
        config = load_config_from_file(str(file))  # refuses a key that it does not know
        machines = 2 if file.stem == "two_machines" else 1
        assert config.num_machines == machines and config.num_processes >= 2


def test_fsdp_keys_exist(launch):
    config = yaml.safe_load((launch / "fsdp2.yaml").read_text())["fsdp_config"]
    known = {"fsdp_version", *(f"fsdp_{n}" for n in vars(FullyShardedDataParallelPlugin()))}
    assert config.keys() <= known
    assert config["fsdp_version"] == 2
