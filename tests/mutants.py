"""Break a copy of the template on purpose, in many ways, and see whether tests/matrix.py says so.

    .venv/bin/python tests/mutants.py

Each mutant is given to the combinations that it concerns; it is caught if one of them fails and is
named.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent
TEMPLATE = TESTS.parent
PROJECT = "{{cookiecutter.project_slug}}"
QWEN, PHI = "base_model=Qwen/Qwen3-0.6B", "base_model=microsoft/Phi-4-mini-instruct"
ROWS = "dataset_format=prompt_response"
LORA = "lora_targets=attention"
NF4, INT8, NONE = (f"quantization={answer}" for answer in ("nf4", "int8", "none"))


def collator(name: str) -> str:
    return f"templates/collator/{name}.py"


# what is broken; the file; what stands there, and what then does; the combinations it concerns
REPLACED = [
    (
        "a LoRA target is missing for one architecture",
        f"{PROJECT}/config.yaml",
        '["qkv_proj", "o_proj"]',
        '["qkv_proj"]',
        [PHI, ROWS, NF4, LORA, "collator=seq2seq"],
    ),
    (
        "mlp is attention",
        f"{PROJECT}/config.yaml",
        '"mlp": mlp',
        '"mlp": attention',
        [QWEN, ROWS, NF4, "lora_targets=mlp", "collator=seq2seq"],
    ),
    (
        "a collator drops the end of the turn",
        collator("manual_mask"),
        '            batch["labels"].append(feature["labels"] + [-100] * missing)',
        '            labels = [-100 if label == 2 else label for label in feature["labels"]]\n'
        '            batch["labels"].append(labels + [-100] * missing)',
        [QWEN, ROWS, NF4, LORA, "collator=manual_mask"],
    ),
    (
        "a collator trains on padding",
        collator("manual_mask"),
        'feature["labels"] + [-100] * missing',
        'feature["labels"] + [self.pad_token_id] * missing',
        [QWEN, ROWS, NF4, LORA, "collator=manual_mask"],
    ),
    (
        "language_modeling keeps the mask",
        collator("language_modeling"),
        'list(feature["input_ids"])',
        'list(feature["labels"])',
        [QWEN, ROWS, NF4, LORA, "collator=language_modeling"],
    ),
    (
        "padding_free pads",
        collator("padding_free"),
        "return PaddingFreeCollator(return_flash_attn_kwargs=True)",
        "from transformers import DataCollatorForSeq2Seq\n\n"
        "    return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)",
        [QWEN, ROWS, NF4, LORA, "collator=padding_free"],
    ),
    (
        "nf4 loads 16 bits",
        "templates/quantization/nf4.py",
        "return BitsAndBytesConfig(",
        "return None and BitsAndBytesConfig(",
        [QWEN, ROWS, NF4, LORA, "collator=seq2seq"],
    ),
    (
        "nf4 loads 8 bits",
        "templates/quantization/nf4.py",
        "load_in_4bit=True",
        "load_in_8bit=True",
        [QWEN, ROWS, NF4, LORA, "collator=seq2seq"],
    ),
    (
        "int8 leaves a layer in 16 bits",
        "templates/quantization/int8.py",
        "llm_int8_threshold=6.0)",
        'llm_int8_skip_modules=["lm_head", "down_proj"])',
        [QWEN, ROWS, INT8, LORA, "collator=seq2seq"],
    ),
    (
        "lm_head is quantized",
        "templates/quantization/int8.py",
        "llm_int8_threshold=6.0)",
        'llm_int8_skip_modules=["nothing"])',
        ["base_model=Qwen/Qwen3-8B", ROWS, INT8, LORA, "collator=seq2seq"],
    ),
    (
        "full leaves the embeddings out",
        "templates/adapter/full.py",
        "    return model.requires_grad_(True)",
        "    model.requires_grad_(True)\n"
        "    model.get_input_embeddings().requires_grad_(False)\n"
        "    return model",
        [QWEN, ROWS, NONE, "lora_targets=full", "collator=seq2seq"],
    ),
    (
        "LoRA trains the norms, too",
        "templates/adapter/lora.py",
        "    # otherwise each save asks",
        "    for name, parameter in model.named_parameters():\n"
        '        if "layernorm" in name:\n'
        "            parameter.requires_grad_(True)\n"
        "    # otherwise each save asks",
        [QWEN, ROWS, NONE, LORA, "collator=seq2seq"],
    ),
    (
        "nothing is learnt",
        f"{PROJECT}/config.yaml",
        'learning_rate: {{ "2.0e-5" if full else "2.0e-4" }}',
        "learning_rate: 0.0",
        [QWEN, ROWS, NF4, LORA, "collator=seq2seq"],
    ),
    (
        "the adapter is forgotten when loading",
        "templates/adapter/lora.py",
        "model = PeftModel.from_pretrained(load_base(folder, args), folder)",
        "model = load_base(folder, args)",
        [QWEN, ROWS, NF4, LORA, "collator=seq2seq"],
    ),
    (
        "the mask covers the prompt",
        f"{PROJECT}/sft/mask/encoder.py",
        "    labels = [-100] * len(ids)",
        "    labels = list(ids)",
        [QWEN, ROWS, NF4, LORA, "collator=seq2seq"],
    ),
    (
        "only the first reply of a conversation is learnt",
        f"{PROJECT}/sft/mask/encoder.py",
        "        labels[first:end] = ids[first:end]",
        "        labels[first:end] = ids[first:end]\n        break",
        [QWEN, "dataset_format=messages", NF4, LORA, "collator=seq2seq"],
    ),
    (
        "each token learns itself, not the next",
        f"{PROJECT}/sft/trainer.py",
        'targets = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)',
        'targets = F.pad(batch["labels"], (0, 0), value=-100)',
        [QWEN, ROWS, NF4, LORA, "collator=seq2seq"],
    ),
    (
        "a residue of Jinja",
        f"{PROJECT}/README.md",
        "## Your own data",
        "## Your own {{ '{{' }} data }}",
        [QWEN, ROWS, NF4, LORA, "collator=seq2seq"],
    ),
    (
        "one answer is not formatted",
        collator("seq2seq"),
        "    return DataCollatorForSeq2Seq(",
        "    return  DataCollatorForSeq2Seq(",
        [QWEN, ROWS, NF4, LORA, "collator=seq2seq"],
    ),
    (
        "one answer imports what it does not use",
        collator("seq2seq"),
        "from transformers import DataCollatorForSeq2Seq,",
        "import torch\nfrom transformers import DataCollatorForSeq2Seq,",
        [QWEN, ROWS, NF4, LORA, "collator=seq2seq"],
    ),
    (
        "the hook refuses what is offered",
        "hooks/pre_gen_project.py",
        'answers["quantization"] != "none"',
        'answers["quantization"] != "nf4"',
        [QWEN, ROWS, NONE, "lora_targets=full", "collator=seq2seq"],
    ),
    (
        "the estimate fails for one answer",
        f"{PROJECT}/sft/vram.py",
        '        "int8": (8, 4 * rows),',
        '        "int8x": (8, 4 * rows),',
        [QWEN, ROWS, INT8, LORA, "collator=seq2seq"],
    ),
]
ADDED = [
    (
        "a stray file for one answer",
        f"{PROJECT}/{{% if cookiecutter.collator == 'seq2seq' %}}stray.txt{{% endif %}}",
        "a stray file\n",
        [QWEN, ROWS, NF4, LORA, "collator=seq2seq"],
    ),
]


def main() -> int:
    survived = []
    wanted = sys.argv[1:]  # words of the names of those to try; none: all
    mutants = [one for one in [*REPLACED, *ADDED] if all(word in one[0] for word in wanted)]
    for name, file, *texts, only in mutants:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "template"
            shutil.copytree(TEMPLATE, copy, ignore=shutil.ignore_patterns(".git", ".venv", "demo"))
            path = copy / file
            if len(texts) == 2:
                before, after = texts
                text = path.read_text(encoding="utf-8")
                assert before in text, f"{name}: {file} has no {before!r}"
                path.write_text(text.replace(before, after), encoding="utf-8")
            else:
                path.write_text(texts[0], encoding="utf-8")
            command = [sys.executable, TESTS / "matrix.py", "--template", copy, "--only", *only]
            run = subprocess.run(command, capture_output=True, text=True)
        caught = run.returncode == 1 and "FAILED: " in run.stdout and "Alone: " in run.stdout
        if not caught:
            survived.append(name)
        why = [line for line in run.stdout.splitlines() if "Error" in line or "Exit" in line]
        print(
            f"{'caught  ' if caught else 'SURVIVED'} {name}   {(why or [''])[-1][:90]}", flush=True
        )
    print(f"{len(mutants) - len(survived)} of {len(mutants)} were caught.")
    return bool(survived)


if __name__ == "__main__":
    sys.exit(main())
