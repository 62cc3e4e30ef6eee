"""What the tests share: your settings, your tokenizer if it is here, some of your rows."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything is imported that reads it
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest  # noqa: E402

from sft.config import project_arguments  # noqa: E402
from sft.model import load_tokenizer  # noqa: E402
from sft.rows import load_rows  # noqa: E402
from sft.source import is_local  # noqa: E402
from sft.twin import SAMPLE, build_tokenizer  # noqa: E402


@pytest.fixture(scope="session")
def args():
    """Your values from config.yaml; the bundled sample stands in for a dataset on the Hub."""
    args = project_arguments([])
    if not is_local(args.dataset):
        args.dataset, args.train_split, args.eval_split = str(SAMPLE), "train", "validation"
    args.eval_dataset = ""  # what is trained on is looked at
    args.max_length *= 8  # the twin's tokens are shorter
    return args


@pytest.fixture(scope="session")
def tokenizer(args):
    """The base model's tokenizer if it is on this machine, else the tiny twin's."""
    try:
        return load_tokenizer(args.base_model_path, args.revision, args.chat_template)
    except SystemExit:
        return build_tokenizer()


@pytest.fixture(scope="session")
def rows(args):
    """The first rows that are trained on."""
    rows = load_rows(args)["train"]
    return rows.select(range(min(16, len(rows))))
