"""One clock and one scale for every framework.

All of them train with a subclass of transformers' `Trainer`: its `training_step` is where a batch
comes by, whoever made it. Measured is from the start of one such step to the start of the next, so
forward, backward, optimizer and the making of the next batch are in, and imports, loading and
tokenizing are out.
"""

import json
import os
import platform
import resource
import sys
import threading
import time
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "trl", "llamafactory")
PACKAGES += ("bitsandbytes", "liger_kernel")


class Finished(Exception):
    """Enough was measured; what would follow is saving."""


class Meter:
    """Counts tokens, seconds and loss of the training steps in this process.

    Args:
        warmup: the first steps, which are not timed.
        steps: how many are, or None for all there are in one pass over the rows.
        pad_token_id: the one token that is padding wherever it stands.
        replay: measure the batches of the warmup over again. On a GPU the first batch of a shape
            waits for memory and kernels, which a long run has behind it after some minutes.
        cuda: `torch.cuda` where that is trained on.
    """

    def __init__(
        self, warmup: int, steps: int | None, pad_token_id: int, replay: bool = False, cuda=None
    ):
        self.warmup, self.steps, self.pad_token_id = warmup, steps, pad_token_id
        self.seen = [] if replay else None
        self.cuda = cuda
        self.starts = []
        self.calls = 0
        self.tokens = self.padded = self.trained = 0
        self.all_tokens = self.all_trained = 0
        self.loss_sum = 0.0

    def attach(self) -> None:
        """Put the meter around `Trainer.training_step`, and end training after one pass."""
        import transformers
        from transformers.trainer_callback import CallbackHandler

        training_step = transformers.Trainer.training_step

        def metered(trainer, model, inputs, num_items_in_batch=None):
            self.begin()
            if self.seen is not None:
                if self.calls <= self.warmup:
                    self.seen.append((inputs, num_items_in_batch))
                inputs, num_items_in_batch = self.seen[(self.calls - 1) % self.warmup]
                inputs = dict(inputs)  # the loss may take something out
            ids = inputs["input_ids"]
            tokens = int((ids != self.pad_token_id).sum())
            trained = num_items_in_batch
            if trained is None:
                trained = (inputs["labels"] != -100).sum()
            trained = int(trained)
            loss = training_step(trainer, model, inputs, num_items_in_batch)
            self.all_tokens += tokens
            self.all_trained += trained
            self.loss_sum += float(loss) * trained
            if self.calls > self.warmup:
                self.tokens += tokens
                self.padded += ids.numel()
                self.trained += trained
            return loss

        def finish(handler, args, state, control, **kwargs):
            self.finish()

        transformers.Trainer.training_step = metered
        CallbackHandler.on_epoch_end = finish

    def begin(self) -> None:
        """A step begins."""
        if self.steps is not None and self.calls == self.warmup + self.steps:
            self.finish()
        if self.calls == 0:
            self.memory = memory_now(self.cuda)
            forget_peak(self.cuda)
        if self.calls == self.warmup:
            self.start = self.clock()
        if self.calls >= self.warmup:
            self.starts.append(self.clock()[1])
        self.calls += 1

    def finish(self) -> None:
        self.end = self.clock()
        self.peak = memory_peak(self.cuda)
        raise Finished

    def clock(self) -> tuple[float, float]:
        """Seconds that all threads of this process worked, and seconds on the wall."""
        if self.cuda:
            self.cuda.synchronize()
        return time.process_time(), time.perf_counter()

    def result(self) -> dict:
        ends = [*self.starts[: self.calls - self.warmup], self.end[1]]
        cpu, wall = (after - before for before, after in zip(self.start, self.end, strict=True))
        return {
            "steps": self.calls - self.warmup,
            "tokens": self.tokens,
            "tokens_with_padding": self.padded,
            "trained_tokens": self.trained,
            "cpu_seconds": cpu,
            "wall_seconds": wall,
            "tokens_per_cpu_second": self.tokens / cpu,
            "tokens_per_second": self.tokens / wall,
            "step_seconds": [after - before for before, after in pairwise(ends)],
            "pass": {
                "tokens": self.all_tokens,
                "trained_tokens": self.all_trained,
                "loss": self.loss_sum / self.all_trained,
            },
            "memory_before": self.memory,
            "memory_peak": self.peak,
            "memory_growth": self.peak - self.memory,
        }


def measure_training(job: dict, train) -> dict:
    """Run `train` until the meter has seen enough."""
    import torch

    cuda = None if job["training"]["use_cpu"] else torch.cuda
    meter = Meter(job["warmup"], job["steps"], job["pad_token_id"], job.get("replay"), cuda)
    meter.attach()
    try:
        train()
    except Finished:
        return meter.result()
    raise SystemExit("the training ended before its meter did")


class PeakMeter:
    """The most memory in use in each part of the optimizer steps, of a Trainer in this process.

    Args:
        steps: how many optimizer steps are taken.
        cuda: `torch.cuda` where that is trained on.
    """

    def __init__(self, steps: int, cuda=None):
        self.steps, self.cuda = steps, cuda
        self.peaks = {"loading": 0, "forward": 0, "backward": 0, "optimizer": 0}
        self.resident, self.reserved, self.batches = [], 0, []
        self.start = None

    def attach(self) -> None:
        """Put marks around the Trainer's forward, backward and optimizer, and end after `steps`."""
        import transformers
        from accelerate import Accelerator
        from transformers.trainer_callback import CallbackHandler

        training_step, backward = transformers.Trainer.training_step, Accelerator.backward
        on_step_end = CallbackHandler.on_step_end

        def step(trainer, model, inputs, num_items_in_batch=None):
            self.mark("optimizer" if self.batches else "loading")
            self.resident.append(memory_now(self.cuda))
            trained = int((inputs["labels"] != -100).sum())
            self.batches.append([*inputs["input_ids"].shape, trained])
            loss = training_step(trainer, model, inputs, num_items_in_batch)
            self.mark("backward")
            return loss

        def begin_backward(*args, **kwargs):
            self.mark("forward")
            return backward(*args, **kwargs)

        def end_step(handler, args, state, control):
            self.mark("optimizer")
            if state.global_step == self.steps:
                raise Finished
            self.start = time.perf_counter()
            return on_step_end(handler, args, state, control)

        transformers.Trainer.training_step = step
        Accelerator.backward = begin_backward
        CallbackHandler.on_step_end = end_step

    def mark(self, part: str) -> None:
        """What was in use since the last mark belongs to this part."""
        if self.cuda:
            self.cuda.synchronize()
            self.reserved = max(self.reserved, self.cuda.max_memory_reserved())
        self.peaks[part] = max(self.peaks[part], memory_peak(self.cuda))
        forget_peak(self.cuda)

    def result(self) -> dict:
        """All in bytes; "batches" are (rows, tokens of a row, trained tokens)."""
        found = {
            "peak": max(peak for part, peak in self.peaks.items() if part != "loading"),
            "peaks": self.peaks,
            "resident": [self.resident[0], self.resident[-1]],  # without and with optimizer state
            "batches": [list(batch) for batch in dict.fromkeys(map(tuple, self.batches))],
            "seconds_per_step": time.perf_counter() - self.start,
        }
        if self.cuda:
            free, total = self.cuda.mem_get_info()
            found |= {"reserved": self.reserved, "process": process_memory()}
            found |= {"free": free, "total": total}
        return found


def process_memory() -> int | None:
    """Bytes of the card that belong to this process, CUDA's own included, as nvidia-smi says."""
    try:
        import pynvml

        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByIndex(0)
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(card)
        return next((p.usedGpuMemory for p in processes if p.pid == os.getpid()), None)
    except Exception:  # not every driver says
        return None


def measure_peaks(job: dict, train) -> dict:
    """Run `train` for so many steps, and return the memory it took."""
    import torch

    meter = PeakMeter(job["steps"], None if job["training"]["use_cpu"] else torch.cuda)
    meter.attach()
    try:
        train()
    except Finished:
        return meter.result()
    raise SystemExit("the training ended before its meter did")


@contextmanager
def measure_preparing(result: dict):
    """Add to `result` what the block takes, in this process and in those that it starts.

    Of the memory, what is no mapped file is told apart: those the system takes back when it likes.
    """
    before, start = memory_now(), time.perf_counter()
    anonymous, cpu = [_status("RssAnon")], _cpu_seconds()
    ended = threading.Event()

    def watch():
        while not ended.wait(0.02):  # the system keeps no peak of this part
            anonymous.append(_status("RssAnon"))

    watcher = threading.Thread(target=watch)
    forget_peak()
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    result["wall_seconds"] = time.perf_counter() - start
    result["cpu_seconds"] = _cpu_seconds() - cpu
    result["memory_growth"] = memory_peak() - before
    result["memory_anonymous"] = max(anonymous) - anonymous[0]


def describe(dataset, rows: int = 64) -> dict:
    """Sums over a prepared dataset, and its first rows in full, for a comparison of the labels."""
    tokens = trained = 0
    first = []
    for batch in dataset.select_columns(["input_ids", "labels"]).iter(1000):
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            tokens += len(ids)
            trained += len(labels) - list(labels).count(-100)
            if len(first) < rows:
                first.append([list(ids), list(labels)])
    return {"rows": len(dataset), "tokens": tokens, "trained_tokens": trained, "first": first}


def _cpu_seconds() -> float:
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, who))


def memory_now(cuda=None) -> int:
    """Bytes in use: of this process, or on its card."""
    return cuda.memory_allocated() if cuda else _status("VmRSS")


def memory_peak(cuda=None) -> int:
    """The most bytes in use since `forget_peak`."""
    return cuda.max_memory_allocated() if cuda else _status("VmHWM")


def forget_peak(cuda=None) -> None:
    if cuda:
        cuda.reset_peak_memory_stats()
    elif platform.system() == "Linux":
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's way to say so


def _status(key: str) -> int:
    if platform.system() != "Linux":  # the peak since the start will have to do
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{key}:")[2].split()[0]) * 1024


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found


def main(**tasks) -> None:
    """Read the job that the command line names, do its task, write its result beside it."""
    path = Path(sys.argv[1])
    job = json.loads(path.read_text(encoding="utf-8"))
    import torch

    torch.set_num_threads(job["threads"])
    result = tasks[job["task"]](job) | {"versions": versions()}
    path.with_suffix(".result.json").write_text(json.dumps(result), encoding="utf-8")
