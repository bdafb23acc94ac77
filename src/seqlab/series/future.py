"""What is known of the rows to come, and forecasts of them: the calendar, and columns whose values
are given beforehand. Letters: N rows, T time steps, F columns, O rows to forecast (outputs)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import polars as pl
from numpy.lib.stride_tricks import sliding_window_view

from seqlab.series.ahead import next_times
from seqlab.series.reading import Series

Calendar = Literal["minute", "hour", "weekday", "monthday", "month", "yearday"]


def phases(times: pl.Series, calendar: list[Calendar]) -> np.ndarray:
    """Where in its cycle each time is, as a fraction in [0, 1), `(N, C)` for C cycles."""
    dt = times.cast(pl.Datetime("us", getattr(times.dtype, "time_zone", None))).dt
    minute = dt.minute() / 60
    found = {
        "minute": minute,
        "hour": (dt.hour() + minute) / 24,
        "weekday": (dt.weekday() - 1) / 7,
        "monthday": (dt.day() - 1) / 31,
        "month": (dt.month() - 1) / 12,
        "yearday": (dt.ordinal_day() - 1) / 366,
    }
    return np.stack([found[name].to_numpy() for name in calendar], axis=1)


def check_calendar(calendar: list[Calendar], times: pl.Series) -> None:
    """Refuse what is no part of a calendar, or times that are no dates."""
    for name in calendar:
        if name not in get_args(Calendar):
            raise ValueError(f"calendar={name}: of {', '.join(get_args(Calendar))}")
    if calendar and not times.dtype.is_temporal():
        raise ValueError(f"calendar={', '.join(calendar)}: needs `time`, a column of dates")


def with_inputs_ahead(series: Series, calendar: list[Calendar], lead: int, horizon: int) -> Series:
    """The series with `inputs_ahead` as its last columns, in place of those of `known`."""
    n_own, groups = len(series.columns) - series.n_known, range(len(series.pieces))
    own, known = series.columns[:n_own], series.columns[n_own:]
    names = [f"{name} {lead + k} ahead" for name in known for k in range(horizon)]
    names += [f"{name} {wave}" for name in calendar for wave in ("sine", "cosine")]
    if not names:
        return series
    told = [inputs_ahead(series, i, calendar, lead, horizon) for i in groups]
    values = np.concatenate([series.values[:, :n_own], np.concatenate(told)], axis=1)
    return replace(series, values=values, columns=own + names)


def inputs_ahead(
    series: Series, group: int, calendar: list[Calendar], lead: int, horizon: int, more: int = 0
) -> np.ndarray:
    """What is known, at each of the N rows of a group and of `more` after them, of the O rows that
    are forecast from there, `(N + more, E)`: of each column of `known` its O values, NaN where the
    file does not give them; of each cycle of the calendar the sine and cosine at the first of the O
    rows, from which those of the others follow."""
    piece = series.pieces[group]
    rows, n_own = slice(piece.start, piece.stop), len(series.columns) - series.n_known
    n = piece.stop - piece.start + more
    known = np.full((n + lead + horizon - 1, series.n_known), np.nan)
    given = [series.values[rows, n_own:]]
    if piece.after is not None and series.n_known:
        given.append(piece.after.select(series.columns[n_own:]).fill_null(np.nan).to_numpy())
    given = np.concatenate(given)[: len(known)]
    known[: len(given)] = given
    found = [sliding_window_view(known[lead:], horizon, axis=0).reshape(n, -1)]
    if calendar:
        times = series.times[rows]
        first = pl.concat([times, times_after(series, group, lead + more)])[lead : n + lead]
        angles = 2 * np.pi * phases(first, calendar)
        waves = np.stack([np.sin(angles), np.cos(angles)], axis=2)
        found.append(waves.reshape(n, -1))
    return np.concatenate(found, axis=1)


def times_after(series: Series, group: int, count: int) -> pl.Series:
    """The first times after the end of a group: those in the file, and then what follows them."""
    piece = series.pieces[group]
    times = series.times[piece.start : piece.stop]
    if piece.after is not None and times.name in piece.after.columns:
        times = times.append(piece.after[times.name])
    given = times[piece.stop - piece.start :][:count]
    return given.append(next_times(times, range(1, count - len(given) + 1)))


def forecast_after(
    data, group: int, steps: int, predict: Callable[[np.ndarray], np.ndarray]
) -> tuple[pl.Series, np.ndarray] | None:
    """The forecasts of what follows a group's end; None where a column of `known` is not given for
    those rows.

    Args:
        data: a `WindowData`.
        group: its number.
        steps: N, how many. Beyond O the forecasts are inputs, O rows at a time, if there are no
            features and `lead` is 1.
        predict: maps a window `(T, F)` to the answer `(O,)`, both in the data's units.

    Returns:
        The times and the values, `(N,)` each, from the row `lead` after the end on.
    """
    piece, T, O, n_own = data.series.pieces[group], data.seq_len, data.horizon, data.n_lagged
    more = (steps - 1) // O * O
    told = inputs_ahead(data.source, group, data.calendar, data.lead, O, more)[-more - T :]
    if not np.isfinite(told).all():
        return None
    rows = data.series.values[piece.stop - T : piece.stop, :n_own]
    found = np.empty(0)
    for done in range(0, more + 1, O):
        window = np.concatenate([rows[-T:], told[done : done + T]], axis=1)
        found = np.append(found, predict(window))
        rows = np.concatenate([rows, found[-O:, None]]) if done < more else rows
    times = times_after(data.source, group, data.lead - 1 + steps)[data.lead - 1 :]
    return times, found[:steps]
