"""The DataModules: sequences as whole tensors, given out as slices.

Letters: N sequences, B batch, T time steps, F input features, O outputs.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import lightning as L
import polars as pl
import torch
from pydantic import Field
from torch import Tensor

from seqlab import series
from seqlab.arguments import EveryStep, Size, checked
from seqlab.errors import UserError
from seqlab.objectives import Objective, Values
from seqlab.seeds import seed_of
from seqlab.tasks import Task

#: Inputs, targets and, of sequences of different lengths, the lengths `(B,)`.
Batch = tuple[Tensor, ...]
Share = Annotated[float, Field(gt=0, lt=1)]
Boundary = float | int | str

SPLITS = ("train", "val", "test")


@dataclass
class Split:
    """The sequences of one split: rows of `x` `(.., T, F)`, of `y` `(.., O)` or whatever the
    objective's targets are, and of `lengths` `(..)`, None where all sequences have T steps.

    `rows` says which rows are the split's, in order; None: all of them. The tensors may be
    overlapping views of one series, so take rows from them, never a copy of the whole.
    """

    x: Tensor
    y: Tensor
    rows: Tensor | None = None
    lengths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x if self.rows is None else self.rows)

    def __getitem__(self, index: Tensor | slice) -> Batch:
        """Some sequences by their numbers in the split."""
        if self.rows is not None:
            index = self.rows[index]
        if self.lengths is not None:
            return self.x[index], self.y[index], self.lengths[index]
        return self.x[index], self.y[index]


class SequenceData(L.LightningDataModule):
    """Yields sequences in batches, as whole tensors; what they are is for a subclass to say.

    A split's tensors are moved to the accelerator once. Training batches come several at a time:
    a *call* is a list of optimiser steps, a step a list of batches whose gradients are added, so
    that the framework's overhead is paid once a call.

    To use data of your own that are no `Task` and no `Series`, subclass this: set `n_inputs` (F),
    `n_outputs` (O) and `seq_len` (T) in the constructor, and override `load`.

    Args:
        batch_size: B, sequences in a batch. A training epoch has whole batches only; which
            sequences are left over differs from epoch to epoch.
        accumulate: batches whose gradients are added before each optimiser step.
        steps_per_call: optimiser steps in one call of the training step.
        seed: with the split or the epoch, decides every draw and every shuffle.
    """

    n_inputs: int
    n_outputs: int
    seq_len: int

    #: What the outputs are, and when there is a target at every step rather than one at the end.
    objective: Objective = Values()
    every_step: EveryStep = "never"
    #: The MSE that no prediction can beat, where it is known.
    floor: float | None = None
    #: What MASE divides the MAE by, where it is known.
    mase_scale: float | None = None

    @checked
    def __init__(self, batch_size: Size, accumulate: Size, steps_per_call: Size, seed: int):
        super().__init__()
        self.batch_size, self.accumulate = batch_size, accumulate
        self.steps_per_call, self.seed = steps_per_call, seed
        self.splits: dict[str, Split] = {}
        #: by split, the loss of the first baseline, which skill is measured against
        self.reference_loss: dict[str, float] = {}

    def load(self, device: torch.device) -> dict[str, Split]:
        """The train, val and test splits, on `device`."""
        raise NotImplementedError

    def training_set(self, epoch: int) -> Split:
        """What one epoch trains on."""
        return self.splits["train"]

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        """Predictions `(B, O)`, or `(B, T, O)` at every step, without a network, by name, for
        inputs `x` `(B, T, F)`. The first is the one that skill is measured against; none: no skill
        is reported."""
        return {}

    def unscale(self, y: Tensor) -> Tensor:
        """Targets or predictions `(B, O)` in the units that metrics are reported in, float64;
        classes are what they are."""
        return y.double() if y.is_floating_point() else y

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one training epoch; the last one may add fewer batches."""
        return -(-(self.n_train // self.batch_size) // self.accumulate)

    @property
    def eval_size(self) -> int:
        """Sequences at a time where no gradient is taken: enough steps in all to hide what a call
        costs, few enough for the processor's caches."""
        return max(self.batch_size, 2**15 // self.seq_len)

    def setup(self, stage: str) -> None:
        if not self.splits:
            self.prepare(self.trainer.strategy.root_device)

    def prepare(self, device: torch.device) -> None:
        """Load the splits onto a device and measure the first baseline on each."""
        self.splits = self.load(device)
        for name in self.splits:
            total, count = 0.0, 0
            for x, y, *_ in self.whole(name):
                for key, baseline in list(self.baselines(x).items())[:1]:
                    want = (*y.shape[: 1 + (self.every_step == "always")], self.n_outputs)
                    if baseline.shape != want:
                        raise UserError(
                            f"data: {type(getattr(self, 'task', self)).__name__}.baselines must "
                            f"return {want}, got {tuple(baseline.shape)} for {key}"
                        )
                    errors = self.objective.errors(self.unscale(baseline), self.unscale(y))
                    total, count = total + errors.sum().item(), count + errors.numel()
            if total > 0:
                self.reference_loss[name] = total / count

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch  # it is a slice of what `setup` has moved

    def train_dataloader(self) -> "TrainingCalls":
        return TrainingCalls(self)

    def val_dataloader(self) -> "Slices":
        return self.share("val")

    def test_dataloader(self) -> "Slices":
        return self.share("test")

    def share(self, split: str) -> "Slices":
        """This process's part of a split."""
        trainer = self.trainer
        return Slices(self.splits[split], self.eval_size, trainer.global_rank, trainer.world_size)

    def whole(self, split: str) -> "Slices":
        """All of a split."""
        return Slices(self.splits[split], self.eval_size)


class TrainingCalls:
    """Iterates over the training set once, in an order made from (seed, epoch), from the first
    call that the epoch has not had: in a resumed run that is Lightning's restored count. Of
    several processes each has its share of every batch."""

    def __init__(self, data: SequenceData):
        self.data = data

    def __len__(self) -> int:
        return -(-self.data.steps_per_epoch // self.data.steps_per_call)

    def __iter__(self) -> Iterator[list[list[Batch]]]:
        data, trainer = self.data, self.data.trainer
        train = data.training_set(trainer.current_epoch)
        B, per_step = data.batch_size, data.accumulate
        generator = torch.Generator().manual_seed(
            seed_of(data.seed, "order", trainer.current_epoch)
        )
        order = torch.randperm(len(train), generator=generator)[: len(train) // B * B]
        b = B // trainer.world_size
        mine = order.view(-1, trainer.world_size, b)[:, trainer.global_rank].reshape(-1)
        calls = mine.to(train.x.device).split(b * per_step * data.steps_per_call)
        for index in calls[trainer.fit_loop.epoch_loop.batch_progress.current.ready :]:
            # one gather a call; the batches are views of it
            batches = list(zip(*(part.split(b) for part in train[index]), strict=True))
            yield [batches[i : i + per_step] for i in range(0, len(batches), per_step)]


class Slices:
    """Iterates over one split in order, at most so many sequences at a time; of several processes
    each has its share, in as many slices as the others, since they wait for one another."""

    def __init__(self, split: Split, size: int, rank: int = 0, ranks: int = 1):
        self.split, self.size, self.rank, self.ranks = split, size, rank, ranks

    def __len__(self) -> int:
        return -(-len(self.split) // (self.size * self.ranks))

    def __iter__(self) -> Iterator[Batch]:
        n, parts = len(self.split), len(self) * self.ranks
        for i in range(self.rank, parts, self.ranks):
            yield self.split[n * i // parts : n * (i + 1) // parts]


class ToyData(SequenceData):
    """Draws train, validation and test sets from a task.

    Each split is drawn from (seed, split) alone, so the sets share no draw and a change of one
    size leaves the others as they were.

    Args:
        task: what to draw; it also gives `n_inputs` (F) and `n_outputs` (O).
        seq_len: T, time steps in a sequence, at least the task's `min_len`.
        n_train, n_val, n_test: sequences in each split; at least one batch in `n_train`, and
            at least 2 (R2 needs them) in the others.
        fresh: whether each epoch trains on `n_train` new sequences, drawn from (seed, epoch).
        batch_size, accumulate, steps_per_call, seed: as in `SequenceData`.
    """

    @checked
    def __init__(
        self,
        task: Task,
        seq_len: Size,
        n_train: Size,
        n_val: Size,
        n_test: Size,
        fresh: bool,
        batch_size: Size,
        accumulate: Size,
        steps_per_call: Size,
        seed: int,
    ):
        super().__init__(batch_size, accumulate, steps_per_call, seed)
        check_batch("data.n_train", n_train, batch_size)
        for key, n in {"n_val": n_val, "n_test": n_test}.items():
            if n < 2:
                raise UserError(f"data.{key}={n}: at least 2")
        if seq_len < task.min_len:
            name = type(task).__name__
            raise UserError(f"data.seq_len={seq_len}: at least {task.min_len} for {name}")
        self.task, self.seq_len, self.n_train, self.fresh = task, seq_len, n_train, fresh
        self.sizes = dict(zip(SPLITS, (n_train, n_val, n_test), strict=True))
        self.n_inputs, self.n_outputs, self.floor = task.n_inputs, task.n_outputs, task.floor
        self.objective = task.objective
        self.every_step = "always" if task.every_step else "never"

    def load(self, device: torch.device) -> dict[str, Split]:
        self.device = device
        return {name: self.draw(n, name) for name, n in self.sizes.items()}

    def training_set(self, epoch: int) -> Split:
        return self.draw(self.n_train, "fresh", epoch) if self.fresh else self.splits["train"]

    def draw(self, n: int, *key: int | str) -> Split:
        """`n` sequences, a function of (seed, key)."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, *key))
        x, y, *lengths = self.task.draw(n, self.seq_len, generator)
        T = x.shape[1] if lengths else self.seq_len
        steps = (n, T) if self.task.every_step else (n,)
        want = (n, T, self.n_inputs), (*steps, *self.objective.target_shape(self.n_outputs))
        got = tuple(x.shape), tuple(y.shape)
        if (x.dtype, y.dtype) != (torch.float32, self.objective.dtype):
            got, want = (x.dtype, y.dtype), (torch.float32, self.objective.dtype)
        if got != want:
            raise UserError(
                f"data: {type(self.task).__name__}.draw must return inputs and targets "
                f"{want[0]} and {want[1]}, got {got[0]} and {got[1]}"
            )
        for given in lengths:
            whole = given.dtype == torch.int64 and given.shape == (n,)
            if not (whole and 1 <= given.min() <= given.max() <= T):
                raise UserError(
                    f"data: {type(self.task).__name__}.draw must return lengths ({n},), integers "
                    f"from 1 to {T}, got {given.dtype} {tuple(given.shape)} from {given.min()} to "
                    f"{given.max()}"
                )
        x, y, *lengths = (part.to(self.device) for part in (x, y, *lengths))
        return Split(x, y, None, *lengths)

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        return self.task.baselines(x)


class WindowData(SequenceData):
    """Forecasts a series: the next values of its first column from a window of its last rows.

    Split by time; the scaler and the autoregression are fitted on the training part alone and
    travel with the checkpoint. Windows are views of one tensor.

    Args:
        source: the series, already cut into splits.
        seq_len: T, rows in a window.
        horizon: O, rows to forecast at once.
        lead: how far ahead of the window's end the first of them is; 1 is the next row.
        season: rows in a season, at most `seq_len`, for the seasonal baseline; or None.
        every_step: `training`: a training window has targets after each of its rows, `(T, O)`;
            what is measured, and forecast, is what follows the last. `never`: only that.
        batch_size, accumulate, steps_per_call, seed: as in `SequenceData`.
        fitted: the `state_dict` of the run that is evaluated on another file: nothing is fitted
            then, and the whole series is the test split.
    """

    @checked
    def __init__(
        self,
        source: series.Series,
        seq_len: Size,
        horizon: Size,
        lead: Size,
        season: Size | None,
        every_step: Literal["never", "training"],
        batch_size: Size,
        accumulate: Size,
        steps_per_call: Size,
        seed: int,
        fitted: dict[str, Any] | None = None,
    ):
        super().__init__(batch_size, accumulate, steps_per_call, seed)
        if season and season > seq_len:
            raise UserError(f"data.season={season}: at most data.seq_len={seq_len}")
        self.series, self.season, self.every_step = source, season, every_step
        self.seq_len, self.horizon, self.lead = seq_len, horizon, lead
        self.n_inputs, self.n_outputs = len(source.columns), horizon
        if fitted is not None:
            for piece in source.pieces:
                piece.cuts = piece.start, piece.start
        splits = SPLITS if fitted is None else ("test",)
        self.rows = {
            name: series.window_rows(source, name, seq_len, horizon, lead) for name in splits
        }
        if fitted is not None:
            self.load_state_dict(fitted)
            return
        self.n_train = sum(map(len, self.rows["train"]))
        check_batch("data: training windows", self.n_train, batch_size)
        self.scaler = series.Scaler.fit(source)
        self.mase_scale = series.naive_error(source, season or 1)
        self.weights: Tensor | None = None  # of the autoregression

    def load(self, device: torch.device) -> dict[str, Split]:
        values = self.scaler.scale(self.series.values).to(device)
        x, every_y = series.windows(values, self.seq_len, self.horizon, self.lead)
        y, splits = every_y[:, -1], {}
        for name, ranges in self.rows.items():
            if len(ranges) == 1:
                part, rows = slice(ranges[0].start, ranges[0].stop), None
            else:
                part = slice(None)
                rows = torch.cat([torch.arange(r.start, r.stop) for r in ranges]).to(device)
            splits[name] = Split(x[part], y[part], rows)
            if name == "train":
                self.training = Split(x[part], every_y[part], rows)
        if self.weights is None:
            # a million windows settle T*F + 1 weights; a longer series is thinned evenly
            train = splits["train"]
            index = torch.arange(0, len(train), -(-len(train) // 1_000_000), device=device)
            self.weights = series.autoregression(train[rows] for rows in index.split(16_384))
        return splits

    def training_set(self, epoch: int) -> Split:
        return self.splits["train"] if self.every_step == "never" else self.training

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        """Persistence; the value one season before (where `season` is given); the least-squares
        autoregression AR(T) on the same window."""
        found = {"persistence": x[:, -1:, 0].expand(-1, self.horizon)}
        if self.season:
            ahead = torch.arange(self.lead, self.lead + self.horizon, device=x.device)
            found["seasonal naive"] = x[
                :, self.seq_len - self.season + (ahead - 1) % self.season, 0
            ]
        if self.weights is not None:
            found[f"AR({self.seq_len})"] = (series.affine(x) @ self.weights.to(x.device)).float()
        return found

    def unscale(self, y: Tensor) -> Tensor:
        return self.scaler.unscale(y)

    def target_times(self, split: str) -> pl.Series:
        """The time of the first target of each window of a split's first group."""
        starts, ahead = self.rows[split][0], self.seq_len + self.lead - 1
        return self.series.times[starts.start + ahead : starts.stop + ahead]

    def state_dict(self) -> dict[str, Any]:
        """What was fitted, for the checkpoint."""
        fitted = {"mean": self.scaler.mean, "std": self.scaler.std, "mase_scale": self.mase_scale}
        return {**fitted, "columns": self.series.columns, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scaler = series.Scaler(state["mean"], state["std"])
        self.mase_scale, self.weights = state["mase_scale"], state["weights"]


class SeriesData(WindowData):
    """A series of your own, from a file.

    Args:
        path: a .csv or .parquet file.
        target: the column to forecast.
        time: a column to order by, numbers or dates, no value twice; None: rows are in order.
        features: further input columns.
        group: a column that names the series, for a file of many; windows stay within one.
        missing: what to do about empty, NaN and infinite values: `error`, `drop` their rows, or
            `interpolate` linearly, each split by itself.
        val_from, test_from: where validation and test begin: a fraction of the rows in (0, 1),
            or a value of `time`.
        until: the last value of `time` to use; None: all.
        rest: as in `WindowData`.
    """

    @checked
    def __init__(
        self,
        path: str,
        target: str,
        time: str | None,
        features: list[str],
        group: str | None,
        missing: Literal["error", "drop", "interpolate"],
        val_from: Boundary,
        test_from: Boundary,
        until: Boundary | None,
        **rest: Any,
    ):
        if rest.get("fitted"):  # another file, all of it the test split
            val_from, test_from, until = 0.5, 0.5, None
        source = series.read(
            path, target, time, features, group, missing, val_from, test_from, until
        )
        for note in source.notes[:5]:
            print(f"note: {note}", file=sys.stderr)
        super().__init__(source, **rest)


class MackeyGlass(WindowData):
    """The Mackey-Glass series, generated: noise-free, chaotic, and beyond a linear model.

    Args:
        n: values of the series, one time unit apart.
        tau: the delay, in time units; chaotic from 17 on.
        val_from, test_from: where validation and test begin, as fractions in (0, 1).
        rest: as in `WindowData`.
    """

    @checked
    def __init__(self, n: Size, tau: Size, val_from: Share, test_from: Share, **rest: Any):
        values = series.mackey_glass(n, tau)[:, None]
        cuts = round(val_from * n), round(test_from * n)
        whole = series.Piece("", 0, n, cuts)
        super().__init__(series.Series(values, ["x"], pl.Series(range(n)), [whole], []), **rest)


def check_batch(what: str, n: int, batch_size: int) -> None:
    """Refuse a training set that has no whole batch."""
    if n < batch_size:
        raise UserError(f"{what}={n}: at least data.batch_size={batch_size}")
