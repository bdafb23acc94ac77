"""Forecasts of a trained network as a table.

Letters: W windows, T time steps in a window, O steps ahead (outputs).
"""

import math
from collections.abc import Callable

import numpy as np
import polars as pl
import torch

from seqlab.checkpoint import Forecaster
from seqlab.data import SequenceData, WindowData
from seqlab.objectives import NO_TARGET
from seqlab.series import Piece


@torch.inference_mode()
def forecasts(
    forecaster: Forecaster, data: SequenceData, progress: Callable[[int], None]
) -> pl.DataFrame:
    """Every test sequence's forecast, in the data's units.

    Args:
        forecaster: what `load` gave.
        data: prepared; its test split is forecast, and of a series what follows its end too.
        progress: called with the number of sequences just done.

    Returns:
        A row for each forecast value. Of a series: `group` (where there are several), `time`,
        `step` (1 to O), `forecast` and `truth` (null after the end). Of a toy task: `case`,
        `step`, `forecast`, `truth`; of classes, their numbers, and null where there is no target.
    """
    parts = []
    for x, y, *lengths in data.whole("test"):
        prediction = data.unscale(forecaster.network(x, None, *lengths)[0])
        answer, truth = data.objective.answer(prediction).double(), data.unscale(y).double()
        if not y.is_floating_point():
            truth[y == NO_TARGET] = math.nan
        parts.append([part.reshape(len(x), -1) for part in (answer, truth)])
        progress(len(x))
    forecast, truth = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    if not isinstance(data, WindowData):
        return table(pl.Series(range(1, len(forecast) + 1)), forecast, truth, "case")
    found, at = [], 0
    for piece, starts in zip(data.series.pieces, data.rows["test"], strict=True):
        part = slice(at, at + len(starts))
        at += len(starts)
        ahead = data.seq_len + data.lead - 1
        first = np.arange(starts.start + ahead, starts.stop + ahead)
        rows = first[:, None] + np.arange(data.horizon)
        # the truth as the file has it, not by way of the scaler
        truth = data.series.values[rows, 0].astype(np.float64)
        known = table(data.series.times.gather(rows.ravel()), forecast[part], truth, "time")
        rows = pl.concat([known, following(forecaster, data, piece)])
        if len(data.series.pieces) > 1:
            rows = rows.select(pl.lit(piece.name).alias("group"), pl.all())
        found.append(rows)
    return pl.concat(found)


def table(labels: pl.Series, forecast: np.ndarray, truth: np.ndarray, label: str) -> pl.DataFrame:
    """Forecasts and truths `(W, O)` as rows, a window's steps one after the other; `labels` has
    one for each window or one for each row."""
    W, O = forecast.shape
    steps = np.tile(np.arange(1, O + 1), W)
    rows = labels if len(labels) == W * O else labels.gather(np.repeat(np.arange(W), O))
    columns = {"step": steps, "forecast": forecast.ravel(), "truth": truth.ravel()}
    return pl.DataFrame({label: rows, **columns}).with_columns(pl.col("truth").fill_nan(None))


def following(forecaster: Forecaster, data: WindowData, piece: Piece) -> pl.DataFrame:
    """The forecast from the last window of a group, for the rows that are not there yet."""
    last = data.series.values[piece.stop - data.seq_len : piece.stop]
    forecast = forecaster(torch.from_numpy(last)[None])[0].numpy()
    times = data.series.times[piece.start : piece.stop]
    ahead = next_times(times, range(data.lead, data.lead + data.horizon))
    return table(ahead, forecast, np.full_like(forecast, np.nan), "time")


def next_times(times: pl.Series, ahead: range) -> pl.Series:
    """The times so many steps after the last one, a step being the usual one of the column."""
    steps = times.diff().drop_nulls()
    if not times.dtype.is_temporal():
        step = steps.median()
        if times.dtype.is_integer():
            step = round(step)
        return pl.Series([times[-1] + step * k for k in ahead]).cast(times.dtype)
    days, last = steps.dt.total_days(), times[-1:]
    # the calendar's months and years are of different lengths
    for unit, low, high in (("mo", 28, 31), ("q", 89, 92), ("y", 365, 366)):
        usual = days.filter(days.is_between(low, high))
        if usual.n_unique() > 1 and len(usual) > len(days) / 2:  # the rest are gaps
            found = pl.concat([last.dt.offset_by(f"{k}{unit}") for k in ahead])
            at_ends = (times.dt.month_end() == times).all()
            return found.dt.month_end() if at_ends else found
    return pl.Series([times[-1] + steps.median() * k for k in ahead]).cast(times.dtype)
