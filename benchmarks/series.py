"""Forecasts of real series beside those of statsforecast, darts and neuralforecast.

    python benchmarks/series.py [--seeds 5] [--keep outputs/bench_series]

Each measurement is kept in a file as it is made, so the command may be stopped and started.
series.md is written anew after each series. How it is measured stands in README.md beside this
file. Letters: N rows, O rows to forecast (outputs), W test windows.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from public import SERIES

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv-peers/bin/python"
STATISTICAL, NETWORKS = ["AutoETS", "AutoARIMA"], ["darts", "neuralforecast"]
METHODS = ["seqlab", "persistence", "seasonal naive", "AR", *STATISTICAL, *NETWORKS]

#: O, forecasts (W, O), the ends of their intervals or None, CPU seconds of the training.
Found = Iterator[tuple[int, Any, Any, Any, float]]


def read(path: Path) -> tuple[Any, int, int, int]:
    """The values `(N,)`, where validation and test begin, and the rows in a season: a year."""
    times, y = np.loadtxt(path, str, delimiter=",", skiprows=1, unpack=True)
    season = 12 if times[1][5:7] == f"{int(times[0][5:7]) + 1:02}" else 4
    return y.astype(float), round(0.7 * len(y)), round(0.85 * len(y)), season


def truths(path: Path, O: int) -> Any:
    """The rows after each test origin, `(W, O)`."""
    return np.lib.stride_tricks.sliding_window_view(read(path)[0][read(path)[2] :], O)


def measured(folder: Path) -> dict[tuple, dict[str, Any]]:
    """What is kept, by series, rows ahead, method and seed."""
    lines = map(json.loads, (folder / "measured.jsonl").read_text().splitlines())
    return {(d["series"], d["horizon"], d["method"], d["seed"]): d for d in lines}


def keep(path: Path, O: int, method: str, seed: int, found: dict[str, Any]) -> None:
    with (path.parent / "measured.jsonl").open("a") as file:
        key = {"series": path.stem, "horizon": O, "method": method, "seed": seed}
        file.write(json.dumps(key | found) + "\n")


def score(path: Path, forecast: Any, low: Any, high: Any, cpu: float) -> dict[str, Any]:
    """MASE; the share of the truths within the intervals; the CPU seconds."""
    y, val, _, season = read(path)
    truth = truths(path, forecast.shape[1])
    assert forecast.shape == truth.shape
    mase = np.abs(forecast - truth).mean() / np.abs(y[season:val] - y[: val - season]).mean()
    inside = None if low is None else float(((low <= truth) & (truth <= high)).mean())
    return {"mase": mase, "coverage": inside, "cpu": round(cpu, 2)}


def ours(path: Path, seeds: int) -> None:
    """Train both horizons with all seeds in one multirun, and keep what came of it."""
    from seqlab.engine.forecaster import load, load_data
    from seqlab.tools.forecast import forecasts

    season, folder = read(path)[3], path.with_suffix("")
    words = [f"data.path='{path}'", "data.target=y", "data.time=time", f"data.season={season}"]
    words += [f"data.seq_len={2 * season}", f"data.horizon=1,{season}", f"seed=range(0,{seeds})"]
    words += [f"hydra.sweep.dir='{folder}'", "hydra.sweep.subdir=${data.horizon}-${seed}"]
    command = [sys.executable, str(ROOT / "train.py"), "-m", "data=series", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for seed, O in [(seed, O) for seed in range(seeds) for O in (1, season)]:
        results = json.loads((folder / f"{O}-{seed}/results.json").read_text())
        forecaster = load(folder / f"{O}-{seed}" / results["best_checkpoint"])
        table = forecasts(forecaster, *load_data(forecaster, ()), lambda n: None, level=0.9)
        table = table.filter(table["truth"].is_not_null())
        *found, truth = (table[name].to_numpy().reshape(-1, O) for name in table.columns[2:])
        assert np.allclose(truth, truths(path, O))
        for name, row in results["baselines"].items():
            keep(path, O, name.split("(")[0], 0, {"mase": row["test/mase"]})
        keep(path, O, "seqlab", seed, scores := score(path, *found, results["cpu_seconds"]))
        assert np.isclose(scores["mase"], results["metrics"]["test/mase"], rtol=1e-3)


def statistical(method: str, path: Path, seed: int) -> Found:
    """A model of statsforecast, fitted once on all rows before the test."""
    from statsforecast import models

    y, _, test, season = read(path)
    model, begin = getattr(models, method)(season_length=season), time.process_time()
    model.fit(y[:test])
    cpu = time.process_time() - begin
    made = [model.forward(y[:i], h=season, level=[90]) for i in range(test, len(y))]
    found = [np.stack([m[key] for m in made]) for key in ("mean", "lo-90", "hi-90")]
    for O in (1, season):
        yield O, *(values[: len(made) - O + 1, :O] for values in found), cpu


def darts(path: Path, seed: int) -> Found:
    """As in darts' notebook on recurrent networks: one for both horizons."""
    import pandas as pd
    from darts import TimeSeries
    from darts.dataprocessing.transformers import Scaler
    from darts.models import RNNModel
    from darts.utils.timeseries_generation import datetime_attribute_timeseries as attribute

    y, val, test, season = read(path)
    frequency, part = ("MS", "month") if season == 12 else ("QS", "quarter")
    start = pd.read_csv(path, nrows=1).time[0]
    times = pd.date_range(start, freq=frequency, periods=len(y) + season)
    values = TimeSeries.from_times_and_values(times[: len(y)], y.astype(np.float32))
    scaler = Scaler().fit(values[:val])
    values = scaler.transform(values)
    year = Scaler().fit_transform(attribute(times, attribute="year", dtype=np.float32))
    known = year.stack(attribute(times, attribute=part, one_hot=True, dtype=np.float32))
    options = dict(model="LSTM", hidden_dim=20, dropout=0, batch_size=16, n_epochs=300)
    options |= dict(training_length=20, input_chunk_length=14, optimizer_kwargs={"lr": 1e-3})
    options |= dict(model_name="series", force_reset=True, save_checkpoints=True)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    model = RNNModel(**options, random_state=seed, work_dir=os.getcwd(), pl_trainer_kwargs=quiet)
    last, begin = values[val - 20 : test], time.process_time()  # each row of validation a target
    model.fit(values[:val], future_covariates=known, val_series=last, val_future_covariates=known)
    cpu = time.process_time() - begin
    model = RNNModel.load_from_checkpoint("series", work_dir=os.getcwd(), best=True)
    options = dict(start=times[test], retrain=False, last_points_only=False)
    for O in (1, season):
        made = model.historical_forecasts(values, None, known, forecast_horizon=O, **options)
        assert [f.start_time() for f in made] == list(times[test : len(y) - O + 1])
        forecast = np.stack([scaler.inverse_transform(f).values()[:, 0] for f in made])
        yield O, forecast, None, None, cpu


def neuralforecast(path: Path, seed: int) -> Found:
    """As in neuralforecast's quickstart, with the loss of its page on intervals."""
    import pandas as pd
    from neuralforecast import NeuralForecast
    from neuralforecast.losses.pytorch import MQLoss
    from neuralforecast.models import LSTM
    from pytorch_lightning.callbacks import LambdaCallback

    y, val, test, season = read(path)
    rows, clock = pd.DataFrame({"unique_id": 0, "ds": range(len(y)), "y": y}), []
    hook = lambda *_: clock.append(time.process_time())  # noqa: E731
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    quiet["callbacks"] = [LambdaCallback(on_train_start=hook, on_train_end=hook)]
    sizes = dict(input_size=2 * season, encoder_hidden_size=64, decoder_hidden_size=64)
    split = dict(val_size=test - val, test_size=len(y) - test, n_windows=None, step_size=1)
    for O in (1, season):
        options = sizes | dict(max_steps=500, scaler_type="standard", loss=MQLoss(level=[90]))
        model = LSTM(h=O, **options, random_seed=seed, **quiet)
        made = NeuralForecast([model], freq=1).cross_validation(rows, **split)
        made = made.sort_values(["cutoff", "ds"])
        names = ["y", "LSTM-median", "LSTM-lo-90", "LSTM-hi-90"]
        truth, *found = (made[name].to_numpy().reshape(-1, O) for name in names)
        assert np.allclose(truth, truths(path, O))
        yield O, *found, clock[-1] - clock[-2]


def peers(path: Path, seed: int) -> None:
    """In the peers' environment: measure what is missing of one series and one seed."""
    runs = {"darts": darts, "neuralforecast": neuralforecast}
    if seed == 0:
        runs |= {method: partial(statistical, method) for method in STATISTICAL}
    for method, run in runs.items():
        if (path.stem, read(path)[3], method, seed) not in measured(path.parent):
            for O, *found in run(path, seed):
                keep(path, O, method, seed, score(path, *found))


def report(lines: dict[tuple, dict[str, Any]]) -> str:
    """The tables, of the series that every method was measured on."""
    from overhead import heading, machine, spread, table

    cases: dict[tuple, dict[str, list[dict]]] = {}
    for (name, O, method, _), line in lines.items():
        cases.setdefault((name, O), {}).setdefault(method, []).append(line)
    cases = {case: by for case, by in cases.items() if len(by) == len(METHODS)}

    def rows(what: str, form: str, *methods: str) -> str:
        made = []
        for (name, O), by in cases.items():
            values = [[line[what] for line in by[method]] for method in methods]
            cells = [spread(v, form) if len(v) > 1 else format(*v, form) for v in values]
            made.append([f"{name}, {O}", *cells])
        return table(["series, rows ahead", *methods], made)

    def medians(method: str) -> Any:
        return np.array([median(line["mase"] for line in by[method]) for by in cases.values()])

    counts = []
    for method in METHODS[1:]:
        ratios = medians("seqlab") / medians(method)
        lower, higher = (ratios < 0.995).sum(), (ratios > 1.005).sum()
        counts.append([method, str(lower), str(higher), f"{median(ratios):.2f}"])
    seeds = spread([len(by["neuralforecast"]) for by in cases.values()], ".0f")
    info = machine("cpu") | {"threads": 1, "seeds of the peers": seeds}
    info["peers"] = " ".join((ROOT / "benchmarks/peers.txt").read_text().split())
    trained = ["seqlab", *STATISTICAL, *NETWORKS]
    parts = [
        heading("Series", **info)[1:],  # a page of its own
        "MASE on the test part, the median of the seeds (and their range):",
        rows("mase", ".3f", *METHODS),
        f"On how many of {len(cases)} seqlab's median is lower or higher by over half a percent:",
        table(["beside", "lower", "higher", "median ratio"], counts),
        "Share of the test values in intervals of 90 %:",
        rows("coverage", ".2f", *(method for method in trained if method != "darts")),
        "CPU seconds of a training:",
        rows("cpu", ".1f", *trained),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="of each network (5)")
    parser.add_argument("--keep", type=Path, default=ROOT / "outputs/bench_series", metavar="DIR")
    parser.add_argument("--peers", nargs=2, metavar=("SERIES", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = args.keep.resolve()
    if args.peers:
        return peers(folder / f"{args.peers[0]}.csv", int(args.peers[1]))
    if not PYTHON.exists():
        parser.error("the peers are not installed: make .venv-peers/done")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    (folder / "measured.jsonl").touch()
    subprocess.run([str(PYTHON), str(ROOT / "benchmarks/public.py"), str(folder)], check=True)
    for seed, name in product(range(args.seeds), SERIES):  # stopped, it has some of each series
        child = [str(PYTHON), __file__, "--keep", str(folder), "--peers", name, str(seed)]
        done = {(m, s) for n, O, m, s in measured(folder) if n == name and O > 1}
        if not {(m, seed) for m in NETWORKS} <= done:
            with tempfile.TemporaryDirectory() as work, (folder / "log").open("a") as log:
                subprocess.run(child, check=True, cwd=work, stdout=log, stderr=log)
        if ("seqlab", seed) not in done:
            ours(folder / f"{name}.csv", args.seeds)
        (ROOT / "benchmarks/series.md").write_text(report(measured(folder)))


if __name__ == "__main__":
    main()
