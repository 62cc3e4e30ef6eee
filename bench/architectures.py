"""Architectures of transformers, tiny and random: what a project does with each.

    .venv/bin/python bench/architectures.py                all of them: results/architectures.md
    .venv/bin/python bench/architectures.py lfm3 qwen3     these alone: their lines are replaced

Each is the default config.json of its model type, and what a project makes its tiny twin of. The
twin is trained for three steps, reloaded, merged, and its step counted: quantized or not, LoRA on
attention or on all linear layers. What is refused has its sentence in the table.
"""

import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from contextlib import redirect_stdout
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

TEMPLATE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TEMPLATE / "tests"))

from cookiecutter.main import cookiecutter  # noqa: E402

from conftest import in_project  # noqa: E402

RESULTS = TEMPLATE / "bench" / "results" / "architectures.md"
KINDS = """
llama mistral ministral3 qwen2 qwen3 qwen3_5_text phi3 gemma2 gemma3_text gemma3 gemma4 olmo3
olmo_hybrid granite granitemoehybrid smollm3 glm4 exaone4 cohere2 starcoder2 nemotron nemotron_h
apertus hunyuan_v1_dense lfm2 lfm3 falcon_h1 bamba minimax mixtral qwen3_moe qwen3_next olmoe
gpt_oss deepseek_v3 glm4_moe ernie4_5_moe llama4_text phimoe gpt2 gpt_neox mamba2 zamba2
recurrent_gemma stablelm falcon bloom xlstm jamba
""".split()
# where the default is no model that anybody trains
REAL = {
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "deepseek_v2": {"num_experts_per_tok": 6},
}
OPTIONS = "--max_steps=3 --eval_strategy=no --save_strategy=no --learning_rate=1e-3".split()


def attempt(kind: str, target: str, changed: dict, way: str = "sdpa") -> dict[str, str]:
    """In a project: by step, what came of it."""
    import torch
    from transformers import AutoConfig
    from transformers.utils import logging

    import export
    import train
    from sft import answers, count
    from sft.adapter import load_trained
    from sft.config import load_config

    logging.set_verbosity_error()
    answers.to_question.__defaults__ = (4,)
    train.plot_loss = lambda *_: None
    folder, seen, found = Path("bases", kind), {}, {"attention": way}
    folder.mkdir(parents=True, exist_ok=True)
    shape = AutoConfig.for_model(kind, **changed).to_dict()
    (folder / "config.json").write_text(json.dumps(shape))
    make_trainer = train.Trainer

    def logits(model) -> torch.Tensor:
        torch.manual_seed(0)  # of dropout
        with torch.no_grad():
            return model.train()(input_ids=torch.arange(5, 25)[None]).logits.float()

    def making(**kwargs):
        trainer = seen["trainer"] = make_trainer(**kwargs)
        training = trainer.train

        def run(**how):
            result = training(**how)
            seen["logits"] = logits(trainer.model)
            return result

        trainer.train = run
        return trainer

    train.Trainer = making
    words = [f"--target_modules={target}", f"--attn_implementation={way}"]
    step = "trained"
    try:
        final = train.main(["--smoke", *OPTIONS, *words, f"--base_model_path={folder}"])
        parts = [*seen["trainer"].model.named_parameters()]
        trained = sum(bool(p.any()) for name, p in parts if "lora_B" in name)
        found[step] = f"{trained} of {sum('lora_B' in name for name, _ in parts)}"
        step, args = "reloaded", load_config(["--use_cpu=true", *words])[0]
        reloaded = logits(load_trained(final, args))
        equal = torch.allclose(reloaded, seen["logits"], atol=1e-5)
        found[step] = "equal" if equal else f"{(reloaded - seen['logits']).abs().max():.1e} off"
        step = "merged"
        merged = logits(load_trained(export.main(["--output_dir=outputs/smoke", *words]), args))
        off = (merged - reloaded).abs().max() / reloaded.abs().max()
        found[step] = f"{off:.0e} off"
        step = "counted"
        with redirect_stdout(io.StringIO()) as printed:
            count.main([*words, "--base_model_path=outputs/smoke/twin"])
        found[step] = f"{json.loads(printed.getvalue().splitlines()[-1])['parameters']:,}"
    except SystemExit as refused:
        found[step] = f"refused: {refused}"
    except Exception as error:
        found[step] = f"TRACEBACK {type(error).__name__}: {error}"
    return found


def rows(baked: Path, kind: str) -> list[str]:
    """The lines of the table for one architecture, by projects of its own."""
    lines = []
    for quantization in ("none", "nf4"):
        project = baked.parent / kind / quantization
        shutil.copytree(baked / quantization, project)
        for target in ("attention", "all_linear"):
            given = (project, attempt, kind, target, REAL.get(kind, {}))
            found = in_project(*given)
            if "every model has eager" in found.get("trained", ""):
                found = in_project(*given, "eager")
            cells = [found.get(step, "") for step in ("trained", "reloaded", "merged", "counted")]
            cells = [re.sub(r"\s+", " ", cell).replace("|", "/")[:200] for cell in cells]
            line = f"| {' | '.join([kind, found['attention'], quantization, target, *cells])} |"
            print(line, flush=True)
            lines.append(line)
    return lines


def main() -> None:
    heading = [
        "# Architectures",
        "",
        "Written by `bench/architectures.py`: tiny random models through a project with the",
        "collator seq2seq. *trained*: adapters that moved in three steps, of all; *reloaded*:",
        "logits; *merged*: into 16 bits, the largest difference of logits; *counted*: parameters.",
        "",
        "| architecture | attention by | base | LoRA on | trained | reloaded | merged | counted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder, ThreadPool(os.cpu_count()) as pool:
        for name in ("none", "nf4"):
            answers = {"quantization": name, "project_slug": name, "collator": "seq2seq"}
            how = {"no_input": True, "output_dir": f"{folder}/baked", "extra_context": answers}
            cookiecutter(str(TEMPLATE), **how)
        table, chosen = defaultdict(list), sys.argv[1:] or KINDS
        for line in RESULTS.read_text(encoding="utf-8").splitlines()[len(heading) :]:
            table[line.split()[1]].append(line)
        for kind, lines in zip(
            chosen, pool.imap(partial(rows, Path(folder, "baked")), chosen), strict=True
        ):
            table[kind] = lines
            done = [line for one in KINDS for line in table[one]]
            RESULTS.write_text("\n".join([*heading, *done, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
