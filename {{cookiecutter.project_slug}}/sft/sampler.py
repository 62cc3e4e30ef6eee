"""Batches of similar lengths: what is short is not padded to what is long."""

import torch
from transformers import Trainer
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
