"""Rows to examples: encoded in batches, cached, and what cannot be trained on set aside."""

import inspect
import random
import sys
from collections import Counter
from dataclasses import dataclass

from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft import control_tokens, conversation, end_of_turn, preprocess
from sft.conversation import attempt
from sft.dataset import columns, to_messages
from sft.preprocess import encode, encode_batch

FEATURES = Features(
    {
        "input_ids": List(Value("int32")),
        "labels": List(Value("int32")),
        "row": Value("int64"),  # its number in the file, from 1
        "reason": Value("string"),  # why it is set aside, or ""
        "shortened": Value("bool"),
    }
)

ADVICE = {
    "longer than max_length": "raise max_length, or set truncation_mode",
    "control token in the text": "set control_tokens to escape",
}


@dataclass
class Report:
    """What became of the rows of one split."""

    rows: int
    set_aside: dict[str, int]  # reason -> rows
    first: dict[str, str]  # reason -> the first such row, with the detail
    shortened: int
    lengths: list[int]  # tokens, one number a row that is used
    trained: list[int]  # tokens with a label, likewise

    @classmethod
    def of(cls, encoded: Dataset) -> "Report":
        set_aside, first, shortened, lengths, trained = Counter(), {}, 0, [], []
        for batch in encoded.iter(1000):
            for ids, labels, row, reason, cut in zip(
                *(batch[name] for name in FEATURES), strict=True
            ):
                if reason:
                    kind, _, detail = reason.partition(": ")
                    set_aside[kind] += 1
                    first.setdefault(kind, f"row {row}: {detail}" if detail else f"row {row}")
                else:
                    shortened += cut
                    lengths.append(len(ids))
                    trained.append(len(ids) - labels.count(-100))
        return cls(len(encoded), dict(set_aside.most_common()), first, shortened, lengths, trained)


def prepare(
    rows: dict[str, Dataset], tokenizer: Tokenizer, args
) -> tuple[dict[str, Dataset], dict[str, Report]]:
    """Examples and a report for each split; without evaluation rows, `test_size` are held out.

    Raises:
        SystemExit: a column is missing, no row is left, or more than `max_set_aside` are set aside.
    """
    encoded = {split: encode_rows(these, tokenizer, args) for split, these in rows.items()}
    for split, these in encoded.items():
        _refuse_too_many(split, Report.of(these), args)
    if "evaluation" not in encoded and args.test_size:
        encoded = _hold_out(encoded["train"], args.test_size)
    reports = {split: Report.of(these) for split, these in encoded.items()}
    examples = {
        split: these.select(usable(these))
        .select_columns(["input_ids", "labels"])
        .add_column("length", reports[split].lengths)
        for split, these in encoded.items()
    }
    return examples, reports


def usable(encoded: Dataset) -> list[int]:
    """The positions of the rows that can be trained on."""
    return [position for position, reason in enumerate(encoded["reason"]) if not reason]


def _hold_out(encoded: Dataset, test_size: float) -> dict[str, Dataset]:
    """A share of the usable rows, the same ones whenever the run is started again."""
    used = usable(encoded)
    if len(used) < 2:
        return {"train": encoded}
    count = min(max(1, round(test_size * len(used))), len(used) - 1)
    held_out = set(random.Random(0).sample(used, count))
    return {
        "train": encoded.select([at for at in range(len(encoded)) if at not in held_out]),
        "evaluation": encoded.select(sorted(held_out)),
    }


def encode_rows(rows: Dataset, tokenizer: Tokenizer, args) -> Dataset:
    """Every row with the columns of `FEATURES`: either tokens and labels, or the reason why not.

    Raises:
        SystemExit: a column is missing.
    """
    missing = [column for column in columns(args) if column not in rows.column_names]
    if missing:
        raise SystemExit(
            f"dataset {args.dataset!r} has no column {missing[0]!r}; "
            f"it has {', '.join(rows.column_names)}: name the right one in config.yaml."
        )
    return rows.map(
        _encode_batch,
        batched=True,
        with_indices=True,
        fn_kwargs={"tokenizer": tokenizer, "args": args},
        remove_columns=rows.column_names,
        features=FEATURES,  # not to be guessed from the first rows, which may all be set aside
        desc="Tokenizing and masking",
        # the cache must forget when the tokenizer, the template, a setting or this code changes
        new_fingerprint=_fingerprint(rows, tokenizer, args),
    )


def _encode_batch(batch: dict, indices: list[int], tokenizer: Tokenizer, args) -> dict:
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    conversations = [attempt(to_messages, row, args) for row in rows]
    sound = [messages for messages in conversations if not isinstance(messages, ValueError)]
    encoded = iter(encode_batch(sound, tokenizer, args.turns, args.control_tokens))
    shorten = (args.max_length, args.turns, args.truncation_mode, args.control_tokens)
    examples = []
    for index, messages in zip(indices, conversations, strict=True):
        result = messages if isinstance(messages, ValueError) else next(encoded)
        too_long = isinstance(result, dict) and len(result["input_ids"]) > args.max_length
        if too_long:
            result = attempt(encode, messages, tokenizer, *shorten)
        example = {
            "input_ids": [],
            "labels": [],
            "row": index + 1,
            "reason": "",
            "shortened": False,
        }
        if isinstance(result, ValueError):
            example["reason"] = str(result)
        else:
            example |= {"input_ids": result["input_ids"], "labels": result["labels"]}
            example["shortened"] = too_long
        examples.append(example)
    return {name: [example[name] for example in examples] for name in FEATURES}


def _refuse_too_many(split: str, report: Report, args) -> None:
    set_aside = sum(report.set_aside.values())
    if set_aside < report.rows and set_aside <= args.max_set_aside * report.rows:
        return
    share = f"more than max_set_aside = {args.max_set_aside:g}"
    if set_aside == report.rows:
        share = "and none is left"
    rows = f"{set_aside:,} of {report.rows:,} {split} rows of {args.dataset!r}"
    lines = [f"{rows} cannot be trained on, {share}:"]
    for reason, count in report.set_aside.items():
        advice = f" -> {ADVICE[reason]}" if reason in ADVICE else ""
        lines.append(f"  {count:,} {reason} ({report.first[reason]}){advice}")
    raise SystemExit("\n".join([*lines, "python preview.py, with the same options, shows them."]))


def _fingerprint(rows: Dataset, tokenizer: Tokenizer, args) -> str:
    modules = (
        preprocess,
        conversation,
        control_tokens,
        end_of_turn,
        inspect.getmodule(to_messages),
        sys.modules[__name__],
    )
    code = [inspect.getsource(module) for module in modules]
    vocabulary = tokenizer.backend_tokenizer.to_str()
    template = (tokenizer.chat_template, tokenizer.special_tokens_map)  # it can name those
    return Hasher.hash([rows._fingerprint, vocabulary, template, vars(args), code])
