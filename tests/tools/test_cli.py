import contextlib
import datetime
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
import polars as pl
import program
import pytest
import torch
from click.testing import CliRunner
from left import Call
from program import ROOT, TINY, run
from torch import nn

import seqlab
from seqlab.engine.checkpoint import read, write
from seqlab.engine.errors import UserError
from seqlab.series.ahead import next_times
from seqlab.tools.cli import commands, main

SEQLAB = Path(sys.executable).with_name("seqlab")
COMMANDS = ("evaluate", "predict", "stream", "export", "shapes", "check", "schema", "results")
COMMANDS += ("tune",)
SUNSPOTS = ROOT / "data" / "sunspots.csv"
T, O = 9, 2
SERIES = [
    "data=series",
    f"data.seq_len={T}",
    f"data.horizon={O}",
    "model.n_hidden=4",
    "trainer.max_epochs=2",
    "callbacks.pictures=null",
]


def values(path=SUNSPOTS):
    return pl.read_csv(path)["sunspots"].cast(pl.Float64).to_numpy().copy()


def months(n, first=datetime.date(2015, 1, 1)):
    return pl.date_range(first, first + datetime.timedelta(31 * n), "1mo", eager=True)[:n]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs by name: a series, a toy task, one of classes, and a file of two monthly series."""
    draw, folder = np.random.default_rng(0), tmp_path_factory.mktemp("runs")
    cities = [
        pl.DataFrame(
            {"month": months(n), "city": [city] * n, "rain": draw.random(n), "temp": draw.random(n)}
        )
        for city, n in (("Oslo", 70), ("Rome", 60))
    ]
    pl.concat(cities).sort("month").write_csv(folder / "cities.csv")
    overrides = {
        "sunspots": [
            *SERIES,
            f"data.path={SUNSPOTS}",
            "data.target=sunspots",
            "data.time=year",
            "data.season=9",
        ],
        "toy": TINY,
        "reber": ["data=reber", *TINY, "data.seq_len=20"],
        "cities": [
            *SERIES,
            f"data.path={folder / 'cities.csv'}",
            "data.target=temp",
            "data.features=[rain]",
            "data.time=month",
            "data.group=city",
            "data.lead=2",
            "data.batch_size=8",
        ],
    }
    found = {}
    for name, arguments in overrides.items():
        (folder / name).mkdir()
        found[name] = run(*arguments, cwd=folder / name)
        assert found[name].code == 0, found[name].err
    return found


@pytest.fixture
def alone(runs, tmp_path, monkeypatch):
    """Copies a run's best.ckpt alone into an empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)

    def copied(name):
        return shutil.copy(runs[name].folder / "checkpoints/best.ckpt", tmp_path / "best.ckpt")

    return copied


@pytest.fixture
def ckpt(alone):
    alone("sunspots")
    return "best.ckpt"


def seqlab_(*arguments, **rest):
    """`seqlab ARGUMENTS` in this process."""
    done = CliRunner().invoke(commands, list(map(str, arguments)), catch_exceptions=False, **rest)
    assert done.exit_code == 0
    return done


def process(*arguments, **rest):
    done = subprocess.run([SEQLAB, *arguments], capture_output=True, text=True, timeout=100, **rest)
    return done.returncode, done.stdout, done.stderr


def complaint(*arguments):
    """The one line that `seqlab ARGUMENTS` ends with, its exit code being 2."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["seqlab", *map(str, arguments)]),
        mock.patch.object(sys, "stdout", out),
        mock.patch.object(sys, "stderr", err),
        mock.patch.dict(os.environ),
        pytest.raises(SystemExit) as stop,
    ):
        main()
    assert (stop.value.code, out.getvalue()) == (2, "")
    head, _, line = err.getvalue().rstrip("\n").rpartition("error: ")
    assert head == ""
    assert line.isprintable()
    return line


def forecast_of(windows):
    """The forecasts `(W, O)` of best.ckpt for windows `(W, T, F)`."""
    with torch.inference_mode():
        return seqlab.load("best.ckpt")(torch.from_numpy(np.ascontiguousarray(windows)))[0].numpy()


def windows_of(series, n):
    """The last `n` windows with all their targets, and the targets."""
    starts = np.arange(len(series) - T - O + 1)[-n:]
    x = np.stack([series[s : s + T] for s in starts])[:, :, None]
    return x, np.stack([series[s + T : s + T + O] for s in starts])


# evaluate


@pytest.mark.parametrize("name", ["sunspots", "toy", "cities"])
def test_evaluate_repeats_the_runs_results_to_the_last_bit(runs, alone, name):
    alone(name)
    rows, results = (
        json.loads(seqlab_("evaluate", "best.ckpt", "--json").stdout),
        runs[name].results,
    )
    network = {k: v for k, v in results["metrics"].items() if k.startswith("test/")}
    assert rows == {"network": network, **results["baselines"]}


def test_evaluate_prints_the_table_and_the_verdict(ckpt):
    out = seqlab_("evaluate", ckpt).stdout
    for word in ("best.ckpt on its test set", "test/mase", "network", "persistence", "AR(9)"):
        assert word in out
    assert out.splitlines()[-2].startswith("The network ")
    assert re.fullmatch(r"Intervals of 0\.9 hold \S+ of the test values\.", out.splitlines()[-1])


def test_evaluate_of_another_file_is_what_one_computes_by_hand(ckpt):
    series = 1.3 * values()[:120] + 5
    pl.DataFrame({"year": range(120), "sunspots": series}).write_csv("other.csv")
    rows = json.loads(seqlab_("evaluate", ckpt, "--data", "other.csv", "--json").stdout)
    x, y = windows_of(series, 120)
    fitted = read(ckpt)["data"]
    mean, std, weights = fitted["mean"][0], fitted["std"][0], fitted["weights"].numpy()
    affine = np.concatenate([(x[:, :, 0] - mean) / std, np.ones((len(x), 1))], axis=1)
    predictions = {
        "network": forecast_of(x),
        "persistence": np.repeat(x[:, -1], O, axis=1),
        "seasonal naive": x[:, :O, 0],
        "AR(9)": affine @ weights * std + mean,
    }
    assert list(rows) == list(predictions)
    naive = np.square(predictions["persistence"] - y).mean()
    for name, prediction in predictions.items():
        squares = np.square(prediction - y)
        mse, mae = squares.mean(), np.abs(prediction - y).mean()
        assert rows[name] == pytest.approx(
            {
                "test/mse": mse,
                "test/rmse": mse**0.5,
                "test/mae": mae,
                "test/r2": 1 - (squares.mean(axis=0) / y.var(axis=0)).mean(),
                "test/mase": mae / fitted["mase_scale"],
                "test/skill": 1 - mse / naive,
            },
            rel=1e-5,
            abs=1e-6,
        )


def test_a_file_that_the_test_set_is_a_copy_of_gives_the_same_metrics(runs, ckpt):
    cut = round(0.85 * 309) - T
    pl.read_csv(SUNSPOTS)[cut:].write_parquet("test.parquet")
    rows = json.loads(seqlab_("evaluate", ckpt, "--data", "test.parquet", "--json").stdout)
    assert rows["network"]["test/mse"] == pytest.approx(
        runs["sunspots"].results["metrics"]["test/mse"]
    )


# predict


def test_predict_writes_a_row_for_each_forecast_value_and_goes_on_after_the_end(ckpt):
    table = pl.read_csv(io.StringIO(seqlab_("predict", ckpt).stdout))
    series, n = values(), 309 - round(0.85 * 309) - O + 1
    x, y = windows_of(series, n)
    x = np.concatenate([x, series[None, -T:, None]])
    years = [year + step for year in range(2009 - n - 1, 2008) for step in range(O)]
    assert table.columns == ["time", "step", "forecast", "truth"]
    assert table["time"].to_list() == [*years, 2009, 2010]
    assert table["step"].to_list() == [1, 2] * (n + 1)
    np.testing.assert_allclose(table["forecast"], forecast_of(x).ravel(), rtol=1e-5)
    assert table["truth"].to_list() == [*y.ravel(), None, None]


def test_predict_of_another_file_takes_every_window_of_it(ckpt):
    pl.read_csv(SUNSPOTS)[:20].write_csv("early.csv")
    table = pl.read_csv(io.StringIO(seqlab_("predict", ckpt, "--data", "early.csv").stdout))
    series = values()[:20]
    assert table["time"].to_list()[::O] == [*range(1709, 1719), 1720]
    x = np.concatenate([windows_of(series, 20)[0], series[None, -T:, None]])
    np.testing.assert_allclose(table["forecast"], forecast_of(x).ravel(), rtol=1e-5)


def test_predict_of_a_file_of_many_series_keeps_them_apart(runs, alone):
    alone("cities")
    table = pl.read_csv(io.StringIO(seqlab_("predict", "best.ckpt").stdout), try_parse_dates=True)
    assert table.columns == ["group", "time", "step", "forecast", "truth"]
    file = pl.read_csv(runs["cities"].config["data"]["path"], try_parse_dates=True)
    for (city,), part in table.group_by("group", maintain_order=True):
        series = file.filter(pl.col("city") == city)
        N, lead = len(series), 2
        first = round(0.85 * N)
        starts = range(first - T - lead + 1, N - T - lead - O + 2)
        rows = [s + T + lead - 1 + step for s in starts for step in range(O)]
        after = months(N + 4)[[N + 1, N + 2]]
        assert part["time"].to_list() == [*series["month"].gather(rows), *after]
        assert part["truth"].to_list() == [*series["temp"].gather(rows), None, None]
        inputs = series.select("temp", "rain").to_numpy()
        x = np.stack([inputs[s : s + T] for s in (*starts, N - T)])
        np.testing.assert_allclose(part["forecast"], forecast_of(x).ravel(), rtol=1e-5)
    assert table["group"].unique(maintain_order=True).to_list() == ["Oslo", "Rome"]


def test_predict_of_a_toy_task_numbers_its_cases(runs, alone):
    alone("toy")
    table = pl.read_csv(io.StringIO(seqlab_("predict", "best.ckpt").stdout))
    assert table.columns == ["case", "step", "forecast", "truth"]
    assert table["case"].to_list() == list(range(1, 33))
    assert set(table["step"]) == {1}
    mse = (table["forecast"] - table["truth"]).pow(2).mean()
    assert mse == pytest.approx(runs["toy"].results["metrics"]["test/mse"], rel=1e-5)


def test_predict_goes_on_beyond_the_horizon_from_its_own_forecasts(ckpt):
    short, long = (
        pl.read_csv(io.StringIO(seqlab_("predict", ckpt, *steps).stdout))
        for steps in ([], ["--steps", 5])
    )
    assert long[: len(short)].equals(short)
    series = values()
    for _ in range(3):
        series = np.append(series, forecast_of(series[None, -T:, None]))
    after = long[-5:]
    np.testing.assert_allclose(after["forecast"], series[309:314], rtol=1e-6)
    assert after["time"].to_list() == [2009, 2010, 2011, 2012, 2013]
    assert after["step"].to_list() == [1, 2, 3, 4, 5]
    assert after["truth"].null_count() == 5
    one = pl.read_csv(io.StringIO(seqlab_("predict", ckpt, "--steps", 1).stdout))
    assert one.equals(short[:-1])


def test_predict_says_what_would_have_to_be_known_beyond_the_horizon(runs, alone):
    alone("cities")
    out = seqlab_("predict", "best.ckpt", "--steps", O).stdout
    assert out == seqlab_("predict", "best.ckpt").stdout
    needs = "--steps=3: beyond data.horizon=2 {} would have to be known; at most 2"
    line = complaint("predict", "best.ckpt", "--steps", 3)
    assert line == needs.format("the rows that data.lead=2 leaves out")
    contents = read(Path("best.ckpt"))
    contents["config"]["data"]["lead"] = contents["sizes"]["base"]["lead"] = 1
    write(Path("best.ckpt"), contents)
    assert complaint("predict", "best.ckpt", "--steps", 3) == needs.format("rain")
    alone("toy")
    line = complaint("predict", "best.ckpt", "--steps", 3)
    assert line == "--steps=3: only a series goes on after its end"
    with mock.patch("seqlab.tools.forecast.forecasts", None):  # it says so before
        line = complaint("predict", "best.ckpt", "--picture", "a.png")
    assert line == "--picture: only a series has one; TensorBoard shows those of a task"


def test_predict_numbers_classes_by_integers(runs, alone):
    alone("reber")
    out = seqlab_("predict", "best.ckpt").stdout
    table = pl.read_csv(io.StringIO(out))
    assert table.dtypes == [pl.Int64] * 4
    right = table.filter(pl.col("truth").is_not_null()).select(
        pl.col("forecast") == pl.col("truth")
    )
    accuracy = runs["reber"].results["metrics"]["test/accuracy"]
    assert right["forecast"].mean() == pytest.approx(accuracy)
    assert 0 < table["truth"].null_count() < len(table)
    for ending in ("csv", "parquet", "json"):
        seqlab_("predict", "best.ckpt", "--output", f"all.{ending}")
    assert Path("all.csv").read_text() == out
    assert pl.read_parquet("all.parquet").equals(table)
    assert json.loads(Path("all.json").read_text()) == table.to_dicts()
    assert ".0" not in Path("all.json").read_text()


@pytest.mark.parametrize("name", ["sunspots", "cities"])
def test_predict_writes_the_same_table_in_every_format(alone, name):
    alone(name)
    out = seqlab_("predict", "best.ckpt").stdout
    for ending in ("csv", "parquet", "json"):
        assert seqlab_("predict", "best.ckpt", "--output", f"all.{ending}").stdout == ""
    assert Path("all.csv").read_text() == out
    table = pl.read_parquet("all.parquet")
    assert table.write_csv() == out
    rows = json.loads(Path("all.json").read_text())
    assert [tuple(row.values()) for row in rows] == [
        tuple(str(v) if isinstance(v, datetime.date) else v for v in row) for row in table.rows()
    ]


def test_predict_goes_on_where_whole_numbers_are_unevenly_apart(ckpt):
    years = [1700 + k // 2 * 3 + k % 2 for k in range(31)]
    pl.DataFrame({"year": years, "sunspots": values()[:31]}).write_csv("uneven.csv")
    table = pl.read_csv(io.StringIO(seqlab_("predict", ckpt, "--data", "uneven.csv").stdout))
    assert table["time"].dtype == pl.Int64
    assert table["time"][-2] > years[-1]


def dates(*texts):
    return pl.Series(texts).str.to_date()


@pytest.mark.parametrize(
    ("times", "ahead"),
    [
        (pl.Series([1999, 2000, 2001]), [2002, 2003]),
        (pl.Series([10, 20, 30, 50]), [60, 70]),
        (pl.Series([0, 1, 2], dtype=pl.UInt32), [3, 4]),
        (pl.Series([0.5, 1.0, 1.5]), [2.0, 2.5]),
        (pl.Series([1.0, 2.0, 3.0]), [4.0, 5.0]),
        (months(14), list(months(16)[14:])),
        (months(14).drop_nulls().gather([*range(6), *range(8, 14)]), list(months(16)[14:])),
        (
            dates("2023-11-30", "2023-12-31", "2024-01-31", "2024-02-29"),
            list(dates("2024-03-31", "2024-04-30")),
        ),
        (
            dates("2023-01-01", "2023-04-01", "2023-07-01", "2023-10-01"),
            list(dates("2024-01-01", "2024-04-01")),
        ),
        (
            dates(*(f"{year}-06-30" for year in range(2014, 2019))),
            list(dates("2019-06-30", "2020-06-30")),
        ),
        (dates("2024-02-26", "2024-02-27", "2024-02-28"), list(dates("2024-02-29", "2024-03-01"))),
        (dates("2024-01-01", "2024-01-08", "2024-01-15"), list(dates("2024-01-22", "2024-01-29"))),
        (
            pl.Series([datetime.datetime(2024, 2, day, 12) for day in (26, 27, 28)]),
            [datetime.datetime(2024, 2, 29, 12), datetime.datetime(2024, 3, 1, 12)],
        ),
        (
            pl.Series([datetime.datetime(2024, 1, 1, hour) for hour in (21, 22, 23)]),
            [datetime.datetime(2024, 1, 2, 0), datetime.datetime(2024, 1, 2, 1)],
        ),
    ],
    ids=[
        "years",
        "gap",
        "rows",
        "halves",
        "floats",
        "months",
        "months with a gap",
        "ends of months",
        "quarters",
        "ends of June",
        "days",
        "weeks",
        "noons",
        "hours",
    ],
)
def test_the_next_times_follow_the_calendar(times, ahead):
    found = next_times(times, range(1, 3))
    assert found.to_list() == ahead
    assert found.dtype == times.dtype
    assert next_times(times, range(2, 3)).to_list() == ahead[1:]


# stream


def test_stream_agrees_with_whole_sequences(ckpt):
    series = values()[:60]
    out = seqlab_("stream", ckpt, input="\n".join(map(str, series))).stdout
    found = np.array([[float(v) for v in line.split(",")] for line in out.splitlines()])
    expected = [forecast_of(series[None, :n, None])[0] for n in range(1, 61)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_stream_takes_a_value_for_each_column(alone):
    alone("cities")
    x = np.random.default_rng(1).random((12, 2))
    lines = "\n".join(",".join(map(str, row)) for row in x)
    out = seqlab_("stream", "best.ckpt", input=lines).stdout
    last = [float(v) for v in out.splitlines()[-1].split(",")]
    np.testing.assert_allclose(last, forecast_of(x[None])[0], rtol=1e-5)


BAD = ["x", "", "1,2", "nan", "inf", "1e999", "--", "1 2", "0x10"]


def test_stream_skips_bad_lines(ckpt):
    good = seqlab_("stream", ckpt, input="5\n11\n").stdout
    done = seqlab_("stream", ckpt, input="\n".join(["5", *BAD, "11", ""]))
    assert done.stdout == good
    errors = done.stderr.splitlines()
    assert len(errors) == len(BAD)
    for number, (line, error) in enumerate(zip(BAD, errors, strict=True), start=2):
        assert error == f"error: line {number}: {line!r}: give a finite number"


def test_stream_skips_bytes_that_are_no_text(ckpt):
    done = seqlab_("stream", ckpt, input=b"5\n\xff\xfe\n11\n")
    assert done.stdout.count("\n") == 2
    assert done.stderr.startswith("error: line 2: ")


@contextlib.contextmanager
def streaming(ckpt):
    """A thread that streams, and its three streams: pipes that hold back what is not flushed."""
    pipes = [os.pipe() for _ in range(3)]
    (stdin, ask), (answer, stdout), (error, stderr) = pipes
    with contextlib.ExitStack() as files:
        asking, *answering = (
            files.enter_context(open(number, mode, buffering=1))
            for number, mode in ((ask, "w"), (answer, "r"), (error, "r"))
        )
        given = [open(number, mode) for number, mode in ((stdin, "r"), (stdout, "w"))]  # noqa: SIM115
        given.append(open(stderr, "w", buffering=1))  # noqa: SIM115  as Python has it
        with mock.patch.multiple(
            sys, **dict(zip(("stdin", "stdout", "stderr"), given, strict=True))
        ):
            thread = threading.Thread(
                target=lambda: commands(["stream", ckpt], standalone_mode=False)
            )
            thread.start()
            yield asking, *answering
            asking.close()
            thread.join(10)
            assert not thread.is_alive()
            for file in given:
                file.close()


def answers_each_line_before_the_next(ask, answer, error):
    series = values()
    for n in (1, 2, 3):
        ask.write(f"{series[n - 1]}\n")
        found = [float(v) for v in answer.readline().split(",")]
        np.testing.assert_allclose(found, forecast_of(series[None, :n, None])[0], rtol=1e-5)
    ask.write("oops\n")
    assert error.readline() == "error: line 4: 'oops': give a finite number\n"
    ask.write("5\n")
    assert answer.readline()


def test_stream_answers_each_line_before_the_next(ckpt):
    with streaming(ckpt) as pipes:
        answers_each_line_before_the_next(*pipes)


@pytest.mark.slow
def test_stream_answers_so_in_a_process_of_its_own(ckpt):
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [SEQLAB, "stream", ckpt], stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1
    ) as child:
        answers_each_line_before_the_next(child.stdin, child.stdout, child.stderr)
        child.stdin.close()
        assert (child.wait(), child.stdout.read(), child.stderr.read()) == (0, "", "")


# shapes


def shapes(*arguments):
    found = json.loads(seqlab_("shapes", "--json", *arguments).stdout)
    return {name: shape for name, shape, _ in found["shapes"]}, found


def test_shapes_of_the_reference_sizes():
    found, whole = shapes()
    assert found == {
        "x": "(10, 3, 5)",
        "out": "(10, 3, 4)",
        "stm": "(2, 10, 4)",
        "ltm": "(2, 10, 4)",
        "prediction": "(10, 1)",
    }
    assert whole["stm[-1] == out[:, -1]"] is True
    parameters = {part: n for part, _, _, n in whole["layers"]}
    lstm = sum(p.numel() for p in nn.LSTM(5, 4, 2).parameters())
    assert parameters == {"rnn.cells": lstm, "head": 5}


def test_shapes_prints_tables_that_end_with_the_identity():
    out = seqlab_("shapes").stdout
    assert "(2, 10, 4)" in out
    assert "long-term memory" in out
    assert out.splitlines()[-1] == "stm[-1] == out[:, -1]: True"


def test_shapes_takes_overrides():
    found, _ = shapes("model.n_hidden=8", "model.n_layers=3", "data.batch_size=2", "data.seq_len=7")
    assert found["x"] == "(2, 7, 5)"
    assert found["stm"] == found["ltm"] == "(3, 2, 8)"
    assert shapes("experiment=mackey_glass")[0]["x"] == "(32, 30, 1)"


def test_shapes_finds_the_group_of_a_key():
    found, _ = shapes("n_hidden=8", "n_layers=3", "batch_size=2", "data.seq_len=7", "seed=1")
    assert (found["x"], found["ltm"]) == ("(2, 7, 5)", "(3, 2, 8)")
    assert shapes("model=gru", "seq_len=24", "n_layers=3")[0]["out"] == "(10, 24, 4)"
    # a key of the choice that is made
    series = ("data=series", f"path={SUNSPOTS}", "target=sunspots")
    assert (
        shapes(*series, "batch_size=2", "seq_len=7")[0]["x"] == "(2, 7, 2)"
    )  # of what is added to a base
    assert shapes("data=adding", "seq_len=7")[0]["x"].endswith(", 7, 2)")
    line = complaint("shapes", "_target_=a.B")
    assert line.startswith("_target_=a.B: give data._target_=a.B or model._target_=a.B or ")
    assert "callbacks" not in line
    assert complaint("shapes", "experiment=null").startswith("experiment=null: Config group ")


def test_shapes_of_a_run_of_several_processes():
    assert shapes("trainer=ddp") == shapes()


def test_shapes_of_a_checkpoint(ckpt):
    found, whole = shapes(ckpt)
    assert (found["x"], found["ltm"], found["prediction"]) == (
        f"(32, {T}, 2)",  # of what is added to a base
        "(2, 32, 4)",
        f"(32, {O})",
    )
    assert sum(row[-1] for row in whole["layers"]) == sum(
        p.numel() for p in seqlab.load(ckpt).network.parameters()
    )


def test_shapes_draws_a_picture(ckpt):
    seqlab_("shapes", ckpt, "--picture", "net.png")
    assert Path("net.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


# every command


def test_help_imports_nothing_heavy():
    code = (
        "import sys, seqlab; from seqlab.tools.cli import commands\n"
        f"for name in {COMMANDS}:\n"
        "    commands([name, '--help'], standalone_mode=False)\n"
        "commands(['--help'], standalone_mode=False)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *text, modules = done.stdout.splitlines()
    assert sum(line.startswith("Usage: ") for line in text) == len(COMMANDS) + 1
    heavy = {"torch", "lightning", "polars", "numpy", "matplotlib", "torchmetrics", "tensorboard"}
    heavy |= {"pydantic", "rich"}
    assert not heavy & set(modules.split())


def test_the_console_script_helps_and_says_its_version():
    code, out, err = process("--help")
    assert (code, err) == (0, "")
    assert [name for name in COMMANDS if f"  {name} " not in out] == []
    code, out, _ = process("--version")
    assert (code, out) == (0, f"seqlab, version {version('seqlab')}\n")


def test_the_list_of_commands_fits_in_a_line_each(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = seqlab_("--help").stdout
    listed = text.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == sorted(COMMANDS)
    assert all(line.endswith(".") and "..." not in line for line in listed)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_helps(command):
    assert seqlab_(command, "-h").stdout == seqlab_(command, "--help").stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", ["predict", "evaluate", "shapes"])
def test_a_reader_that_goes_away_is_no_error(ckpt, command):
    with subprocess.Popen(
        [SEQLAB, command, ckpt], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        child.stdout.close()
        err = child.stderr.read()
    assert err == ""


@pytest.mark.slow  # in a process; every command in this one: test_outputs.py
@pytest.mark.needs("bash")
def test_head_takes_one_line_of_many(ckpt):
    pl.DataFrame({"year": range(20_000), "sunspots": np.arange(20_000.0) % 11}).write_csv("a.csv")
    done = subprocess.run(
        f"{SEQLAB} predict {ckpt} --data a.csv | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("time,step,forecast,truth\n", "")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("results nowhere", "nowhere: no run there, it has no results.json"),  # imports little
        pytest.param(
            "evaluate no.ckpt", "no.ckpt: No such file or directory", marks=pytest.mark.slow
        ),
    ],
)
def test_the_console_script_ends_with_code_2_and_one_line(command, said, tmp_path):
    assert process(*command.split(), cwd=tmp_path) == (2, "", f"error: {said}\n")


ALL = [
    ["evaluate"],
    ["predict"],
    ["stream"],
    ["shapes"],
    ["export", "--format", "onnx"],
    ["export", "--format", "torch"],
    ["export", "--format", "safetensors"],
]


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_a_checkpoint_that_is_none_is_told(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("page.ckpt").write_text("<html>")
    assert complaint(*command, "no.ckpt") == "no.ckpt: No such file or directory"
    assert complaint(*command, "page.ckpt").startswith("page.ckpt: no checkpoint")
    assert complaint(*command, ".") == ".: Is a directory"
    assert os.listdir() == ["page.ckpt"]


@pytest.mark.parametrize("where", ["pickle", "model", "model.inside", "data", "data.inside"])
@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_no_command_runs_what_a_checkpoint_names(ckpt, command, where):
    harm, contents = {"_target_": "os.system", "command": "touch MARKER"}, read(ckpt)
    group, _, inside = where.partition(".")
    if where == "pickle":
        contents["extra"] = Call(os.system, "touch MARKER")
    elif inside:
        contents["config"][group][inside] = harm
    else:
        contents["config"][group] = harm | {"batch_size": 2, "seq_len": 3}
    write(Path(ckpt), contents)
    if group == "data" and command[0] not in ("evaluate", "predict"):
        seqlab.load(ckpt)  # it builds no data
    else:
        said = "not plain weights" if where == "pickle" else "os.system: not trusted"
        assert said in complaint(*command, ckpt)
    assert not Path("MARKER").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate"],
        ["gone"],
        ["predict", "best.ckpt", "--gone"],
        ["export", "best.ckpt"],
        ["export", "best.ckpt", "--format", "keras"],
        ["stream", "a.ckpt", "b.ckpt"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_gets_clicks_usage(arguments):
    done = CliRunner().invoke(commands, arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("Usage: ")
    assert done.stderr.count("\nError: ") == 1


@pytest.mark.parametrize("command", ["evaluate", "predict"])
@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("gone.csv", None, "gone.csv: no such file"),
        (".", None, ".: must end in .tsv, .csv or .parquet"),
        ("a.txt", "year,sunspots\n", "a.txt: must end in .tsv, .csv or .parquet"),
        ("a.csv", "", "a.csv: the file is empty"),
        ("a.csv", "year,spots\n1,2\n", "no column sunspots in a.csv; it has year, spots"),
        ("a.csv", "spots\n1\n", "no column sunspots in a.csv"),
        ("a.csv", "sunspots\n1\n", "no column year in a.csv"),
        ("a.csv", "year,sunspots\n1,x\n", "a.csv row 2, sunspots=x: no number"),
        ("a.csv", "year,sunspots\n1,\n", "sunspots in a.csv is missing"),
        ("a.csv", "year,sunspots\n1,2\n2,3\n", "2 rows: a window has seq_len=9"),
        ("a.csv", "PAR1\0\0", "a.csv: not the csv file"),
        ("a.parquet", "PAR1", "a.parquet: cannot be read"),
        ("a.parquet", "year,sunspots\n", "a.parquet: not the parquet file"),
    ],
)
def test_data_that_will_not_do_are_told(ckpt, command, name, text, said):
    if text is not None:
        Path(name).write_text(text)
    assert said in complaint(command, ckpt, "--data", name)


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_toy_task_reads_no_file(alone, command):
    alone("toy")
    line = complaint(command, "best.ckpt", "--data", SUNSPOTS)
    assert line == f"--data={SUNSPOTS}: seqlab.tasks.TaskData reads no file"


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_file_that_the_run_read_and_is_gone_is_told(ckpt, command):
    contents = read(ckpt)
    contents["config"]["data"]["path"] = "/gone/sunspots.csv"
    write(Path(ckpt), contents)
    line = complaint(command, ckpt)
    assert line == "/gone/sunspots.csv: no such file; --data FILE names another"


@pytest.mark.parametrize("output", ["table", "table.xlsx", "table.csv.gz", "."])
def test_predict_refuses_other_endings_before_it_works(output):
    line = complaint("predict", "no.ckpt", "--output", output)
    assert line == f"--output={output}: must end in .csv, .parquet or .json"


@pytest.mark.parametrize("ending", ["csv", "parquet", "json"])
def test_predict_tells_of_a_folder_that_is_not_there(ckpt, ending):
    line = complaint("predict", ckpt, "--output", f"gone/table.{ending}")
    assert line == f"--output=gone/table.{ending}: there is no folder gone"
    Path(f"folder.{ending}").mkdir()
    line = complaint("predict", ckpt, "--output", f"folder.{ending}")
    assert line.startswith(f"--output=folder.{ending}: Is a directory")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model.n_hidden=0"], "n_hidden=0"),
        (["model.n_hidden=many"], "n_hidden=many"),
        (["model.colour=red"], "colour"),
        (["nonsense=1"], "nonsense"),
        (["model=gone"], "model=gone: no such choice"),
        (["data=series"], "give it a value"),
        (["model.n_hidden=[1"], "model.n_hidden=[1"),
        (["seed=x"], "seed=x"),
        (["a.ckpt", "b.ckpt"], "a.ckpt: give one CKPT alone"),
        (["model.n_hidden=3", "a.ckpt"], "a.ckpt: give one CKPT alone"),
        (["--picture", "gone/a.png"], "--picture=gone/a.png: "),
        (["--picture", "a.word"], "--picture=a.word: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_shapes_tells_what_it_cannot_show(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert said in complaint("shapes", *arguments)


@pytest.fixture
def stateless(ckpt, monkeypatch):
    """A checkpoint of a network that is no LSTM, in a package of the user's."""
    Path("mine.py").write_text(
        "from torch import nn\n"
        "class Mean(nn.Module):\n"
        "    def __init__(self, n_inputs, n_outputs):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(n_inputs, n_outputs)\n"
        "    def forward(self, x, hidden=None):\n"
        "        return self.head(x.mean(dim=1)), None\n"
    )
    contents = read(ckpt)
    contents["config"]["model"] = {"_target_": "mine.Mean", "n_inputs": 1, "n_outputs": O}
    contents["config"]["data"]["predict"], contents["sizes"]["base"] = "level", None
    head = nn.Linear(1, O).state_dict()
    contents["state_dict"] = {f"network.head.{key}": value for key, value in head.items()}
    write(Path(ckpt), contents)
    monkeypatch.syspath_prepend(Path.cwd())
    yield ckpt
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_a_network_of_ones_own_needs_to_be_trusted(stateless, command):
    line = complaint(*command, stateless)
    way = "--trust mine, or trust=[mine] for a run, says that its code may run"
    assert line == f"model._target_=mine.Mean: not trusted; {way}"
    assert "mine" not in sys.modules


def test_a_network_of_ones_own_is_evaluated_forecast_and_streamed(stateless):
    trust = (stateless, "--trust", "mine")
    rows = json.loads(seqlab_("evaluate", *trust, "--json").stdout)
    assert math.isfinite(rows["network"]["test/mse"])
    assert seqlab_("predict", *trust).stdout.count("\n") == 93
    assert seqlab_("stream", *trust, input="1\n2\n").stdout.count("\n") == 2
    with pytest.raises(UserError, match="a Mean has no STM to show"):
        seqlab_("shapes", *trust)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_evaluate_and_predict_keep_the_precision_of_the_run(precision, tmp_path):
    trained = run(*TINY, f"trainer.precision={precision}", cwd=tmp_path)
    assert trained.code == 0, trained.err
    best = str(trained.folder / "checkpoints/best.ckpt")
    found = program.seqlab("evaluate", best, "--json", cwd=tmp_path)
    assert found.code == 0, found.err
    for name, value in json.loads(found.out)["network"].items():
        # Lightning rounds targets too for a run in bfloat16
        near = {"abs": 0} if precision == "64-true" else {"rel": 2e-3}
        assert value == pytest.approx(trained.results["metrics"][name], **near), name
    assert program.seqlab("predict", best, cwd=tmp_path).code == 0
