"""What the template costs: training steps per second beside three other ways to train.

    python benchmarks/overhead.py

The same network, data, batch size, Adam settings and clipping for each contender:

    ours  a run of this template: metrics, TensorBoard, checkpoints and progress bar on
    (a)   a hand-written PyTorch loop over a DataLoader
    (b)   a typical LightningModule: metrics and loss logged each step, the default progress bar
    (c)   the bare limit: one shuffled gather an epoch, slices, fused Adam, foreach clipping

How it is measured stands in README.md beside this file. Letters: B batch, T time steps, F input
features, H hidden units a layer.
"""

import argparse
import gc
import io
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanAbsoluteError, MeanSquaredError, R2Score

from seqlab.training import build

CONF = Path(__file__).resolve().parent.parent / "conf"

#: What each size overrides in the default config. Each n_train is a whole number of batches, so
#: that no contender has a smaller last one.
SIZES = {
    "reference": ["experiment=reference", "data.n_train=8190"],
    "medium": ["data.seq_len=20", "model.n_hidden=64", "data.n_train=2048", "data.n_val=512"],
    "large": ["data.batch_size=128", "data.seq_len=100", "model.n_hidden=256"],
}

#: The same on a CPU alone, where one step of the large size takes seconds.
FEWER_ON_CPU = {"large": ["data.n_train=512", "data.n_val=64"]}

#: Epochs that are timed, after one that is not.
EPOCHS = {"reference": 1, "medium": 5, "large": 1}

OURS = "ours"
WHOLE = "ours, whole epochs"


class Terminal(io.TextIOWrapper):
    """A terminal that nobody reads: progress bars draw on it as on a real one."""

    def __init__(self):
        super().__init__(io.BufferedWriter(io.FileIO(os.devnull, "w")))

    def isatty(self) -> bool:
        return True


class Stopwatch:
    """Steps and seconds of each epoch's training part; the first epoch is the warm-up."""

    def __init__(self, device: str):
        self.device = device
        self.laps: list[tuple[int, float]] = []

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def lap(self, steps: int) -> Iterator[None]:
        """Time an epoch of `steps` optimiser steps."""
        start = self.now()
        yield
        self.laps.append((steps, self.now() - start))

    @property
    def rate(self) -> float:
        """Optimiser steps a second over all epochs but the first."""
        steps, seconds = zip(*self.laps[1:], strict=True)
        return sum(steps) / sum(seconds)


class EpochTimer(Callback):
    """Reads the stopwatch around the training part of each epoch of a Lightning run: from the
    epoch's start until the last batch is done, its progress bar and logging included; validation,
    pictures and checkpoints come after that. `whole` counts those too."""

    def __init__(self, watch: Stopwatch):
        self.watch = watch
        self.starts: list[tuple[int, float]] = []
        self.whole = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        self.starts.append((trainer.global_step, self.watch.now()))

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.is_last_batch:
            step, start = self.starts[-1]
            self.watch.laps.append((trainer.global_step - step, self.watch.now() - start))

    def on_train_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        step, start = self.starts[1]
        self.whole = (trainer.global_step - step) / (self.watch.now() - start)


@dataclass
class Job:
    """What every contender is given: an untrained network, the data and the settings."""

    network: nn.Module
    x: Tensor
    y: Tensor
    batch_size: int
    lr: float
    clip: float
    epochs: int
    device: str
    folder: str

    @property
    def steps(self) -> int:
        """Optimiser steps in an epoch."""
        return len(self.x) // self.batch_size


def ours(cfg: DictConfig, device: str, folder: str) -> dict[str, float]:
    """The template as a user runs it. What `train` adds around this is done once a run."""
    run = build(cfg, Path(folder))
    timer = EpochTimer(Stopwatch(device))
    run.trainer.callbacks.append(timer)
    run.trainer.fit(run.learner, run.data)
    assert len(timer.watch.laps) == cfg.trainer.max_epochs, "stopped early"
    return {OURS: timer.watch.rate, WHOLE: timer.whole}


def hand_written(job: Job) -> float:
    """(a) What one types without a framework."""
    watch = Stopwatch(job.device)
    network = job.network.to(job.device)
    loader = DataLoader(TensorDataset(job.x, job.y), batch_size=job.batch_size, shuffle=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=job.lr)
    for _ in range(job.epochs):
        with watch.lap(len(loader)):
            for x, y in loader:
                x, y = x.to(job.device), y.to(job.device)
                optimizer.zero_grad()
                prediction, _ = network(x)
                loss = mse_loss(prediction, y)
                loss.backward()
                clip_grad_norm_(network.parameters(), job.clip)
                optimizer.step()
    return watch.rate


class TypicalModule(L.LightningModule):
    """(b) The LightningModule of most templates: each step logs the loss and metric objects."""

    def __init__(self, network: nn.Module, lr: float):
        super().__init__()
        self.network, self.lr = network, lr
        self.mse, self.mae, self.r2 = MeanSquaredError(), MeanAbsoluteError(), R2Score()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        prediction, _ = self.network(x)
        loss = mse_loss(prediction, y)
        self.log("train/loss", loss, prog_bar=True)
        for name, metric in {"mse": self.mse, "mae": self.mae, "r2": self.r2}.items():
            metric(prediction, y)
            self.log(f"train/{name}", metric, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def typical_lightning(job: Job) -> float:
    """(b) That module with what usually surrounds it."""
    timer = EpochTimer(Stopwatch(job.device))
    trainer = L.Trainer(
        accelerator="gpu" if job.device == "cuda" else "cpu",
        devices=1,
        max_epochs=job.epochs,
        gradient_clip_val=job.clip,
        logger=TensorBoardLogger(job.folder),
        callbacks=[TQDMProgressBar(), ModelCheckpoint(), timer],
    )
    loader = DataLoader(TensorDataset(job.x, job.y), batch_size=job.batch_size, shuffle=True)
    trainer.fit(TypicalModule(job.network, job.lr), loader)
    return timer.watch.rate


def bare(job: Job) -> float:
    """(c) The least that trains this network; no framework can be faster than this."""
    watch = Stopwatch(job.device)
    network, x, y = job.network.to(job.device), job.x.to(job.device), job.y.to(job.device)
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=job.lr, fused=True)
    for _ in range(job.epochs):
        with watch.lap(job.steps):
            order = torch.randperm(len(x), device=job.device)
            x_batches, y_batches = (part[order].split(job.batch_size) for part in (x, y))
            for x_batch, y_batch in zip(x_batches, y_batches, strict=True):
                mse_loss(network(x_batch)[0], y_batch).backward()
                clip_grad_norm_(parameters, job.clip, foreach=True)
                optimizer.step()
                optimizer.zero_grad()
    return watch.rate


OTHERS: dict[str, Callable[[Job], float]] = {
    "(a) PyTorch loop": hand_written,
    "(b) Lightning": typical_lightning,
    "(c) bare limit": bare,
}


def config(size: str, device: str, epochs: int, precision: str = "32-true") -> DictConfig:
    """The config of `python train.py` with this size's overrides."""
    overrides = [*SIZES[size], f"trainer.max_epochs={epochs + 1}"]
    overrides += ["trainer=gpu"] if device == "cuda" else FEWER_ON_CPU.get(size, [])
    overrides += [f"trainer.precision={precision}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides)


def measure(
    name: str, size: str, device: str, epochs: int, precision: str = "32-true"
) -> dict[str, float]:
    """Run one contender once: steps a second by name. The precision is ours; the others stay at
    float32."""
    gc.collect()
    cfg = config(size, device, epochs, precision if name == OURS else "32-true")
    with (
        tempfile.TemporaryDirectory() as folder,
        Terminal() as terminal,
        redirect_stdout(terminal),
        redirect_stderr(terminal),
    ):
        if name == OURS:
            return ours(cfg, device, folder)
        run = build(cfg, Path(folder))  # the same initial weights and the same sequences
        job = Job(
            run.learner.network,
            *run.data.load(torch.device("cpu"))["train"][:],
            batch_size=cfg.data.batch_size,
            lr=cfg.optim.lr,
            clip=cfg.optim.clip,
            epochs=cfg.trainer.max_epochs,
            device=device,
            folder=folder,
        )
        return {name: OTHERS[name](job)}


def measure_rounds(
    size: str, device: str, rounds: int, epochs: int, precision: str = "32-true"
) -> list[dict[str, float]]:
    """Run every contender once a round, each round beginning with the next one."""
    names = [OURS, *OTHERS]
    results = []
    # what one sets for its process is not to help or hinder another; CUDA does not outlive a fork
    processes = multiprocessing.get_context("spawn" if device == "cuda" else "fork")
    for number in range(rounds):
        first = number % len(names)
        rates: dict[str, float] = {}
        for name in names[first:] + names[:first]:
            with processes.Pool(1) as child:
                rates |= child.apply(measure, (name, size, device, epochs, precision))
        results.append(rates)
        line = ", ".join(f"{name} {rate:.4g}" for name, rate in rates.items())
        print(f"{size} round {number + 1}/{rounds}: {line}", file=sys.stderr)
    return results


def letters(size: str, device: str) -> str:
    """A size's name and its numbers."""
    cfg = config(size, device, 1)
    F = instantiate(cfg.data.task).n_inputs
    return f"{size}: B={cfg.data.batch_size} T={cfg.data.seq_len} F={F} H={cfg.model.n_hidden}"


def spread(values: list[float], form: str) -> str:
    """`median (min-max)`."""
    low, mid, high = (format(v, form) for v in (min(values), median(values), max(values)))
    return f"{mid} ({low}-{high})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A markdown table, numbers on the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(results: dict[str, list[dict[str, float]]]) -> str:
    """Steps a second, and ours against each other contender, as markdown.

    A ratio is taken within each round: what else the machine did then slowed both sides.
    """
    names = [OURS, *OTHERS, WHOLE]
    rates = [
        [size, *(spread([r[name] for r in rounds], rate_format(rounds)) for name in names)]
        for size, rounds in results.items()
    ]
    ratios = [
        [size, *(spread([r[OURS] / r[name] for r in rounds], ".2f") for name in OTHERS)]
        for size, rounds in results.items()
    ]
    return "\n\n".join(
        [
            "Optimiser steps per second, median (min-max):",
            table(["size", *names], rates),
            "Ours as a multiple of each, median of the rounds' ratios (min-max):",
            table(["size", *(f"ours / {name}" for name in OTHERS)], ratios),
        ]
    )


def rate_format(rounds: list[dict[str, float]]) -> str:
    """Whole steps a second, or hundredths where they are few."""
    return ".0f" if rounds[0][OURS] >= 100 else ".2f"


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    info = {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": L.__version__,
        "date": date.today().isoformat(),
    }
    if hasattr(os, "getloadavg"):  # not on Windows
        info["load average at the start"] = round(os.getloadavg()[0], 2)
    if device == "cuda":
        info["gpu"] = torch.cuda.get_device_name()
    return info


def heading(title: str, **facts: Any) -> str:
    """The head of a script's part of figures.md: what the figures depend on."""
    return f"## {title}\n\n{', '.join(f'{key} {value}' for key, value in facts.items())}"


def cpu_model() -> str:
    """The processor's name where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="runs of each contender (7)")
    parser.add_argument("--size", action="append", choices=SIZES, help="repeatable; default all")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", default="32-true", help="of ours alone (32-true)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures")
    parser.add_argument("--quick", action="store_true", help="one round of one timed epoch")
    args = parser.parse_args()
    rounds = 1 if args.quick else args.rounds
    if rounds < 1:
        parser.error(f"--rounds {rounds}: at least 1")

    os.environ["TERM"] = "xterm-256color"  # a dumb terminal would get no bar
    torch.set_num_threads(1)
    info = machine(args.device) | {"rounds": rounds, "precision of ours": args.precision}
    results = {}
    for size in args.size or SIZES:
        epochs = 1 if args.quick else EPOCHS[size]
        results[letters(size, args.device)] = measure_rounds(
            size, args.device, rounds, epochs, args.precision
        )
    print(heading("Overhead", **info), report(results), sep="\n\n")
    if args.json:
        args.json.write_text(json.dumps({"machine": info, "rates": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
