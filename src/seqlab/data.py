"""The DataModule: sequences as whole tensors, batches as slices of them.

Letters: N sequences, S optimiser steps, A accumulated batches, B batch, T time steps, F input
features, O outputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import lightning as L
import torch
from torch import Tensor

from seqlab.model import check_sizes
from seqlab.objectives import Objective, Values

#: Inputs, targets and, of sequences of different lengths, the lengths `(B,)`.
Batch = tuple[Tensor, ...]

SPLITS = ("train", "val", "test")


def seed_of(*key: int | str) -> int:
    """A 64-bit seed for a key such as `(seed, "train", epoch)`: the same on every machine, and
    unrelated for different keys. What is drawn at a step does not depend on what was drawn before
    it, so a resumed run draws what the undisturbed run drew."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little")


@dataclass
class Split:
    """The sequences of one split: `x` `(.., T, F)`, `y` `(.., O)` or whatever the objective's
    targets are, and `lengths` `(..)`, or None where every sequence has T steps. `index` says which
    entries belong to the split, in order; None: all of them. The tensors may be overlapping views
    of one series, so take entries of them, never a copy of the whole. `alike` entries in a row have
    one length and stay together in a batch."""

    x: Tensor
    y: Tensor
    index: Tensor | None = None
    lengths: Tensor | None = None
    alike: int = 1

    def __len__(self) -> int:
        return len(self.x if self.index is None else self.index)

    def __getitem__(self, numbers: Tensor | slice) -> Batch:
        """Some sequences by their numbers in the split; a tensor of numbers of any shape gives
        tensors that begin with that shape."""
        if self.index is not None:
            numbers = self.index[numbers]
        return tuple(part[numbers] for part in (self.x, self.y, self.lengths) if part is not None)


class SequenceData(L.LightningDataModule):
    """Yields sequences in batches. What they are is up to a subclass: it sets `n_inputs` (F),
    `n_outputs` (O), `seq_len` (T) and `n_train`, and overrides `load`.

    A split's tensors are moved to the accelerator once. Training batches come in *chunks*: a
    chunk `(S, A, B, ...)` holds the batches of S optimiser steps, with the gradients of A batches
    added in each. One call of the training step takes one chunk, so that the framework's overhead
    is paid once per chunk.

    Args:
        batch_size: B, sequences in a batch. A training epoch has whole batches only; which
            sequences are left over differs from epoch to epoch.
        accumulate: A, batches whose gradients are added before an optimiser step. The last step
            of an epoch may have fewer.
        steps_per_call: S, optimiser steps per chunk. The last chunks of an epoch may have fewer.
        seed: with the split or the epoch it decides every draw and every shuffle.
    """

    n_inputs: int
    n_outputs: int
    seq_len: int
    n_train: int
    objective: Objective = Values()  # numbers, or `Classes()`; `loss=NAME` replaces it
    every_step: bool = False  # whether there is a target at every step, or one at the end
    floor: float | None = None  # the MSE that no prediction can beat, where known
    base: dict[str, Any] | None = None  # what names the module that adds a base to the network
    mase_scale: float | None = None  # what MASE divides the MAE by, where known
    first: tuple[int, int] = (0, 0)  # epoch and chunk to begin with; a resumed run sets it

    def __init__(self, batch_size: int, accumulate: int, steps_per_call: int, seed: int):
        super().__init__()
        check_sizes(batch_size=batch_size, accumulate=accumulate, steps_per_call=steps_per_call)
        self.batch_size, self.accumulate = batch_size, accumulate
        self.steps_per_call, self.seed = steps_per_call, seed
        self.splits: dict[str, Split] = {}

    def load(self, device: torch.device) -> dict[str, Split]:
        """The train, val and test splits, on `device`."""
        raise NotImplementedError

    def training_set(self, epoch: int) -> Split:
        """What one epoch trains on."""
        return self.splits["train"]

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        """Predictions without a network, by name; see `Task.baselines`."""
        return {}

    def refit(self) -> None:
        """Fit what is no network's again, when the best epoch is known: on validation data too."""

    def advice(self, best: str | None) -> str | None:
        """Why the `best` baseline does better than a network, and what to try; None: not known."""
        return None

    def unscale(self, y: Tensor) -> Tensor:
        """Values `(..)` from the network's scale to the data's units, float64."""
        return y.double()

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one training epoch."""
        return -(-(self.n_train // self.batch_size) // self.accumulate)

    @property
    def eval_size(self) -> int:
        """Sequences at a time where no gradient is taken: enough to hide what a call costs, few
        enough for the processor's caches."""
        return max(self.batch_size, 2**15 // self.seq_len)

    def prepare(self, device: torch.device) -> None:
        """Load the splits onto a device, once."""
        self.splits = self.splits or self.load(device)

    def setup(self, stage: str) -> None:
        self.prepare(self.trainer.strategy.root_device)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch  # a slice of what is on the device already

    def train_dataloader(self) -> "Chunks":
        return Chunks(self, self.trainer.global_rank, self.trainer.world_size, self.first)

    def val_dataloader(self) -> "Slices":
        return self.share("val")

    def test_dataloader(self) -> "Slices":
        return self.share("test")

    def share(self, split: str) -> "Slices":
        """This process's part of a split."""
        ranks = self.trainer.global_rank, self.trainer.world_size
        return Slices(self.splits[split], self.eval_size, *ranks)

    def whole(self, split: str) -> "Slices":
        """All of a split."""
        return Slices(self.splits[split], self.eval_size)


class Chunks:
    """Iterates over the training set once, in an order that is a function of (seed, epoch), from
    the epoch and chunk `first` on. Of several processes each has its share of every batch."""

    def __init__(
        self, data: SequenceData, rank: int = 0, ranks: int = 1, first: tuple[int, int] = (0, 0)
    ):
        self.data, self.rank, self.ranks, self.first = data, rank, ranks, first
        self.epoch = first[0]
        self.sampler = self  # Lightning calls `sampler.set_epoch`, as for PyTorch's samplers

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        data = self.data
        full, rest = divmod(data.n_train // data.batch_size, data.accumulate)
        return -(-full // data.steps_per_call) + (rest > 0)

    def __iter__(self) -> Iterator[Batch]:
        data = self.data
        B, A, S = data.batch_size, data.accumulate, data.steps_per_call
        train = data.training_set(self.epoch)
        generator = torch.Generator().manual_seed(seed_of(data.seed, "order", self.epoch))
        order = torch.randperm(len(train) // train.alike, generator=generator)[:, None]
        order = (order * train.alike + torch.arange(train.alike)).flatten()[: len(train) // B * B]
        batches = order.view(-1, self.ranks, B // self.ranks)[:, self.rank].to(train.x.device)
        full = len(batches) // A * A
        chunks = list(batches[:full].unflatten(0, (-1, A)).split(S)) if full else []
        if full < len(batches):
            chunks.append(batches[full:].unsqueeze(0))
        begin = self.first[1] if self.epoch == self.first[0] else 0
        for numbers_SAB in chunks[begin:]:
            yield train[numbers_SAB]


class Slices:
    """Iterates over one split in order, at most `size` sequences at a time. Of several processes
    each has its share, in as many slices as the others, since they wait for one another."""

    def __init__(self, split: Split, size: int, rank: int = 0, ranks: int = 1):
        self.split, self.size, self.rank, self.ranks = split, size, rank, ranks

    def __len__(self) -> int:
        return -(-len(self.split) // (self.size * self.ranks))

    def __iter__(self) -> Iterator[Batch]:
        n, parts = len(self.split), len(self) * self.ranks
        for i in range(self.rank, parts, self.ranks):
            yield self.split[n * i // parts : n * (i + 1) // parts]
