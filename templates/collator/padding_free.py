"""Examples to a batch in one row, end to end: no padding is computed, stored or attended to.

    input_ids       7  8  9  4  5 | 7  3  2 | 7  8  6  1
    labels          .  .  .  4  5 | .  .  2 | .  .  6  1     -100, as ".", also where one begins
    position_ids    0  1  2  3  4 | 0  1  2 | 0  1  2  3
    cu_seq_lens_q   0              5         8            12  where examples begin, and the end

It is transformers' own `DataCollatorWithFlattening`. sft/attention.py keeps the examples apart by
these bounds: loss and gradients are those of the padded batch.

A batch then costs what its tokens cost, so `EvenSampler` gives all batches about as many.
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler
from transformers import DataCollatorWithFlattening, PreTrainedConfig, PreTrainedModel, Trainer
from transformers import PreTrainedTokenizerBase as Tokenizer

from sft.attention import attend_by_example
from sft.config import ProjectArguments
from sft.isolation import refuse_mixing
from sft.row_report import column


def get_collator(tokenizer: Tokenizer, model: PreTrainedModel) -> "PaddingFreeCollator":
    """A function from a list of examples to a batch of tensors of shape (1, sum of lengths).

    `model` is made to attend to each example by itself.
    """
    attend_by_example(model)
    return PaddingFreeCollator(return_flash_attn_kwargs=True)


def check_model(config: PreTrainedConfig, args: ProjectArguments) -> None:
    """Exit where an architecture does not keep examples apart."""
    refuse_mixing(get_collator, config, args)


class EvenSampler(Sampler[int]):
    """An order of the rows in which steps have equal work, and so have the batches of a step.

    By length, the rows are cut into as many groups as a step has rows, and each step draws one from
    each group: it has its share of long rows and of short ones. Within a step the rows are dealt to
    its batches there and back, as cards are: the longest and the shortest end up together.

    The rows of a step depend on the seed, the epoch and `rows_per_step` alone, however many batches
    or GPUs they are dealt to.

    Args:
        lengths: of shape (rows,), in tokens.
        rows_per_step: batch size x accumulation x GPUs.
        rows_per_batch: a divisor of `rows_per_step`.
    """

    def __init__(self, lengths: np.ndarray, rows_per_step: int, rows_per_batch: int, seed: int):
        self.lengths, self.seed, self.epoch = lengths, seed, 0
        self.rows_per_step, self.rows_per_batch = rows_per_step, rows_per_batch

    def set_epoch(self, epoch: int) -> None:
        """The Trainer calls this; a run that goes on finds the order it was in."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        rows = rng.permutation(len(self))
        steps, batches = len(rows) // self.rows_per_step, self.rows_per_step // self.rows_per_batch
        rows, rest = np.split(rows, [steps * self.rows_per_step])  # the rest is a smaller step
        rows = rows[np.argsort(self.lengths[rows], kind="stable")]
        groups = rng.permuted(rows.reshape(self.rows_per_step, steps), axis=1)
        dealt = groups.T.reshape(steps, self.rows_per_batch, batches)
        dealt[:, 1::2] = dealt[:, 1::2, ::-1]  # there and back again
        yield from dealt.swapaxes(1, 2).ravel().tolist()
        yield from rest.tolist()


class PaddingFreeCollator(DataCollatorWithFlattening):
    """transformers' collator, and the order of the rows that suits it."""

    @staticmethod
    def sampler(trainer: Trainer) -> EvenSampler:
        """An order of the Trainer's rows for its steps and batches."""
        args, lengths = trainer.args, column(trainer.train_dataset, "length")
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        seed = args.seed if args.data_seed is None else args.data_seed
        return EvenSampler(lengths, step, args.train_batch_size, seed)
