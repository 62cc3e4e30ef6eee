"""A project's own tests pass: every pair of answers that decide its code, and every base model.

All combinations are trained by tests/matrix.py.
"""

import itertools
import json
from itertools import product

import pytest
import yaml
from matrix import PROMISED, pairwise, promised_targets

from conftest import MENUS, combinations, config_of, in_project, is_valid, name_of

OTHERS = ("base_model", "tracking")  # decide no Python: each answer occurs, in turn
STRUCTURE = {name: answers for name, answers in MENUS.items() if name not in OTHERS}
EVERY = [dict(zip(STRUCTURE, answers, strict=True)) for answers in product(*STRUCTURE.values())]
CHOSEN = pairwise([answers for answers in EVERY if is_valid(answers)])
CHOSEN = [
    CHOSEN[number % len(CHOSEN)] | {name: MENUS[name][number % len(MENUS[name])] for name in OTHERS}
    for number in range(max(len(CHOSEN), len(MENUS["base_model"])))
]


def test_the_product_of_the_menus_is_complete():
    pairs = len(MENUS["quantization"]) * (len(MENUS["lora_targets"]) - 1) + 1  # full: none alone
    ways = len(MENUS["collator"]) * (len(MENUS["dataset_format"]) - 1) + 1  # text: with one alone
    assert len(combinations()) == pairs * ways * len(MENUS["base_model"])
    assert {name for answers in combinations() for name in answers} == MENUS.keys()


def test_every_pair_is_there():
    for name in OTHERS:
        assert {answers[name] for answers in CHOSEN} == {*MENUS[name]}
    for one, other in itertools.combinations(STRUCTURE, 2):
        for pair in product(MENUS[one], MENUS[other]):
            row = {"lora_targets": None, "quantization": None} | {one: pair[0], other: pair[1]}
            if is_valid(row):
                assert any((a[one], a[other]) == pair for a in CHOSEN), pair


@pytest.mark.parametrize("answers", CHOSEN, ids=name_of)
def test_trains(bake, answers):
    project = bake.project(**answers)
    assert config_of(project)["report_to"] == answers["tracking"]
    counts_anew = answers == CHOSEN[0]  # which takes most of the time
    seen = in_project(project, run_and_look, counts_anew)
    assert seen["pytest"] == 0, (project / "log").read_text()[-3000:]

    full = answers["lora_targets"] == "full"
    assert set(seen["linear classes"]) == {PROMISED[answers["quantization"]]}
    assert 2**20 < seen.get("counted peak", 2**21) < 2**30
    assert seen["lm_head class"] == "Linear"
    if full:
        assert seen["trained"] == seen["parameters"]
    else:
        assert set(seen["lora on"]) == promised_targets(answers)
        saved = json.loads((project / "outputs/smoke/final/adapter_config.json").read_text())
        assert set(saved["target_modules"]) == promised_targets(answers)
    architecture = json.loads((project / "base_model/config.json").read_text())["model_type"]
    assert seen["architecture"] == architecture
    summary = json.loads((project / "outputs/smoke/summary.json").read_text())
    assert summary["eval_loss"] < 20


def run_and_look(counts_anew: bool) -> dict:
    """Run the project's own tests, one of which trains, and look at the model it trained."""
    import train
    from sft import report

    seen = {}
    add_adapter = train.add_adapter

    def looking(model, args):
        blocks = {n: m for n, m in model.named_modules() if "layers." in n}
        linear = {n: type(m).__name__ for n, m in blocks.items() if hasattr(m, "in_features")}
        seen["linear classes"] = sorted(set(linear.values()))
        seen["lm_head class"] = type(model.lm_head).__name__
        seen["architecture"] = model.config.model_type
        model = add_adapter(model, args)
        names = [name for name, _ in model.named_parameters() if "lora_" in name]
        seen["lora on"] = sorted({name.split(".lora_")[0].split(".")[-1] for name in names})
        parameters = list(model.parameters())
        seen["trained"] = sum(p.numel() for p in parameters if p.requires_grad)
        seen["parameters"] = sum(p.numel() for p in parameters)
        return model

    def counting(trainer, rows, overrides):
        if counts_anew:
            seen["counted peak"] = report.counted_peak(trainer.args, rows, overrides)
        report.show_summary(trainer, rows, overrides)

    train.add_adapter, train.show_summary = looking, counting
    words = [] if counts_anew else ["-k", "not libraries_of_today"]
    seen["pytest"] = int(pytest.main(["-q", "-p", "no:cacheprovider", *words]))
    return seen


def test_the_quick_start_of_the_readme_is_offered(bake_once, capfd):
    project = bake_once.project()
    said = capfd.readouterr().out
    assert "GB" in said and "python train.py --smoke" in said
    readme = (project / "README.md").read_text(encoding="utf-8")
    assert "memory table" not in readme and "GB" in readme
    assert yaml.safe_load((project / "config.yaml").read_text())["max_length"] == 1024
