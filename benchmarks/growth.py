"""How the cost of a training step grows with the sizes, and memory with the steps.

    python benchmarks/growth.py [--rounds 5]

One size at a time grows, the others stay as `python train.py` has them, save where `PANELS` says
otherwise. A figure is the least CPU time of a call of the training step, of all calls in all
rounds, for each of its optimiser steps: fetching, metrics, logging and the progress bar count,
starting, validation and the shuffle, once an epoch, do not. Slopes are those of log-log lines
fitted to the upper half of the sizes. Memory is what is resident in a run at the reference sizes,
its validations, pictures and checkpoints included; it is looked up on Linux only.

Prints tables, and draws docs/growth.png. Letters: B batch, T time steps, H hidden units a layer,
N sequences in the training set.
"""

import argparse
import gc
import os
import tempfile
import time
from collections import defaultdict
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from overhead import CONF, Terminal, heading, machine, table

from seqlab.engine.build import build
from seqlab.engine.context import RunContext

#: Optimiser steps, and CPU seconds, after which a point is measured.
STEPS, SECONDS = 96, 0.5

#: More than 10,000 steps, in epochs.
LONG = ["experiment=reference", "data.n_train=8190", "trainer.max_epochs=13"]

#: By how much a slope between two neighbours may exceed the arithmetic's before it is told of.
LEEWAY = 0.3


@dataclass
class Panel:
    """A size that grows.

    name: what it is.
    key: what sets it, with which others.
    sizes: its values.
    slope: the exponent of the arithmetic: the multiplications of a step grow with size**slope.
    """

    name: str
    key: str
    others: list[str]
    sizes: list[int]
    slope: int


PANELS = [
    Panel("T, time steps", "data.seq_len", [], [3, 10, 30, 100, 300, 1000], 1),
    # a short window, so that the widest network takes no minute
    Panel(
        "H, hidden units",
        "model.n_hidden",
        ["data.seq_len=8"],
        [4, 8, 16, 32, 64, 128, 256, 512],
        2,
    ),
    Panel("B, batch size", "data.batch_size", [], [1, 4, 16, 64, 256, 1024], 1),
    # a short window again: ten million of them fill 160 MB
    Panel("N, sequences", "data.n_train", ["data.seq_len=3"], [10**n for n in (3, 4, 5, 6, 7)], 0),
]


class CallTimer(Callback):
    """CPU seconds a step of each call; ends the run when there are enough."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if not self.seconds:  # the shuffle is done, once an epoch
            self.start = self.last = time.process_time()
            self.step = 0

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        now, step = time.process_time(), trainer.global_step
        self.seconds.append((now - self.last) / (step - self.step))
        trainer.should_stop = step >= STEPS or now - self.start > SECONDS
        self.last, self.step = now, step


class Resident(Callback):
    """Resident memory in MB after each thousand steps, by step."""

    def __init__(self):
        self.megabytes: dict[int, float] = {}

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        thousands = trainer.global_step // 1000 * 1000
        if thousands and thousands not in self.megabytes:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.megabytes[thousands] = pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def fit(overrides: list[str], callback: Callback) -> None:
    """A run of the template with one callback more."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["callbacks.early_stopping=null", *overrides])
    gc.collect()
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(Terminal()):
        run = build(cfg, RunContext(Path(folder), []))
        run.trainer.callbacks.append(callback)
        run.trainer.fit(run.learner, run.data)


def seconds_a_step(panel: Panel, size: int) -> float:
    """One run at one size."""
    B = size if panel.key == "data.batch_size" else 32
    sizes = [f"data.n_train={B * STEPS}", "data.n_val=2", "data.n_test=2", *panel.others]
    timer = CallTimer()
    fit([*sizes, "callbacks.pictures=null", f"{panel.key}={size}"], timer)
    return min(timer.seconds)


def slope(sizes: list[int], seconds: list[float]) -> float:
    """The exponent of a power law through the points."""
    return np.polyfit(np.log(sizes), np.log(seconds), 1)[0]


def upper(values: list) -> list:
    """The upper half of the sizes, or what belongs to them."""
    return values[len(values) // 2 :]


def draw(found: list[list[float]]) -> Figure:
    """A panel for each size that grows."""
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for axes, panel, seconds in zip(figure.subplots(1, 4), PANELS, found, strict=True):
        sizes, ms = np.array(panel.sizes), np.array(seconds) * 1e3
        fitted = slope(upper(panel.sizes), upper(seconds))
        axes.loglog(sizes, ms, "o-", label=f"slope {fitted:.2f} above {upper(panel.sizes)[0]:,}")
        reference = ms[-1] * (sizes / sizes[-1]) ** panel.slope
        shown = reference >= ms.min() / 2  # further down it would only squeeze the points
        axes.loglog(sizes[shown], reference[shown], "k:", label=f"arithmetic {panel.slope}")
        axes.set_ylim(ms.min() / 2, ms.max() * 4)
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(panel.name)
        axes.legend(loc="upper left", frameon=False)
    figure.axes[0].set_ylabel("CPU ms a training step")
    return figure


def report(found: list[list[float]]) -> str:
    """The figures as a table, and any step that is steeper than the arithmetic."""
    rows, steep = [], []
    for panel, seconds in zip(PANELS, found, strict=True):
        fitted = slope(upper(panel.sizes), upper(seconds))
        cells = [
            " ".join(f"{size:,}" for size in panel.sizes),
            " ".join(f"{1e3 * s:.3g}" for s in seconds),
        ]
        rows.append([panel.name, *cells, f"{fitted:.2f}", str(panel.slope)])
        for i in range(len(seconds) - 1):
            local = slope(panel.sizes[i : i + 2], seconds[i : i + 2])
            if local > panel.slope + LEEWAY:
                a, b = panel.sizes[i : i + 2]
                steep.append(
                    f"steeper than the arithmetic: {panel.name} {a:,} to {b:,}, {local:.2f}"
                )
    head = ["grows", "sizes", "CPU ms a step", "slope of the upper half", "arithmetic"]
    return "\n".join([table(head, rows), "", *steep])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="runs of each size (3)")
    rounds = parser.parse_args().rounds
    os.environ["TERM"] = "xterm-256color"  # a dumb terminal would get no bar
    info = machine("cpu") | {"rounds": rounds}

    memory = {}
    if Path("/proc/self/statm").exists():  # before anything else has filled this process
        for name, more in {"no pictures": ["callbacks.pictures=null"], "as it comes": []}.items():
            resident = Resident()
            fit([*LONG, *more], resident)
            memory[name] = resident.megabytes
    least: dict[tuple[str, int], float] = defaultdict(lambda: np.inf)
    for _ in range(rounds):
        for panel in PANELS:
            for size in panel.sizes:
                key = panel.name, size
                least[key] = min(least[key], seconds_a_step(panel, size))
    found = [[least[panel.name, size] for size in panel.sizes] for panel in PANELS]

    draw(found).savefig(CONF.parent / "docs" / "growth.png", dpi=100)
    print(heading("Growth", **info), report(found), sep="\n\n")
    if memory:
        rows = [
            [name, *(f"{mb:.1f}" for mb in by_step.values())] for name, by_step in memory.items()
        ]
        print()
        print(table(["MB resident after step", *map(str, resident.megabytes)], rows))


if __name__ == "__main__":
    main()
