"""Four processes, and two with the weights spread over them, learn what one learns: make cards.

The processes are of this machine's CPU and talk by gloo. accelerate spreads no weights over CPUs:
it is told that they are cards; all else is as with launch/fsdp2.yaml.
"""

import json
import os
import shutil
import socket
from multiprocessing import connection
from pathlib import Path

import pytest
from test_launch_configs import SPREAD
from test_runs_can_be_trusted import SMALL, make_twin

from conftest import FORKS, _child, in_project, started

pytestmark = pytest.mark.cards
RUN = [*SMALL, "--train_split=train[:16]", "--eval_split=train[16:23]", "--answers=0"]
FSDP2 = SPREAD | {"ACCELERATE_USE_FSDP": "true"}
CLOSE = {"loss": 1e-4, "grad_norm": 1e-4, "eval_loss": 1e-5}


def in_processes(project: Path, number: int, environment: dict, function, *args) -> list:
    """What `function(*args)` returns in each of so many processes of one run."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = environment | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    environment |= {"WORLD_SIZE": f"{number}", "LOCAL_WORLD_SIZE": f"{number}"}
    children, found = {}, {}
    for rank in range(number):
        own = environment | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}
        receiver, child = started(FORKS, _child, project, as_process, (own, function, args))
        children[receiver] = child
    try:
        while len(found) < number:
            for receiver in connection.wait(children.keys() - found.keys()):
                ok, found[receiver] = receiver.recv()
                assert ok, found[receiver]
    finally:
        for child in children.values():
            child.join(10 if len(found) == number else 0)
            child.kill()
    return [found[receiver] for receiver in children]


def as_process(environment: dict, function, args: tuple):
    os.environ |= environment
    if "ACCELERATE_USE_FSDP" in environment:
        cpus_are_cards()
    return function(*args)


def cpus_are_cards() -> None:
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    init = PartialState.__init__

    def as_cards(self, *args, **kwargs):
        init(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_XPU

    PartialState.__init__ = as_cards


def train_on(options: list, weights_as_on_a_card: bool = False) -> list[dict]:
    """The log of a run, by its first process.

    A CPU takes weights in float32 where a card takes config.yaml's `dtype`.
    """
    import torch

    import sft.machine

    if weights_as_on_a_card:
        sft.machine.supported_dtype = lambda args: getattr(torch, args.dtype)
    import train

    state = train.main(options).parent / "trainer_state.json"
    return (
        [] if os.environ.get("RANK", "0") != "0" else json.loads(state.read_text())["log_history"]
    )


def assert_same(log: list[dict], other: list[dict], within: dict = CLOSE) -> None:
    for key, difference in within.items():
        ones, others = ([entry[key] for entry in one if key in entry] for one in (log, other))
        assert len(ones) >= 2 and ones == pytest.approx(others, rel=difference), key


@pytest.fixture(scope="module", params=["all_linear", "full"])
def project(request, bake_once):
    answers = {"quantization": "none", "lora_targets": request.param}
    project = bake_once.project(project_slug=f"cards-{request.param}", **answers)
    in_project(project, make_twin)
    return project


@pytest.fixture(scope="module")
def alone(project):
    options = [*RUN, "--per_device_train_batch_size=4", "--output_dir=one"]
    return in_project(project, train_on, options)


def test_four_processes_learn_what_one_learns(project, alone):
    # of 7 rows three processes evaluate two, and the last one: its second is a repeated one
    options = [*RUN, "--per_device_train_batch_size=1", "--output_dir=four"]
    logs = in_processes(project, 4, {}, train_on, [*options, "--per_device_eval_batch_size=2"])
    assert_same(logs[0], alone)


def test_spread_weights_learn_the_same_and_go_on_from_a_checkpoint(project, alone):
    options = [*RUN, "--output_dir=spread"]
    log = in_processes(project, 2, FSDP2, train_on, options)[0]
    assert_same(log, alone)
    of_one, of_two = in_project(project, logits, "one"), in_project(project, logits, "spread")
    assert of_two == pytest.approx(of_one, abs=1e-3)

    shutil.rmtree(project / "spread/final")
    shutil.rmtree(project / "spread/checkpoint-12")
    again = in_processes(project, 2, FSDP2, train_on, options)[0]
    assert "Going on from spread/checkpoint-9" in (project / "log").read_text(errors="replace")
    assert_same(again, log, dict.fromkeys(CLOSE, 0))
    assert in_project(project, logits, "spread") == of_two


def logits(folder: str) -> list[float]:
    """Of what a run has saved, loaded by itself."""
    import torch

    from sft.adapter import load_trained
    from sft.config import load_config

    model = load_trained(Path(folder, "final"), load_config(RUN)[0])
    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits[0, -1, :50].tolist()


AS_ON_CARDS = [*RUN, "--bf16=true", "--learning_rate=1e-3", "--gradient_accumulation_steps=2"]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_spread_weights_are_as_exact_as_those_of_one_card(project, smoothing):
    words = [*AS_ON_CARDS, f"--label_smoothing_factor={smoothing}"]
    one = [*words, "--per_device_train_batch_size=2", f"--output_dir=one16-{smoothing}"]
    two = [*words, "--per_device_train_batch_size=1", f"--output_dir=two16-{smoothing}"]
    alone = in_project(project, train_on, one, True)
    log, spread = in_processes(project, 2, FSDP2, train_and_look, two)[0]
    assert_same(log, alone, {"loss": 3e-4, "grad_norm": 3e-2, "eval_loss": 3e-4})
    rounded = [entry["eval_loss"] * 2**10 % 1 == 0 for entry in log if "eval_loss" in entry]
    assert not any(rounded), "the loss has the digits of bfloat16"
    assert spread == {"are spread": True}


def train_and_look(options: list) -> tuple[list[dict], dict]:
    """The log, and what a process has of gradients after the first batch of a step."""
    from torch.distributed.tensor import DTensor

    import train

    seen = {}

    class Trainer(train.Trainer):
        def training_step(self, model, *args, **kwargs):
            loss = super().training_step(model, *args, **kwargs)
            if not seen:
                gradients = [p.grad for p in model.parameters() if p.requires_grad]
                seen["are spread"] = all(isinstance(one, DTensor) for one in gradients)
            return loss

    train.Trainer = Trainer
    return train_on(options, True), seen


def refusal(options: list) -> str:
    with pytest.raises(SystemExit) as ended:
        train_on(options)
    return ended.value.code


def test_a_checkpoint_of_spread_weights_is_not_one_of_whole_ones(project):
    options = [*RUN, "--max_steps=3", "--output_dir=other"]
    in_processes(project, 2, FSDP2, train_on, options)
    shutil.rmtree(project / "other/final")
    said = in_processes(project, 2, {}, refusal, options)
    assert "fsdp was True, and now it is" in said[0]


def test_a_score_that_spread_weights_cannot_have_is_refused(project):
    options = [*RUN, "--answers=1", "--metric_for_best_model=score", "--output_dir=score"]
    options += ["--eval_steps=3"]
    said = in_processes(project, 2, FSDP2, refusal, [*options, "--load_best_model_at_end=true"])
    assert "give none: take loss" in said[0] and not [*(project / "score").iterdir()]


SIZES = {"hidden_size": 256, "intermediate_size": 2048, "num_hidden_layers": 4}
SIZES |= {"num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 8192}
BATCH, LENGTH, CARDS = 2, 256, 4


@pytest.mark.parametrize(("rows", "is_tied"), [(1024, True), (16384, False)])
def test_the_memory_of_one_of_several_cards_is_what_pytorch_tracks(project, rows, is_tied):
    environment = FSDP2 | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "false", "RANK": "0"}
    environment |= {"LOCAL_RANK": "0", "WORLD_SIZE": f"{CARDS}", "LOCAL_WORLD_SIZE": f"{CARDS}"}
    shape = SIZES | {"vocab_size": rows, "tie_word_embeddings": is_tied}
    tracked, ours = in_project(project, as_process, environment, memory_of_a_step, (shape,))
    for name in ("weights", "optimizer state"):
        assert tracked[name] == pytest.approx(ours[name], rel=1e-3), name
    assert 0.98 < ours["peak"] / tracked["peak"] < 1.2


def memory_of_a_step(shape: dict) -> tuple[dict, dict]:
    """Bytes of the second step of one of `CARDS` processes, of which the others are not there."""
    import torch
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from transformers import LlamaConfig, LlamaForCausalLM

    name = f"{shape['vocab_size']}-{shape['tie_word_embeddings']}"
    shutil.copytree("twin", name)
    LlamaForCausalLM(LlamaConfig(**shape, eos_token_id=2, pad_token_id=0)).save_pretrained(name)
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=CARDS)
    options = [f"--base_model_path={name}", "--optim=adamw_torch_fused"]
    options += [f"--per_device_train_batch_size={BATCH}", "--gradient_accumulation_steps=1"]
    tracked = {}

    import sft.machine

    sft.machine.supported_dtype = lambda args: getattr(torch, args.dtype)
    import train

    class Trainer(train.Trainer):
        def training_step(self, model, inputs, *args):
            if not self.state.global_step:
                return super().training_step(model, inputs, *args)
            labels = LENGTH // 4
            row = {"input_ids": [5] * LENGTH, "labels": [-100] * (LENGTH - labels) + [5] * labels}
            batch = self.data_collator([row] * BATCH)
            batch.pop("attention_mask", None)
            with FSDPMemTracker(model, self.optimizer.optimizer) as tracker:
                super().training_step(model, batch, torch.tensor(BATCH * labels))
            [at_end] = tracker.get_tracker_snapshot("current").values()
            [at_peak] = tracker.get_tracker_snapshot("peak").values()
            kinds = {getattr(kind, "name", kind): n for kind, n in at_end.items()}
            tracked["weights"] = kinds["SHARDED_PARAM"]
            tracked["optimizer state"] = kinds["OPT"]
            tracked["peak"] = at_peak["Total"]
            raise EOFError  # the model's hooks are no more what they were

    train.Trainer = Trainer
    options += ["--activation_checkpointing=true", f"--output_dir=of-{name}"]
    with pytest.raises(EOFError):
        train_on([*RUN, *options, "--bf16=true"], True)

    import vram
    from sft.memory import WORKSPACE

    now = vram.Step([*options, f"--max_length={LENGTH}"], cards=CARDS).memory()
    weights = sum(n for part, n in now.parts.items() if part.startswith(("base", "adapter")))
    ours = {"weights": weights, "optimizer state": now.parts["optimizer state"]}
    return tracked, ours | {"peak": now.peak - WORKSPACE}
