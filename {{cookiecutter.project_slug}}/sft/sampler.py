"""The order of the rows: in batches of similar lengths, and the same in a run that is resumed."""

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from sft.row_report import column


def similar_lengths(trainer: Trainer) -> LengthGroupedSampler:
    """transformers' sampler, in an order of the Trainer's rows that seed and epoch alone decide.

    As it is, the order depends on whatever was random before: a run that goes on would see some
    rows twice and others never, and several processes would not agree on it.
    """
    args, generator = trainer.args, torch.Generator()
    lengths = column(trainer.train_dataset, "length").tolist()
    size = args.train_batch_size * args.gradient_accumulation_steps
    sampler = LengthGroupedSampler(size, lengths=lengths, generator=generator)
    seed = args.seed if args.data_seed is None else args.data_seed
    sampler.set_epoch = lambda epoch: generator.manual_seed(seed + epoch)
    return sampler


class SameOrder(TrainerCallback):
    """Tell the sampler its epoch. With several processes nothing does so when a run is resumed.

    The first steps of that epoch are then skipped by a wrapper that `set_epoch` of accelerate's
    `DataLoaderShard` does not look through, and the order would be the first epoch's.
    """

    def on_epoch_begin(self, args, state, control, train_dataloader, **kwargs):
        sampler = train_dataloader.batch_sampler
        while sampler is not None:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(int(state.epoch or 0))
            sampler = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)
