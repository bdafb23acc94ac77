"""The DataModule: a task's sequences as whole tensors, given out as slices.

Letters: N sequences, B batch, T time steps, F input features, O outputs.
"""

from collections.abc import Iterator

import lightning as L
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from seqlab.arguments import Size, checked
from seqlab.errors import UserError
from seqlab.seeds import seed_of
from seqlab.tasks import Task

Batch = tuple[Tensor, Tensor]

SPLITS = ("train", "val", "test")


class SequenceData(L.LightningDataModule):
    """Draws train, validation and test sets from a task and yields them in batches.

    Each split is one tensor, drawn from (seed, split) alone, so the sets share no draw and a
    change of one size leaves the others as they were. It is moved to the accelerator once.
    Training batches come several at a time: a *call* is a list of optimiser steps, a step a list
    of batches whose gradients are added, so that the framework's overhead is paid once a call.

    To use data of your own that is no `Task`, subclass this and override `draw`.

    Args:
        task: what to draw; it also gives `n_inputs` (F) and `n_outputs` (O).
        seq_len: T, time steps in a sequence, at least 1.
        n_train, n_val, n_test: sequences in each split; at least one batch in `n_train`, and
            at least 2 (R2 needs them) in the others.
        batch_size: B, sequences in a batch. A training epoch has whole batches only; which
            sequences are left over differs from epoch to epoch.
        accumulate: batches whose gradients are added before each optimiser step.
        steps_per_call: optimiser steps in one call of the training step.
        seed: with the split or the epoch, decides every draw and every shuffle.
    """

    @checked
    def __init__(
        self,
        task: Task,
        seq_len: Size,
        n_train: Size,
        n_val: Size,
        n_test: Size,
        batch_size: Size,
        accumulate: Size,
        steps_per_call: Size,
        seed: int,
    ):
        super().__init__()
        if n_train < batch_size:
            raise UserError(f"data.n_train={n_train}: at least data.batch_size={batch_size}")
        for key, n in {"n_val": n_val, "n_test": n_test}.items():
            if n < 2:
                raise UserError(f"data.{key}={n}: at least 2")
        self.task, self.seq_len, self.seed = task, seq_len, seed
        self.sizes = {"train": n_train, "val": n_val, "test": n_test}
        self.batch_size, self.accumulate = batch_size, accumulate
        self.steps_per_call = steps_per_call
        self.splits: dict[str, Batch] = {}
        #: by split, the MSE of the first baseline, which skill is measured against
        self.reference_mse: dict[str, float] = {}

    @property
    def n_inputs(self) -> int:
        return self.task.n_inputs

    @property
    def n_outputs(self) -> int:
        return self.task.n_outputs

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one training epoch; the last one may add fewer batches."""
        return -(-(self.sizes["train"] // self.batch_size) // self.accumulate)

    def draw(self, split: str) -> Batch:
        """The inputs `(N, T, F)` and targets `(N, O)` of one split."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, split))
        return self.task.draw(self.sizes[split], self.seq_len, generator)

    def setup(self, stage: str) -> None:
        device = self.trainer.strategy.root_device if self.trainer else None
        for split in SPLITS:
            if split not in self.splits:
                x, y = self.draw(split)
                n = self.sizes[split]
                want = (n, self.seq_len, self.n_inputs), (n, self.n_outputs)
                got = tuple(x.shape), tuple(y.shape)
                if got != want:
                    raise UserError(
                        f"data: {type(self.task).__name__}.draw must return inputs (N, T, F) and "
                        f"targets (N, O) = {want[0]} and {want[1]}, got {got[0]} and {got[1]}"
                    )
                self.splits[split] = x, y = x.to(device), y.to(device)
                for baseline in list(self.baselines(split).values())[:1]:
                    self.reference_mse[split] = mse_loss(baseline, y).item()

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch  # it is a slice of what `setup` has moved

    def baselines(self, split: str) -> dict[str, Tensor]:
        """Predictions `(N, O)` that need no learning, by name, for one split."""
        return self.task.baselines(self.splits[split][0])

    def train_dataloader(self) -> "TrainingCalls":
        return TrainingCalls(self)

    def val_dataloader(self) -> "Slices":
        return Slices(self.splits["val"], self.batch_size * self.steps_per_call)

    def test_dataloader(self) -> "Slices":
        return Slices(self.splits["test"], self.batch_size * self.steps_per_call)


class TrainingCalls:
    """Iterates over the training set once, in an order made from (seed, epoch)."""

    def __init__(self, data: SequenceData):
        self.data = data

    def __len__(self) -> int:
        return -(-self.data.steps_per_epoch // self.data.steps_per_call)

    def __iter__(self) -> Iterator[list[list[Batch]]]:
        data = self.data
        x, y = data.splits["train"]
        B, per_step = data.batch_size, data.accumulate
        generator = torch.Generator().manual_seed(
            seed_of(data.seed, "order", data.trainer.current_epoch)
        )
        order = torch.randperm(len(x), generator=generator)[: len(x) // B * B].to(x.device)
        for rows in order.split(B * per_step * data.steps_per_call):
            # one gather a call; the batches are views of it
            batches = list(zip(x[rows].split(B), y[rows].split(B), strict=True))
            yield [batches[i : i + per_step] for i in range(0, len(batches), per_step)]


class Slices:
    """Iterates over one split in order, the last slice being what is left."""

    def __init__(self, split: Batch, size: int):
        self.split, self.size = split, size

    def __len__(self) -> int:
        return -(-len(self.split[0]) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        x, y = self.split
        return zip(x.split(self.size), y.split(self.size), strict=True)
