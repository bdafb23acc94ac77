import struct

import numpy as np
import polars as pl
import pytest
import torch
from fitting import learner_of, parts
from matplotlib.backends.backend_agg import FigureCanvasAgg
from program import TINY, run, seqlab

from seqlab.engine.forecaster import load, load_data
from seqlab.engine.report import compare
from seqlab.literature import Copy, Reber, TemporalOrder
from seqlab.losses import Quantile
from seqlab.model import LSTMNetwork
from seqlab.objectives import NO_TARGET, Values
from seqlab.series.windows import SeriesData
from seqlab.tasks import Task
from seqlab.tools.forecast import forecasts
from seqlab.watch.pictures import last_forecasts, predictions

RNG = np.random.default_rng(0)


class Sums(Task):
    """The running sum, a number at every step, not asked for at the third."""

    n_inputs, n_outputs, every_step, objective = 1, 1, True, Values()

    def draw(self, n, seq_len, generator):
        x = torch.rand(n, seq_len, 1, generator=generator)
        y = x.cumsum(1)
        y[:, 2] = torch.nan
        return x, y


@pytest.mark.parametrize("task", [TemporalOrder(), Reber(), Copy(), Sums()])
def test_answers_that_are_classes_or_at_every_step_are_drawn(task):
    data, learner = parts(task, seq_len=25)
    classes = not learner.objective.numeric
    with torch.inference_mode():
        drawn = predictions(data, "test", learner)
        x, y, *lengths = data.splits["test"][:]
        answer = learner.objective.answer(learner(x, *lengths))
    names = ["confusion"] * classes + ["answers"] * data.every_step
    assert list(drawn) == names
    for figure in drawn.values():
        FigureCanvasAgg(figure).draw()
    if classes:
        known = y != NO_TARGET
        right = (answer == y)[known].sum()
        axes = drawn["confusion"].axes[0]
        assert axes.get_title() == f"{right} of {known.sum()} targets right"
        assert sum(int(text.get_text()) for text in axes.texts) == known.sum()
        assert axes.images[0].get_array().shape == (data.n_outputs, data.n_outputs)
    if data.every_step:
        axes = drawn["answers"].axes[0]
        truth = learner.objective.truth(y)[0].reshape(-1).numpy()
        shown = np.where(np.isnan(truth), np.nan, answer[0].reshape(-1).numpy())
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), truth)
        np.testing.assert_array_equal(axes.lines[1].get_ydata(), shown)
        assert len(axes.patches) == np.isnan(truth).sum()


def shops(file, n_groups, n=120):
    """A file of shops, the sales of each noisier than those of the one before."""
    days = pl.Series(np.datetime64("2024-01-01") + np.arange(n)).cast(pl.Date)
    tables = []
    for g in range(n_groups):
        sales = 100 * g + np.sin(np.arange(n) / 3) + 0.2 * g * RNG.normal(size=n)
        tables.append(pl.DataFrame({"day": days, "shop": [f"s{g}"] * n, "sales": sales}))
    pl.concat(tables).write_csv(file)


def series(file, group, horizon, lead):
    """The data of a file and an untrained learner."""
    reading = dict(target="sales", time="day", features=[], known=[], group=group, missing="error")
    cuts = dict(val_from=0.5, test_from=0.7, until=None, time_format=None)
    windows = dict(seq_len=6, horizon=horizon, lead=lead, season=None, predict="level")
    windows |= dict(calendar=[])
    rest = dict(batch_size=8, accumulate=1, steps_per_call=4, seed=0)
    data = SeriesData(str(file), **reading, **cuts, **windows, **rest)
    torch.manual_seed(0)
    net = LSTMNetwork(n_inputs=1, n_outputs=horizon, n_hidden=3, n_layers=1)
    return data, learner_of(net, data, None)


@pytest.mark.parametrize(("horizon", "lead"), [(1, 1), (3, 2)])
def test_the_last_forecasts_are_those_of_the_test_part_with_its_errors(tmp_path, horizon, lead):
    shops(tmp_path / "shops.csv", 1)
    data, learner = series(tmp_path / "shops.csv", None, horizon, lead)
    with torch.inference_mode():
        figure = last_forecasts(data, "test", learner.objective, learner)
        rows = compare(data, learner.objective, learner)
        predictions_WO = data.unscale(learner(data.splits["test"][:][0])).numpy()
    best = min(list(rows)[1:], key=lambda name: rows[name]["test/mse"])
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    errors = [f"{name}, test RMSE {rows[name]['test/rmse']:.4g}" for name in (best, "network")]
    assert names == ["history", "truth", *errors]
    steps = "2 to 4 steps" if horizon > 1 else "1 step"
    assert axes.get_title() == f"sales, forecast {steps} ahead"
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("sales", "day")

    history, truth, *forecasts = axes.lines
    forecasts = forecasts[len(forecasts) // 2 :]  # the network's
    shown = np.concatenate([line.get_ydata() for line in forecasts])
    at = np.concatenate([line.get_xdata(orig=True) for line in forecasts])
    days = data.series.times.to_numpy()
    # they end with the file, each step forecast once, beside the truth of the same day
    np.testing.assert_array_equal(at, days[-len(at) :])
    np.testing.assert_array_equal(truth.get_xdata(orig=True), at)
    np.testing.assert_array_equal(truth.get_ydata(), data.series.values[-len(at) :, 0])
    expected = predictions_WO[::-1][::horizon][::-1].ravel()
    np.testing.assert_allclose(shown, expected, rtol=1e-6)
    assert history.get_xdata(orig=True)[-1] == at[0]
    assert len(history.get_xdata()) == len(at) // 2 + 1


def test_of_many_groups_the_worst_the_median_and_the_best_are_shown(tmp_path):
    shops(tmp_path / "shops.csv", 5)
    data, learner = series(tmp_path / "shops.csv", "shop", 1, 1)
    with torch.inference_mode():
        figure = last_forecasts(data, "test", learner.objective, learner)
        errors = []
        for x, y in zip(*(part.split([len(r) for r in data.window_numbers["test"]])
                          for part in data.splits["test"][:]), strict=True):  # fmt: skip
            mse = [((data.unscale(guess) - data.unscale(y)) ** 2).mean().item()
                   for guess in (learner(x), *data.baselines(x).values())]  # fmt: skip
            errors.append(mse)
    skill = [1 - network / naive for network, naive, _ in errors]
    worst, _, median, _, best = np.argsort(skill)
    assert len(figure.axes) == 3
    for axes, group, word in zip(
        figure.axes, (worst, median, best), ("worst", "median", "best"), strict=True
    ):
        title = f"sales, s{group}, {word} of 5, skill {skill[group]:.3g}: forecast 1 step ahead"
        assert axes.get_title() == title
        last = axes.get_legend().get_texts()[-1].get_text()
        assert last == f"network, test RMSE {errors[group][0] ** 0.5:.4g}"
        truth = axes.lines[1].get_ydata()
        stop = data.series.pieces[group].stop
        np.testing.assert_array_equal(truth, data.series.values[stop - len(truth) : stop, 0])
        assert axes.lines[0].get_xdata(orig=True).min() >= data.series.times[0]


def test_a_run_on_a_series_leaves_its_forecast_as_a_picture(tmp_path):
    shops(tmp_path / "shops.csv", 1)
    words = ["data=series", "data.path=shops.csv", "data.target=sales", "data.time=day"]
    words += ["data.seq_len=6", "model.n_hidden=2", "trainer.max_epochs=1"]
    result = run(*words, "hydra.run.dir=run", cwd=tmp_path)
    assert result.code == 0, result.err
    picture = (tmp_path / "run" / "forecast.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert struct.unpack(">II", picture[16:24]) == (1200, 528)

    # the same with a step more, as a command; what it draws is what `predict` writes
    ckpt = "run/checkpoints/best.ckpt"
    made = seqlab("predict", ckpt, "--steps", "2", "--picture", "a.svg", cwd=tmp_path)
    assert (made.code, made.out, made.err) == (0, "", "a.svg: the last forecasts\n")
    assert "<svg" in (tmp_path / "a.svg").read_text()
    forecaster = load(tmp_path / ckpt)
    data, objective = load_data(forecaster, (), str(tmp_path / "shops.csv"))
    table = forecasts(forecaster, data, objective, lambda n: None, 2, 0.5)
    known = objective, forecaster.predict_scaled, forecaster.errors
    (axes,) = last_forecasts(data, "test", *known, 2, 0.5).axes
    (after,) = (line for line in axes.lines if line.get_label() == "network, after the end")
    assert after.get_ydata().tolist() == table["forecast"][-2:].to_list()
    assert after.get_xdata(orig=True).tolist() == table["time"][-2:].to_list()
    band, bar = axes.collections
    assert band.get_label() == "50 % interval"
    shown = table.filter(pl.col("truth").is_not_null()).tail(len(axes.lines[1].get_xdata()))
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx(
        (shown["low"].min(), shown["high"].max())
    )
    low, high = bar.get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((table["low"][-2], table["high"][-2]))
    # of a file that ends with a window there is the history alone, and what follows
    pl.read_csv(tmp_path / "shops.csv").tail(6).write_csv(tmp_path / "new.csv")
    data, _ = load_data(forecaster, (), str(tmp_path / "new.csv"))
    (axes,) = last_forecasts(data, "test", *known, 1, 0.9).axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(names) == ["90 % interval", "history", "network, after the end"]


@pytest.mark.parametrize(("horizon", "steps"), [(1, 2), (3, 2), (3, 4)])
def test_of_quantiles_the_outermost_two_are_the_intervals(tmp_path, horizon, steps):
    shops(tmp_path / "shops.csv", 1)
    data, _ = series(tmp_path / "shops.csv", None, horizon, 1)
    objective = Quantile([0.05, 0.4, 0.85], horizon).attach(data)
    net = LSTMNetwork(n_inputs=1, n_outputs=horizon * 3, n_hidden=3, n_layers=1)
    with torch.inference_mode():
        errors = torch.full((100, horizon), 50.0)  # of no account
        answers = lambda x: net(x)[0]  # noqa: E731
        figure = last_forecasts(data, "test", objective, answers, errors, steps)
        last = data.scaler.scale(data.series.values[-6:])[None]
        found = [objective.quantiles(answers(x)) for x in (data.splits["test"][:][0], last)]
    (axes,) = figure.axes
    assert "80 % interval" in [text.get_text() for text in axes.get_legend().get_texts()]
    bands = [np.unique(band.get_paths()[0].vertices[:, 1]) for band in axes.collections]
    # of the test part as many windows as follow one another, and what follows the end
    n = len(axes.lines[1].get_xdata()) // horizon
    low, high = (
        each.numpy()[::-1][::horizon][:n][::-1] for each in (found[0][0.05], found[0][0.85])
    )
    drawn = np.concatenate(bands[:-1] if horizon > 1 else bands[:1])
    assert (drawn.min(), drawn.max()) == pytest.approx((low.min(), high.max()))
    after = np.concatenate([found[1][0.05][0][:steps], found[1][0.85][0][:steps]])
    ends = axes.collections[-1].get_paths()[0].vertices[:, 1]
    assert (ends.min(), ends.max()) == pytest.approx((after.min(), after.max()))
    (line,) = (each for each in axes.lines if each.get_label() == "network, after the end")
    assert len(line.get_ydata()) == steps
    np.testing.assert_allclose(line.get_ydata()[:horizon], found[1][0.4][0][:steps], rtol=1e-6)


def test_groups_without_a_test_window_have_their_names(tmp_path):
    shops(tmp_path / "shops.csv", 5)
    data, learner = series(tmp_path / "shops.csv", "shop", 1, 1)
    data.window_numbers["test"] = [numbers[:0] for numbers in data.window_numbers["test"]]
    data.splits["test"].index = torch.empty(0, dtype=torch.long)
    with torch.inference_mode():
        figure = last_forecasts(data, "test", learner.objective, learner, None, 1)
    titles = [f"sales, s{g}: forecast 1 step ahead" for g in range(3)]
    assert [axes.get_title() for axes in figure.axes] == titles


def test_a_task_has_no_such_picture(tmp_path):
    assert run(*TINY, "hydra.run.dir=run", cwd=tmp_path).code == 0
    words = "predict", "run/checkpoints/best.ckpt", "--picture", "a.png"
    made = seqlab(*words, cwd=tmp_path)
    assert (made.code, made.err.count("\n")) == (2, 1)
    assert made.err.startswith("error: --picture: only a series")
    assert not (tmp_path / "a.png").exists()
