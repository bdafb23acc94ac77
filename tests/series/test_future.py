"""The calendar and the columns that are known before their time, from the file to the forecast."""

import datetime
import json
import re

import numpy as np
import polars as pl
import pytest
import torch
from program import run, seqlab

import seqlab as package
from seqlab.series.ahead import absent_times
from seqlab.series.future import phases, times_after
from seqlab.series.windows import SeriesData

GIVEN = {
    "target": "y", "time": "t", "features": [], "group": None, "missing": "error",
    "val_from": 0.6, "test_from": 0.8, "until": None, "time_format": None, "season": None,
    "seq_len": 6, "horizon": 3, "lead": 2, "predict": "residual",
    "batch_size": 8, "accumulate": 1, "steps_per_call": 4, "seed": 0,
}  # fmt: skip
N, AHEAD = 800, 12


def hours(n, step="1h"):
    start = pl.Series([datetime.datetime(2024, 3, 4)])
    return pl.concat([start.dt.offset_by(f"{k * int(step[:-1])}{step[-1]}") for k in range(n)])


def write(path, n_ahead=AHEAD, groups=1, **changed):
    """Hours with a price and a holiday; the target of the last rows is empty."""
    rng = np.random.default_rng(3)
    price = rng.normal(size=N + n_ahead).round(3)
    holiday = (rng.random(N + n_ahead) < 0.1).astype(float)
    y = [*(10 + 4 * price + 2 * holiday)[:N], *[None] * n_ahead]
    columns = {"t": hours(N + n_ahead), "y": y, "price": price, "holiday": holiday}
    columns |= {"number": range(N + n_ahead)} | changed
    table = pl.DataFrame(columns)
    parts = [table.with_columns(g=pl.lit(f"g{i}")) for i in range(groups)]
    pl.concat(parts if groups > 1 else [table]).write_csv(path)
    return str(path), table


def load(path, **changed):
    data = SeriesData(path=path, **GIVEN | {"known": [], "calendar": []} | changed)
    data.prepare(torch.device("cpu"))
    return data


def test_at_each_row_the_inputs_are_those_of_the_rows_to_forecast(tmp_path):
    path, table = write(tmp_path / "a.csv")
    data = load(path, known=["price", "holiday"], calendar=["hour", "weekday"])
    assert data.series.columns == [
        "y", "price 2 ahead", "price 3 ahead", "price 4 ahead",
        "holiday 2 ahead", "holiday 3 ahead", "holiday 4 ahead",
        "hour sine", "hour cosine", "weekday sine", "weekday cosine",
    ]  # fmt: skip
    assert data.n_inputs == 11
    x, y = data.splits["test"][:]
    assert x.shape[1:] == (6, 11)
    mean, std = map(torch.tensor, (data.scaler.mean, data.scaler.std))
    x = x.double() * std + mean
    first = data.window_numbers["test"][0]
    for w in (0, 17, len(x) - 1):
        for t in range(6):
            row = int(first[w]) + t
            ahead = slice(row + 2, row + 5)
            assert x[w, t, 1:4].tolist() == pytest.approx(table["price"][ahead].to_list(), abs=1e-5)
            assert x[w, t, 4:7].tolist() == pytest.approx(
                table["holiday"][ahead].to_list(), abs=1e-5
            )
            time = table["t"][row + 2]
            angle = 2 * np.pi * np.array([time.hour / 24, time.weekday() / 7])
            waves = np.stack([np.sin(angle), np.cos(angle)], axis=1).ravel()
            assert x[w, t, 7:].tolist() == pytest.approx(waves.tolist(), abs=1e-6)
        targets = data.unscale(y[w])
        row = int(first[w]) + 5 + 2
        assert targets.tolist() == pytest.approx(table["y"][row : row + 3].to_list(), abs=1e-5)


def test_the_autoregression_does_not_read_what_is_known_of_rows_to_come(tmp_path):
    path, _ = write(tmp_path / "a.csv")
    plain, known = load(path), load(path, known=["price"], calendar=["hour"])
    assert torch.equal(plain.weights, known.weights)
    x = known.splits["test"][:][0]
    assert torch.equal(
        plain.baselines(plain.splits["test"][:][0])["AR(6)"], known.baselines(x)["AR(6)"]
    )


@pytest.mark.parametrize(
    ("name", "step", "cycle"),
    [("minute", "5m", 12), ("hour", "1h", 24), ("weekday", "1d", 7), ("month", "1mo", 12)],
)
def test_a_cycle_is_one_turn(name, step, cycle):
    times = (
        hours(3 * cycle, step if step != "1mo" else "1mo")
        if step != "1mo"
        else pl.Series([datetime.date(2020 + k // 12, k % 12 + 1, 1) for k in range(3 * cycle)])
    )
    found = phases(times, [name])[:, 0]
    turned = np.diff(np.unwrap(2 * np.pi * found)) / (2 * np.pi)
    np.testing.assert_allclose(turned, 1 / cycle, atol=1e-9)


def test_days_of_the_month_and_of_the_year():
    times = pl.Series([datetime.date(2024, 1, 1), datetime.date(2024, 12, 31)])
    expected = [[0, 0], [30 / 31, 365 / 366]]
    assert phases(times, ["monthday", "yearday"]).tolist() == expected


def test_the_times_after_the_end_are_those_of_the_file_and_then_go_on(tmp_path):
    path, table = write(tmp_path / "a.csv", n_ahead=3)
    data = load(path, known=["price"])
    assert times_after(data.source, 0, 2).to_list() == table["t"][N : N + 2].to_list()
    assert times_after(data.source, 0, 5).to_list() == hours(N + 5)[N:].to_list()


RUN = [
    "data=series", "data.target=y", "data.time=t", "data.known=[price,holiday]",
    "data.calendar=[hour,weekday]", "data.seq_len=6", "data.horizon=3", "data.batch_size=16",
    "model.n_layers=1", "model.n_hidden=16", "model.dropout=0", "optim.lr=0.01",
    "trainer.max_epochs=25", "callbacks.early_stopping=null", "callbacks.pictures=null",
    "hydra.run.dir=run",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    path, table = write(folder / "a.csv")
    done = run(*RUN, f"data.path={path}", cwd=folder)
    assert done.code == 0, done.err
    return folder, table


CKPT = "run/checkpoints/best.ckpt"


def test_what_is_known_is_learned_and_forecast_after_the_end(trained, monkeypatch):
    """The target is all price and holiday of its own row: without them nothing can be said."""
    folder, table = trained
    monkeypatch.chdir(folder)
    rows = json.loads(seqlab("evaluate", CKPT, "--json", cwd=folder).out)
    assert rows["network"]["test/mse"] < 0.05 * rows["AR(6)"]["test/mse"]
    found = pl.read_csv(seqlab("predict", CKPT, "--interval", "0.9", cwd=folder).out.encode())
    end = found.tail(3)
    assert end["time"].str.to_datetime().to_list() == table["t"][N : N + 3].to_list()
    truth = 10 + 4 * table["price"] + 2 * table["holiday"]
    near = (end["forecast"] - truth[N : N + 3]).abs()
    assert near.max() < 2.0
    # beyond the horizon, as far as the file goes; the truth has a deviation of 4
    more = seqlab("predict", CKPT, "--steps", "12", cwd=folder)
    end = pl.read_csv(more.out.encode()).tail(12)
    assert end["time"].str.to_datetime().to_list() == table["t"][N:].to_list()
    assert ((end["forecast"] - truth[N:]) ** 2).mean() < 0.1 * truth.var()
    assert end["forecast"][:3].to_list() == found.tail(3)["forecast"].to_list()


def test_rows_to_forecast_of_which_too_little_is_known(trained, tmp_path):
    folder, table = trained
    more = seqlab("predict", CKPT, "--steps", "13", cwd=folder)
    assert (more.code, more.out) == (2, "")
    assert more.err.endswith(
        "error: --steps=13: price, holiday must be in the file for the rows to forecast, "
        "where the target is empty\n"
    )
    short = tmp_path / "short.csv"
    table.head(N + 2).write_csv(short)
    found = seqlab("predict", CKPT, "--data", str(short), cwd=folder)
    assert found.code == 0
    assert "note: nothing after the end: price, holiday must be in the file" in found.err
    assert pl.read_csv(found.out.encode())["truth"].null_count() == 0


def test_exactly_a_window_of_another_file_and_its_known_rows(trained, tmp_path):
    folder, table = trained
    newest = tmp_path / "newest.csv"
    table[N - 6 :].write_csv(newest)
    whole = seqlab("predict", CKPT, cwd=folder)
    found = seqlab("predict", CKPT, "--data", str(newest), cwd=folder)
    assert found.out.splitlines()[1:] == whole.out.splitlines()[-3:]


@pytest.mark.slow
def test_an_exported_network_takes_the_same_inputs(trained):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder, _ = trained
    done = seqlab("export", CKPT, "--format", "onnx", "--output", "a.onnx", cwd=folder)
    assert done.code == 0, done.err
    forecaster = package.load(folder / CKPT)
    x = torch.randn(4, 6, 11, dtype=torch.float64) + forecaster.mean
    session = onnxruntime.InferenceSession(folder / "a.onnx")
    kind = session.get_inputs()[0].type
    given = x.numpy().astype(np.float32 if kind == "tensor(float)" else np.float64)
    (found, *_) = session.run(None, {session.get_inputs()[0].name: given})
    with torch.inference_mode():
        np.testing.assert_allclose(found, forecaster(x)[0].numpy(), rtol=1e-4, atol=1e-4)


def test_each_group_has_rows_to_come_of_its_own(tmp_path):
    path, table = write(tmp_path / "a.csv", groups=2)
    shifted = pl.read_csv(path).with_columns(
        price=pl.when(pl.col("g") == "g1").then(pl.col("price") + 100).otherwise(pl.col("price"))
    )
    shifted.write_csv(path)
    data = load(path, known=["price"], group="g")
    for i, more in enumerate((0, 100)):
        after = data.source.pieces[i].after["price"]
        assert after.to_list() == pytest.approx((table["price"][N:] + more).to_list())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"known": ["y"]}, "known=['y']: columns that are not the target or in features"),
        ({"known": ["price"], "features": ["price"]}, "not the target or in features"),
        ({"known": ["cost"]}, "no column cost in"),
        ({"calendar": ["decade"]}, "calendar=decade: of minute, hour, weekday"),
        ({"calendar": ["hour"], "time": None}, "calendar=hour: needs `time`, a column of dates"),
        ({"calendar": ["hour"], "time": "number"}, "calendar=hour: needs `time`"),
        ({"calendar": ["month"]}, "month sine is constant in the training part"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, changed, said):
    path, _ = write(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=re.escape(said)):
        load(path, **changed)


def test_rows_that_a_regular_series_leaves_out():
    days = pl.date_range(pl.date(2024, 1, 1), pl.date(2024, 7, 5), eager=True)
    business = days.filter(days.dt.weekday() <= 5)
    gone = business.gather([3, 40, 41])
    assert absent_times(business.filter(~business.is_in(gone.implode()))).to_list() == list(gone)
    every = hours(200).dt.replace_time_zone("UTC").dt.convert_time_zone("Europe/Berlin")
    every = every.dt.offset_by("25d")  # across the change to summer time, on 31 March
    gone = every.gather([5, 60, 61, 150])
    assert absent_times(every.filter(~every.is_in(gone.implode()))).to_list() == list(gone)
    tenths = pl.Series([k / 10 for k in range(40)])  # whose steps differ in the last digit
    (gone,) = absent_times(tenths.gather([k for k in range(40) if k != 7]))
    assert gone == pytest.approx(0.7)
    months = pl.Series([datetime.date(2020 + k // 12, k % 12 + 1, 1) for k in range(40)])
    assert absent_times(months.gather([k for k in range(40) if k != 7])).to_list() == [months[7]]


def test_times_without_a_rule_are_left_as_they_are():
    rng = np.random.default_rng(0)
    assert len(absent_times(pl.Series(np.sort(rng.random(50))))) == 0
    two = hours(20).append(hours(20).dt.offset_by("5y"))  # five years of hours are no hole
    assert len(absent_times(two)) == 0
