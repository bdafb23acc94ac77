"""The times after the end of a series, and the gaps in it, as the calendar has them."""

import datetime

import numpy as np
import polars as pl
import pytest

from seqlab.series.ahead import gaps, next_times


def dates(*texts):
    return pl.Series(texts).str.to_date()


def shown(times):
    return [str(time) for time in times]


@pytest.mark.parametrize("step", ["1d", "7d", "14d", "1mo", "2mo", "1q", "6mo", "1y", "10y"])
@pytest.mark.parametrize("kind", [pl.Date, pl.Datetime("ms"), pl.Datetime("ns", "Asia/Tokyo")])
def test_steps_of_the_calendar_go_on(step, kind):
    number, unit = int("".join(filter(str.isdigit, step))), step.lstrip("0123456789")
    start = pl.Series([datetime.datetime(1971, 3, 1)])
    times = pl.concat([start.dt.offset_by(f"{k * number}{unit}") for k in range(20)])
    times = times.cast(pl.Date).cast(pl.Datetime("us"))
    zone = getattr(kind, "time_zone", None)
    times = times.dt.replace_time_zone(zone) if zone else times
    times = times.cast(kind)
    found = next_times(times[:17], range(1, 4))
    assert found.dtype == kind
    assert found.to_list() == times[17:].to_list()
    assert len(gaps(times)) == 0


@pytest.mark.parametrize("day", [28, 29, 30, 31])
def test_a_day_that_a_month_lacks_is_its_last(day):
    months = np.arange("2022-01", "2024-04", dtype="M8[M]")
    ends = (months + 1).astype("M8[D]") - 1
    times = pl.Series(np.minimum(months.astype("M8[D]") + day - 1, ends)).cast(pl.Date)
    assert next_times(times[:23], range(1, 5)).to_list() == times[23:].to_list()
    assert len(gaps(times)) == 0


BUSINESS = pl.date_range(pl.date(2024, 1, 1), pl.date(2024, 7, 5), eager=True)
BUSINESS = BUSINESS.filter(BUSINESS.dt.weekday() <= 5)


def test_after_friday_comes_monday():
    assert BUSINESS[-1] == datetime.date(2024, 7, 5)
    assert shown(next_times(BUSINESS, range(1, 7))) == [
        *("2024-07-08", "2024-07-09", "2024-07-10", "2024-07-11", "2024-07-12", "2024-07-15"),
    ]
    assert len(gaps(BUSINESS)) == 0
    assert len(gaps(BUSINESS[:8])) == 0  # one weekend is enough


def test_holidays_are_gaps_and_a_saturday_of_work_changes_nothing():
    odd = BUSINESS.filter(~BUSINESS.is_in(dates("2024-04-01", "2024-05-01").implode()))
    odd = pl.concat([odd, dates("2024-06-15")]).sort()
    assert shown(next_times(odd, range(1, 3))) == ["2024-07-08", "2024-07-09"]
    assert shown(odd.gather(gaps(odd))) == ["2024-03-29", "2024-04-30"]


def test_weekdays_other_than_ours():
    days = pl.date_range(pl.date(2024, 1, 1), pl.date(2024, 3, 31), eager=True)
    for weekdays, following in (
        ([7, 1, 2, 3, 4], ["2024-04-01", "2024-04-02"]),  # Sunday to Thursday
        ([1, 2, 3, 4, 5, 6], ["2024-04-01", "2024-04-02"]),
        ([2, 4], ["2024-04-02", "2024-04-04"]),
    ):
        times = days.filter(days.dt.weekday().is_in(weekdays))
        assert shown(next_times(times, range(1, 3))) == following
        assert len(gaps(times)) == 0


def test_seven_days_a_week_with_a_weekend_missing_are_no_business_days():
    days = pl.date_range(pl.date(2024, 1, 1), pl.date(2024, 3, 29), eager=True)
    times = days.filter(~days.is_in(dates("2024-02-03", "2024-02-04").implode()))
    assert shown(next_times(times, range(1, 2))) == ["2024-03-30"]
    assert shown(times.gather(gaps(times))) == ["2024-02-02"]


def test_first_and_last_business_days_of_a_month():
    last = dates(
        "2023-01-31", "2023-02-28", "2023-03-31", "2023-04-28", "2023-05-31", "2023-06-30",
        "2023-07-31", "2023-08-31", "2023-09-29", "2023-10-31", "2023-11-30", "2023-12-29",
    )  # fmt: skip
    assert shown(next_times(last, range(1, 5))) == [
        *("2024-01-31", "2024-02-29", "2024-03-29", "2024-04-30"),
    ]
    first = dates(
        "2023-01-02", "2023-02-01", "2023-03-01", "2023-04-03", "2023-05-01", "2023-06-01",
        "2023-07-03", "2023-08-01",
    )  # fmt: skip
    assert shown(next_times(first, range(1, 4))) == ["2023-09-01", "2023-10-02", "2023-11-01"]
    assert len(gaps(last)) == len(gaps(first)) == 0


def test_hours_of_business():
    days = BUSINESS.cast(pl.Datetime("us"))
    times = pl.concat([days.dt.offset_by(f"{h}h30m") for h in range(9, 16)]).sort()
    found = shown(next_times(times, range(1, 9)))
    assert found[0] == "2024-07-08 09:30:00"
    assert found[6:] == ["2024-07-08 15:30:00", "2024-07-09 09:30:00"]
    assert len(gaps(times)) == 0


def hours(first, n, step="1h", zone="Europe/Berlin"):
    """So many times from a local one on, an hour of the world's clock from each other."""
    start = pl.Series([first]).str.to_datetime().dt.replace_time_zone(zone)
    return pl.concat([start.dt.offset_by(f"{k}h") for k in range(n)])


@pytest.mark.parametrize("first", ["2021-03-27 00:00:00", "2021-10-30 00:00:00"])
@pytest.mark.parametrize("n", [24, 26, 40])
def test_hours_go_on_through_a_change_of_summer_time(first, n):
    times = hours(first, 48)
    assert next_times(times[:n], range(1, 7)).to_list() == times[n : n + 6].to_list()
    assert len(gaps(times)) == 0


def test_the_hours_of_the_change_are_those_of_the_clock_on_the_wall():
    clock = "%d %H %z"
    spring = next_times(hours("2021-03-20 00:00:00", 194), range(1, 4))
    assert spring.dt.to_string(clock).to_list() == ["28 03 +0200", "28 04 +0200", "28 05 +0200"]
    autumn = next_times(hours("2021-10-30 00:00:00", 26), range(1, 4))
    assert autumn.dt.to_string(clock).to_list() == ["31 02 +0200", "31 02 +0100", "31 03 +0100"]


@pytest.mark.parametrize("change", ["2021-03-28", "2021-10-31"])
@pytest.mark.parametrize("at", ["00:00", "02:30", "12:00"])
def test_days_keep_their_time_of_day_through_a_change_of_summer_time(change, at):
    last = datetime.date.fromisoformat(change) - datetime.timedelta(days=1)
    days = pl.date_range(last - datetime.timedelta(days=9), last, eager=True).cast(pl.String)
    times = (days + f" {at}").str.to_datetime().dt.replace_time_zone("Europe/Berlin")
    found = next_times(times, range(1, 3)).dt.to_string("%Y-%m-%d %H:%M").to_list()
    skipped = change == "2021-03-28" and at == "02:30"
    assert found[0] == f"{change} {'03:30' if skipped else at}"
    assert found[1][11:] == at


def test_a_gap_is_more_than_a_step_and_a_half():
    times = pl.Series([0.0, 1, 2.4, 3.4, 5, 6])
    assert gaps(times).tolist() == [3]
    months = pl.date_range(pl.date(2018, 1, 1), pl.date(2022, 1, 1), "1mo", eager=True)
    assert gaps(months.gather([*range(10), *range(12, 40)])).tolist() == [9]


def test_times_without_a_rule_go_on_by_their_median():
    times = dates("2024-01-01", "2024-01-04", "2024-01-09", "2024-01-12", "2024-01-15")
    assert shown(next_times(times, range(1, 3))) == ["2024-01-18", "2024-01-21"]


@pytest.mark.parametrize("times", [dates("2024-01-01"), pl.Series([3])])
def test_what_follows_a_single_time_is_unknown(times):
    found = next_times(times, range(1, 3))
    assert found.to_list() == [None, None]
    assert found.dtype == times.dtype
