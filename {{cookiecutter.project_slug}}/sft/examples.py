"""All rows to examples: encoded in batches, cached, some of them held out for evaluation."""

import gc
import os
from dataclasses import fields

import numpy as np
import pyarrow
import tokenizers
import transformers
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase as Tokenizer

import sft.format
from sft.cache import CACHE, fingerprint, to_table
from sft.config import ProjectArguments, say
from sft.files import plain_row
from sft.format import DatasetArguments, mask_options, to_conversation
from sft.hold_out import choose_held_out, hash_text
from sft.mask import encode_batch
from sft.mixture import SOURCE
from sft.row_report import RowReport, refuse_too_many

FEATURES = Features(
    {
        "row": Value("int32"),  # its row's position, from 0
        "title": Value("string"),  # "row 1", or "row 1, example 2 of 3"
        "input_ids": List(Value("int32")),
        "labels": List(Value("int32")),
        "length": Value("int32"),  # of both; 0 where the row is skipped
        "trained": Value("int32"),  # tokens with a label
        "reason": Value("string"),  # why it is skipped, or ""
        "shortened": Value("bool"),
        "source": Value("string"),  # which of several it is from, or ""
        "text_hash": Value("int64"),  # rows that say the same share it
    }
)
ROWS_PER_PROCESS = 20_000  # with fewer, its start costs more time than it saves


def make_examples(
    rows: dict[str, Dataset], tokenizer: Tokenizer, args: ProjectArguments
) -> tuple[dict[str, Dataset], dict[str, RowReport]]:
    """Examples and a report for each split; without evaluation rows, `test_size` are held out.

    An example is `input_ids`, `labels` and their `length`; a row has several where its replies need
    prompts of their own. Exits where no row is left, or more than `max_skipped` are skipped.
    """
    encoded = {split: encode_rows(these, tokenizer, args) for split, these in rows.items()}
    reports = {split: RowReport(these) for split, these in encoded.items()}
    for split, report in reports.items():
        refuse_too_many(split, report, args)
    held_out = choose_held_out(reports["train"], args.test_size)
    if "evaluation" not in encoded and len(held_out):
        rest = np.setdiff1d(np.arange(len(encoded["train"])), held_out)
        parts = {"train": rest, "evaluation": held_out}
        encoded = {split: encoded["train"].select(part) for split, part in parts.items()}
        reports = {split: RowReport(these) for split, these in encoded.items()}
    if "evaluation" in reports:
        evaluated, trained = reports["evaluation"], reports["train"]
        of_both = np.isin(evaluated.text_hash[evaluated.first], trained.text_hash)
        evaluated.overlap = int(of_both.sum())
    examples = {split: these.select(reports[split].used) for split, these in encoded.items()}
    kept = ["input_ids", "labels", "length"]
    return {split: these.select_columns(kept) for split, these in examples.items()}, reports


def encode_rows(rows: Dataset, tokenizer: Tokenizer, args: ProjectArguments) -> Dataset:
    """Every row's examples with the columns of `FEATURES`; a skipped row has one, with a reason."""
    for key in args.chat_template_kwargs:
        if key not in str(tokenizer.chat_template):
            say(f"   chat_template_kwargs: the chat template does not read {key!r}")
    processes = args.dataset_num_proc or min(os.cpu_count() or 1, len(rows) // ROWS_PER_PROCESS)
    name = _name(rows, tokenizer, args)
    CACHE.mkdir(parents=True, exist_ok=True)
    thresholds = gc.get_threshold()
    gc.set_threshold(100_000)  # or it looks for garbage often
    try:
        return rows.map(
            _encode_batch,
            batched=True,
            with_indices=True,
            fn_kwargs={"tokenizer": tokenizer, "args": args},
            remove_columns=rows.column_names,
            features=FEATURES,  # not to be guessed from the first rows, which may all be skipped
            desc="Tokenizing and masking",
            num_proc=processes if processes > 1 else None,  # 1 would start one
            new_fingerprint=name,
            cache_file_name=str(CACHE / f"{name}.arrow"),
        )
    finally:
        gc.set_threshold(*thresholds)


def _encode_batch(
    batch: dict[str, list], positions: list[int], tokenizer: Tokenizer, args: ProjectArguments
) -> pyarrow.Table:
    """Some rows as columns of shape (rows,) -> the columns of `FEATURES`, of shape (examples,)."""
    conversations = []
    for values in zip(*batch.values(), strict=True):
        try:
            row = plain_row(dict(zip(batch, values, strict=True)))
            conversations.append(to_conversation(row, args))
        except ValueError as error:
            conversations.append(error)
    how = {"control_tokens": args.control_tokens, **mask_options(args)}
    encode = getattr(sft.format, "encode_batch", encode_batch)  # of a format, or ours
    examples, of_rows = [], encode(conversations, tokenizer, args.max_length, **how)
    sources = batch.get(SOURCE, [""] * len(positions))
    these = zip(positions, sources, conversations, of_rows, strict=True)
    for position, source, conversation, found in these:
        reason, text_hash = "", 0
        if isinstance(found, ValueError):
            reason, found = str(found), [{"input_ids": [], "labels": [], "shortened": False}]
        else:
            text_hash = hash_text(conversation["messages"])
        for number, example in enumerate(found, start=1):
            title = f"row {position + 1}"
            title += f", example {number} of {len(found)}" if len(found) > 1 else ""
            row = {"row": position, "title": title, "source": source, "reason": reason}
            examples.append({**example, **row, "text_hash": text_hash})
    return to_table(examples, FEATURES)


def _name(rows: Dataset, tokenizer: Tokenizer, args: ProjectArguments) -> str:
    """The name of the examples in the cache: of all that they depend on."""
    versions = (transformers.__version__, tokenizers.__version__)
    vocabulary = tokenizer.backend_tokenizer.to_str()
    template = (tokenizer.chat_template, tokenizer.special_tokens_map)  # it can name those
    keys = ["max_length", "control_tokens", *(field.name for field in fields(DatasetArguments))]
    settings = [getattr(args, key) for key in keys]
    return fingerprint(rows._fingerprint, vocabulary, template, settings, versions)
