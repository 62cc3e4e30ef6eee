"""Each field of TrainingArguments has its effect, or is refused in a sentence.

All are tried with a padded batch and with one without padding; with the other collators, whose
batches are equal to the padded one's or have other labels, those that reach a collator.

A version of transformers with other fields fails here: they belong into `OPTIONS` or `LEFT_OUT`.
"""

import copy
import hashlib
import shutil
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_runs_can_be_trusted import make_twin

from conftest import MENUS, in_project

BASE = """--max_steps=3 --save_strategy=no --eval_strategy=no --logging_steps=1 --report_to=none
--gradient_accumulation_steps=1 --per_device_train_batch_size=2 --per_device_eval_batch_size=4
--learning_rate=1e-2 --warmup_steps=0 --dataset=data/sample.jsonl --base_model_path=twin
--use_cpu=true --test_size=0.334 --train_split=train[:24] --answers=0""".split()
EVALUATED = "--eval_strategy=steps --eval_steps=1"
SAVED = "--save_strategy=steps --save_steps=1"
RECOMPUTED = "--activation_checkpointing=true"


def differs(what: str):
    """Whether that is another than without the option."""
    return lambda run, without: getattr(run, what) != getattr(without, what)


rows, loss, weights, logged, files = map(differs, ("rows", "loss", "weights", "logged", "files"))


def loader(name: str, value):
    """Whether the training rows' DataLoader has that attribute."""
    return lambda run, _: getattr(run.trainer.get_train_dataloader(), name) == value


def has(path: str, value):
    """Whether an attribute of the trainer is that."""

    def check(run, _):
        thing = run.trainer
        for name in path.split("."):
            thing = getattr(thing, name)
        return thing == value

    return check


def recomputes(key: str | None = None, value=None):
    """Whether the model's blocks are checkpointed, with such an argument."""

    def check(run, _):
        layers = [m for m in run.trainer.model.modules() if getattr(m, "gradient_checkpointing", 0)]
        given = [layer._gradient_checkpointing_func.keywords for layer in layers]
        return given and all(key is None or one[key] == value for one in given)

    return check


# an option, other options that it needs, and what is seen of it or said
OPTIONS = [
    ("per_device_train_batch_size=1", "", rows),
    ("num_train_epochs=0.25", "--max_steps=-1", has("state.global_step", 2)),
    ("max_steps=2", "", has("state.global_step", 2)),
    ("learning_rate=1e-3", "", weights),
    ("learning_rate=-1", "", "Invalid learning rate"),
    ("lr_scheduler_type=constant", "", weights),
    ("lr_scheduler_type=greedy", "", "needs an evaluation"),
    ("lr_scheduler_kwargs={num_cycles: 2}", "", weights),
    ("lr_scheduler_kwargs={num_cycles: 2}", "--lr_scheduler_type=constant", "is for schedules"),
    ("warmup_steps=2", "", weights),
    ("warmup_steps=-1", "", "warmup_steps"),
    ("optim=adafactor", "", weights),
    ("optim=galore_adamw", "--optim_target_modules=all-linear", "galore"),
    ("optim_args=alpha=0.5", "--optim=rmsprop", weights),
    ("optim_args=alpha=0.5", "", "is read by other values of optim"),
    ("optim_target_modules=q_proj", "", "is read by other values of optim"),
    ("weight_decay=0.5", "", weights),
    ("weight_decay=-1", "", "weight_decay must be 0 or above"),
    ("adam_beta1=0.5", "", weights),
    ("adam_beta2=0.5", "", weights),
    ("adam_epsilon=1e-2", "", weights),
    ("gradient_accumulation_steps=2", "", has("state.epoch", 0.75)),
    ("max_grad_norm=0.01", "--optim=sgd", weights),
    ("max_grad_norm=0", "--optim=sgd --max_grad_norm=0.01", weights),
    ("max_grad_norm=-1", "", "max_grad_norm must be 0 or above"),
    ("label_smoothing_factor=0.1", "", loss),
    ("label_smoothing_factor=2", "", "must be from 0 to 1"),
    ("bf16=true", "", loss),
    ("fp16=true", "", "fp16 needs a GPU"),
    ("bf16_full_eval=true", "", "rounds what is saved"),
    ("fp16_full_eval=true", "", "rounds what is saved"),
    ("tf32=true", "", "requires Ampere"),
    ("activation_checkpointing=true", "", recomputes()),
    (
        "activation_checkpointing_kwargs={use_reentrant: true}",
        RECOMPUTED,
        recomputes("use_reentrant", True),
    ),
    ("gradient_checkpointing=true", "", recomputes()),
    (
        "gradient_checkpointing_kwargs={use_reentrant: true}",
        RECOMPUTED,
        recomputes("use_reentrant", True),
    ),
    ("torch_compile=true", "", lambda run, _: run.compiled[-1]["backend"] == "inductor"),
    ("torch_compile_backend=eager", "", lambda run, _: run.compiled[-1]["backend"] == "eager"),
    ("torch_compile_backend=egger", "", "EGGER"),
    (
        "torch_compile_mode=max-autotune",
        "",
        lambda run, _: run.compiled[-1]["mode"] == "max-autotune",
    ),
    ("use_liger_kernel=true", "", "liger-kernel"),
    ("liger_kernel_config={rope: true}", "", "needs use_liger_kernel"),
    ("use_cache=true", "", "has no use here"),
    ("neftune_noise_alpha=5", "", loss),
    ("neftune_noise_alpha=-5", "", "must be 0 or above"),
    ("torch_empty_cache_steps=1", "", lambda run, _: run.emptied),
    ("torch_empty_cache_steps=0", "", "bigger than 0"),
    ("auto_find_batch_size=true", "", lambda run, _: run.trainer._train_batch_size == 1),
    ("logging_strategy=no", "", logged),
    ("logging_steps=2", "", logged),
    ("logging_steps=0", "", "logging_steps must be above 0"),
    ("max_steps=0", "", "max_steps must be above 0"),
    ("logging_first_step=true", "--logging_steps=3", logged),
    ("include_num_input_tokens_seen=all", "", logged),
    ("log_level=error", "", lambda run, _: run.verbosity == 40),
    ("log_level=quiet", "", "log_level must be detail or"),
    ("disable_tqdm=true", "", lambda run, _: "PrinterCallback" in run.callbacks),
    ("report_to=wandb", "", "pip install wandb"),
    ("eval_strategy=steps", "--eval_steps=1", logged),
    ("eval_steps=2", EVALUATED, logged),
    ("eval_steps=0", EVALUATED, "eval_steps must be above 0"),
    ("eval_delay=2", EVALUATED, logged),
    ("eval_on_start=true", EVALUATED, logged),
    ("per_device_eval_batch_size=2", "", differs("evaluated")),
    ("prediction_loss_only=true", "", lambda run, _: not run.predictions),
    (
        "eval_do_concat_batches=false",
        "",
        lambda run, _: isinstance(run.predictions[-1][0].label_ids, list),
    ),
    ("eval_use_gather_object=true", "", lambda run, _: run.gathers["use_gather_object"]),
    ("eval_accumulation_steps=1", "", lambda run, without: len(run.moved) > len(without.moved)),
    ("eval_accumulation_steps=0", "", "must be above 0"),
    ("include_for_metrics=loss", "", lambda run, _: run.predictions[-1][0].losses is not None),
    ("batch_eval_metrics=true", "", lambda run, _: run.predictions[-1][1] is True),
    ("save_strategy=steps", "--save_steps=1", files),
    ("save_strategy=best", "--metric_for_best_model=loss", "needs an evaluation"),
    ("save_steps=3", SAVED, files),
    ("save_total_limit=1", SAVED, files),
    ("save_total_limit=0", SAVED, "save_total_limit must be above 0"),
    ("save_only_model=true", SAVED, "leaves nothing to resume from"),
    ("load_best_model_at_end=true", f"{EVALUATED} {SAVED}", differs("best")),
    ("load_best_model_at_end=true", "", "needs an evaluation"),
    (
        "metric_for_best_model=n",
        f"{EVALUATED} {SAVED} --load_best_model_at_end=true",
        differs("best"),
    ),
    ("metric_for_best_model=m", "", "is not in ['loss', 'score', 'n']"),
    (
        "greater_is_better=true",
        f"{EVALUATED} {SAVED} --load_best_model_at_end=true",
        differs("best"),
    ),
    ("full_determinism=true", "", lambda run, _: run.deterministic),
    ("seed=7", "", weights),
    ("seed=-1", "", "Seed must be between"),
    ("data_seed=7", "", rows),
    ("data_seed=7", "--train_sampling_strategy=sequential", "is for random order"),
    ("train_sampling_strategy=sequential", "", rows),
    ("train_sampling_strategy=group_by_length", "--train_sampling_strategy=random", rows),
    (
        "train_sampling_strategy=batch_rebalance",
        "",
        lambda run, _: run.sampler == "BatchRebalanceSampler",
    ),
    ("train_sampling_strategy=shuffled", "", "must be random or sequential or"),
    ("accelerator_config={even_batches: false}", "", has("accelerator.even_batches", False)),
    ("accelerator_config={split_batches: true}", "", "takes neither split_batches nor"),
    ("average_tokens_across_devices=false", "", "weighs a token by its batch"),
    (
        "dataloader_drop_last=true",
        "--per_device_train_batch_size=3",
        has("state.num_train_epochs", 1),
    ),
    ("dataloader_num_workers=1", "", loader("num_workers", 1)),
    (
        "dataloader_persistent_workers=true",
        "--dataloader_num_workers=1",
        loader("persistent_workers", True),
    ),
    ("dataloader_prefetch_factor=3", "--dataloader_num_workers=1", loader("prefetch_factor", 3)),
    ("dataloader_prefetch_factor=3", "", "dataloader_prefetch_factor"),
    ("dataloader_multiprocessing_context=thread", "", "must be fork or"),
    ("dataloader_in_order=false", "", loader("in_order", False)),
    ("remove_unused_columns=false", "", lambda run, _: "length" in run.columns),
    ("label_names=x", "", "has no use here"),
    ("debug=underflow_overflow", "", lambda run, _: run.debugged),
    ("skip_memory_metrics=false", "", logged),
    ("do_train=true", "", "has no use here"),
    ("do_eval=true", "", "has no use here"),
    ("do_predict=true", "", "has no use here"),
    ("enable_jit_checkpoint=true", "", "has no use here"),
    ("hub_token=x", "", "set HF_TOKEN"),
    ("resume_from_checkpoint=nowhere", "", "is no checkpoint"),
    (
        "ddp_find_unused_parameters=true",
        "",
        has("accelerator.ddp_handler.find_unused_parameters", True),
    ),
    ("ddp_bucket_cap_mb=7", "", has("accelerator.ddp_handler.bucket_cap_mb", 7)),
    ("ddp_broadcast_buffers=false", "", has("accelerator.ddp_handler.broadcast_buffers", False)),
    ("ddp_static_graph=true", "", has("accelerator.ddp_handler.static_graph", True)),
    ("fsdp=full_shard", "", "only works in distributed training"),
    ("deepspeed=x.json", "", "deepspeed"),
    ("parallelism_config=x", "", "parallelism_config must be"),
]
LEFT_OUT = {
    "each run here has it": "output_dir use_cpu",
    "uploads": """push_to_hub hub_private_repo hub_model_id hub_strategy hub_always_push
        hub_revision trackio_space_id trackio_bucket_id trackio_static_space_id""",
    "names in a tracker": "run_name project",
    "several processes or machines": """ddp_backend ddp_timeout fsdp_config
         local_rank log_level_replica log_on_each_node save_on_each_node""",
    "a GPU's": "dataloader_pin_memory",
    "a run that goes on": "ignore_data_skip restore_callback_states_from_checkpoint",
    "the run ends at a loss that is not finite": "logging_nan_inf_filter",
    "rows have `length`, and without it the Trainer counts": "length_column_name",
}
REACH_A_COLLATOR = """per_device_train_batch_size per_device_eval_batch_size
label_smoothing_factor include_num_input_tokens_seen train_sampling_strategy
dataloader_num_workers dataloader_persistent_workers remove_unused_columns auto_find_batch_size
""".split()


def test_every_field_is_looked_at():
    from transformers import TrainingArguments

    left_out = {name for names in LEFT_OUT.values() for name in names.split()}
    tried = {option.partition("=")[0] for option, *_ in OPTIONS}
    assert not tried & left_out
    assert tried | left_out == {each.name for each in fields(TrainingArguments)}


@pytest.mark.parametrize("collator", MENUS["collator"])
def test_an_option_works_or_is_refused(bake_once, collator):
    project = bake_once.project(project_slug="options", quantization="none", collator=collator)
    in_project(project, make_twin)
    assert in_project(project, try_all, collator) == []


def options_for(collator: str) -> list[tuple]:
    if collator in ("seq2seq", "padding_free"):
        return OPTIONS
    options = [one for one in OPTIONS if one[0].partition("=")[0] in REACH_A_COLLATOR]
    assert {option.partition("=")[0] for option, *_ in options} == {*REACH_A_COLLATOR}
    return options


def try_all(collator: str) -> list[str]:
    """What does not hold of the options that are tried with it."""
    attempt = make_attempt()
    first, again, wrong = attempt([]), attempt(["--weight_decay=0.0"]), []
    for what in ("rows", "loss", "weights", "logged", "files", "evaluated", "best"):
        if getattr(first, what) != getattr(again, what):
            wrong.append(f"{what} of the same run differ")
    without = {"": first}
    for option, others, wanted in options_for(collator):
        try:
            if isinstance(wanted, str):
                run = attempt([*others.split(), f"--{option}"])
                fine = isinstance(run, str) and wanted in run and "\n" not in run
            else:
                if others not in without:
                    without[others] = attempt(others.split())
                run = attempt([*others.split(), f"--{option}"])
                fine = wanted(run, without[others])
            if not fine:
                wrong.append(f"--{option} {others}: {run if isinstance(run, str) else 'not seen'}")
        except Exception as error:
            wrong.append(f"--{option} {others}: {type(error).__name__}: {error}")
    return wrong


def make_attempt():
    """A function that trains with some options, and says what was seen, or the sentence.

    Rows, tokenizer and base model are loaded once: no option here is about them.
    """
    import torch
    import transformers
    from transformers.trainer_pt_utils import EvalLoopContainer

    import train
    from sft.trainer import METRICS

    METRICS.append("n")  # as an owner does
    seen = SimpleNamespace()

    class Trainer(train.Trainer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs, compute_metrics=self.metrics)
            seen.trainer, seen.rows, seen.evaluated, seen.predictions = self, [], [], []
            seen.gathers = getattr(self.gather_function, "keywords", {})
            seen.has_failed = False

        def metrics(self, predictions, compute_result=None):
            seen.predictions.append((predictions, compute_result))
            return {"n": self.state.global_step}

        def training_step(self, model, inputs, *args, **kwargs):
            if self.args.auto_find_batch_size and not seen.has_failed:
                seen.has_failed = True
                raise torch.OutOfMemoryError("CUDA out of memory.")
            seen.rows.append(inputs["input_ids"].tolist())
            return super().training_step(model, inputs, *args, **kwargs)

        def prediction_step(self, model, inputs, *args, **kwargs):
            seen.evaluated.append(inputs["input_ids"].tolist())
            return super().prediction_step(model, inputs, *args, **kwargs)

        def _get_train_sampler(self, train_dataset=None):
            seen.columns = train_dataset.column_names
            sampler = super()._get_train_sampler(train_dataset)
            seen.sampler = type(sampler).__name__
            return sampler

    def once(function):
        made = []

        def first(*args):
            made.extend([] if made else [function(*args)])
            return copy.deepcopy(made[0])

        return first

    def noting(name, function):
        def note(*args, **kwargs):
            getattr(seen, name).append(kwargs)
            return function(*args)

        return note

    train.Trainer = Trainer
    for name in ("load_rows", "load_tokenizer", "load_model", "make_examples", "check_model"):
        setattr(train, name, once(getattr(train, name)))
    train.plot_loss = train.show_rows = train.show_summary = lambda *_: None
    torch.compile = noting("compiled", lambda model: model)  # which takes a minute
    for name, owner, attribute in (
        ("emptied", transformers.trainer, "clear_device_cache"),
        ("debugged", transformers.trainer, "DebugUnderflowOverflow"),
        ("moved", EvalLoopContainer, "to_cpu_and_numpy"),
    ):
        setattr(owner, attribute, noting(name, getattr(owner, attribute)))

    def attempt(words: list[str]) -> SimpleNamespace | str:
        shutil.rmtree("run", ignore_errors=True)
        seen.compiled, seen.emptied, seen.debugged, seen.moved = [], [], [], []
        try:
            train.main([*BASE, "--output_dir=run", *words])
        except SystemExit as refused:
            return str(refused)
        run, trainer = copy.copy(seen), seen.trainer
        run.deterministic = torch.are_deterministic_algorithms_enabled()
        run.verbosity = transformers.logging.get_verbosity()
        torch.use_deterministic_algorithms(False)
        log = trainer.state.log_history
        run.logged = [sorted({"step": entry["step"], **entry}) + [entry["step"]] for entry in log]
        run.loss = [entry["loss"] for entry in log if "loss" in entry]
        trained = [p for p in trainer.model.parameters() if p.requires_grad]
        run.weights = [hashlib.sha256(p.detach().numpy().tobytes()).digest() for p in trained]
        run.files = sorted(path.as_posix() for path in Path("run").rglob("[!.]*"))
        run.callbacks = [type(one).__name__ for one in trainer.callback_handler.callbacks]
        run.best = (trainer.state.best_metric, trainer.state.best_model_checkpoint)
        return run

    return attempt
