"""What config.yaml leaves to the machine suits the card; what its owner says stays as it is."""

import json

import pytest

from conftest import in_project

T4 = {"name": "Tesla T4", "gib": 14.6, "bf16": False, "tf32": False}
OF_8B = {"base_model": "Qwen/Qwen3-8B"}
FUSED, PAGED = "adamw_torch_fused", "paged_adamw_8bit"
RECOMPUTED = "--activation_checkpointing=true"  # with it there is nothing to count


def card(gib: float) -> dict:
    return {"name": "a card", "gib": gib, "bf16": True, "tf32": True}


@pytest.fixture(scope="module")
def lora(bake_once):
    return bake_once.project(project_slug="lora-8b", **OF_8B)


@pytest.fixture(scope="module")
def int8(bake_once):
    return bake_once.project(project_slug="int8-8b", quantization="int8", **OF_8B)


@pytest.fixture(scope="module")
def full(bake_once):
    return bake_once.project(
        project_slug="full-06b",
        base_model="Qwen/Qwen3-0.6B",
        lora_targets="full",
        quantization="none",
    )


@pytest.fixture(scope="module")
def full_8b(bake_once):
    full = {"lora_targets": "full", "quantization": "none"}
    return bake_once.project(project_slug="full-8b", **full, **OF_8B)


def choose(found: dict | None, options: tuple) -> tuple[dict, str]:
    """What would be chosen for that card, from the project's config.yaml and its model's shape."""
    from sft import config, machine

    machine.find_card = lambda: machine.Card(**found) if found else None
    words = ["--base_model_path=base_model", *options]
    return machine.choose(config.typed_values(words), words)


def chosen(project, found: dict | None, *options: str) -> dict:
    return in_project(project, choose, found, options)[0]


def said(project, found: dict | None, *options: str) -> str:
    return in_project(project, choose, found, options)[1]


def peak(project, **changes) -> float:
    """GB, by the project's own count."""
    return in_project(project, counted, changes)


def counted(changes: dict) -> float:
    from sft.config import read_values
    from sft.memory import GB, count_for, memory

    return memory(count_for([]), read_values([]) | changes).peak / GB


# --- activation checkpointing --------------------------------------------------------------------


@pytest.mark.parametrize("gib, on", [(141, False), (80, False), (12, True), (8, True)])
def test_lora_recomputes_only_on_a_small_card(lora, gib, on):
    assert chosen(lora, card(gib))["activation_checkpointing"] is on


@pytest.mark.parametrize("kind", ["lora", "int8", "full"])
def test_the_count_decides_to_the_tenth_of_a_gigabyte(kind, request):
    project = request.getfixturevalue(kind)
    enough = 1.15 * peak(project, activation_checkpointing=False) + 0.5
    assert chosen(project, card(enough + 0.1))["activation_checkpointing"] is False
    assert chosen(project, card(enough - 0.1))["activation_checkpointing"] is True


def test_longer_rows_and_larger_batches_need_it_sooner(lora):
    assert chosen(lora, card(40))["activation_checkpointing"] is False
    assert chosen(lora, card(40), "--max_length=4096")["activation_checkpointing"] is True
    larger = chosen(lora, card(40), "--per_device_train_batch_size", "8")
    assert larger["activation_checkpointing"] is True


def test_a_model_that_cannot_be_counted_recomputes(full, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba9"}')
    values, line = in_project(full, choose, card(141), [f"--base_model_path={tmp_path}"])
    assert values["activation_checkpointing"] is True
    assert values["optim"] == FUSED
    assert "activation checkpointing (not counted)" in line


def test_spread_over_cards_nothing_is_counted(full):
    wanted = {"activation_checkpointing": True, "optim": FUSED}
    assert chosen(full, card(8), "--fsdp=full_shard").items() >= wanted.items()
    assert in_project(full, choose_under_fsdp, card(8))[0].items() >= wanted.items()


def choose_under_fsdp(found: dict) -> tuple[dict, str]:
    import os

    os.environ["ACCELERATE_USE_FSDP"] = "true"  # as `accelerate launch` does
    return choose(found, ())


# --- the optimizer of full training ---------------------------------------------------------------


@pytest.mark.parametrize(
    "gib, optim, on", [(24, FUSED, False), (14.6, FUSED, True), (12, PAGED, True), (8, PAGED, True)]
)
def test_eight_bits_come_last(full, gib, optim, on):
    wanted = {"optim": optim, "activation_checkpointing": on}
    assert chosen(full, card(gib)).items() >= wanted.items()


def test_where_nothing_fits_it_takes_the_smallest_and_says_so(full_8b, full, lora):
    wanted = {"optim": PAGED, "activation_checkpointing": True}
    assert chosen(full_8b, card(80)).items() >= wanted.items()
    line = said(full_8b, card(80))
    gigabytes = peak(full_8b, **wanted)
    assert line.endswith(f"({gigabytes:.1f} GB counted, which will not fit; see python vram.py)")
    assert "GB counted, which is tight; see" in said(lora, card(9))
    assert said(full, card(24)).endswith("GB counted)")


def test_where_config_yaml_names_no_optimizer_those_to_choose_from_are_counted(full, lora):
    assert in_project(full, optimizers_of_none) == [FUSED, PAGED]
    assert in_project(lora, optimizers_of_none) == [FUSED]


def optimizers_of_none() -> list[str]:
    from sft.config import read_values
    from sft.memory import optimizers

    return optimizers({key: value for key, value in read_values([]).items() if key != "optim"})


def test_lora_keeps_its_optimizer(lora):
    assert "optim" not in chosen(lora, card(8))
    assert chosen(lora, card(8), "--optim=auto")["optim"] == FUSED


# --- formats and workers --------------------------------------------------------------------------


def test_a_card_gets_the_formats_that_it_has(lora):
    ampere, turing = chosen(lora, card(24)), chosen(lora, T4)
    assert {"bf16": True, "tf32": True}.items() <= ampere.items() and "fp16" not in ampere
    assert turing["fp16"] is True and not {"bf16", "tf32"} & turing.keys()
    assert "dataloader_pin_memory" not in ampere
    line = "Chosen for Tesla T4, 15 GB: fp16, activation checkpointing ("
    assert said(lora, T4).startswith(line)


def test_the_cpu_gets_nothing_that_it_lacks(lora, full):
    wanted = {"activation_checkpointing": False, "dataloader_pin_memory": False}
    assert chosen(lora, None) == wanted
    assert chosen(lora, card(8), "--use_cpu=true") == wanted
    assert chosen(full, None) == wanted | {"optim": FUSED}
    line = "Chosen for the CPU: float32, no activation checkpointing"
    assert said(lora, None) == line


GEMMAS = {"gemma3_text": True, "gemma4": True, "qwen3": False}  # does it overflow float16?


@pytest.mark.parametrize("kind, overflows", GEMMAS.items())
def test_without_bfloat16_a_model_that_overflows_float16_is_in_float32(
    lora, tmp_path, kind, overflows
):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    words = [f"--base_model_path={tmp_path}", RECOMPUTED]
    assert chosen(lora, T4, *words).get("fp16", False) is not overflows
    assert ("Tesla T4, 15 GB: float32" in said(lora, T4, *words)) is overflows
    dtypes = in_project(lora, loaded_in, str(tmp_path), [T4, card(8), None])
    assert dtypes == ["float32" if overflows else "float16", "bfloat16", "float32"]


def loaded_in(path: str, cards: list) -> list[str]:
    """The dtypes of the base model on these cards, where config.yaml says bfloat16."""
    from types import SimpleNamespace

    import torch

    from sft import machine

    args = SimpleNamespace(dtype="bfloat16", base_model_path=path, revision="main")
    found = []
    for one in cards:
        device = SimpleNamespace(device=torch.device("cuda" if one else "cpu"))
        machine.PartialState = lambda device=device: device
        machine.find_card = lambda one=one: machine.Card(**one)
        found.append(str(machine.supported_dtype(args)).removeprefix("torch."))
    return found


def test_gemma_is_counted_in_the_format_that_it_gets(bake_once):
    """On a card without bfloat16 unquantized weights take twice as much."""
    gemma = bake_once.project(
        project_slug="gemma", base_model="google/gemma-3-1b-it", quantization="none"
    )
    cards = (T4 | {"gib": 8.0}, card(8))  # both recompute
    on_turing, on_ampere = (float(said(gemma, one).split("(")[-1].split()[0]) for one in cards)
    assert on_turing > on_ampere + 1


DEVICES = {
    "xpu": ("Intel Arc B580, 12 GB: bf16, ", True),
    "mps": ("Apple M4, 12 GB: bf16, ", False),
    "mps of an older macOS": ("Apple M4, 12 GB: fp16, ", False),
    "cuda": ("NVIDIA L4, 12 GB: bf16, tf32, ", True),
}


@pytest.mark.parametrize("kind", DEVICES)
def test_each_kind_of_gpu_is_named_and_gets_bf16_where_it_has_it(lora, kind):
    line, is_pinned = DEVICES[kind]
    values, banner = in_project(lora, choose_on, kind)
    assert banner.startswith(f"Chosen for {line}"), banner
    assert values.get("bf16", False) is (", bf16" in f",{line[line.index(':') + 1 :]}")
    assert ("dataloader_pin_memory" in values) is not is_pinned


def choose_on(kind: str) -> tuple[dict, str]:
    """What is chosen where PyTorch says that it has that kind of GPU alone."""
    import contextlib
    from unittest.mock import patch

    from sft import machine
    from sft.config import typed_values

    memory = (2**30, 12 * 2**30)
    says = {
        "torch.cuda.is_available": kind == "cuda",
        "torch.cuda.device": contextlib.nullcontext(),
        "torch.cuda.device_count": 1,
        "torch.cuda.get_device_name": "NVIDIA L4",
        "torch.cuda.mem_get_info": memory,
        "torch.cuda.is_bf16_supported": True,
        "sft.machine.is_torch_tf32_available": True,
        "torch.xpu.is_available": kind == "xpu",
        "torch.xpu.device_count": 1,
        "torch.xpu.get_device_name": "Intel Arc B580",
        "torch.xpu.mem_get_info": memory,
        "torch.backends.mps.is_available": kind.startswith("mps"),
        "torch.backends.mps.get_name": "Apple M4",
        "torch.mps.recommended_max_memory": memory[1],
        "sft.machine.is_torch_bf16_gpu_available": kind in ("xpu", "mps"),
    }
    with contextlib.ExitStack() as stack:
        for name, value in says.items():
            stack.enter_context(patch(name, return_value=value))
        words = ["--base_model_path=base_model"]
        chosen = machine.choose(typed_values(words), words)
    return chosen


def test_what_bitsandbytes_cannot_serve_is_refused_before_the_download(lora, int8):
    for project in (lora, int8):
        assert "not on 'vulkan': generate the project again" in in_project(project, refused_on)


def refused_on() -> str:
    from types import SimpleNamespace

    from sft.preflight import check_settings

    with pytest.raises(SystemExit) as refused:
        check_settings(SimpleNamespace(device=SimpleNamespace(type="vulkan")))
    return str(refused.value)


def test_bf16_that_a_card_only_emulates_is_not_taken(lora):
    assert in_project(lora, asked_of_cuda) == {"including_emulation": False}


def asked_of_cuda() -> dict:
    import contextlib
    from unittest.mock import patch

    from sft import machine

    with (
        patch("torch.cuda.is_available", return_value=True),
        patch("torch.cuda.device_count", return_value=1),
        patch("torch.cuda.device", return_value=contextlib.nullcontext()),
        patch("torch.cuda.get_device_name", return_value="T4"),
        patch("torch.cuda.mem_get_info", return_value=(1, 2**34)),
        patch("torch.cuda.is_bf16_supported", return_value=False) as asked,
    ):
        assert machine.find_card().bf16 is False
    return asked.call_args.kwargs


# --- what its owner says --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "found, words",
    [
        (card(8), ["--activation_checkpointing=false"]),
        (card(8), ["--activation_checkpointing", "false"]),
        (card(8), ["--gradient_checkpointing=false"]),  # the older name
        (card(141), ["--activation_checkpointing"]),
        (card(8), ["--optim", "adamw_torch", RECOMPUTED]),
        (card(141), [f"--optim={PAGED}"]),
        (card(24), ["--fp16=true"]),
        (card(24), ["--bf16=false", RECOMPUTED]),
        (card(24), ["--tf32=false"]),
        (None, ["--dataloader_pin_memory=true"]),
    ],
)
def test_what_is_said_is_not_chosen(full, found, words):
    key = words[0].removeprefix("--").partition("=")[0]
    key = "activation_checkpointing" if key == "gradient_checkpointing" else key
    assert key in chosen(full, found) or key in ("fp16", "dataloader_pin_memory")
    left = chosen(full, found, *words)
    assert key not in left
    if key in ("fp16", "bf16"):
        assert not {"bf16", "fp16"} & left.keys()


def test_with_one_of_two_said_the_other_follows(full):
    with_paged = chosen(full, card(14.6), f"--optim={PAGED}")
    assert with_paged["activation_checkpointing"] is True
    # a card that has the choice between the two recomputes; where it may not, 8 bits are left
    enough = 1.15 * peak(full, optim=PAGED, activation_checkpointing=False) + 0.6
    assert chosen(full, card(enough))["optim"] == FUSED
    assert chosen(full, card(enough), "--activation_checkpointing=false")["optim"] == PAGED


def test_with_all_said_it_is_silent(full):
    words = ["--bf16=true", "--tf32=true", "--optim=adamw_torch", "--activation_checkpointing=true"]
    assert in_project(full, choose, card(8), words) == ({}, "")


# --- through the whole of it ----------------------------------------------------------------------


def loaded(options: list, for_training: bool) -> tuple[dict, str]:
    import contextlib
    import io

    from sft.config import load_config
    from sft.machine import choose

    with contextlib.redirect_stderr(io.StringIO()) as told:
        found = load_config(options, choose if for_training else None)[1].to_dict()
    keys = ("activation_checkpointing", "optim", "bf16", "fp16", "tf32", "dataloader_pin_memory")
    return {key: found[key] for key in keys}, told.getvalue()


@pytest.mark.parametrize("value", ["true", "false", "auto"])
def test_a_value_on_the_command_line_arrives(full, value):
    options = ["--use_cpu=true", f"--activation_checkpointing={value}", "--optim", "adamw_bnb_8bit"]
    arrived, line = in_project(full, loaded, options, True)
    assert arrived["activation_checkpointing"] is (value == "true")
    assert arrived["optim"] == "adamw_bnb_8bit"
    assert ("no activation checkpointing" in line) is (value == "auto")


def test_only_training_chooses(lora):
    arrived, line = in_project(lora, loaded_elsewhere, [])
    assert arrived["activation_checkpointing"] is False and arrived["optim"] == FUSED
    assert "Chosen" not in line


def loaded_elsewhere(options: list) -> tuple[dict, str]:
    from sft import machine

    machine.find_card = None  # chat.py and its like do not ask
    return loaded(["--use_cpu=true", *options], False)


@pytest.mark.parametrize(
    "option, named",
    [
        ("--activation_checkpointing=flase", "activation_checkpointing"),
        ("--optim=adamw_fussed", "optim"),
        ("--tf32=perhaps", "tf32"),
    ],
)
def test_a_wrong_value_ends_in_one_sentence(full, option, named):
    with pytest.raises(AssertionError, match="SystemExit: config.yaml or the command line") as no:
        in_project(full, loaded, ["--use_cpu=true", option], True)
    assert f"{named} must be" in str(no.value) and option.partition("=")[2] in str(no.value)


def reduced_in(fsdp_version: int) -> tuple:
    """The dtypes in which gradients are reduced and outputs given, and whether each batch is."""
    from types import SimpleNamespace

    from accelerate import FullyShardedDataParallelPlugin

    from sft.machine import keep_exact

    plugin = FullyShardedDataParallelPlugin(fsdp_version=fsdp_version)
    plugin.set_mixed_precision("bf16")
    gradients = SimpleNamespace(plugin_kwargs={})
    state = SimpleNamespace(fsdp_plugin=plugin)
    keep_exact(SimpleNamespace(state=state, gradient_state=gradients), smoothing=0.1)
    policy = plugin.mixed_precision_policy
    outputs = getattr(policy, "output_dtype", None)
    return str(policy.reduce_dtype), str(outputs), gradients.plugin_kwargs


def test_gradients_of_spread_weights_are_added_up_in_float32(full):
    exact = ("torch.float32", "torch.float32", {"sync_each_batch": True})
    assert in_project(full, reduced_in, 2) == exact
    assert in_project(full, reduced_in, 1) == ("torch.bfloat16", "None", {})  # as accelerate has it
