"""Data of one's own that are no task: arrays, DataLoaders, a LightningDataModule. Their sizes are
read off. Letters: N sequences, B batch, T time steps, F input features, O outputs or classes."""

import random
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from hashlib import blake2b
from typing import Any
from zipfile import BadZipFile

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from seqlab.data import SPLITS, Batch, SequenceData, Split, seed_of
from seqlab.objectives import NO_TARGET, Classes, Values


class WrongData(ValueError):
    """What a class of one's own gave are no sequences, or not like those that it gave before."""


class OwnData(SequenceData):
    """Data whose sizes are read off.

    Inputs are `(N, T, F)`. Targets are numbers `(N, O)` or `(N,)`, or integers `(N,)`, which are
    classes from 0 on. At every step they are `(N, T, O)`, NaN where there is none, or `(N, T)`,
    -100 where there is none. Sequences of different lengths are padded at their ends, and a third
    part `(N,)` holds the lengths.

    Args:
        seq_len: T, for what the config says of it, such as `model.t_max`; None: read off.
        n_classes: O where the targets are classes; None: of arrays one more than the highest.
        rest: `batch_size`, `accumulate`, `steps_per_call` and `seed`, as in `SequenceData`.
    """

    def __init__(self, seq_len: int | None, n_classes: int | None, **rest: int):
        super().__init__(**rest)
        self.given_len, self.n_classes = seq_len, n_classes

    def read(self) -> None:
        """Set the sizes, the objective and `n_train`. A run begins with it."""
        raise NotImplementedError

    def take(self, given: Any, where: str) -> Batch:
        """Sequences, targets and lengths as tensors, checked. The first ones that are taken decide
        the sizes and the objective."""
        if not (isinstance(given, list | tuple) and len(given) in (2, 3)):
            got = f"{len(given)} parts" if isinstance(given, list | tuple) else type(given).__name__
            raise WrongData(f"{where}: must be (x, y) or (x, y, lengths), got {got}")
        x, y, *lengths = map(torch.as_tensor, given)
        numbers = y.is_floating_point()
        x, y, lengths = x.float(), y.float() if numbers else y.long(), [n.long() for n in lengths]
        y = y.unsqueeze(1) if numbers and y.dim() == 1 else y
        if x.dim() != 3 or not x.numel():
            raise WrongData(f"{where}: inputs must be (N, T, F), got {tuple(x.shape)}")
        N, T, F = x.shape
        if not hasattr(self, "n_inputs"):
            if numbers == bool(self.n_classes):
                kind = "are numbers" if numbers else f"go up to {y.max()}; say how many classes"
                raise ValueError(f"n_classes={self.n_classes}: the targets of {where} {kind}")
            self.objective = Values() if numbers else Classes()
            self.every_step, self.n_outputs = y.dim() > 1 + numbers, self.n_classes or y.shape[-1]
            self.n_inputs, self.seq_len = F, self.given_len or T
        steps, dtype = (N, T) if self.every_step else (N,), self.objective.dtype
        want = [(N, T if lengths else self.seq_len, self.n_inputs)]
        want += [(*steps, *self.objective.target_shape(self.n_outputs)), *[(N,)] * len(lengths)]
        got = [tuple(part.shape) for part in (x, y, *lengths)]
        if got != want or y.dtype != dtype:
            needed = f"{want[0]}, {want[1]} of {dtype}, and lengths ({N},) if they differ"
            shapes = ", ".join(map(str, got))
            raise WrongData(f"{where}: must be {needed}, got {shapes} of {y.dtype}")
        known = y[~y.isnan()] if self.every_step else y
        if bad := sum(int((~part.isfinite()).sum()) for part in (x, known)):
            raise WrongData(f"{where}: {bad} values are NaN or infinite")
        ranges = [("lengths", n, 1, T) for n in lengths]
        ranges += [] if numbers else [("classes", y[y != NO_TARGET], 0, self.n_outputs - 1)]
        for name, part, low, high in ranges:
            if part.numel() and not low <= part.min() <= part.max() <= high:
                got = f"{part.min()} to {part.max()}"
                raise WrongData(f"{where}: {name} must be from {low} to {high}, got {got}")
        return x, y, *lengths

    def constant_of(self, y: Tensor) -> Tensor:
        """The best constant prediction of targets, `(O,)`."""
        if self.objective.numeric:
            return y.reshape(-1, self.n_outputs).nanmean(0)
        # one more of each class, since the logarithm of 0 would be an infinite loss
        counts = y[y != NO_TARGET].bincount(minlength=self.n_outputs) + 1
        return (counts / counts.sum()).log()

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        """The mean of the training targets, or how frequent each class is among them."""
        name = "always the mean" if self.objective.numeric else "class frequencies"
        return {name: self.constant.to(x.device).expand(*x.shape[: 1 + self.every_step], -1)}


class ArrayData(OwnData):
    """Arrays in memory, NumPy's or tensors: override `arrays`. Arguments as in `OwnData`."""

    fitted: dict[str, Any] | None = None  # see `ArrayFile`

    def arrays(self) -> dict[str, tuple]:
        """`(x, y)` or `(x, y, lengths)` of `train`, `val` and `test`."""
        raise NotImplementedError(f"{type(self).__name__} needs a method arrays()")

    def read(self) -> None:
        with seeded(self.seed, "data"):
            given = self.arrays()
        owner, new = getattr(self, "path", f"{type(self).__name__}.arrays"), self.fitted is None
        splits = SPLITS if new else ("test",)
        if missing := [split for split in splits if not given.get(split)]:
            raise ValueError(f"{owner}: has no {' and no '.join(missing)}")
        if not new:
            self.constant = self.fitted["constant"]
        targets = [torch.as_tensor(given[split][1]) for split in splits if len(given[split]) > 1]
        if not self.n_classes and not any(y.is_floating_point() for y in targets):
            self.n_classes = int(max(y.max() for y in targets)) + 1 if new else len(self.constant)
        self.parts = {split: self.take(given[split], f"{owner}: {split}") for split in splits}
        for split, (x, *_) in self.parts.items():
            least = self.batch_size if split == "train" else 2
            if new and len(x) < least:
                raise ValueError(f"{owner}: {split} has {len(x)} sequences, at least {least}")
        if new:
            self.constant = self.constant_of(self.parts["train"][1])
            self.n_train = len(self.parts["train"][1])

    def load(self, device: torch.device) -> dict[str, Split]:
        placed = {s: [part.to(device) for part in parts] for s, parts in self.parts.items()}
        return {s: Split(x, y, None, *lengths) for s, (x, y, *lengths) in placed.items()}

    @cached_property
    def digest(self) -> str:
        """Of every value, so that a run is not resumed on others."""
        found = blake2b(digest_size=16)
        for part in sum(self.parts.values(), ()):
            found.update(part.contiguous().numpy())
        return found.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        return {"digest": self.digest, "constant": self.constant}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.constant = state["constant"]


class ArrayFile(ArrayData):
    """The arrays of a file that `numpy.savez` wrote.

    Args:
        path: a .npz file with `train_x`, `train_y` and, of sequences of different lengths,
            `train_lengths`; the same of `val` and `test`.
        fitted: the `state_dict` of a run that is evaluated on the test split of another file.
        rest: as in `OwnData`.
    """

    def __init__(self, path: str, fitted: dict[str, Any] | None = None, **rest: Any):
        super().__init__(**rest)
        self.path, self.fitted = path, fitted

    def arrays(self) -> dict[str, tuple]:
        try:
            file = dict(np.load(self.path))
        except (OSError, ValueError, TypeError, EOFError, BadZipFile) as error:
            raise ValueError(f"path={self.path}: no .npz file of arrays of numbers") from error
        names = {s: [f"{s}_{part}" for part in ("x", "y", "lengths")] for s in SPLITS}
        return {s: tuple(file[name] for name in names[s] if name in file) for s in SPLITS}


class LoaderData(OwnData):
    """Batches from DataLoaders of your own, for what does not fit in memory: override `loader`.

    A batch is one optimiser step. What PyTorch's, NumPy's and Python's generator draw while a
    loader is read is a function of (seed, epoch), in evaluation of the seed alone.

    Args:
        batch_size: B, for `loader` to read.
        rest: `seed`, and `seq_len` and `n_classes` as in `OwnData`.
    """

    def __init__(self, batch_size: int, **rest: Any):
        super().__init__(batch_size=batch_size, accumulate=1, steps_per_call=1, **rest)
        self.loaders: dict[str, Iterable] = {}

    def loader(self, split: str) -> Iterable:
        """The DataLoader of `train`, `val` or `test`: batches `(x, y)` or `(x, y, lengths)`. It is
        asked for once and read from its beginning in every epoch."""
        raise NotImplementedError(f"{type(self).__name__} needs a method loader(split)")

    def read(self) -> None:
        self.device = torch.device("cpu")
        for split in SPLITS:
            with seeded(self.seed, "data"):
                found = self.loaders[split] = self.loader(split)
            if getattr(found, "num_workers", 0):
                found.worker_init_fn = partial(begin_worker, found.worker_init_fn)
        with seeded(self.seed, "data"):
            self.constant = self.constant_of(self.sample("train").y)
        self.batch_size = getattr(self.loaders["train"], "batch_size", None) or self.batch_size
        self.n_train = self.batch_size * len(self.whole("train"))

    def sample(self, split: str) -> Split:
        """The first batches of a split, with 1,000 sequences or all."""
        batches, n = [], 0
        for batch in self.whole(split):
            batches.append(batch)
            n += len(batch[0])
            if n >= 1000:
                break
        if not batches:
            raise ValueError(f"{type(self).__name__}: the loader of {split} has no batch")
        fills = 0, torch.nan if self.objective.numeric else NO_TARGET, 0
        x, y, *lengths = map(joined, zip(*batches, strict=True), fills)
        return Split(x, y, None, *lengths)

    def load(self, device: torch.device) -> dict[str, Split]:
        """Some sequences of validation and test, for pictures and intervals. `whole` reads all."""
        self.device = device
        return {split: self.sample(split) for split in SPLITS[1:]}

    def place(self, batch: Any, where: str) -> Batch:
        """What a loader gave, checked and on the device."""
        return tuple(part.to(self.device) for part in self.take(batch, where))

    def train_dataloader(self) -> "Batches":
        return Batches(self, "train", self.first)

    def whole(self, split: str) -> "Batches":
        return Batches(self, split)

    share = whole  # in the only process


class Batches:
    """Iterates over a loader's batches, of the training from the epoch and batch `first` on. To go
    on within an epoch, the batches before are read and dropped."""

    def __init__(self, data: LoaderData, split: str, first: tuple[int, int] = (0, 0)):
        self.data, self.split, self.first, self.epoch = data, split, first, first[0]
        if split == "train":  # evaluation is the same in each epoch
            self.sampler = self  # Lightning calls `sampler.set_epoch`, as for PyTorch's samplers

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.data.loaders[self.split])

    def __iter__(self) -> Iterator[Batch]:
        data, loader = self.data, self.data.loaders[self.split]
        key = data.seed, "order" if self.split == "train" else self.split, self.epoch
        skip = self.first[1] if self.epoch == self.first[0] else 0
        for owner in loader, getattr(loader, "sampler", None):
            if isinstance(own := getattr(owner, "generator", None), torch.Generator):
                own.manual_seed(seed_of(*key))
        seed_all(*key)
        for number, batch in enumerate(loader):
            if number >= skip:
                yield data.place(batch, f"batch {number + 1} of {self.split}")
            seed_all(*key, number)  # between two batches the network may have drawn


def joined(parts: Sequence[Tensor], fill: float) -> Tensor:
    """Sequences of several batches, filled at their ends to the same number of steps."""
    if len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(parts)
    rows = [row for part in parts for row in part]
    return pad_sequence(rows, batch_first=True, padding_value=fill)


class ModuleData(LoaderData):
    """The loaders of a LightningDataModule as it is.

    Args:
        module: its `prepare_data`, `setup` and loaders are used as Lightning does. It has no
            trainer, and its `teardown` is not called, since its loaders are read after the run.
        rest: `seed`, also of what its `setup` draws, and `seq_len` and `n_classes`.
    """

    def __init__(self, module: L.LightningDataModule, **rest: int | None):
        super().__init__(batch_size=1, **rest)
        self.module = module

    def loader(self, split: str) -> Iterable:
        module = self.module
        if split == "train":
            module.prepare_data()
        if split != "val":
            module.setup("fit" if split == "train" else "test")
        loaders = module.train_dataloader, module.val_dataloader, module.test_dataloader
        return dict(zip(SPLITS, loaders, strict=True))[split]()

    def place(self, batch: Any, where: str) -> Batch:
        batch = self.module.on_before_batch_transfer(batch, 0)
        batch = self.module.transfer_batch_to_device(batch, self.device, 0)
        return self.take(self.module.on_after_batch_transfer(batch, 0), where)


def begin_worker(init: Callable[[int], None] | None, number: int) -> None:
    """Have a DataLoader's worker ignore the signals that ask all processes of a run to end: the
    first process still needs it until it has saved. Then call the loader's own `worker_init_fn`."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):  # Windows has two of them
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if init:
        init(number)


def seed_all(*key: int | str) -> None:
    """Make what PyTorch's, NumPy's and Python's own generator draw next a function of a key."""
    seed = seed_of(*key)
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Draw from a key inside; outside nothing was drawn."""
    with isolate_rng():
        seed_all(*key)
        yield
