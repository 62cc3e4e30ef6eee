"""Order of the rows: batches of similar lengths, the same when resumed, none counted twice."""

import torch
from torch import Tensor
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


class WithoutRepeats:
    """Batches of an evaluation, without the labels of rows that are there for the second time.

    With several processes accelerate fills up the last batches with rows from the start.
    """

    def __init__(self, trainer: Trainer, rows: int):
        size, accelerator = trainer.args.eval_batch_size, trainer.accelerator
        self._left = rows - accelerator.process_index * size  # from this process' first one on
        self._step = accelerator.num_processes * size

    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        ids, where = inputs["input_ids"], inputs.get("logits_to_keep")
        row = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)  # of each token
        if "position_ids" in inputs:  # all rows in one, each from position 0
            row = (inputs["position_ids"] == 0).cumsum(1) - 1
        if where is not None:
            row = row[where] if where.dim() == 2 else row[0, where]
        repeated = row >= self._left
        self._left -= self._step
        labels = [name for name in ("labels", "shift_labels") if name in inputs]
        return inputs | {name: inputs[name].masked_fill(repeated, -100) for name in labels}
