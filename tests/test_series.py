from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch
from program import set_up

from seqlab import series
from seqlab.data import MackeyGlass, SeriesData, WindowData

SPLITS = ("train", "val", "test")
WINDOW = {"seq_len": 4, "horizon": 2, "lead": 1, "season": None, "every_step": "never"}
BATCHES = {"batch_size": 8, "accumulate": 1, "steps_per_call": 4, "seed": 0}
READ = {"target": "y", "time": None, "features": [], "group": None, "missing": "error"}
CUTS = {"val_from": 0.6, "test_from": 0.8, "until": None}


def table(values, cuts=(0.6, 0.8)):
    """A series of one group from an array `(N,)` or `(N, F)`."""
    values = np.asarray(values, float).reshape(len(values), -1)
    piece = series.Piece("", 0, len(values), tuple(round(c * len(values)) for c in cuts))
    names = [f"c{f}" for f in range(values.shape[1])]
    return series.Series(values, names, pl.Series(range(len(values))), [piece], [])


def window_data(source, **changed):
    return set_up(WindowData(source, **(WINDOW | BATCHES | changed)))


def write(path, **columns):
    frame = pl.DataFrame(columns)
    frame.write_csv(path) if path.suffix == ".csv" else frame.write_parquet(path)
    return str(path)


def read(path, **changed):
    return series.read(path, **(READ | CUTS | changed))


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
    x, y = series.windows(values, T, O, lead)
    n = 0
    while n + T - 1 + lead + O <= 30:
        assert torch.equal(x[n], values[n : n + T])
        for t in range(T):
            first = n + t + lead
            assert torch.equal(y[n, t], values[first : first + O, 0])
        n += 1
    assert x.shape == (n, T, F)
    assert y.shape == (n, T, O)


def test_windows_are_views_of_the_series():
    values = torch.randn(30, 2)
    x, y = series.windows(values, 5, 3, 2)
    assert x.data_ptr() == values.data_ptr()
    assert y.data_ptr() == values[2].data_ptr()
    values[7] = 9
    assert (x[3, 4] == 9).all()
    assert y[1, 4, 0] == y[5, 0, 0] == 9


def test_no_split_of_one_series_copies_its_windows():
    made = window_data(table(noise(200, 2)), lead=3, every_step="training")
    splits = [*made.splits.values(), made.training_set(0)]
    storage = {part.untyped_storage().data_ptr() for split in splits for part in split[:]}
    assert len(storage) == 1
    assert made.splits["train"].x.untyped_storage().nbytes() == 200 * 2 * 4


def test_the_windows_of_many_series_share_one_tensor(tmp_path):
    path = write(tmp_path / "a.parquet", y=noise(200)[:, 0], g=["a", "b"] * 100)
    made = set_up(SeriesData(path, **(READ | CUTS | WINDOW | BATCHES | {"group": "g"})))
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
    made = set_up(SeriesData(three_groups, **(READ | CUTS | WINDOW | BATCHES | changed)))
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


def test_targets_at_every_step_of_a_training_window_stay_in_its_group_and_in_training(three_groups):
    changed = {"time": "t", "group": "g", "lead": 2, "horizon": 3, "every_step": "training"}
    made = set_up(SeriesData(three_groups, **(READ | CUTS | WINDOW | BATCHES | changed)))
    plain = set_up(SeriesData(three_groups, **(READ | CUTS | WINDOW | BATCHES | changed) | {
        "every_step": "never"}))  # fmt: skip
    x, y = made.training_set(0)[:]
    assert y.shape == (len(x), 4, 3)
    rows, targets = in_units(made, x), made.unscale(y).round().long()
    assert torch.equal(targets, rows[:, :, None] + 2 + torch.arange(3))
    ends = {0: 60, 1: 36, 2: 48}  # where the training rows of each group end
    for number, n in ends.items():
        assert targets[rows[:, 0] // 1000 == number].max() == 1000 * number + n - 1
    # what is measured, and what the baselines are fitted on, is as without
    assert torch.equal(plain.training_set(0)[:][1], y[:, -1])
    assert torch.equal(made.weights, plain.weights)
    for split in SPLITS:
        for part, expected in zip(made.splits[split][:], plain.splits[split][:], strict=True):
            assert torch.equal(part, expected)


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
    batches = [part for call in made.train_dataloader() for step in call for part in step[0]]
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
    scaler = series.Scaler.fit(table(values))
    np.testing.assert_allclose(scaler.mean, values[:60].mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scaler.std, values[:60].std(axis=0), rtol=1e-12)
    scaled = scaler.scale(values)[:60]
    assert scaled.dtype == torch.float32
    assert scaled.mean(dim=0).abs().max() < 1e-5
    assert (scaled.std(dim=0, correction=0) - 1).abs().max() < 1e-5


def test_the_scaler_pools_the_training_rows_of_all_groups(three_groups):
    got = read(three_groups, time="t", group="g")
    scaler = series.Scaler.fit(got)
    training = [*range(60), *range(1000, 1036), *range(2000, 2048)]
    assert scaler.mean[0] == pytest.approx(np.mean(training))
    assert scaler.std[0] == pytest.approx(np.std(training))


@pytest.mark.parametrize(("center", "spread"), [(0, 1), (1e6, 0.01), (-3e-7, 1e-9), (5e8, 1e7)])
def test_unscale_undoes_scale(center, spread):
    values = center + spread * np.random.default_rng(0).normal(size=(500, 1))
    scaler = series.Scaler.fit(table(values))
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
    first, second = (series.Scaler.fit(source) for source in (single, double))
    assert first.mean == pytest.approx(second.mean, rel=1e-12)
    assert first.std == pytest.approx(second.std, rel=1e-12)
    assert torch.equal(first.scale(single.values), first.scale(double.values))
    assert series.naive_error(single, 1) == pytest.approx(series.naive_error(double, 1), rel=1e-6)


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
    x, y = series.windows(values, 5, O, 2)
    y = y[:, -1]
    batches = zip(x.split(size), y.split(size), strict=True)
    weights = series.autoregression(batches)
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
    assert made.reference_loss["val"] == pytest.approx(error.square().mean().item())


def test_mase_divides_by_the_naive_error_of_training():
    values = [1.0, 4, 2, 2, 7, 3, 100, 200, 300, 400]
    assert series.naive_error(table(values), 1) == pytest.approx((3 + 2 + 0 + 5 + 4) / 5)
    assert series.naive_error(table(values), 2) == pytest.approx((1 + 2 + 5 + 1) / 4)


def test_mase_never_differences_two_groups(three_groups):
    got = read(three_groups, time="t", group="g")
    assert series.naive_error(got, 1) == 1
    assert series.naive_error(got, 7) == 7


def test_mase_is_seasonal_where_a_season_is_given():
    values = noise(200)
    source = table(values)
    assert window_data(source).mase_scale == series.naive_error(source, 1)
    assert window_data(source, season=3).mase_scale == series.naive_error(source, 3)


# files


def test_rows_are_sorted_by_time(tmp_path):
    order = np.random.default_rng(0).permutation(50)
    path = write(tmp_path / "a.csv", t=order, y=order * 2.0)
    got = read(path, time="t")
    assert got.values[:, 0].tolist() == [2.0 * i for i in range(50)]
    assert got.times.to_list() == list(range(50))
    assert got.notes == []


def test_a_numeric_time_may_turn_from_whole_numbers_to_halves(tmp_path):
    t = "\n".join(f"{i},{i}" for i in range(300)) + "\n299.5,300"
    (tmp_path / "a.csv").write_text("t,y\n" + t)
    got = read(str(tmp_path / "a.csv"), time="t", val_from=200)
    assert got.times[-1] == 299.5
    assert got.pieces[0].cuts[0] == 200


def test_gaps_are_noted_and_months_are_no_gaps(tmp_path):
    t = [*range(20), *range(25, 45), *range(46, 60)]
    (note,) = read(write(tmp_path / "a.csv", t=t, y=np.arange(54.0)), time="t").notes
    assert "2 gaps" in note
    assert "19" in note
    months = pl.date_range(pl.date(2018, 1, 1), pl.date(2022, 1, 1), "1mo", eager=True)
    path = write(tmp_path / "b.csv", t=months, y=np.arange(49.0))
    assert read(path, time="t").notes == []


def test_a_year_can_be_time_and_feature_at_once(tmp_path):
    path = write(tmp_path / "a.csv", t=list(range(50)), y=noise(50)[:, 0])
    got = read(path, time="t", features=["t"])
    assert got.columns == ["y", "t"]
    assert got.values[:, 1].tolist() == list(range(50))


def test_the_target_comes_first_and_is_no_feature_twice(tmp_path):
    path = write(tmp_path / "a.csv", b=np.arange(40.0), y=-np.arange(40.0), a=[7, 8] * 20)
    got = read(path, features=["a", "y", "b"])
    assert got.columns == ["y", "a", "b"]
    assert got.values[3].tolist() == [-3, 8, 3]


MISSING = [1.0, 2, float("nan"), 4, *range(5, 30), float("nan"), *range(100, 120)]


def test_drop_leaves_out_the_rows_that_miss_a_value(tmp_path):
    path = write(tmp_path / "a.parquet", y=MISSING, f=[*range(9), None, *range(10, 50)])
    got = read(path, features=["f"], missing="drop")
    kept = [i for i in range(50) if i not in (2, 9, 29)]
    assert got.values[:, 1].tolist() == kept
    assert got.values[:, 0].tolist() == [MISSING[i] for i in kept]
    assert got.pieces[0].cuts == (round(0.6 * 47), round(0.8 * 47))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_interpolation_draws_a_line_and_stays_within_a_split(tmp_path, suffix):
    # row 29 is the last of training; 100 follows in validation
    got = read(write(tmp_path / f"a.{suffix}", y=MISSING), missing="interpolate")
    assert got.pieces[0].cuts == (30, 40)
    assert got.values[2, 0] == 3
    assert got.values[29, 0] == 29
    assert got.values[28, 0] == 29
    assert got.values[30, 0] == 100


def test_interpolation_never_looks_into_another_group(tmp_path):
    y = np.concatenate([np.zeros(50), np.full(50, 9.0)])
    y[[49, 50]] = np.nan
    path = write(tmp_path / "a.csv", y=y, g=["a"] * 50 + ["b"] * 50)
    got = read(path, group="g", missing="interpolate")
    assert got.values[49, 0] == 0
    assert got.values[50, 0] == 9


@pytest.mark.parametrize("gap", [float("inf"), -float("inf"), float("nan"), None])
def test_infinite_values_are_missing_too(tmp_path, gap):
    for name in ("a.csv", "a.parquet"):
        path = write(tmp_path / name, y=[1.0, 2, gap, *range(4, 50)])
        assert read(path, missing="interpolate").values[2, 0] == 3
        assert len(read(path, missing="drop").values) == 48


def test_csv_and_parquet_give_the_same(tmp_path):
    days = pl.date_range(pl.date(2020, 1, 1), pl.date(2020, 4, 9), eager=True)
    columns = {"t": days.shuffle(seed=1), "y": noise(100)[:, 0], "f": list(range(100))}
    columns["g"] = ["a", "b"] * 50
    options = {"time": "t", "features": ["f"], "group": "g", "val_from": "2020-03-01"}
    first, second = (
        read(write(tmp_path / f"a.{suffix}", **columns), **options) for suffix in ("csv", "parquet")
    )
    np.testing.assert_array_equal(first.values, second.values)
    assert first.pieces == second.pieces
    assert first.times.to_list() == second.times.to_list()


# Mackey-Glass


def test_mackey_glass_is_deterministic_and_bounded():
    first = series.mackey_glass(2000, 17)
    assert first.shape == (2000,)
    assert np.array_equal(first, series.mackey_glass(2000, 17))
    assert np.array_equal(first[:100], series.mackey_glass(100, 17))
    assert 0.2 < first.min() < 0.5
    assert 1.2 < first.max() < 1.5


def between_units(x, per_unit):
    """A smooth series `per_unit` times finer, by the degree-9 polynomial through ten neighbours."""
    nodes, at = np.arange(-4, 6), np.arange(per_unit) / per_unit
    weights = [np.prod([(at - m) / (n - m) for m in nodes if m != n], axis=0) for n in nodes]
    fine = [x[i + nodes] @ weights for i in range(4, len(x) - 5)]
    return np.concatenate(fine), 4


def test_mackey_glass_agrees_with_a_finer_integration_of_its_own_past():
    tau, per_unit, n = 17, 100, 40
    x = series.mackey_glass(80, tau)
    fine, first = between_units(x, per_unit)
    start = 30  # the time up to which the past is given; the rest is integrated
    past = (start - first) * per_unit + 1
    h, delay, fine = 1 / per_unit, tau * per_unit, list(fine[:past])
    for i in range(past - 1, past - 1 + n * per_unit):
        k = 0.0
        slopes = []
        for part, then in (
            (0, fine[i - delay]),
            (0.5, None),
            (0.5, None),
            (1, fine[i - delay + 1]),
        ):
            then = (fine[i - delay] + fine[i - delay + 1]) / 2 if then is None else then
            k = 0.2 * then / (1 + then**10) - 0.1 * (fine[i] + part * h * k)
            slopes.append(k)
        fine.append(fine[i] + h / 6 * np.dot([1, 2, 2, 1], slopes))
    np.testing.assert_allclose(x[start : start + n], fine[past - 1 :: per_unit][:n], atol=1e-4)


def test_an_autoregression_on_mackey_glass_has_the_known_error():
    shape = WINDOW | {"seq_len": 30, "horizon": 1, "lead": 6}
    made = set_up(MackeyGlass(5000, 17, 0.7, 0.85, **shape, **BATCHES))
    x, y = made.splits["test"][:]
    # targets are in units of the training part's deviation, so this is the normalised error
    error = (made.baselines(x)["AR(30)"] - y).double().square().mean()
    assert 0.0122 < error < 0.0135
