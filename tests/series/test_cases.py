"""Files in the shapes that people have. What each must give is said beside it."""

import datetime
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from program import run

from seqlab.series import reading
from seqlab.series.ahead import next_times

CASES = Path(__file__).parent / "cases"
READ = {
    "target": "y",
    "time": "date",
    "features": [],
    "known": [],
    "group": None,
    "missing": "error",
}
CUTS = {"val_from": 0.7, "test_from": 0.85, "until": None, "time_format": None}


def read(name, **changed):
    return reading.read(str(CASES / name), **(READ | CUTS | changed))


def refused(name, *said, **changed):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read(name, **changed)
    assert len(str(error.value).splitlines()) == 1
    for part in said:
        assert part in str(error.value)


def after(series, n, form="%Y-%m-%d"):
    return next_times(series.times, range(1, n + 1)).dt.to_string(form).to_list()


def test_months_first_and_days_first_are_not_guessed():
    refused("month-first.csv", "time_format=None: date=02/01/2010 ", "two ways", "%m/%d/%Y")
    months = read("month-first.csv", time_format="%m/%d/%Y")
    assert str(months.times[1]) == "2010-02-01"
    assert months.notes == []
    assert after(months, 2) == ["2020-01-01", "2020-02-01"]
    days = read("month-first.csv", time_format="%d/%m/%Y")
    assert str(days.times[1]) == "2010-01-02"


def test_hours_before_summer_time():
    series = read("summer-time.parquet", time="t")
    assert str(series.times[-1]) == "2021-03-28 00:00:00+01:00"
    following = ["01 +0100", "03 +0200", "04 +0200", "05 +0200", "06 +0200"]
    assert after(series, 5, "%H %z") == following


@pytest.mark.parametrize("name", ["times-of-day.csv", "durations.parquet"])
def test_times_of_day_and_durations_are_no_dates(name):
    refused(name, f"{name} ", time="time" if name.endswith("csv") else "t")


@pytest.mark.parametrize(
    ("name", "key", "day"),
    [("berlin.parquet", "test_from", "2021-02-10"), ("new-york.parquet", "until", "2021-03-01")],
)
def test_a_boundary_is_a_day_of_the_columns_own_zone(name, key, day):
    series = read(name, time="t", **{key: day})
    at = series.pieces[0].cuts[1] if key == "test_from" else -1
    assert series.times[at].replace(tzinfo=None) == datetime.datetime.fromisoformat(day)


def test_digits_are_dates():
    series = read("digits-dates.csv")
    assert series.times.dtype == pl.Date
    assert str(series.times[0]) == "1999-01-02"
    assert series.notes == []
    assert after(series, 2) == ["2002-01-05", "2002-01-12"]
    assert str(read("digits-dates.csv", val_from=20010106).times[105]) == "2001-01-06"
    assert read("digits-dates.csv", val_from=20010106).pieces[0].cuts[0] == 105


HOLE = [*range(175, 195)]  # from 25 June to 14 July 2023


def test_a_hole_is_filled_and_what_fills_it_is_no_truth():
    series = read("hole.csv", missing="interpolate")
    assert np.flatnonzero(~series.own).tolist() == HOLE
    (before, first), (last, behind) = series.values[174:176, 0], series.values[194:196, 0]
    steps = np.diff([before, first, *series.values[176:194, 0], last, behind])
    np.testing.assert_allclose(steps, (behind - before) / 21)
    (note,) = series.notes
    assert "20 rows miss a value, the first is row 177; they are filled in, and no targets" in note


def test_a_hole_that_is_dropped_is_told():
    series = read("hole.csv", missing="drop")
    assert len(series.times) == 180
    assert series.own.all()
    dropped, gap = series.notes
    told = "/hole.csv: 20 rows miss a value, the first is row 177; they are dropped; "
    assert dropped.endswith(f"{told}windows run across them")
    assert gap.endswith("date has 1 gap, the first after 2023-06-24; windows run across them")


def test_names_of_groups_are_text():
    for name, more in (("groups-007.csv", []), ("groups-A12.csv", ["A12"])):
        series = read(name, group="store")
        assert [piece.name for piece in series.pieces] == ["007", "012", "100", *more]


def test_a_blank_line_is_no_row():
    assert read("blank-last-line.csv", time=None).values[:, 0].tolist()[-3:] == [6.5, 0.5, 1.5]
    assert len(read("blank-last-line.csv", time=None).times) == 100
    series = read("blank-last-line-time.csv")
    assert len(series.times) == 200
    assert str(series.times[-1]) == "2023-07-19"


@pytest.mark.parametrize("name", ["na.csv", "dot.csv", "null.csv"])
def test_words_for_a_missing_value(name):
    refused(name, "y in", "3 times, first in row 22", "missing=interpolate or drop")
    series = read(name, missing="interpolate")
    assert np.flatnonzero(~series.own).tolist() == [20, 21, 150]
    y = series.values[:, 0]
    assert y[20] == pytest.approx(y[19] + (y[22] - y[19]) / 3)


def test_true_and_false_are_one_and_zero(tmp_path):
    series = read("booleans.csv", features=["holiday"])
    assert sorted(set(series.values[:, 1])) == [0, 1]
    assert series.values[:3, 1].tolist() == [1, 0, 0]
    assert series.values[:, 1].sum() == 29
    path = tmp_path / "booleans.parquet"
    pl.read_csv(CASES / "booleans.csv", try_parse_dates=True).write_parquet(path)
    same = reading.read(str(path), **(READ | CUTS | {"features": ["holiday"]}))
    np.testing.assert_array_equal(series.values, same.values)


@pytest.mark.parametrize(
    ("name", "following"),
    [
        ("half.csv", ["2024-01-01", "2024-07-01"]),
        ("two.csv", ["2024-01-01", "2024-03-01"]),
        ("decade.csv", ["2020-01-01", "2030-01-01"]),
        ("business.csv", ["2024-07-01", "2024-07-02"]),  # after a Friday
    ],
)
def test_the_calendar_goes_on(name, following):
    series = read(name)
    assert series.notes == []
    assert after(series, 2) == following


# through the program

SMALL = [
    "data=series", "data.time=date", "data.seq_len=6", "data.batch_size=8", "model.n_layers=1",
    "model.n_hidden=2", "model.dropout=0", "trainer.max_epochs=1", "callbacks.pictures=null",
]  # fmt: skip


@pytest.mark.parametrize("target", ["température", "^GSPC"])
def test_names_are_taken_as_they_stand(tmp_path, target):
    shutil.copy(CASES / "names.csv", tmp_path / "a=b.csv")
    done = run(*SMALL, "data.path=a=b.csv", f"data.target={target}", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.config["data"]["target"] == target
    none = run(*SMALL, "data.path=a=b.csv", "data.target=0", cwd=tmp_path)
    assert "no column 0 in " in none.err
    assert "/a=b.csv; it has date, y, température, ^GSPC\n" in none.err


def test_an_index_without_a_name_is_the_time(tmp_path):
    overrides = [f"data.path={CASES / 'unnamed-index.csv'}", "data.target=y", 'data.time=""']
    done = run(*SMALL, *overrides, "data.until=2023-07-10", cwd=tmp_path)  # 191 of 200 rows
    assert done.code == 0, done.err
    assert done.config["data"]["time"] == ""
    series = read("unnamed-index.csv", time="")
    assert series.values[:, 0].tolist() == list(range(200))
    assert after(series, 1) == ["2023-07-20"]
