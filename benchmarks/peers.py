"""Training steps per second beside darts' RNNModel and neuralforecast's LSTM.

    make bench, or python benchmarks/peers.py [--runs 5] [--size medium] [--json FILE]

The same series (Mackey-Glass under noise), the same training rows, standardised, T values in a
window, an LSTM of two layers of H units and a linear head, B windows a step, Adam at 1e-3 on the
MSE, the same number of steps, one intra-op thread, each contender's own progress bar and logging.
The peers live in .venv-peers, with the versions of peers.txt.

Each contender is a process, and they take turns of an epoch, the first of which is the warm-up:
whole trainings one after the other were a quarter of a minute apart. `training` leaves out what an
epoch is followed by (of ours validation, pictures, checkpoints; of darts next to nothing), `whole`
has it. To neuralforecast an epoch is one step, so there the two are one. The error is the RMSE of
one-step forecasts on the test rows, after the last step, in the series' units.

What is not alike, each time in a peer's favour or as its users have it:
- ours clips gradients and checks that they are finite, measures training metrics, validates, draws
  and writes checkpoints: the peers, as they come, do none of these
- darts has a target at every step of a window, ours and neuralforecast's have one at the end
- neuralforecast has an MLP of 128 units for a head, as it comes; here decoder_layers=1, a linear
  one; its scaling of each window is off, since the series is standardised
- neuralforecast copies every window of the series before it draws the B of a step: its step grows
  with the series, here of 3200 windows

Letters: B batch, T time steps, H hidden units a layer.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent

SIZES = {"reference": {"B": 10, "T": 3, "H": 4}, "medium": {"B": 32, "T": 20, "H": 64}}

#: Training windows, validation and test rows, epochs; the first epoch is the warm-up.
WINDOWS, VAL, TEST, EPOCHS = 3200, 500, 1000, 6

#: The interpreter that has the peers.
PYTHON = ROOT / ".venv-peers/bin/python"

#: What each turn is measured in, steps a second.
WHAT = ("training", "training, CPU time", "whole")

PEERS = ["darts", "neuralforecast"]
NAMES = ["ours", *PEERS]


class Turns:
    """Waits for its turn before every so many optimiser steps, and tells, when it comes back for
    the next, how many a second those were: by the clock, in the processor's time, and with what
    followed them. The last turn is for the forecasts.

    The hooks of a Lightning callback, which the packages import under two names.
    """

    def __init__(self, steps: int):
        self.steps, self.begin = steps, None

    def __deepcopy__(self, memo: dict) -> "Turns":
        return self  # neuralforecast trains a copy of what it is given

    def now(self) -> Any:
        return np.array([time.perf_counter(), time.process_time()])

    def on_train_epoch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step % self.steps == 0:
            self.over()

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step % self.steps == 0:
            self.end = self.now()

    def on_train_end(self, *args: Any) -> None:
        self.over()

    def over(self) -> None:
        """Tell of the last turn, nothing before the first, and wait for the next."""
        told = None
        if self.begin is not None:
            seconds = *(self.end - self.begin), (self.now() - self.begin)[0]
            told = dict(zip(WHAT, (self.steps / s for s in seconds), strict=True))
        tell(told)
        sys.stdin.readline()
        self.begin = self.now()


def tell(what: Any) -> None:
    """A line to the process that gives out the turns."""
    print(json.dumps(what), file=sys.__stdout__, flush=True)


def ours(series: str, seed: int, B: int, T: int, H: int) -> float:
    """The template on a file of one's own."""
    from hydra import compose, initialize_config_dir
    from lightning.pytorch.callbacks import Callback

    from seqlab.engine.build import build
    from seqlab.engine.context import RunContext

    start = T + WINDOWS
    overrides = ["data=series", f"data.path={series}", "data.target=y", "data.time=t"]
    overrides += [f"data.val_from={start}", f"data.test_from={start + VAL}"]
    overrides += [f"data.batch_size={B}", f"data.seq_len={T}", f"model.n_hidden={H}"]
    overrides += [f"seed={seed}", "optim.lr=1e-3", f"trainer.max_epochs={EPOCHS}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        run = build(compose("config", overrides), RunContext(Path.cwd(), []))
    run.trainer.callbacks.append(type("Callback", (Turns, Callback), {})(WINDOWS // B))
    run.trainer.fit(run.learner, run.data)
    run.trainer.test(run.learner, run.data, verbose=False)
    return run.trainer.callback_metrics["test/mse"].item() ** 0.5


def darts(series: str, seed: int, B: int, T: int, H: int) -> float:
    """darts.models.RNNModel; training_length=T: the loss is over all T steps of a window."""
    import torch
    from darts import TimeSeries
    from darts.models import RNNModel
    from pytorch_lightning.callbacks import Callback

    torch.set_num_threads(1)
    y, std = standardised(series, T)
    values = TimeSeries.from_values(y.astype(np.float32))
    turns = type("Callback", (Turns, Callback), {})(WINDOWS // B)
    model = RNNModel(
        input_chunk_length=T,
        training_length=T,
        model="LSTM",
        hidden_dim=H,
        n_rnn_layers=2,
        batch_size=B,
        n_epochs=EPOCHS,
        optimizer_kwargs={"lr": 1e-3},
        random_state=seed,
        pl_trainer_kwargs={"callbacks": [turns]},
    )
    model.fit(values[: T + WINDOWS])
    start = T + WINDOWS + VAL
    forecast = model.historical_forecasts(
        values, start=start, forecast_horizon=1, retrain=False, last_points_only=True
    )
    return rmse(forecast.values()[:, 0], y[start:]) * std


def neuralforecast(series: str, seed: int, B: int, T: int, H: int) -> float:
    """neuralforecast.models.LSTM; a step takes windows_batch_size windows of one series."""
    import pandas as pd
    import torch
    from neuralforecast import NeuralForecast
    from neuralforecast.losses.pytorch import MSE
    from neuralforecast.models import LSTM
    from pytorch_lightning.callbacks import Callback

    torch.set_num_threads(1)
    y, std = standardised(series, T)
    turns = type("Callback", (Turns, Callback), {})(WINDOWS // B)
    steps = EPOCHS * WINDOWS // B
    model = LSTM(
        h=1,
        input_size=T,
        encoder_n_layers=2,
        encoder_hidden_size=H,
        decoder_layers=1,
        loss=MSE(),
        learning_rate=1e-3,
        max_steps=steps,
        val_check_steps=steps,  # after the last one, so that the rows of validation stay apart
        windows_batch_size=B,
        scaler_type="identity",
        random_seed=seed,
        callbacks=[turns],
    )
    table = pd.DataFrame({"unique_id": 0, "ds": range(len(y)), "y": y})
    found = NeuralForecast(models=[model], freq=1).cross_validation(
        table, val_size=VAL, test_size=TEST, n_windows=None, step_size=1
    )
    return rmse(found["LSTM"], found["y"]) * std


def standardised(series: str, T: int) -> tuple[Any, float]:
    """The series less the mean of its training rows, over their deviation; the deviation."""
    y = np.loadtxt(series, delimiter=",", skiprows=1)[:, 1]
    training = y[: T + WINDOWS]
    return (y - training.mean()) / training.std(), training.std()


def rmse(forecast: Any, y: Any) -> float:
    """Of all test rows."""
    assert len(forecast) == len(y) == TEST
    return float(((forecast - y) ** 2).mean() ** 0.5)


def write_series(path: Path, T: int) -> None:
    """Mackey-Glass, whose deviation is 0.23, under white noise of 0.02."""
    from seqlab.literature import mackey_glass

    y = mackey_glass(T + WINDOWS + VAL + TEST, tau=17)
    y += 0.02 * np.random.default_rng(0).standard_normal(len(y))
    path.write_text("t,y\n" + "".join(f"{t},{value:.6f}\n" for t, value in enumerate(y)))


def measure(size: str, seed: int) -> tuple[list[dict[str, dict[str, float]]], dict[str, float]]:
    """Run every contender once, each in a process of its own, in turns of an epoch.

    Returns:
        by contender the steps a second in each turn, the warm-up left out, and its RMSE.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_series(folder / "series.csv", SIZES[size]["T"])
        children = {}
        for name in NAMES:
            (folder / name).mkdir()
            python = str(PYTHON) if name in PEERS else sys.executable
            command = [python, __file__, "--only", name, "--size", size, "--seed", str(seed)]
            child = subprocess.Popen(
                command, cwd=folder / name, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            children[name] = stack.enter_context(child)
        for child in children.values():  # each is ready
            json.loads(child.stdout.readline())
        rounds = []
        for number in range(EPOCHS + 1):
            first, told = (number + seed) % len(NAMES), {}
            for name in NAMES[first:] + NAMES[:first]:
                children[name].stdin.write("your turn\n")
                children[name].stdin.flush()
                told[name] = json.loads(children[name].stdout.readline())
            rounds.append(told)
    return rounds[1:-1], rounds[-1]


def run_here(name: str, size: str, seed: int) -> None:
    """In the child: train, and tell the error."""
    os.environ["TERM"] = "xterm-256color"  # a dumb terminal would get no bar
    with open(os.devnull, "w") as terminal:
        terminal.isatty = lambda: True  # progress bars draw on it as on a real one
        with redirect_stdout(terminal), redirect_stderr(terminal):
            found = globals()[name]("../series.csv", seed, **SIZES[size])
    tell(found)


def report(rounds: dict[str, list], errors: dict[str, list]) -> str:
    """The figures of each size as markdown; a ratio is taken within each round."""
    from overhead import spread, table

    rates, ratios = [], []
    for size in rounds:
        label = f"{size}: " + " ".join(f"{k}={v}" for k, v in SIZES[size].items())
        for what in WHAT:
            cells = [spread([r[name][what] for r in rounds[size]], ".0f") for name in NAMES]
            rates.append([f"{label}, {what}", *cells])
            cells = [
                spread([r["ours"][what] / r[name][what] for r in rounds[size]], ".2f")
                for name in PEERS
            ]
            ratios.append([f"{label}, {what}", *cells])
        cells = [spread([e[name] for e in errors[size]], ".4f") for name in NAMES]
        rates.append([f"{label}, rmse", *cells])
    head = ["size", *(f"ours / {name}" for name in PEERS)]
    return "\n\n".join([table(["steps a second", *NAMES], rates), table(head, ratios)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="of each contender (5)")
    parser.add_argument("--size", action="append", choices=SIZES, help="repeatable; default all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures")
    parser.add_argument("--only", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        return run_here(args.only, args.size[0], args.seed)

    if not PYTHON.exists():
        parser.error("the peers are not installed: make .venv-peers/done")
    from overhead import heading, machine

    versions = (ROOT / "benchmarks/peers.txt").read_text().split()
    info = machine("cpu") | {"runs": args.runs, "peers": " ".join(versions), "threads": 1}
    rounds, errors = {}, {}
    for size in args.size or SIZES:
        rounds[size], errors[size] = [], []
        for number in range(args.runs):
            turns, error = measure(size, number)
            rounds[size] += turns
            errors[size].append(error)
            print(f"{size} run {number + 1}: {json.dumps([turns, error])}", file=sys.stderr)
    print(heading("Peers", **info), report(rounds, errors), sep="\n\n")
    if args.json:
        args.json.write_text(json.dumps({"machine": info, "rounds": rounds, "rmse": errors}) + "\n")


if __name__ == "__main__":
    main()
