"""Where the rows come from: one source or several, and perhaps another to evaluate on."""

from datasets import Dataset

from sft.config import ProjectArguments
from sft.format import OPTIONAL_COLUMNS, columns
from sft.mixture import load_mixture


def load_rows(args: ProjectArguments) -> dict[str, Dataset]:
    """The rows of each split that exists: "train", and perhaps "evaluation".

    They have the columns that sft/format.py needs; `sft.files.plain_row` reads one.
    """
    named = [*columns(args), *OPTIONAL_COLUMNS]
    train, evaluation = {"train": args.train_split}, {"evaluation": args.eval_split}
    if not args.eval_dataset:
        return load_mixture(args.dataset, train | evaluation, named, args)
    rows = load_mixture(args.dataset, train, named, args)
    if found := load_mixture(args.eval_dataset, evaluation, named, args):
        return rows | found
    # it has no validation split: all rows
    evaluation = {"evaluation": args.eval_split.replace("validation", "train")}
    return rows | load_mixture(args.eval_dataset, evaluation, named, args)
