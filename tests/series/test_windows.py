import re
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch

from seqlab.data import SPLITS, Chunks
from seqlab.series import reading
from seqlab.series.windows import (
    Scaler,
    SeriesData,
    WindowData,
    autoregression,
    naive_error,
    windows,
)

WINDOW = {"predict": "level", "calendar": [], "seq_len": 4, "horizon": 2, "lead": 1, "season": None}
BATCHES = {"batch_size": 8, "accumulate": 1, "steps_per_call": 4, "seed": 0}
READ = {"target": "y", "time": None, "features": [], "known": [], "group": None, "missing": "error"}
CUTS = {"val_from": 0.6, "test_from": 0.8, "until": None, "time_format": None}


def prepared(data):
    data.prepare(torch.device("cpu"))
    return data


def table(values, cuts=(0.6, 0.8)):
    """A series of one group from an array `(N,)` or `(N, F)`."""
    values = np.asarray(values, float).reshape(len(values), -1)
    piece = reading.Piece("", 0, len(values), tuple(round(c * len(values)) for c in cuts))
    names = [f"c{f}" for f in range(values.shape[1])]
    return reading.Series(values, names, pl.Series(range(len(values))), [piece], [])


def window_data(source, **changed):
    return prepared(WindowData(source, **(WINDOW | BATCHES | changed)))


def write(path, **columns):
    frame = pl.DataFrame(columns)
    frame.write_csv(path) if path.suffix == ".csv" else frame.write_parquet(path)
    return str(path)


def read(path, **changed):
    return reading.read(path, **(READ | CUTS | changed))


def noise(n, F=1, seed=0):
    return np.random.default_rng(seed).normal(size=(n, F)).cumsum(axis=0)


def in_units(made, x):
    """Column 0 of inputs `(B, T, F)` in the data's units."""
    return made.unscale(x[..., 0]).round().long()


# windows


@pytest.mark.parametrize("T", [1, 2, 5])
@pytest.mark.parametrize("O", [1, 3])
@pytest.mark.parametrize("lead", [1, 4])
@pytest.mark.parametrize("F", [1, 2])
def test_windows_equal_those_of_a_naive_loop(T, O, lead, F):
    values = torch.randn(30, F)
    x, y = windows(values, T, O, lead)
    n = 0
    while n + T - 1 + lead + O <= 30:
        assert torch.equal(x[n], values[n : n + T])
        first = n + T - 1 + lead
        assert torch.equal(y[n], values[first : first + O, 0])
        n += 1
    assert x.shape == (n, T, F)
    assert y.shape == (n, O)


def test_windows_are_views_of_the_series():
    values = torch.randn(30, 2)
    x, y = windows(values, 5, 3, 2)
    assert x.data_ptr() == values.data_ptr()
    assert y.data_ptr() == values[6].data_ptr()
    values[7] = 9
    assert (x[3, 4] == 9).all()
    assert y[1, 0] == y[0, 1] == 9


def test_no_split_of_one_series_copies_its_windows():
    made = window_data(table(noise(200, 2)), lead=3)
    splits = [*made.splits.values(), made.training_set(0)]
    storage = {part.untyped_storage().data_ptr() for split in splits for part in split[:]}
    assert len(storage) == 1
    assert made.splits["train"].x.untyped_storage().nbytes() == 200 * 2 * 4


def test_the_windows_of_many_series_share_one_tensor(tmp_path):
    path = write(tmp_path / "a.parquet", y=noise(200)[:, 0], g=["a", "b"] * 100)
    made = prepared(SeriesData(path, **(READ | CUTS | WINDOW | BATCHES | {"group": "g"})))
    parts = [part for s in SPLITS for part in (made.splits[s].x, made.splits[s].y)]
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1


# splits


@pytest.mark.parametrize(("T", "O", "lead"), [(4, 1, 1), (4, 3, 1), (2, 2, 5), (7, 1, 3)])
def test_no_target_straddles_a_boundary_and_no_row_of_a_split_is_left_out(T, O, lead):
    made = window_data(table(np.arange(200.0)), seq_len=T, horizon=O, lead=lead)
    for split, (low, high) in zip(SPLITS, [(0, 120), (120, 160), (160, 200)], strict=True):
        x, y = made.splits[split][:]
        x, y = in_units(made, x), made.unscale(y).round().long()
        first = low if split != "train" else T - 1 + lead
        assert y[:, 0].tolist() == list(range(first, high - O + 1))
        assert torch.equal(y, y[:, :1] + torch.arange(O))
        assert torch.equal(x, y[:, :1] - lead + torch.arange(1 - T, 1))


@pytest.fixture
def three_groups(tmp_path):
    """Groups of 100, 60 and 80 rows, mixed in the file; y tells the group and the row in it."""
    rows = [(name, k) for name, n in (("a", 100), ("b", 60), ("c", 80)) for k in range(n)]
    order = np.random.default_rng(0).permutation(len(rows))
    names, t = zip(*(rows[i] for i in order), strict=True)
    y = [1000.0 * "abc".index(name) + k for name, k in zip(names, t, strict=True)]
    return write(tmp_path / "groups.csv", y=y, t=list(t), g=list(names))


def test_each_group_is_split_by_itself_in_order_of_time(three_groups):
    got = read(three_groups, time="t", group="g")
    assert sorted(piece.name for piece in got.pieces) == ["a", "b", "c"]
    for piece in got.pieces:
        n = piece.stop - piece.start
        start = 1000 * "abc".index(piece.name)
        assert n == {"a": 100, "b": 60, "c": 80}[piece.name]
        assert got.values[piece.start : piece.stop, 0].tolist() == list(range(start, start + n))
        cuts = piece.start + round(0.6 * n), piece.start + round(0.8 * n)
        assert piece.cuts == cuts
        edges = [piece.start, *cuts, piece.stop]
        assert [piece.rows(s) for s in SPLITS] == list(pairwise(edges))


def test_no_window_crosses_two_groups(three_groups):
    changed = {"time": "t", "group": "g", "lead": 2, "horizon": 3}
    made = prepared(SeriesData(three_groups, **(READ | CUTS | WINDOW | BATCHES | changed)))
    sizes = {0: 100, 1: 60, 2: 80}
    for split in SPLITS:
        x, y = made.splits[split][:]
        x, y = in_units(made, x), made.unscale(y).round().long()
        group = x[:, 0] // 1000
        assert (x // 1000 == group[:, None]).all()
        assert (y // 1000 == group[:, None]).all()
        for number, n in sizes.items():
            targets = y[group == number] - 1000 * number
            low, high = {
                "train": (4 - 1 + 2, round(0.6 * n)),
                "val": (round(0.6 * n), round(0.8 * n)),
                "test": (round(0.8 * n), n),
            }[split]
            assert targets[:, 0].tolist() == list(range(low, high - 3 + 1))


@pytest.mark.parametrize("kind", ["number", "date", "time of day"])
def test_a_boundary_can_be_a_value_of_the_time_column(tmp_path, kind):
    n = 50
    days = pl.date_range(pl.date(2020, 1, 1), pl.date(2020, 2, 19), eager=True)
    t = {
        "number": pl.Series([1900 + i for i in range(n)]),
        "date": days,
        "time of day": days.cast(pl.Datetime("us")),
    }[kind]
    val, test, until = {
        "number": (1930, 1940, 1945),
        "date": ("2020-01-31", "2020-02-10", "2020-02-15"),
        "time of day": ("2020-01-31T00:00:00", "2020-02-10 00:00", "2020-02-15"),
    }[kind]
    for name in ("a.csv", "a.parquet"):
        path = write(tmp_path / name, t=t, y=np.arange(n) * 1.0)
        got = read(path, time="t", val_from=val, test_from=test, until=until)
        assert got.pieces[0].cuts == (30, 40)
        assert got.values[:, 0].tolist() == list(range(46))


def test_a_number_between_two_rows_and_a_fraction_are_boundaries_too(tmp_path):
    path = write(tmp_path / "a.csv", t=[i / 2 for i in range(40)], y=np.arange(40.0))
    got = read(path, time="t", val_from=10.2, test_from=0.9)
    assert got.pieces[0].cuts == (21, 36)


def test_fractions_count_the_rows_that_until_leaves(tmp_path):
    path = write(tmp_path / "a.csv", t=list(range(100)), y=np.arange(100.0))
    assert read(path, time="t", until=49).pieces[0].cuts == (30, 40)


# no leak


def fitted(made):
    weights = made.weights.clone()
    batches = [part for chunk in Chunks(made) for part in chunk]
    return made.scaler, made.mase_scale, weights, batches


@pytest.mark.parametrize("features", [1, 3])
def test_nothing_in_training_depends_on_later_rows(features):
    values = noise(300, features)
    changed = values.copy()
    changed[180:] = 1e3 * np.random.default_rng(1).normal(size=changed[180:].shape)
    before, after = (fitted(window_data(table(v), season=3, lead=2)) for v in (values, changed))
    assert before[0] == after[0]
    assert before[1] == after[1]
    assert torch.equal(before[2], after[2])
    for a, b in zip(before[3], after[3], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("t", [185, 230, 260, 290])
def test_nothing_up_to_a_moment_depends_on_what_comes_after(t):
    T, O, lead = 4, 2, 3
    values = noise(300, 2)
    changed = values.copy()
    changed[t + 1 :] = 7
    made = [window_data(table(v), season=3, lead=lead) for v in (values, changed)]
    for split, low in zip(SPLITS, (0, 180, 240), strict=True):
        (x, y), (other_x, other_y) = (m.splits[split][:] for m in made)
        first_end = T - 1 if split == "train" else low - lead
        ends = torch.arange(len(x)) + first_end  # the last row of each window
        seen = ends <= t
        assert torch.equal(x[seen], other_x[seen])
        known = ends[:, None] + lead + torch.arange(O) <= t
        assert torch.equal(y[known], other_y[known])
        for (name, a), b in zip(
            made[0].baselines(x[seen]).items(),
            made[1].baselines(other_x[seen]).values(),
            strict=True,
        ):
            assert torch.equal(a, b), name
        if split == "test":
            assert not torch.equal(x, other_x) or not torch.equal(y, other_y)


# scaler


def test_the_scaler_has_the_moments_of_the_training_rows_alone():
    values = noise(100, 3) * [1, 50, 1e-3] + [0, 1e4, -5]
    scaler = Scaler.fit(table(values))
    np.testing.assert_allclose(scaler.mean, values[:60].mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scaler.std, values[:60].std(axis=0), rtol=1e-12)
    scaled = scaler.scale(values)[:60]
    assert scaled.dtype == torch.float32
    assert scaled.mean(dim=0).abs().max() < 1e-5
    assert (scaled.std(dim=0, correction=0) - 1).abs().max() < 1e-5


def test_the_scaler_pools_the_training_rows_of_all_groups(three_groups):
    got = read(three_groups, time="t", group="g")
    scaler = Scaler.fit(got)
    training = [*range(60), *range(1000, 1036), *range(2000, 2048)]
    assert scaler.mean[0] == pytest.approx(np.mean(training))
    assert scaler.std[0] == pytest.approx(np.std(training))


@pytest.mark.parametrize(("center", "spread"), [(0, 1), (1e6, 0.01), (-3e-7, 1e-9), (5e8, 1e7)])
def test_unscale_undoes_scale(center, spread):
    values = center + spread * np.random.default_rng(0).normal(size=(500, 1))
    scaler = Scaler.fit(table(values))
    back = scaler.unscale(scaler.scale(values)).numpy()
    assert back.dtype == np.float64
    # relative to how far the value is from the mean, the harder promise where the mean is large
    np.testing.assert_allclose(back - center, values - center, rtol=1e-6, atol=1e-6 * spread)
    np.testing.assert_allclose(back, values, rtol=1e-6)


@pytest.mark.parametrize("center", [0, 1e4])
def test_a_float32_file_stays_so_and_counts_as_exactly_as_in_float64(tmp_path, center):
    y = (center + noise(500, 1)[:, 0]).astype(np.float32)
    single = read(write(tmp_path / "single.parquet", y=y))
    double = read(write(tmp_path / "double.parquet", y=y.astype(np.float64)))
    assert (single.values.dtype, double.values.dtype) == (np.float32, np.float64)
    first, second = (Scaler.fit(source) for source in (single, double))
    assert first.mean == pytest.approx(second.mean, rel=1e-12)
    assert first.std == pytest.approx(second.std, rel=1e-12)
    assert torch.equal(first.scale(single.values), first.scale(double.values))
    assert naive_error(single, 1) == pytest.approx(naive_error(double, 1), rel=1e-6)


# baselines


def test_persistence_repeats_the_last_value():
    x = torch.randn(20, 4, 2)
    made = window_data(table(noise(200, 2)), horizon=3)
    persistence = made.baselines(x)["persistence"]
    assert torch.equal(persistence, x[:, 3, 0][:, None].repeat(1, 3))


@pytest.mark.parametrize("lead", [1, 2, 5])
@pytest.mark.parametrize(("season", "O"), [(1, 3), (3, 2), (3, 8), (5, 5)])
def test_seasonal_naive_takes_the_last_known_row_of_the_same_season(season, O, lead):
    made = window_data(table(np.arange(300.0)), seq_len=6, season=season, horizon=O, lead=lead)
    x, _ = made.splits["val"][:]
    got = made.unscale(made.baselines(x)["seasonal naive"]).round().long()
    last = in_units(made, x)[:, -1]
    for w in range(len(x)):
        for o in range(O):
            row = int(last[w]) + lead + o
            while row > last[w]:
                row -= season
            assert got[w, o] == row


def test_a_periodic_series_is_no_problem_for_seasonal_naive():
    values = np.tile([1.0, 5, 2, 8], 60)
    made = window_data(table(values), seq_len=5, season=4, horizon=9, lead=2)
    x, y = made.splits["test"][:]
    assert torch.equal(made.baselines(x)["seasonal naive"], y)


def lstsq(x, y):
    rows = np.concatenate([x.flatten(1).double().numpy(), np.ones((len(x), 1))], axis=1)
    return np.linalg.lstsq(rows, y.double().numpy(), rcond=None)[0]


@pytest.mark.parametrize("F", [1, 3])
@pytest.mark.parametrize("O", [1, 4])
@pytest.mark.parametrize("size", [3, 50, 1000])
def test_the_autoregression_is_least_squares_over_all_windows_at_once(F, O, size):
    values = torch.tensor(noise(400, F), dtype=torch.float32)
    x, y = windows(values, 5, O, 2)
    batches = zip(x.split(size), y.split(size), strict=True)
    weights = autoregression(batches)
    assert weights.shape == (5 * F + 1, O)
    np.testing.assert_allclose(weights.numpy(), lstsq(x, y), rtol=1e-6, atol=1e-9)


def test_the_autoregression_of_a_long_series_sees_all_training_windows():
    made = window_data(table(noise(60_000, 2)), seq_len=3)
    x, y = made.splits["train"][:]
    assert len(x) > 2 * 16_384
    expected = lstsq(x, y)
    np.testing.assert_allclose(made.weights.numpy(), expected, rtol=1e-6, atol=1e-9)
    x, _ = made.splits["test"][:]
    rows = np.concatenate([x.flatten(1).numpy(), np.ones((len(x), 1))], axis=1)
    np.testing.assert_allclose(made.baselines(x)["AR(3)"].numpy(), rows @ expected, rtol=1e-4)


def test_the_autoregression_finds_the_weights_that_made_the_series():
    values = np.zeros(3000)
    drawn = np.random.default_rng(0).normal(size=3000)
    for t in range(2, 3000):
        values[t] = 0.5 * values[t - 1] - 0.3 * values[t - 2] + drawn[t]
    made = window_data(table(values), seq_len=2, horizon=1)
    assert made.weights[:, 0].tolist() == pytest.approx([-0.3, 0.5, 0], abs=0.05)


def test_the_first_baseline_is_persistence_and_sets_the_reference_of_skill():
    made = window_data(table(noise(200)))
    x, y = made.splits["val"][:]
    assert list(made.baselines(x)) == ["persistence", "AR(4)"]
    error = made.unscale(x[:, -1:, 0].expand(-1, 2)) - made.unscale(y)
    references = made.objective.attach(made).references
    assert references["val"] == pytest.approx(error.square().mean().item())


def test_mase_divides_by_the_naive_error_of_training():
    values = [1.0, 4, 2, 2, 7, 3, 100, 200, 300, 400]
    assert naive_error(table(values), 1) == pytest.approx((3 + 2 + 0 + 5 + 4) / 5)
    assert naive_error(table(values), 2) == pytest.approx((1 + 2 + 5 + 1) / 4)


def test_mase_never_differences_two_groups(three_groups):
    got = read(three_groups, time="t", group="g")
    assert naive_error(got, 1) == 1
    assert naive_error(got, 7) == 7


def test_mase_is_seasonal_where_a_season_is_given():
    values = noise(200)
    source = table(values)
    assert window_data(source).mase_scale == naive_error(source, 1)
    assert window_data(source, season=3).mase_scale == naive_error(source, 3)


def test_what_is_not_the_files_own_is_no_target_and_in_no_metric():
    source = table(noise(200))
    source.own[[20, 130, 131, 190]], source.filled[[20, 130, 131, 190]] = False, True
    made = window_data(source)
    for split in SPLITS:
        rows = made.window_numbers[split][0][:, None] + 4 + np.arange(2)
        assert source.own[rows].all()
        assert source.own[rows[:, 0] - 1].all()  # it was filled in with the target in view
        low, high = source.pieces[0].rows(split)
        usable = [
            source.own[row - 1 : row + 2].all()
            for row in range(low + (4 if split == "train" else 0), high - 1)
        ]
        assert len(made.splits[split]) == sum(usable)
    # a wild invented value changes neither the targets nor what MASE divides by
    wild = table(source.values.copy())
    wild.own, wild.filled = source.own, source.filled
    wild.values[[20, 130, 131, 190]] = 1e6
    assert naive_error(wild, 1) == naive_error(source, 1)
    again = window_data(wild)
    for split in SPLITS:
        ours, theirs = (d.unscale(d.splits[split][:][1]) for d in (made, again))
        assert torch.allclose(ours, theirs, rtol=0, atol=1.0)
        assert theirs.abs().max() < 1e5


def test_a_file_of_one_window_without_its_target_can_be_forecast(tmp_path, capsys):
    made = window_data(table(noise(200)))
    fitted, short = (
        made.state_dict(),
        {"s": ["a"] * 4 + ["b"] * 3, "y": [float(i) for i in range(7)]},
    )
    given = READ | CUTS | WINDOW | BATCHES | {"fitted": fitted}
    path = write(tmp_path / "one.csv", y=[1.0, 2.0, 3.0, 4.0])
    one = prepared(SeriesData(path, **given))
    assert len(one.splits["test"]) == 0
    assert [(p.start, p.stop) for p in one.series.pieces] == [(0, 4)]
    path = write(tmp_path / "three.csv", y=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="3 rows: a window has seq_len=4"):
        SeriesData(path, **given)
    path = write(tmp_path / "two.csv", **short)
    two = prepared(SeriesData(path, **(given | {"group": "s"})))
    assert [p.name for p in two.series.pieces] == ["a"]
    assert "note: b is left out: 3 rows, and a window has 4" in capsys.readouterr().err


def test_a_changed_file_is_said_where_its_test_part_begins(capsys):
    made = window_data(table(noise(200)))
    window_data(table(noise(200))).load_state_dict(made.state_dict())
    assert capsys.readouterr().err == ""
    window_data(table(noise(240))).load_state_dict(made.state_dict())
    said = "note: the series is not that of the training; its test part begins with 192\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("predict", ["change", "season", "residual"])
def test_what_is_predicted_changes_the_scale_and_no_baseline(predict):
    values, given = noise(200, 2), {"season": 4, "horizon": 3, "lead": 2}
    level = window_data(table(values), **given)
    other = window_data(table(values), predict=predict, **given)
    changes = np.diff(values[:120, 0])
    assert other.scaler.std == pytest.approx([changes.std(), values[:120, 1].std()])
    for x, _ in level.whole("test"):
        ours = {name: level.unscale(b) for name, b in level.baselines(x).items()}
    for x, _ in other.whole("test"):
        theirs = {name: other.unscale(b) for name, b in other.baselines(x).items()}
    assert list(ours) == list(theirs) == ["persistence", "seasonal naive", "AR(4)"]
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-4)


def test_what_cannot_be_predicted_is_refused():
    with pytest.raises(ValueError, match="predict=nope: one of level, change, season, residual"):
        window_data(table(noise(200)), predict="nope")
    with pytest.raises(ValueError, match="predict=season: give season, the rows in one"):
        window_data(table(noise(200)), predict="season")


UNIFORM = np.random.default_rng(0).uniform(size=900)
SEASON = np.tile([0.0, 5, 1, 9, 3], 180)


@pytest.mark.parametrize(
    ("values", "given", "said"),
    [
        (
            np.arange(900) + UNIFORM,
            {},
            "100% of the test values lie outside the training range, by",
        ),
        (np.arange(900) + UNIFORM, {"predict": "residual"}, None),
        (SEASON + UNIFORM, {"seq_len": 9}, "data.season=5 says so"),
        (SEASON + UNIFORM, {"seq_len": 9, "season": 5}, None),
        (UNIFORM[:300], {}, "175 windows to learn from are few"),
        (UNIFORM, {}, None),
        (
            UNIFORM,
            {"best": "seasonal naive", "season": 4},
            "seasonal naive is strong here; data.predict=season learns what it leaves",
        ),
        (
            UNIFORM,
            {"best": "persistence"},
            "persistence is strong here; data.predict=change learns what it leaves",
        ),
        (UNIFORM, {"best": "persistence", "predict": "change"}, None),
        (UNIFORM, {"best": "AR(8)"}, None),
    ],
)
def test_what_may_be_told_of_a_series_that_a_baseline_does_better_on(values, given, said):
    best = given.pop("best", None)
    advice = window_data(table(values), **given).advice(best)
    assert said in advice if said else advice is None
    if said and "outside" in said:  # 900 rows, of which 540 are for training
        assert 359 < float(re.search(r"by up to (\S+);", advice)[1]) < 361


def test_fewer_windows_than_steps_are_measured():
    made = window_data(table(noise(144), (0.7, 0.85)), seq_len=12, horizon=12, batch_size=4)
    _, y = made.splits["test"][:]
    assert len(y) == 11
    assert made.unscale(y).is_contiguous()  # torchmetrics takes a view of it
    objective = made.objective.attach(made)
    metrics = objective.metrics("test")
    objective.measure(metrics, y + 1, y)
    assert objective.values("test", metrics)["test/mae"] == pytest.approx(
        made.scaler.std[0], rel=1e-5
    )
