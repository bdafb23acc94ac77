"""Forecasts of a trained network as a table. Letters: W windows, O steps ahead (outputs)."""

from collections.abc import Callable

import numpy as np
import polars as pl
import torch

from seqlab.data import SequenceData
from seqlab.engine.forecaster import Forecaster
from seqlab.objectives import Objective
from seqlab.series.windows import WindowData


@torch.inference_mode()
def forecasts(
    forecaster: Forecaster, data: SequenceData, objective: Objective, done: Callable[[int], None]
) -> pl.DataFrame:
    """The forecast of every test sequence and, of a series, of what follows its end.

    Args:
        forecaster, data, objective: what `load` and `load_data` returned.
        done: called with the number of sequences just done.

    Returns:
        A row for each forecast value, in the data's units or the number of a class. Of a series:
        `group` (where there are several), `time`, `step` (1 to O), `forecast` and `truth`; of a
        task: `case`, `step`, `forecast`, `truth`. `truth` is null where there is none.
    """

    def answers(x: torch.Tensor, *lengths: torch.Tensor) -> np.ndarray:
        answer = objective.answer(forecaster.predict_scaled(x, *lengths)[0])
        return answer.double().reshape(len(x), -1).numpy()

    torch.set_num_threads(forecaster.config["threads"])
    parts = []
    for x, y, *lengths in data.whole("test"):
        parts.append((answers(x, *lengths), objective.truth(y).reshape(len(y), -1).numpy()))
        done(len(x))
    forecast, truth = map(np.concatenate, zip(*parts, strict=True))
    if not isinstance(data, WindowData):
        cases = np.arange(1, len(forecast) + 1).repeat(forecast.shape[1])
        return table("case", pl.Series(cases), forecast, truth)
    values, times, tables, at = data.series.values, data.series.times, [], 0
    for piece, windows in zip(data.series.pieces, data.window_ranges["test"], strict=True):
        ahead = range(data.lead, data.lead + data.horizon)
        rows = np.array(windows)[:, None] + data.seq_len - 1 + ahead
        last = torch.from_numpy(values[piece.stop - data.seq_len : piece.stop])
        after = answers(forecaster.scale(last[None]))
        following = next_times(times[piece.start : piece.stop], ahead)
        found = table(
            "time",
            pl.concat([times.gather(rows.ravel()), following]),
            np.concatenate([forecast[at : at + len(windows)], after]),
            # the truth as the file has it, not by way of the scaler
            np.concatenate([values[rows, 0], np.full_like(after, np.nan)]),
        )
        at += len(windows)
        group = [pl.lit(piece.name).alias("group")] if len(data.series.pieces) > 1 else []
        tables.append(found.select(*group, pl.all()))
    return pl.concat(tables)


def table(label: str, labels: pl.Series, forecast: np.ndarray, truth: np.ndarray) -> pl.DataFrame:
    """Forecasts and truths `(W, O)` as W*O labelled rows, one window's steps after another's."""
    steps = np.tile(np.arange(1, forecast.shape[1] + 1), len(forecast))
    columns = {label: labels, "step": steps, "forecast": forecast.ravel(), "truth": truth.ravel()}
    return pl.DataFrame(columns).with_columns(pl.col("truth").fill_nan(None))


def next_times(times: pl.Series, ahead: range) -> pl.Series:
    """The times so many steps after the last one, a step being the usual one of the column."""
    steps, last = times.diff().drop_nulls(), times[-1:]
    if times.dtype.is_temporal():
        days = steps.dt.total_days()
        # the calendar's months and years are of different lengths
        for unit, low, high in (("mo", 28, 31), ("q", 89, 92), ("y", 365, 366)):
            usual = days.filter(days.is_between(low, high))
            if usual.n_unique() > 1 and len(usual) > len(days) / 2:  # the rest are gaps
                found = pl.concat([last.dt.offset_by(f"{k}{unit}") for k in ahead])
                at_ends = (times.dt.month_end() == times).all()
                return found.dt.month_end() if at_ends else found
    step = steps.median()
    step = round(step) if times.dtype.is_integer() else step
    return pl.Series([last[0] + step * k for k in ahead]).cast(times.dtype)
