"""The times of a series as the calendar has them: what follows the last one, and where some are
left out. A grid numbers its times: two that follow each other have numbers that differ by one."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial

import numpy as np
import polars as pl

#: The number of each time of a series on a grid, and what turns numbers into times.
Grid = tuple[np.ndarray, Callable[[np.ndarray], pl.Series]]

MOST = 0.9  # of a series' times must lie on a calendar's grid


def next_times(times: pl.Series, ahead: range) -> pl.Series:
    """The times so many steps after the last one, of the same type; null after fewer than two.
    `times` are numbers or dates in order, and a step is the usual one of the best grid."""
    if len(times) < 2:
        return pl.Series([None] * len(ahead), dtype=times.dtype)
    (numbers, at), step = best_grid(times)
    return at(numbers[-1] + step * np.array(ahead)).alias(times.name)


def gaps(times: pl.Series) -> np.ndarray:
    """The places of the times after which some are left out. A weekend among business days is no
    gap, nor is a month of 31 days."""
    if times.diff().drop_nulls().n_unique() < 2:
        return np.array([], int)
    (numbers, _), step = best_grid(times)
    return np.flatnonzero(np.diff(numbers) > 1.5 * step)


def absent_times(times: pl.Series) -> pl.Series:
    """The times that a regular series leaves out; none of one that is not regular, or that leaves
    out more than it has."""
    (numbers, at), step = best_grid(times)
    counts = np.diff(numbers) / step
    regular = np.allclose(counts, counts.round()) and np.mean(counts.round() == 1) > 0.5
    if not regular or counts.sum() > 2 * len(times):
        return times.clear()
    every = np.arange(round(counts.sum()) + 1)
    absent = np.setdiff1d(every, np.cumsum([0, *counts]).round())
    return at(numbers[0] + step * absent.astype(int))


def best_grid(times: pl.Series) -> tuple[Grid, int | float]:
    """The grid on which most steps are the usual one, the median; the first of equals."""
    best, most = None, -1.0
    for grid in grids(times):
        steps = np.diff(grid[0])
        usual = np.median(steps)
        usual = round(usual) if steps.dtype.kind in "iu" else usual
        regular = np.mean(steps == usual)
        if usual > 0 and regular > most:
            best, most = (grid, usual), regular
        if most == 1:
            break
    return best


def grids(times: pl.Series) -> Iterator[Grid]:
    """The grids that times may lie on, those first that are preferred."""
    ticks = times.to_physical().to_numpy()
    ticks = ticks.astype(np.int64) if ticks.dtype.kind in "iu" else ticks
    plain = ticks, lambda numbers: pl.Series(numbers).cast(times.dtype)
    if times.dtype.is_temporal():
        moments = times.cast(pl.Datetime("us", getattr(times.dtype, "time_zone", None)))
        local = moments.dt.replace_time_zone(None).to_numpy()
        days = local.astype("M8[D]")
        yield from months(local, days, times.dtype)
        if np.median(np.diff(local)) < np.timedelta64(1, "D"):
            yield plain  # hours go on through a change of summer time
        yield from weeks(local, days, times.dtype)
    yield plain


def months(local: np.ndarray, days: np.ndarray, dtype: pl.DataType) -> Iterator[Grid]:
    """Once a month: at its end, on one day of it, on its last or first business day."""
    numbers, clock = days.astype("M8[M]").astype(int), (local - days)[-1]
    usual = np.bincount((days - days.astype("M8[M]")).astype(int)).argmax() + 1
    rules = (day_of, 31), (day_of, usual), (business_day, -1), (business_day, 0)
    for day in (partial(rule, place) for rule, place in rules):
        if np.mean(day(numbers) == days) >= MOST:
            yield numbers, lambda n, day=day: zoned(day(n) + clock, dtype)


def day_of(day: int, numbers: np.ndarray) -> np.ndarray:
    """That day of each month, or its last one; months are numbered from January 1970."""
    first, after = (month.astype("M8[M]").astype("M8[D]") for month in (numbers, numbers + 1))
    return np.minimum(first + (day - 1), after - 1)


def business_day(place: int, numbers: np.ndarray) -> np.ndarray:
    """The first (0) or last (-1) day of each month that is Monday to Friday."""
    return np.busday_offset(day_of(1, numbers - place), place, roll="forward")


def weeks(local: np.ndarray, days: np.ndarray, dtype: pl.DataType) -> Iterator[Grid]:
    """At the same times of day, every day, Monday to Friday, or on the weekdays that are found."""
    clocks, clock = np.unique(local - days, return_inverse=True)
    counts = np.bincount((days.astype(int) + 3) % 7, minlength=7)  # the first is Monday
    masks = [[True] * 7, [True] * 5 + [False] * 2]
    if days[-1] - days[0] >= np.timedelta64(14, "D"):  # what is left out is so each week
        masks.append(list(counts > counts.max() / 10))
    for mask in masks:
        if np.mean(np.array(mask)[(days.astype(int) + 3) % 7]) < MOST:
            continue
        first = np.busday_offset(days[0], 0, roll="backward", weekmask=mask)
        passed = np.busday_count(first, days + 1, weekmask=mask) - 1

        def at(numbers: np.ndarray, first=first, mask=mask) -> pl.Series:
            day = np.busday_offset(first, numbers // len(clocks), roll="forward", weekmask=mask)
            return zoned(day + clocks[numbers % len(clocks)], dtype)

        yield passed * len(clocks) + clock, at


def zoned(local: np.ndarray, dtype: pl.DataType) -> pl.Series:
    """Moments on a local clock as times of that type. One that the change to summer time skips is
    an hour later, and of two that the change back makes it is the earlier."""
    moments, zone = pl.Series(local.astype("M8[us]")), getattr(dtype, "time_zone", None)
    if zone is None:
        return moments.cast(dtype)

    def there(moments: pl.Series) -> pl.Series:
        return moments.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")

    hour, found = timedelta(hours=1), there(moments)
    return found.zip_with(found.is_not_null(), there(moments - hour) + hour).cast(dtype)
