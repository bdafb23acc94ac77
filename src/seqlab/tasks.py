"""Tasks: what sequences are drawn, and what is to be predicted of them. Those of the literature
stand in `literature.py`.

Letters: N sequences, T time steps, F input features, O outputs.
"""

import logging
import math
from abc import ABC, abstractmethod
from contextlib import nullcontext

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from seqlab.data import SPLITS, Batch, SequenceData, Split, seed_of
from seqlab.model import check_sizes
from seqlab.objectives import NO_TARGET, Objective, Values


class Task(ABC):
    """The contract of a task. Subclass it, and name the class in a file under `conf/data/`.

    `n_inputs` (F) and `n_outputs` (O) are class attributes or set in the constructor.
    """

    n_inputs: int
    n_outputs: int
    objective: Objective = Values()  # numbers, or `Classes()`; `loss=NAME` replaces it
    every_step: bool = False  # whether there is a target at every step, or one at the end
    min_len: int = 1  # the shortest `seq_len` that the task makes sense for
    floor: float | None = None  # the MSE that no prediction can beat, where known (noise)

    @abstractmethod
    def draw(self, n: int, seq_len: int, generator: Generator) -> tuple[Tensor, ...]:
        """Draw `n` sequences, with all randomness from `generator`. Where `data.fresh` draws on a
        GPU, the generator is there, and so is each new tensor that names no other device.

        Returns:
            Inputs `(N, T, F)`, float32, and targets as the objective has them: values `(N, O)`
            or classes `(N,)`; at every step `(N, T, O)` or `(N, T)`. Sequences of different
            lengths are padded at their ends to a common T, and a third tensor `(N,)` holds the
            lengths, integers in [1, T].
        """

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        """Predictions that need no learning, by name, for inputs `x` `(N, T, F)`: `(N, O)`, or
        `(N, T, O)` at every step. Skill is measured against the first; without any there is no
        skill."""
        return {}


class TaskData(SequenceData):
    """Draws train, validation and test sets from a task, each from (seed, split) alone: they share
    no draw, and a change of one size leaves the others as they were.

    Args:
        task: what to draw.
        seq_len: T, time steps in a sequence, at least the task's `min_len`.
        n_train, n_val, n_test: sequences in each split; at least one batch in `n_train`, and at
            least 2 in the others (R2 needs them).
        fresh: whether each epoch trains on `n_train` new sequences, drawn from (seed, epoch).
        min_len: the shortest sequence to train on: each batch has one length, uniform on
            [min_len, T]. None: all have T steps.
        val_len, test_len: the shortest and the longest sequence of a split, whose lengths are
            spread evenly, in ascending order. None: the range of training.
        test_task: what to draw the test from; None: the task.
        rest: `batch_size`, `accumulate`, `steps_per_call` and `seed`, as in `SequenceData`.
    """

    def __init__(
        self,
        task: Task,
        seq_len: int,
        n_train: int,
        n_val: int,
        n_test: int,
        fresh: bool,
        min_len: int | None,
        val_len: tuple[int, int] | None,
        test_len: tuple[int, int] | None,
        test_task: Task | None,
        **rest: int,
    ):
        super().__init__(**rest)
        check_sizes(seq_len=seq_len, n_train=n_train, n_val=n_val, n_test=n_test)
        if n_train < self.batch_size:
            raise ValueError(f"n_train={n_train}: at least batch_size={self.batch_size}")
        self.sizes = {"train": n_train, "val": n_val, "test": n_test}
        for split in SPLITS[1:]:
            if self.sizes[split] < 2:
                raise ValueError(f"n_{split}={self.sizes[split]}: at least 2")
        least, trained = task.min_len, (seq_len if min_len is None else min_len, seq_len)
        if seq_len < least:
            raise ValueError(f"seq_len={seq_len}: at least {least} for {type(task).__name__}")
        if not least <= trained[0] <= seq_len:
            raise ValueError(f"min_len={min_len}: from {least} to seq_len={seq_len}")
        for name, given in (("val_len", val_len), ("test_len", test_len)):
            if given and not least <= given[0] <= given[1]:
                raise ValueError(f"{name}={list(given)}: shortest and longest, from {least} on")
        self.task, self.seq_len, self.n_train, self.fresh = task, seq_len, n_train, fresh
        self.test_task = test_task or task
        self.ranges = {"train": trained, "val": val_len or trained, "test": test_len or trained}
        self.n_inputs, self.n_outputs, self.floor = task.n_inputs, task.n_outputs, task.floor
        self.objective, self.every_step = task.objective, task.every_step

    def load(self, device: torch.device) -> dict[str, Split]:
        self.device, self.there = device, device.type != "cpu"  # whether epochs are drawn there
        return {name: self.draw(n, name) for name, n in self.sizes.items()}

    def training_set(self, epoch: int) -> Split:
        if self.fresh and self.there:
            try:
                return self.draw(self.n_train, "train", epoch)
            except Exception as error:  # a task of one's own may do anything
                self.there = False
                logging.getLogger("seqlab").info(f"fresh sequences are drawn on the CPU: {error}")
        return self.draw(self.n_train, "train", epoch) if self.fresh else self.splits["train"]

    def lengths(self, n: int, split: str, generator: Generator | None = None) -> Tensor:
        """How long each of `n` sequences of a split is, `(N,)`."""
        low, high = self.ranges[split]
        if split != "train" or low == high:
            return low + torch.arange(n) * (high - low + 1) // n
        drawn = torch.randint(low, high + 1, (-(-n // self.batch_size),), generator=generator)
        return drawn.repeat_interleave(self.batch_size)[:n]

    def draw(self, n: int, split: str, *epoch: int) -> Split:
        """`n` sequences of a split, or of an epoch, a function of the seed and these."""
        key = ("fresh", *epoch) if epoch else (split,)
        generator = torch.Generator().manual_seed(seed_of(self.seed, *key))
        lengths_N = self.lengths(n, split, generator)
        task = self.test_task if split == "test" else self.task
        counts = zip(*(each.tolist() for each in lengths_N.unique(return_counts=True)), strict=True)
        order = lengths_N.argsort(stable=True).argsort()
        mixed, there = self.ranges[split][0] < self.ranges[split][1], bool(epoch) and self.there
        if there:  # validation and test are the same on every device
            generator = Generator(self.device).manual_seed(generator.initial_seed())
        with self.device if there else nullcontext():
            parts = [self.draw_alike(task, count, T, generator) for T, count in counts]
            found = self.join(parts, order) if mixed else parts[0]
        x, y, *lengths = (part.to(self.device) for part in found)
        alike = self.batch_size if mixed and split == "train" else 1
        return Split(x, y, None, *lengths, alike=alike)

    def draw_alike(self, task: Task, n: int, seq_len: int, generator: Generator) -> Batch:
        """`n` sequences of one length, checked against the contract of `Task.draw`."""
        x, y, *lengths = task.draw(n, seq_len, generator)
        T, name = x.shape[1] if lengths else seq_len, type(task).__name__
        steps = (n, T) if self.every_step else (n,)
        want = (n, T, self.n_inputs), (*steps, *self.objective.target_shape(self.n_outputs))
        got = tuple(x.shape), tuple(y.shape)
        if (x.dtype, y.dtype) != (torch.float32, self.objective.dtype):
            got, want = (x.dtype, y.dtype), (torch.float32, self.objective.dtype)
        if got != want:
            said = f"{name}.draw must return inputs and targets {want[0]} and {want[1]}"
            raise ValueError(f"{said}, got {got[0]} and {got[1]}")
        for given in lengths:
            whole = given.dtype == torch.int64 and given.shape == (n,)
            if not (whole and 1 <= given.min() <= given.max() <= T):
                got = f"{given.dtype} {tuple(given.shape)} from {given.min()} to {given.max()}"
                said = f"{name}.draw must return lengths ({n},), integers from 1 to {T}"
                raise ValueError(f"{said}, got {got}")
        return x, y, *lengths

    def join(self, parts: list[Batch], order: Tensor) -> Batch:
        """Sequences of several lengths, padded to the longest, in an order."""
        longest, found = max(x.shape[1] for x, *_ in parts), []
        for x, y, *lengths in parts:
            more, missing = longest - x.shape[1], math.nan if y.is_floating_point() else NO_TARGET
            if self.every_step:
                y = pad(y, (0, 0) * (y.dim() - 2) + (0, more), value=missing)
            lengths = lengths or [torch.full((len(x),), x.shape[1])]
            found.append((pad(x, (0, 0, 0, more)), y, *lengths))
        return tuple(torch.cat(each)[order] for each in zip(*found, strict=True))

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        return self.task.baselines(x)


class Random(Task):
    """Inputs uniform on [0, 1]; the target is the mean of all T*F of them. F is `n_inputs`, at
    least 1. The do-nothing baseline, always 1/2, has MSE 1/(12*T*F), the variance of that mean."""

    n_outputs = 1

    def __init__(self, n_inputs: int = 1):
        check_sizes(n_inputs=n_inputs)
        self.n_inputs = n_inputs

    def draw(self, n: int, seq_len: int, generator: Generator) -> tuple[Tensor, Tensor]:
        x = torch.rand(n, seq_len, self.n_inputs, generator=generator)
        return x, x.mean(dim=(1, 2)).unsqueeze(1)

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        return {"always 1/2": x.new_full((len(x), 1), 0.5)}


class Sine(Task):
    """A sine of random period and phase under white noise; the target is the next noisy value.

    The period is uniform on [10, 40] steps, the phase on a full turn. Persistence (the last value
    again) has MSE E[1 - cos(2 pi / period)] + 2 noise**2 = 0.0486 + 2 noise**2. No prediction
    beats noise**2.

    Args:
        noise: standard deviation of the noise, at least 0.
    """

    n_inputs, n_outputs = 1, 1

    def __init__(self, noise: float = 0.1):
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise={noise}: a finite number of at least 0")
        self.noise = noise
        self.floor = noise**2

    def draw(self, n: int, seq_len: int, generator: Generator) -> tuple[Tensor, Tensor]:
        period = 10.0 + 30.0 * torch.rand(n, 1, generator=generator)
        phase = 2 * math.pi * torch.rand(n, 1, generator=generator)
        wave = torch.sin(2 * math.pi * torch.arange(seq_len + 1) / period + phase)
        wave += self.noise * torch.randn(n, seq_len + 1, generator=generator)
        return wave[:, :-1, None], wave[:, -1:]

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        return {"persistence": x[:, -1]}
