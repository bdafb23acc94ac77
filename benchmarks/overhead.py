"""What the template costs: training steps per second beside three other ways to train.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --device cuda

The same network, data, batch size, Adam settings and clipping for each contender:

    ours  a run of this template: metrics, TensorBoard, checkpoints and progress bar on
    (a)   a hand-written PyTorch loop over a DataLoader
    (b)   a typical LightningModule: metrics and loss logged each step, the default progress bar
    (c)   the bare limit: one shuffled gather an epoch, slices, fused Adam, foreach clipping
    (d)   on a GPU the raw replay: the steps of a call as one CUDA graph, without new batches

How it is measured stands in README.md beside this file. Letters: B batch, T time steps, F input
features, H hidden units a layer.
"""

import argparse
import io
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanAbsoluteError, MeanSquaredError, R2Score

from seqlab.engine.build import build
from seqlab.engine.construct import construct
from seqlab.engine.context import RunContext
from seqlab.tasks import Task

CONF = Path(__file__).resolve().parent.parent / "conf"

#: What each size overrides in the default config. Each n_train is a whole number of batches, so
#: that no contender has a smaller last one.
SIZES = {
    "reference": ["experiment=reference", "data.n_train=2050"],
    "medium": ["data.seq_len=20", "model.n_hidden=64", "data.n_train=2048", "data.n_val=512"],
    "large": ["data.batch_size=128", "data.seq_len=100", "model.n_hidden=256"],
}

#: The same on a CPU alone, where one step of the large size takes seconds.
FEWER_ON_CPU = {"large": ["data.n_train=512", "data.n_val=64"]}

#: What a GPU is given instead: epochs of whole calls, and more steps in one where they are short.
#: `dropout` and `bf16` are for a GPU alone.
ON_CUDA = {
    "reference": [
        *SIZES["reference"],
        *("data.n_train=3200", "model.dropout=0", "data.steps_per_call=64"),
    ],
    "medium": [*SIZES["medium"], "data.n_train=8192"],
    "large": SIZES["large"],
    "dropout": [*SIZES["medium"], "model.dropout=0.3", "data.n_train=8192"],
    "bf16": [
        *("data.batch_size=256", "data.seq_len=512", "model.n_hidden=1024", "data.n_train=12288"),
        "trainer.precision=bf16-true",
    ],
}

OURS = "ours"
WHOLE = "ours, whole epochs"
#: Timed epochs of each contender where not given.
ROUNDS = {"cpu": 21, "cuda": 3}


class Terminal(io.TextIOWrapper):
    """A terminal that nobody reads: progress bars draw on it as on a real one."""

    def __init__(self):
        super().__init__(io.BufferedWriter(io.FileIO(os.devnull, "w")))

    def isatty(self) -> bool:
        return True


class Turns:
    """One contender's side of the rounds: it waits for its turn before each epoch and tells, when
    it comes back for the next, how that went. The first epoch is the warm-up.

    Args:
        device: whose work is waited for before a clock is read.
        pipe: to the process that gives out the turns.
    """

    def __init__(self, device: str, pipe: Connection):
        self.device, self.pipe = device, pipe
        self.begin, self.seconds, self.steps = 0.0, 0.0, 0

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def over(self) -> None:
        """Tell the last epoch's optimiser steps a second, and those with all that followed its
        training part; nothing before the first."""
        whole = self.now() - self.begin
        self.pipe.send((self.steps / self.seconds, self.steps / whole) if self.steps else None)

    def start(self) -> None:
        """The point before an epoch: wait for the turn."""
        self.over()
        self.pipe.recv()
        self.begin = self.now()

    def stop(self, steps: int) -> None:
        """The training part of an epoch of `steps` optimiser steps is done."""
        self.seconds, self.steps = self.now() - self.begin, steps


class EpochTimer(Callback):
    """Takes turns around the training part of each epoch of a Lightning run: from the epoch's
    start until the last batch is done, its progress bar and logging included; validation,
    pictures and checkpoints come after that."""

    def __init__(self, turns: Turns):
        self.turns = turns

    def on_train_epoch_start(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        self.turns.start()
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.is_last_batch:
            self.turns.stop(trainer.global_step - self.step)


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
    n_replayed: int  # optimiser steps in a graph
    device: str
    folder: str
    turns: Turns

    @property
    def steps(self) -> int:
        """Optimiser steps in an epoch."""
        return len(self.x) // self.batch_size


def hand_written(job: Job) -> None:
    """(a) What one types without a framework."""
    network = job.network.to(job.device)
    loader = DataLoader(TensorDataset(job.x, job.y), batch_size=job.batch_size, shuffle=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=job.lr)
    for _ in range(job.epochs):
        job.turns.start()
        for x, y in loader:
            x, y = x.to(job.device), y.to(job.device)
            optimizer.zero_grad()
            prediction, _ = network(x)
            loss = mse_loss(prediction, y)
            loss.backward()
            clip_grad_norm_(network.parameters(), job.clip)
            optimizer.step()
        job.turns.stop(len(loader))


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


def typical_lightning(job: Job) -> None:
    """(b) That module with what usually surrounds it."""
    trainer = L.Trainer(
        accelerator="gpu" if job.device == "cuda" else "cpu",
        devices=1,
        max_epochs=job.epochs,
        gradient_clip_val=job.clip,
        logger=TensorBoardLogger(job.folder),
        callbacks=[TQDMProgressBar(), ModelCheckpoint(), EpochTimer(job.turns)],
    )
    loader = DataLoader(TensorDataset(job.x, job.y), batch_size=job.batch_size, shuffle=True)
    trainer.fit(TypicalModule(job.network, job.lr), loader)


def bare(job: Job) -> None:
    """(c) The least that trains this network; no framework can be faster than this."""
    network, x, y = job.network.to(job.device), job.x.to(job.device), job.y.to(job.device)
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=job.lr, fused=True)
    for _ in range(job.epochs):
        job.turns.start()
        order = torch.randperm(len(x), device=job.device)
        x_batches, y_batches = (part[order].split(job.batch_size) for part in (x, y))
        for x_batch, y_batch in zip(x_batches, y_batches, strict=True):
            mse_loss(network(x_batch)[0], y_batch).backward()
            clip_grad_norm_(parameters, job.clip, foreach=True)
            optimizer.step()
            optimizer.zero_grad()
        job.turns.stop(job.steps)


def replay(job: Job) -> None:
    """(d) The limit of a GPU: a graph of some steps, each with a batch of its own, is replayed."""
    network, n = job.network.to(job.device), job.n_replayed * job.batch_size
    x_batches, y_batches = (
        part[:n].to(job.device).split(job.batch_size) for part in (job.x, job.y)
    )
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=job.lr, fused=True, capturable=True)

    def take_steps() -> None:
        for x_batch, y_batch in zip(x_batches, y_batches, strict=True):
            mse_loss(network(x_batch)[0], y_batch).backward()
            clip_grad_norm_(parameters, job.clip, foreach=True)
            optimizer.step()
            optimizer.zero_grad()

    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):  # libraries set themselves up, outside a graph
        take_steps()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        take_steps()
    n_calls = job.steps // job.n_replayed
    for _ in range(job.epochs):
        job.turns.start()
        for _ in range(n_calls):
            graph.replay()
        job.turns.stop(n_calls * job.n_replayed)


OTHERS: dict[str, Callable[[Job], None]] = {
    "(a) PyTorch loop": hand_written,
    "(b) Lightning": typical_lightning,
    "(c) bare limit": bare,
    "(d) raw replay": replay,
}


def contenders(size: str, device: str) -> list[str]:
    """Who takes part: the replay on a GPU alone; at `bf16` it, the bare limit and ours."""
    others = list(OTHERS) if device == "cuda" else list(OTHERS)[:3]
    return [OURS, *(others[2:] if size == "bf16" else others)]


def config(size: str, device: str, epochs: int, precision: str = "32-true") -> DictConfig:
    """The config of `python train.py` with this size's overrides."""
    overrides = [f"trainer.precision={precision}", f"trainer.max_epochs={epochs}"]
    overrides += ["callbacks.early_stopping=null"]
    if device == "cuda":
        overrides += ["trainer=gpu", *ON_CUDA[size]]
    else:
        overrides += [*SIZES[size], *FEWER_ON_CPU.get(size, [])]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides)


def contend(name: str, cfg: DictConfig, device: str, pipe: Connection) -> None:
    """One contender's process: train, an epoch a turn."""
    torch.set_num_threads(1)
    turns = Turns(device, pipe)
    with (
        tempfile.TemporaryDirectory() as folder,
        Terminal() as terminal,
        redirect_stdout(terminal),
        redirect_stderr(terminal),
    ):
        run = build(cfg, RunContext(Path(folder), []))
        if name == OURS:  # what `train` adds around this is done once a run
            run.trainer.callbacks.append(EpochTimer(turns))
            run.trainer.fit(run.learner, run.data)
            if reason := getattr(run.learner.steps, "why_not", None):  # not in the terminal
                print(f"{name}: no CUDA graph: {reason}", file=sys.__stderr__)
        else:  # the same initial weights and the same sequences
            pair = run.data.load(torch.device("cpu"))["train"][:]
            job = Job(
                run.learner.network,
                *(part.to(run.learner.dtype) for part in pair),
                batch_size=cfg.data.batch_size,
                lr=cfg.optim.lr,
                clip=cfg.optim.clip,
                epochs=cfg.trainer.max_epochs,
                n_replayed=cfg.data.steps_per_call,
                device=device,
                folder=folder,
                turns=turns,
            )
            OTHERS[name](job)
        turns.over()


def measure_rounds(
    size: str, device: str, rounds: int, precision: str = "32-true"
) -> list[dict[str, float]]:
    """Steps a second by contender for each round, in which each trains one epoch while the others
    wait; each round begins with the next one. The precision is ours; the others stay at float32,
    at `bf16` all have that.

    Raises:
        EOFError: a contender has failed.
    """
    # what one sets for its process is not to help or hinder another; CUDA does not outlive a fork
    processes = multiprocessing.get_context("spawn" if device == "cuda" else "fork")
    names, pipes, started, results = contenders(size, device), {}, [], []
    try:
        for name in names:
            cfg = config(size, device, rounds + 1, precision if name == OURS else "32-true")
            pipes[name], theirs = processes.Pipe()
            arguments = name, cfg, device, theirs
            started.append(processes.Process(target=contend, args=arguments, daemon=True))
            started[-1].start()
            theirs.close()  # so that a contender that fails is noticed
        for name in names:
            pipes[name].recv()
        for number in range(rounds + 1):
            first, rates = number % len(names), {}
            for name in names[first:] + names[:first]:
                pipes[name].send("your turn")
                rates[name], whole = pipes[name].recv()
                if name == OURS:
                    rates[WHOLE] = whole
            if number:  # the first is the warm-up
                results.append(rates)
                line = ", ".join(f"{name} {rate:.4g}" for name, rate in rates.items())
                print(f"{size} round {number}/{rounds}: {line}", file=sys.stderr)
        for process in started:
            process.join(30)
    finally:  # SIGTERM, which a daemon gets otherwise, is to a run a wish that it stop, no more
        for process in started:
            process.kill()
            process.join()
    return results


def letters(size: str, device: str) -> str:
    """A size's name and its numbers."""
    cfg = config(size, device, 1)
    task = OmegaConf.to_container(cfg.data.task, resolve=True)
    F = construct(task, (Task,), "data.task", None).n_inputs
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
    measured = {name for rounds in results.values() for name in rounds[0]}
    others = [name for name in OTHERS if name in measured]
    names = [OURS, *others, WHOLE]

    def cell(rounds: list[dict[str, float]], name: str, form: str, ratio: bool = False) -> str:
        if name not in rounds[0]:
            return ""
        return spread([r[OURS] / r[name] if ratio else r[name] for r in rounds], form)

    rates = [
        [size, *(cell(rounds, name, rate_format(rounds)) for name in names)]
        for size, rounds in results.items()
    ]
    ratios = [
        [size, *(cell(rounds, name, ".2f", ratio=True) for name in others)]
        for size, rounds in results.items()
    ]
    return "\n\n".join(
        [
            "Optimiser steps per second, median (min-max):",
            table(["size", *names], rates),
            "Ours as a multiple of each, median of the rounds' ratios (min-max):",
            table(["size", *(f"ours / {name}" for name in others)], ratios),
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
    parser.add_argument("--rounds", type=int, help="epochs of each contender (21; on a GPU 5)")
    parser.add_argument("--size", action="append", choices=ON_CUDA, help="repeatable; default all")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", default="32-true", help="of ours alone (32-true)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures")
    parser.add_argument("--quick", action="store_true", help="one round of one timed epoch")
    args = parser.parse_args()
    known = ON_CUDA if args.device == "cuda" else SIZES
    rounds = ROUNDS[args.device] if args.rounds is None else args.rounds
    rounds = 1 if args.quick else rounds
    if rounds < 1:
        parser.error(f"--rounds {rounds}: at least 1")
    if unknown := set(args.size or ()) - set(known):
        parser.error(f"--size {unknown.pop()}: with --device cuda alone")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")

    os.environ["TERM"] = "xterm-256color"  # a dumb terminal would get no bar
    torch.set_num_threads(1)
    info = machine(args.device) | {"rounds": rounds, "precision of ours": args.precision}
    results, failed = {}, []
    for size in args.size or known:
        try:
            found = measure_rounds(size, args.device, rounds, args.precision)
            results[letters(size, args.device)] = found
        except EOFError:  # its own error stands above this line
            failed.append(size)
            print(f"{size}: a contender failed, and the size is left out", file=sys.stderr)
        except KeyboardInterrupt:  # what was measured before is worth having
            failed.append(size)
            break
    if results:
        print(heading("Overhead", **info), report(results), sep="\n\n")
    if args.json:
        args.json.write_text(json.dumps({"machine": info, "rates": results}, indent=2) + "\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
