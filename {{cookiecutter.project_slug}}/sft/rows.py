"""Where the rows come from: their source, and its splits."""

from datasets import Dataset

from sft.config import ProjectArguments
from sft.format import OPTIONAL_COLUMNS, columns
from sft.source import load_source


def load_rows(args: ProjectArguments) -> dict[str, Dataset]:
    """The rows of each split that exists: "train", and perhaps "evaluation".

    They have the columns that sft/format.py needs; `sft.files.plain_row` reads one.
    """
    specs = {"train": args.train_split, "evaluation": args.eval_split}
    named = [*columns(args), *OPTIONAL_COLUMNS]
    return load_source(args.dataset, args.dataset_config, specs, named)
