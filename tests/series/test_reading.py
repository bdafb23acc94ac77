"""What is read from a file of the user's own; each mistake in one is one line that names it."""

import datetime
import re
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch
from program import run

from seqlab.literature import MackeyGlass
from seqlab.series import reading
from seqlab.series.windows import SeriesData

N = 50
COLUMNS = {"t": list(range(N)), "y": [(7 * i) % 11 + i / 8 for i in range(N)], "f": [1.5, 2] * 25}
WINDOW = {"seq_len": 4, "horizon": 2, "lead": 1, "season": None, "predict": "level", "calendar": []}
BATCHES = {"batch_size": 8, "accumulate": 1, "steps_per_call": 4, "seed": 0}
READ = {"target": "y", "time": "t", "features": [], "known": [], "group": None, "missing": "error"}
CUTS = {"val_from": 0.6, "test_from": 0.8, "until": None, "time_format": None}


def write_table(path, **columns):
    frame = pl.DataFrame(columns)
    frame.write_csv(path) if path.suffix == ".csv" else frame.write_parquet(path)
    return path


def write(path, **changed):
    columns = {k: v for k, v in (COLUMNS | changed).items() if v is not None}
    return write_table(path, **columns)


def read(path, **changed):
    return reading.read(str(path), **(READ | {"time": None} | CUTS | changed))


def edited(values, **changes):
    """The values with some replaced, by their place: `_3=None`."""
    values = list(values)
    for place, value in changes.items():
        values[int(place[1:])] = value
    return values


def load(path, **changed):
    data = SeriesData(path=str(path), **(READ | CUTS | WINDOW | BATCHES | changed))
    data.prepare(torch.device("cpu"))
    return data


def refused(path, *said, **changed):
    """The file is refused in one line that says all of `said`."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load(path, **changed)
    assert type(error.value) is ValueError
    text = str(error.value)
    assert len(text.splitlines()) == 1, text
    assert len(text) < 500, text
    for part in said:
        assert part in text, text


def noise(n):
    return np.random.default_rng(0).normal(size=n).cumsum()


@pytest.fixture(params=["csv", "parquet"])
def path(request, tmp_path):
    return tmp_path / f"mine.{request.param}"


def line(path, place):
    """The row number of a place in the data: a CSV's header is row 1."""
    return f"row {place + (2 if path.suffix == '.csv' else 1)}"


def test_a_sound_file_is_read(path):
    assert load(write(path), features=["f"], season=3).n_inputs == 2


# what is read


def test_rows_are_sorted_by_time(tmp_path):
    order = np.random.default_rng(0).permutation(50)
    path = write_table(tmp_path / "a.csv", t=order, y=order * 2.0)
    got = read(path, time="t")
    assert got.values[:, 0].tolist() == [2.0 * i for i in range(50)]
    assert got.times.to_list() == list(range(50))
    assert got.notes == []


def test_a_numeric_time_may_turn_from_whole_numbers_to_halves(tmp_path):
    t = "\n".join(f"{i},{i}" for i in range(300)) + "\n299.5,300"
    (tmp_path / "a.csv").write_text("t,y\n" + t)
    got = read(tmp_path / "a.csv", time="t", val_from=200)
    assert got.times[-1] == 299.5
    assert got.pieces[0].cuts[0] == 200


def test_gaps_are_noted_and_months_are_no_gaps(tmp_path):
    t = [*range(20), *range(25, 45), *range(46, 60)]
    (note,) = read(write_table(tmp_path / "a.csv", t=t, y=np.arange(54.0)), time="t").notes
    assert "2 gaps" in note
    assert "19" in note
    months = pl.date_range(pl.date(2018, 1, 1), pl.date(2022, 1, 1), "1mo", eager=True)
    path = write_table(tmp_path / "b.csv", t=months, y=np.arange(49.0))
    assert read(path, time="t").notes == []


def test_a_year_can_be_time_and_feature_at_once(tmp_path):
    path = write_table(tmp_path / "a.csv", t=list(range(50)), y=noise(50))
    got = read(path, time="t", features=["t"])
    assert got.columns == ["y", "t"]
    assert got.values[:, 1].tolist() == list(range(50))


def test_the_target_comes_first_and_is_no_feature_twice(tmp_path):
    path = write_table(tmp_path / "a.csv", b=np.arange(40.0), y=-np.arange(40.0), a=[7, 8] * 20)
    got = read(path, features=["a", "y", "b"])
    assert got.columns == ["y", "a", "b"]
    assert got.values[3].tolist() == [-3, 8, 3]


MISSING = [1.0, 2, float("nan"), 4, *range(5, 30), float("nan"), *range(100, 120)]


def test_drop_leaves_out_the_rows_that_miss_a_value(tmp_path):
    path = write_table(tmp_path / "a.parquet", y=MISSING, f=[*range(9), None, *range(10, 50)])
    got = read(path, features=["f"], missing="drop")
    kept = [i for i in range(50) if i not in (2, 9, 29)]
    assert got.values[:, 1].tolist() == kept
    assert got.values[:, 0].tolist() == [MISSING[i] for i in kept]
    assert got.pieces[0].cuts == (round(0.6 * 47), round(0.8 * 47))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_interpolation_draws_a_line_and_stays_within_a_split(tmp_path, suffix):
    # row 29 is the last of training; 100 follows in validation
    got = read(write_table(tmp_path / f"a.{suffix}", y=MISSING), missing="interpolate")
    assert got.pieces[0].cuts == (30, 40)
    assert got.values[2, 0] == 3
    assert got.values[29, 0] == 29
    assert got.values[28, 0] == 29
    assert got.values[30, 0] == 100


def test_another_way_with_missing_values_is_refused(path):
    refused(write(path), "missing=skip: error, drop or interpolate", missing="skip")


def test_interpolation_never_looks_into_another_group(tmp_path):
    f = np.concatenate([np.zeros(50), np.full(50, 9.0)])
    f[[49, 50]] = np.nan
    path = write_table(tmp_path / "a.csv", y=noise(100), f=f, g=["a"] * 50 + ["b"] * 50)
    got = read(path, group="g", features=["f"], missing="interpolate")
    assert got.values[49, 1] == 0
    assert got.values[50, 1] == 9


@pytest.mark.parametrize("gap", [float("inf"), -float("inf"), float("nan"), None])
def test_infinite_values_are_missing_too(tmp_path, gap):
    for name in ("a.csv", "a.parquet"):
        path = write_table(tmp_path / name, y=[1.0, 2, gap, *range(4, 50)])
        assert read(path, missing="interpolate").values[2, 0] == 3
        assert len(read(path, missing="drop").values) == 48


def test_csv_and_parquet_give_the_same(tmp_path):
    days = pl.date_range(pl.date(2020, 1, 1), pl.date(2020, 4, 9), eager=True)
    columns = {"t": days.shuffle(seed=1), "y": noise(100), "f": list(range(100))}
    columns["g"] = ["a", "b"] * 50
    options = {"time": "t", "features": ["f"], "group": "g", "val_from": "2020-03-01"}
    first, second = (
        read(write_table(tmp_path / f"a.{suffix}", **columns), **options)
        for suffix in ("csv", "parquet")
    )
    np.testing.assert_array_equal(first.values, second.values)
    assert first.pieces == second.pieces
    assert first.times.to_list() == second.times.to_list()


# the file


def test_a_missing_file(path):
    refused(path, path.name, "no such file")


def test_a_folder_is_no_file(path):
    path.mkdir()
    refused(path, path.name, "no such file")


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\t\n"])
def test_an_empty_file(path, content):
    path.write_bytes(content)
    refused(path, path.name, "empty")


@pytest.mark.parametrize("kind", [pl.Float64, pl.String])
def test_a_header_without_rows(path, kind):
    write(path, t=[], y=pl.Series([], dtype=kind), f=None)
    refused(path, path.name, "no rows")


@pytest.mark.parametrize("name", ["mine.xlsx", "mine", "mine.csv.gz", "mine.txt"])
def test_another_ending(tmp_path, name):
    (tmp_path / name).write_text("t,y\n1,2\n")
    refused(tmp_path / name, name, ".csv or .parquet")


def test_parquet_named_csv(tmp_path):
    write(tmp_path / "a.parquet").rename(tmp_path / "a.csv")
    refused(tmp_path / "a.csv", "a.csv", "not the csv file")


def test_text_named_parquet(tmp_path):
    write(tmp_path / "a.csv").rename(tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "a.parquet", "not the parquet file")


def test_a_binary_file_named_csv(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(range(256)) * 20)
    refused(tmp_path / "a.csv", "a.csv", "not the csv file")


def test_a_parquet_file_cut_off(tmp_path):
    path = write(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-50])
    refused(path, "a.parquet", "cannot be read")


def test_a_parquet_file_that_polars_gives_up_on(tmp_path, monkeypatch):
    def panic(*args, **kwargs):
        raise pl.exceptions.PanicException("called `Option::unwrap()` on a `None` value\nat x")

    monkeypatch.setattr(pl, "read_parquet", panic)
    refused(write(tmp_path / "a.parquet"), "a.parquet", "cannot be read")


def test_rows_of_unequal_length(tmp_path):
    path = write(tmp_path / "a.csv")
    path.write_text(path.read_text() + "50,3,1,9\n")
    refused(path, "a.csv", "cannot be read")


def test_decimal_commas(tmp_path):
    (tmp_path / "a.csv").write_text("t,y\n" + "".join(f"{i},{i % 7},5\n" for i in range(N)))
    for time in ("t", None):
        refused(tmp_path / "a.csv", "a.csv", "cannot be read", time=time)


# columns


@pytest.mark.parametrize(
    "changed", [{"target": "price"}, {"time": "price"}, {"features": ["f", "price"]}]
)
def test_an_unknown_column_and_which_there_are(path, changed):
    refused(write(path), "no column price", path.name, "t, y, f", **changed)


def test_an_unknown_group(path):
    refused(write(path), "no column price", "t, y, f", group="price")


@pytest.mark.parametrize("place", [0, 17, N - 1])
def test_text_among_the_numbers(path, place):
    text = edited(map(str, COLUMNS["y"]), **{f"_{place}": "n/a"})
    refused(write(path, y=text), path.name, line(path, place), "y=n/a")


def test_text_among_the_numbers_of_a_feature(path):
    text = edited(map(str, COLUMNS["f"]), _4="1,5")
    refused(write(path, f=text), path.name, line(path, 4), "f=1,5", features=["f"])


@pytest.mark.parametrize(
    "values",
    [
        pl.date_range(pl.date(2020, 1, 1), pl.date(2020, 2, 19), eager=True),
        [[1.0, 2.0]] * N,
        [{"a": 1.0}] * N,
        [b"\x00\xff"] * N,
    ],
    ids=["date", "list", "struct", "bytes"],
)
def test_columns_that_are_no_numbers(tmp_path, values):
    refused(write(tmp_path / "a.parquet", y=values), "a.parquet", "y")


@pytest.mark.parametrize("gap", [float("nan"), float("inf"), -float("inf"), None])
def test_missing_values_how_many_where_and_what_to_do(path, gap):
    y = edited(COLUMNS["y"], _12=gap, _30=gap, _31=gap)
    way_out = "; missing=interpolate or drop"
    refused(write(path, y=y), "y in", path.name, "3 times", line(path, 12), way_out)


def test_the_row_of_a_missing_value_is_that_of_the_file_not_of_the_sorted_table(path):
    y = edited(COLUMNS["y"], _12=None)
    refused(write(path, t=list(range(N))[::-1], y=y), "1 times", line(path, 12))


@pytest.mark.parametrize("missing", ["drop", "interpolate"])
def test_a_column_without_any_value(path, missing):
    y = pl.Series([None] * N, dtype=pl.Float64)
    said = {"drop": "the train part has 0 rows", "interpolate": "y in"}[missing]
    refused(write(path, y=y), said, missing=missing)
    refused(write(path, y=y, t=None), said, missing=missing, time=None)


def test_a_split_without_any_value(path):
    y = pl.Series([*COLUMNS["y"][:30], *[None] * 10, *COLUMNS["y"][40:]])
    refused(write(path, y=y), "y in", path.name, missing="interpolate")


@pytest.mark.parametrize("value", [0, 0.1, -1e9, 1e-30])
def test_a_constant_column(path, value):
    refused(write(path, y=[float(value)] * N), "y is constant")
    refused(write(path, f=[float(value)] * N), "f is constant", features=["f"])


def test_a_column_that_is_constant_in_training_alone(path):
    refused(write(path, y=[3.0] * 30 + COLUMNS["y"][30:]), "y is constant", "training")


# time


def test_text_among_numeric_times(path):
    t = edited(map(str, COLUMNS["t"]), _9="later")
    refused(write(path, t=t), "time=t", path.name, line(path, 9), "later")


def test_two_rows_of_one_time(path):
    refused(write(path, t=edited(COLUMNS["t"], _20=7)), "t", path.name, "7", "more than once")


def test_two_rows_of_one_time_in_a_group(path):
    refused(
        write(path, t=edited(COLUMNS["t"], _20=6), g=["u", "v"] * 25),
        "6 of u more than once",
        group="g",
    )


@pytest.mark.parametrize("word", ["yesterday", "31/31/2020", "2020-02-30"])
def test_times_that_are_none(path, word):
    days = [f"2020-{1 + i // 25:02}-{1 + i % 25:02}" for i in range(N)]
    refused(write(path, t=edited(days, _0=word)), "time=t", path.name, word)


def test_the_bad_time_is_named_wherever_it_stands(path):
    days = [f"2020-{1 + i // 25:02}-{1 + i % 25:02}" for i in range(N)]
    refused(write(path, t=edited(days, _33="soon")), "time=t", path.name, line(path, 33), "soon")


def test_a_row_without_a_time(path):
    refused(write(path, t=edited(COLUMNS["t"], _8=None)), "time=t", line(path, 8))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_time_that_is_no_number(path, value):
    t = edited(map(float, COLUMNS["t"]), _8=value)
    refused(write(path, t=t), "time=t", line(path, 8))


def test_times_that_are_neither_numbers_nor_dates(path):
    refused(write(path, t=[True, False] * 25), "time=t", path.name)


@pytest.mark.parametrize("key", ["val_from", "test_from", "until"])
def test_a_boundary_of_another_kind_than_the_time(path, key):
    refused(write(path), f"{key}=2020-01-01", "t holds", **{key: "2020-01-01"})
    days = pl.date_range(pl.date(2020, 1, 1), pl.date(2020, 2, 19), eager=True)
    for value in ("half", 17, "2020-13-01"):
        refused(write(path, t=days), f"{key}={value}", "2020-01-01", **{key: value})


def test_a_boundary_in_a_time_zone(path):
    days = pl.date_range(pl.date(2020, 1, 1), pl.date(2020, 2, 19), eager=True)
    t = days.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    for value in ("2020-01-31", "2020-01-31T00:00:00Z", "2020-01-31T00:00:00+00:00"):
        try:
            made = load(write(path, t=t), val_from=value)
        except ValueError as error:
            assert f"val_from={value}: " in str(error)  # noqa: PT017
        else:
            assert made.series.pieces[0].cuts[0] == 30


@pytest.mark.parametrize("key", ["val_from", "test_from"])
@pytest.mark.parametrize("value", [0.0, 1.0, 1.5, 30, -0.1, "2020-01-01"])
def test_a_boundary_that_is_no_fraction_where_there_is_no_time(path, key, value):
    refused(write(path), f"{key}={value}", "fraction in (0, 1)", time=None, **{key: value})


def test_until_needs_a_time(path):
    refused(write(path), "until=30", "needs `time`", time=None, until=30)


@pytest.mark.parametrize("group", [None, "g"])
def test_until_before_the_data(path, group):
    for until in (-5, -0.5):
        refused(write(path, g=["u"] * N), "until", until=until, group=group)
    refused(write(path, g=["u"] * N), "until=-5: ", until=-5, val_from="half", group=group)


@pytest.mark.parametrize("cuts", [(0.8, 0.6), (40, 20), (0.9, 15)])
def test_boundaries_in_the_wrong_order(path, cuts):
    val_from, test_from = cuts
    refused(write(path), "val_from: ", "test_from", val_from=val_from, test_from=test_from)


def test_boundaries_of_a_generated_series_in_the_wrong_order():
    with pytest.raises(ValueError, match=r"^val_from: .*test_from"):
        MackeyGlass(100, 17, 0.8, 0.6, **WINDOW, **BATCHES)


@pytest.mark.parametrize(
    ("changed", "split"),
    [
        ({"val_from": 1900, "test_from": 1950}, "val"),
        ({"val_from": -9, "test_from": 30}, "train"),
        ({"val_from": 20, "test_from": 1950}, "test"),
        ({"val_from": 20, "test_from": 20}, "val"),
    ],
)
def test_boundaries_outside_the_data(path, changed, split):
    refused(write(path), f"the {split} part", "0 rows", **changed)


@pytest.mark.parametrize("group", [None, "g"])
def test_gaps_are_told_and_let_pass(path, group, capsys):
    load(write(path, t=[*range(30), *range(33, 53)], g=["u"] * N), group=group)
    of = " of u" if group else ""
    told = f"t{of} has 1 gap, the first after 29; windows run across them"
    assert capsys.readouterr().err == f"note: {path}: {told}\n"


# dates


def dated(folder, days, **changed):
    """The times of a file with such a time column."""
    return read(
        write_table(folder / "a.csv", t=days, y=noise(len(days))), time="t", **changed
    ).times


def many(form, step="1d", first=datetime.datetime(1995, 1, 1)):
    moments = pl.datetime_range(first, interval=step, end=datetime.datetime(2030, 1, 1), eager=True)
    return [f"{moment:{form}}" for moment in moments[:40]]


@pytest.mark.parametrize(
    ("form", "step", "second"),
    [
        ("%b-%d-%Y", "1d", "1995-01-02"),  # Jan-1-1995
        ("%d-%b-%y", "1d", "1995-01-02"),  # 19-Sep-03
        ("%b %d %Y", "1mo", "1995-02-01"),  # Jan 1 2000
        ("%d/%m/%y", "1d", "1995-01-02"),
        ("%Y-%m", "1mo", "1995-02-01"),
        ("%m/%d/%Y %I:%M %p", "12h", "1995-01-01 12:00:00"),
    ],
)
def test_a_format_of_dates(tmp_path, form, step, second):
    times = dated(tmp_path, many(form, step), time_format=form)
    assert str(times[1]) == second
    path = tmp_path / "a.csv"
    refused(path, "time=t: ", "row 2 has ", "time_format", time="t")


@pytest.mark.parametrize(
    ("quarters", "form"),
    [
        (["1974Q1", "1974Q2", "1974Q3", "1974Q4", "1975Q1"], "%YQ%q"),
        (["Q1 1974", "Q2 1974", "Q3 1974", "Q4 1974", "Q1 1975"], "Q%q %Y"),
    ],
)
def test_a_quarter_is_its_first_month(tmp_path, quarters, form):
    times = dated(tmp_path, quarters, time_format=form)
    months = ["1974-01-01", "1974-04-01", "1974-07-01", "1974-10-01", "1975-01-01"]
    assert [str(time) for time in times] == months


def test_a_time_that_is_not_of_the_format_is_named(tmp_path):
    days = edited(many("%d/%m/%Y"), _7="1995-13-01")
    with pytest.raises(ValueError, match=r"row 9 has 1995-13-01; .*time_format"):
        dated(tmp_path, days, time_format="%d/%m/%Y")
    with pytest.raises(ValueError, match=r"row 2 has 01/01/1995"):
        dated(tmp_path, many("%d/%m/%Y"), time_format="%")


@pytest.mark.parametrize("form", ["%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y %H:%M", "%Y/%m/%d", "%Y%m%d"])
def test_dates_that_can_be_read_in_one_way_need_no_format(tmp_path, form):
    times = dated(tmp_path, many(form), val_from="1995-01-10")
    assert times.dtype == pl.Date
    assert str(times[20]) == "1995-01-21"


def test_a_boundary_may_have_the_files_own_format(tmp_path):
    for value in ("02/01/1995", "1995-02-01"):
        path = write_table(tmp_path / "a.csv", t=many("%m/%d/%Y"), y=noise(40))
        found = read(path, time="t", time_format="%m/%d/%Y", val_from=value, test_from=0.9)
        assert found.pieces[0].cuts[0] == 31


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("form", "step", "second"),
    [
        ("%Y%m%d", "1d", "1995-01-02"),
        ("%d%m%Y", "1d", "1995-01-02"),
        ("%Y%m", "1mo", "1995-02-01"),
        ("%Y%m%d%H%M", "1h", "1995-01-01 01:00:00"),
        ("%Y%m%d%H%M%S", "1h", "1995-01-01 01:00:00"),
    ],
)
def test_digits_that_all_make_dates_are_dates(tmp_path, suffix, form, step, second):
    t = many(form, step, datetime.datetime(1995, 1, 10 if form == "%d%m%Y" else 1))
    if suffix == "parquet":
        t = [int(moment) for moment in t]
        if form == "%d%m%Y":  # a number loses the 0 in front
            refused(write_table(tmp_path / "a.parquet", t=t, y=noise(40)), "time=t", "time_format")
            return
    times = read(write_table(tmp_path / f"a.{suffix}", t=t, y=noise(40)), time="t").times
    assert str(times[1]) == second.replace("01-02", "01-11" if form == "%d%m%Y" else "01-02")
    wrong = edited(t, _5=type(t[0])(f"9{t[5]}"[: len(str(t[5]))]))
    refused(write_table(tmp_path / f"b.{suffix}", t=wrong, y=noise(40)), "time=t", str(wrong[5]))


@pytest.mark.parametrize("first", [1700, 100_000, 190_000, 20_000_000, 1_700_000_000])
def test_numbers_that_make_no_dates_are_numbers(tmp_path, first):
    times = dated(tmp_path, list(range(first, first + 200)))
    assert times.to_list() == list(range(first, first + 200))


# words, marks, blank lines


def text(folder, *lines, name="a.csv"):
    (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder / name


def test_words_for_missing_values_and_for_numbers(tmp_path):
    words = ["NA", "N/A", "#N/A", "null", ".", "", '""', "NaN", " NA "]
    path = text(tmp_path, "f,y", *(f"{w},{i}" for i, w in enumerate([*words, "true", "FALSE", 2])))
    found = read(path, features=["f"], missing="drop")
    assert found.values.tolist() == [[9, 1], [10, 0], [11, 2]]


@pytest.mark.parametrize(
    ("name", "mark"), [("A.CSV", ","), ("a.tsv", "\t"), ("a.csv", ";"), ("a.csv", "\t")]
)
def test_other_endings_and_marks(tmp_path, name, mark):
    path = text(tmp_path, f"t{mark}y", *(f"{i}{mark}{i / 2}" for i in range(9)), name=name)
    found = read(path, time="t")
    assert found.values[:, 0].tolist() == [i / 2 for i in range(9)]
    assert found.times.to_list() == list(range(9))


def test_a_decimal_comma_is_read_between_semicolons_alone(tmp_path):
    rows = [f"0{i}.01.2020;{i},25" for i in range(1, 9)]
    found = read(text(tmp_path, "t;y", *rows), time="t", time_format="%d.%m.%Y")
    assert found.values[:, 0].tolist() == [i + 0.25 for i in range(1, 9)]
    refused(text(tmp_path, "t;y", *rows, "09.01.2020;1.234,5"), "row 10, y=1.234,5: no number")
    refused(text(tmp_path, "t\ty", *(f"{i}\t{i},5" for i in range(9))), "row 2, y=0,5: no number")


def test_a_blank_line_is_no_row_and_counts_as_a_line(tmp_path):
    rows = [f"{i},{i}" for i in range(9)]
    path = text(tmp_path, "t,y", *rows[:4], "", "  ", *rows[4:], "", "")
    assert read(path, time="t").values[:, 0].tolist() == list(range(9))
    path = text(tmp_path, "t,y", *rows[:4], "", *rows[4:], "9,high")
    refused(path, "row 12, y=high")
    # without a time it holds the place of a value
    refused(text(tmp_path, "y", *range(5), "", *range(5), ""), "1 times, first in row 7", time=None)


@pytest.mark.parametrize("begin", ["", "t,y\n"])
def test_a_line_that_is_far_too_long(tmp_path, begin):
    (tmp_path / "a.csv").write_text(begin + "1,2," * 150_000 + "\n1,2")
    refused(tmp_path / "a.csv", "a.csv: has a line of more than 500 kB, which is no row of a table")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_a_long_line_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "a.csv").open("wb") as file:
        file.write(b"1")
        for _ in range(300):
            file.write(b"234,56789," * 100_000)
    code = (
        "import resource, sys\nfrom seqlab.series.reading import read_table\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, used + 2**27))\n"
        "try: read_table(sys.argv[1], ['y'], [])\nexcept ValueError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, tmp_path / "a.csv"]
    done = subprocess.run(command, capture_output=True, text=True)
    (tmp_path / "a.csv").unlink()
    assert done.stderr == ""
    assert done.stdout == (
        f"path={tmp_path / 'a.csv'}: has a line of more than 500 kB, which is no row of a table\n"
    )


# what is to be forecast


@pytest.mark.parametrize("missing", ["error", "drop", "interpolate"])
@pytest.mark.parametrize("group", [None, "g"])
def test_rows_at_the_end_without_a_target_are_to_be_forecast(path, missing, group):
    g = ["u", "v"] * 25
    y = edited(COLUMNS["y"], _48=None, _49=None) + []
    got = read(write(path, y=y, g=g), time="t", features=["f"], group=group, missing=missing)
    assert got.times.sort().to_list() == list(range(48))
    assert got.own.all()
    assert [piece.stop - piece.start for piece in got.pieces] == ([24, 24] if group else [48])
    told = f"{path}: y{{}} is empty in the last {{}} rows: to be forecast"
    expected = [told.format(" of u", 1), told.format(" of v", 1)] if group else [told.format("", 2)]
    assert got.notes == expected


def test_a_value_is_interpolated_in_proportion_to_the_time(tmp_path):
    t = [*range(5), 6, 10, *range(11, 54)]
    y = [float(moment) for moment in t]
    path = write_table(tmp_path / "a.parquet", t=t, y=edited(y, _5=None), f=edited(y, _9=np.nan))
    got = read(path, time="t", features=["f"], missing="interpolate")
    # a time that a regular series leaves out is a row, and no target either
    assert got.times.to_list() == got.values[:, 0].tolist() == got.values[:, 1].tolist()
    assert got.times.to_list() == [*range(54)]
    assert np.flatnonzero(~got.own).tolist() == [5, 6, 7, 8, 9]
    assert np.flatnonzero(got.filled).tolist() == [5, 6, 7, 8, 9, 13]
    assert got.notes[-1].endswith("t has 2 gaps, the first after 4; 4 rows are filled in")
    assert read(path, time="t", features=["f"], missing="drop").times.to_list() == [
        moment for moment in t if moment not in (6, 13)
    ]


# sizes


@pytest.mark.parametrize(
    ("changed", "split"),
    [
        ({"seq_len": 40}, "train"),
        ({"horizon": 10}, "val"),
        ({"lead": 40}, "train"),
        ({"horizon": 5, "val_from": 0.6, "test_from": 0.9}, "test"),
    ],
)
def test_too_few_rows_for_a_window(path, changed, split):
    refused(write(path), f"the {split} part", "rows", "seq_len=", "horizon=", **changed)


def test_a_group_that_is_too_short_is_named(path):
    refused(write(path, g=["long"] * 45 + ["short"] * 5), "of short", "rows", group="g")


def test_one_row(tmp_path):
    (tmp_path / "a.csv").write_text("t,y\n1,2\n")
    refused(tmp_path / "a.csv", "part", "rows")


def test_a_season_longer_than_the_window(path):
    refused(write(path), "season=5: ", "seq_len=4", season=5)


def test_fewer_windows_than_a_batch(path):
    refused(write(path), "training windows=25", "batch_size=26", batch_size=26)


# garbage


def clean_or_refused(path, **changed):
    """The file is refused in one line, or is a series of finite numbers."""
    try:
        got = reading.read(str(path), **(READ | CUTS | changed))
    except ValueError as error:
        assert type(error) is ValueError  # noqa: PT017
        assert len(str(error).splitlines()) == 1, str(error)  # noqa: PT017
        return
    assert np.isfinite(got.values).all()
    assert got.values.ndim == 2
    assert len(got.times) == len(got.values) == got.pieces[-1].stop


def garbage(seed, n=3000):
    return np.random.default_rng(seed).integers(0, 256, n, np.uint8).tobytes()


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes(path, seed):
    text = garbage(seed).replace(b"\0", b"")
    for content in (
        garbage(seed),
        text,
        b"t,y,f\n" + text,
        b'"t","y\n' + text,
        bytes(b % 96 + 32 for b in text),
        b"PAR1" + garbage(seed) + b"PAR1",
        b"PAR1" + garbage(seed) + (200).to_bytes(4, "little") + b"PAR1",
    ):
        path.write_bytes(content)
        clean_or_refused(path)


@pytest.mark.parametrize("seed", range(20))
def test_a_sound_file_with_some_bytes_changed(path, seed):
    sound = write(path).read_bytes()
    random = np.random.default_rng(seed)
    for _ in range(10):
        content = bytearray(sound)
        for place in random.integers(0, len(sound), random.integers(1, 6)):
            content[place] = random.integers(0, 256)
        path.write_bytes(content)
        for missing in ("error", "drop", "interpolate"):
            clean_or_refused(path, missing=missing)


@pytest.mark.parametrize("seed", range(20))
def test_a_sound_file_cut_anywhere(path, seed):
    sound = write(path).read_bytes()
    path.write_bytes(sound[: np.random.default_rng(seed).integers(0, len(sound))])
    clean_or_refused(path)


# through the program


@pytest.mark.parametrize(
    "case",
    [
        "text",
        *(pytest.param(c, marks=pytest.mark.slow) for c in ("no file", "no path", "too short")),
    ],
)
def test_the_program_tells_it_in_one_line_and_leaves_nothing(tmp_path, case):
    arguments, said = ["data.path=mine.csv", "data.target=y"], r"mine\.csv.*no such file"
    if case == "no path":
        arguments, said = ["data.path=null", "data.target=y"], r"data\.path=None: .*string"
    if case == "text":
        write(tmp_path / "mine.csv", y=edited(map(str, COLUMNS["y"]), _17="n/a"))
        said = r"mine\.csv row 19, y=n/a"
    if case == "too short":
        write(tmp_path / "mine.csv")
        arguments, said = [*arguments, "data.seq_len=60"], r"data: .*rows.*seq_len=60"
    done = run("data=series", *arguments, cwd=tmp_path)
    assert done.code == 2
    (told,) = done.err.splitlines()
    assert told.startswith("error: ")
    assert re.search(said, told)
    assert not (tmp_path / "outputs").exists()


def test_an_unnamed_column_is_a_time_column_too(tmp_path):
    """That of an index which pandas wrote without a name; newest first, as many sources have it."""
    file = tmp_path / "unnamed.csv"
    rows = [f"2023-07-{day:02},{day}" for day in range(30, 0, -1)]
    file.write_text("\n".join([",y", *rows]) + "\n")
    found = reading.read(str(file), **(READ | {"time": ""} | CUTS))
    assert found.values[:, 0].tolist() == list(range(1, 31))
