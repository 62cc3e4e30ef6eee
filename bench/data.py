"""What is trained on, and what is trained: two datasets, a tokenizer, and a small random model.

The model is small so that a CPU is enough, and random so that nothing has to be downloaded. Speed
and memory don't depend on what the weights are.
"""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

MAX_LENGTH = 1024  # tokens; longer rows are left out, for the frameworks treat them differently

SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    # five times the usual one: logits depend on the context, so a wrong mask shows in the loss
    "initializer_range": 0.1,
}

CHATML = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@dataclass(frozen=True)
class Source:
    """A dataset with its one prompt."""

    hub: tuple[str, ...]  # arguments of `load_dataset`
    prompt: str
    question: str  # the column in the prompt
    response: str  # the column that is learnt


SOURCES = {
    "dialogues": Source(("knkarthick/dialogsum",), "Summarize: {dialogue}", "dialogue", "summary"),
    "gsm8k": Source(("openai/gsm8k", "main"), "{question}", "question", "answer"),
}


def read(name: str, file: Path | None) -> list[dict]:
    """The rows of a dataset's training split: from a .jsonl file, or else from the Hub."""
    source = SOURCES[name]
    if file is None:
        from datasets import load_dataset

        rows = load_dataset(*source.hub, split="train")
    else:
        rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    columns = (source.question, source.response)
    return [{column: row[column].strip() for column in columns} for row in rows]


def numbered(rows: list[dict], count: int, source: Source) -> list[dict]:
    """`count` rows that all differ: the given ones over and over, with a running number."""
    return [
        {**rows[n % len(rows)], source.question: f"{n} {rows[n % len(rows)][source.question]}"}
        for n in range(count)
    ]


def messages(row: dict, source: Source) -> list[dict]:
    """A row as a conversation."""
    prompt = source.prompt.format(**{source.question: row[source.question]})
    return [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": row[source.response]},
    ]


def lengths(rows: list[dict], source: Source, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Tokens of each row, with the template's own."""
    texts = [tokenizer.apply_chat_template(messages(row, source), tokenize=False) for row in rows]
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def sample(rows: list[dict], count: int) -> list[dict]:
    """The same `count` rows, whenever and wherever."""
    return random.Random(0).sample(rows, count)


def write(rows: Iterable[dict], source: Source, folder: Path) -> dict[str, str]:
    """One file a framework, in a form that it reads without help; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.jsonl" for name in ("ours", "trl", "llamafactory")}
    opened = {name: path.open("w", encoding="utf-8") for name, path in files.items()}
    for row in rows:
        user, assistant = messages(row, source)
        forms = {
            "ours": row,
            "trl": {"prompt": [user], "completion": [assistant]},
            "llamafactory": {"instruction": user["content"], "output": assistant["content"]},
        }
        for name, form in forms.items():
            opened[name].write(json.dumps(form, ensure_ascii=False) + "\n")
    for file in opened.values():
        file.close()
    columns = {"prompt": "instruction", "response": "output"}
    index = {"rows": {"file_name": files["llamafactory"].name, "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(index), encoding="utf-8")
    return {name: str(path) for name, path in files.items()}


def build_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE learnt from the texts, with a plain ChatML template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"],
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",  # in no text, so it marks padding and nothing else
        chat_template=CHATML,
    )


def tokenizer_of(rows: Iterable[list[dict]]) -> PreTrainedTokenizerFast:
    """A tokenizer for these rows."""
    return build_tokenizer(text for these in rows for row in these[:8000] for text in row.values())


def build_model(
    shape: dict, tokenizer: PreTrainedTokenizerFast, folder: Path, dtype=torch.float32
) -> dict:
    """Save a random Qwen3 of that shape, where every framework loads it from."""
    torch.manual_seed(0)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = Qwen3ForCausalLM._from_config(Qwen3Config(**shape, **ids), dtype=dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"folder": str(folder), "pad_token_id": tokenizer.pad_token_id}
