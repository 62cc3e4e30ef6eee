"""What a model answers to prompts of rows that it is not trained on, beside those rows' replies.

A prompt is all that precedes a row's last reply: the tokens with which a chat asks for it.
"""

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from time import perf_counter

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from jinja2 import Template
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, TrainerCallback
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.config import ROOT, ProjectArguments, say
from sft.mask_view import console
from sft.score import score
from sft.trainer import Trainer

PAGE = ROOT / "sft/answers.html.jinja"
SHOWN = 400  # characters of a prompt's end, and of a text, that the terminal shows
ON_PAGE = 50  # rows


@dataclass
class Question:
    """The last reply of an example, and the prompt that asks for it."""

    prompt_ids: list[int]
    prompt: str
    reference: str
    limit: int  # tokens that an answer may have


def to_question(example: dict, tokenizer: Tokenizer, limit: int = 0) -> Question:
    """The last run of labels, and `input_ids` up to it; `limit` 0: twice its tokens and 16.

    Where everything has a label, the second half is asked for.
    """
    ids, labels = example["input_ids"], example["labels"]
    end = max(at for at, label in enumerate(labels) if label != -100) + 1
    start = max((at for at in range(end) if labels[at] == -100), default=end // 2 - 1) + 1
    reference = tokenizer.decode(ids[start:end], skip_special_tokens=True)
    prompt, limit = tokenizer.decode(ids[:start]), limit or 2 * (end - start) + 16
    return Question(ids[:start], prompt, reference, limit)


def without_thought(text: str) -> str:
    """A text without blanks around it, and without the thought before it."""
    return text.rpartition("</think>")[2].strip()


def score_of(answer: str, question: Question) -> float:
    """What sft/score.py's `score` gives for an answer, its thought left out."""
    row = {"prompt": question.prompt, "reference": without_thought(question.reference)}
    return score(without_thought(answer), row)


@torch.no_grad()
def ask(
    model: PreTrainedModel, tokenizer: Tokenizer, questions: list[Question], batch_size: int
) -> Iterator[tuple[int, dict]]:
    """Each question's position, longest first, and its likeliest answer.

    An answer has its `text`, whether it `stopped` by itself, not at the limit of tokens, how many
    `tokens` it is, and `seconds`, its share of the time that its batch took.

    Prompts are padded on the left, so that each answer follows its prompt. `model` has the tokens
    of `stop_at`.
    """
    was_training, ends = model.training, model.generation_config.eos_token_id
    model.eval()
    order = sorted(range(len(questions)), key=lambda at: -len(questions[at].prompt_ids))
    for first in range(0, len(order), batch_size):
        positions, start = order[first : first + batch_size], perf_counter()
        prompts = {"input_ids": [questions[at].prompt_ids for at in positions]}
        inputs = tokenizer.pad(prompts, padding_side="left", return_tensors="pt").to(model.device)
        limits = [questions[at].limit for at in positions]
        how = {"max_new_tokens": max(limits), "do_sample": False}
        output = model.generate(**inputs, **how, pad_token_id=tokenizer.pad_token_id)
        answers = output[:, inputs["input_ids"].shape[1] :].tolist()
        seconds = (perf_counter() - start) / len(positions)
        for at, limit, ids in zip(positions, limits, answers, strict=True):
            end = next((n for n, token in enumerate(ids[:limit], start=1) if token in ends), 0)
            ids = ids[: end or limit]
            text = tokenizer.decode(ids, skip_special_tokens=True)
            yield at, {"text": text, "stopped": end > 0, "tokens": len(ids), "seconds": seconds}
    model.train(was_training)


class HeldOutAnswers(TrainerCallback):
    """Asks the Trainer's model the first `answers` evaluation prompts, the same from run to run.

    Made before training: where training changes the base's own weights, the base is asked now.
    Where `metric_for_best_model` is score, each evaluation asks and has an `eval_score`.
    """

    def __init__(self, trainer: Trainer, evaluation: Dataset | None, args: ProjectArguments):
        self.trainer, self.way = trainer, args.attn_implementation
        first = evaluation.select(range(len(evaluation))[: args.answers]) if evaluation else []
        self.questions = [to_question(example, trainer.processing_class) for example in first]
        way = args.adapter.get("init_lora_weights", True)  # others change the base as well
        self.keeps_base = hasattr(trainer.model, "disable_adapter") and way in (True, "gaussian")
        self.keeps_base &= not args.adapter.get("adapter_path")  # then it starts from that
        self.base = [] if self.keeps_base else self.ask()

    def ask_both(self) -> dict[str, list[dict]]:
        """After training: the answers of the base and of the tuned model."""
        if self.keeps_base:
            with self.trainer.model.disable_adapter():
                self.base = self.ask()
        return {"base": self.base, "tuned": self.ask()}

    def ask(self) -> list[dict]:
        """The answers by the first process; others return []."""
        trainer, model = self.trainer, self.trainer.model
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            say("   Weights are spread over the GPUs: python evaluate.py asks what is saved.")
            return []
        questions = self.questions if trainer.is_world_process_zero() else []
        size, way = trainer.args.per_device_eval_batch_size, model.config._attn_implementation
        model.set_attn_implementation(self.way)  # the collator may have set one for its batches
        answers = [*ask(model, trainer.processing_class, questions, size)]
        model.set_attn_implementation(way)
        return [answer for _, answer in sorted(answers, key=itemgetter(0))]

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        """Adds the mean of sft/score.py's `score`, before best model and early stopping look."""
        if args.metric_for_best_model in ("score", "eval_score"):
            pairs = zip(self.ask(), self.questions, strict=False)
            scores = [score_of(answer["text"], question) for answer, question in pairs]
            mean = [sum(scores) / len(scores) if scores else 0.0]  # no answers but the first's
            metrics["eval_score"] = broadcast_object_list(mean)[0]
            self.trainer.log({"eval_score": metrics["eval_score"]})


def write_answers(
    questions: list[Question], by_model: dict[str, list[dict]], path: Path
) -> list[dict]:
    """Write the answers as .jsonl, the first of them as a page, .html; returns the lines."""
    rows = [
        {"prompt": one.prompt, "reference": one.reference}
        | {name: answers[at] for name, answers in by_model.items()}
        for at, one in enumerate(questions)
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.with_suffix(".jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")
    template = Template(PAGE.read_text(encoding="utf-8"), autoescape=True)
    page = template.render(rows=rows[:ON_PAGE], names=[*by_model], differences=differences)
    path.with_suffix(".html").write_text(page, encoding="utf-8")
    return rows


def show_answers(questions: list[Question], by_model: dict[str, list[dict]], folder: Path) -> None:
    """Print the answers of each model, and write them to answers.jsonl and answers.html."""
    if not any(by_model.values()):
        return
    for number, row in enumerate(write_answers(questions, by_model, folder / "answers"), start=1):
        table = Table(title=f"Held-out row {number}", show_header=False, title_justify="left")
        table.add_row("prompt", Text(shortened(row["prompt"]), "grey62"))
        table.add_row("reference", Text(shortened(row["reference"]), "green"))
        for name in by_model:
            end = "" if row[name]["stopped"] else " (cut: it did not stop)"
            table.add_row(name, Text(shortened(row[name]["text"])).append(end, "yellow"))
        console.print(table)
    say(f"   As a page, differences marked: {folder / 'answers.html'}")


def shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= SHOWN else f"[...] {text[-SHOWN:]}"


def differences(text: str, reference: str) -> list[tuple[str, bool]]:
    """The words of a text, in order, and whether each is of the reference as well."""
    words, others = (re.findall(r"[^\W\u3040-\u9fff]+|\W+|.", one) for one in (text, reference))
    blocks = difflib.SequenceMatcher(None, words, others, autojunk=False).get_matching_blocks()
    common = {at for block in blocks for at in range(block.a, block.a + block.size)}
    return [(word, at in common) for at, word in enumerate(words)]
