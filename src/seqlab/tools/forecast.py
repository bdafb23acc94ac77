"""Forecasts of a trained network as a table. Letters: W windows, O steps ahead (outputs)."""

import sys
from collections.abc import Callable

import numpy as np
import polars as pl
import torch

from seqlab.data import SequenceData
from seqlab.engine.errors import UserError
from seqlab.engine.forecaster import Forecaster
from seqlab.engine.intervals import half_widths
from seqlab.objectives import Objective
from seqlab.series.future import forecast_after
from seqlab.series.reading import Piece
from seqlab.series.windows import WindowData


@torch.inference_mode()
def forecasts(
    forecaster: Forecaster,
    data: SequenceData,
    objective: Objective,
    done: Callable[[int], None],
    steps: int | None = None,
    level: float | None = None,
) -> pl.DataFrame:
    """The forecast of every test sequence and, of a series, of what follows its end.

    Args:
        forecaster, data, objective: what `load` and `load_data` returned.
        done: called with the number of sequences just done.
        steps: N, how many rows after the end of a series to forecast; None: O. Beyond O the
            network's own forecasts are its inputs.
        level: the probability in (0, 1) of an interval around each forecast; None: without.

    Returns:
        A row for each forecast value, in the data's units or the number of a class. Of a series:
        `group` (where there are several), `time`, `step` (1 to O, after the end 1 to N),
        `forecast` and `truth`; of a task: `case`, `step`, `forecast`, `truth`. `truth` is null
        where there is none. Given a level, `low` and `high` stand behind `forecast`; beyond the
        step O they are null.

    Raises:
        UserError: the rows after the end need what is not known.
    """
    if steps:
        check_steps(data, steps)
    widths = None if level is None else half_widths(forecaster, level).numpy()

    def answers(x: torch.Tensor, *lengths: torch.Tensor) -> np.ndarray:
        answer = objective.answer(forecaster.predict_scaled(x, *lengths)[0])
        return answer.double().reshape(len(x), -1).numpy()

    torch.set_num_threads(forecaster.config["threads"])
    none = np.empty((0, forecaster.sizes["n_outputs"]))  # a file may end before the first target
    parts = [(none, none)] if isinstance(data, WindowData) else []
    for x, y, *lengths in data.whole("test"):
        parts.append((answers(x, *lengths), objective.truth(y).reshape(len(y), -1).numpy()))
        done(len(x))
    forecast, truth = map(np.concatenate, zip(*parts, strict=True))
    if not isinstance(data, WindowData):
        cases = np.arange(1, len(forecast) + 1).repeat(forecast.shape[1])
        found = table("case", pl.Series(cases), forecast, truth, widths)
        classes = pl.col("forecast", "truth").cast(pl.Int64)
        return found if objective.numeric else found.with_columns(classes)
    tables, at = [], 0

    def answer(window: np.ndarray) -> np.ndarray:
        return answers(forecaster.scale(torch.from_numpy(window)[None]))[0]

    for i, piece in enumerate(data.series.pieces):
        windows = data.window_numbers["test"][i]
        rows = windows[:, None] + data.seq_len - 1 + data.lead + np.arange(data.horizon)
        # the truth as the file has it, not by way of the scaler
        known = forecast[at : at + len(windows)], data.series.values[rows, 0]
        found = [table("time", data.series.times.gather(rows.ravel()), *known, widths)]
        at += len(windows)
        after = forecast_after(data, i, steps or data.horizon, answer)
        if after:
            values = after[1][None]
            found.append(table("time", after[0], values, np.full_like(values, np.nan), widths))
        elif steps:
            raise UserError(f"--steps={steps}: {not_given(data, piece)}")
        else:
            print(f"note: nothing after the end: {not_given(data, piece)}", file=sys.stderr)
        group = [pl.lit(piece.name).alias("group")] if len(data.series.pieces) > 1 else []
        tables += [part.select(*group, pl.all()) for part in found]
    return pl.concat(tables)


def not_given(data: WindowData, piece: Piece) -> str:
    """Says which columns the rows after a group's end lack."""
    names = ", ".join(data.source.columns[data.n_lagged :])
    of = f" of {piece.name}" if piece.name else ""
    return f"{names} must be in the file for the rows{of} to forecast, where the target is empty"


def check_steps(data: SequenceData, steps: int) -> None:
    """Refuse rows after the end that the network cannot forecast from what it has."""
    if not isinstance(data, WindowData):
        raise UserError(f"--steps={steps}: only a series goes on after its end")
    needed = ", ".join(data.series.columns[1 : data.n_lagged])
    if data.lead > 1:
        needed = f"the rows that data.lead={data.lead} leaves out"
    if steps > (O := data.horizon) and needed:
        said = f"beyond data.horizon={O} {needed} would have to be known; at most {O}"
        raise UserError(f"--steps={steps}: {said}")


def table(
    label: str,
    labels: pl.Series,
    forecast: np.ndarray,
    truth: np.ndarray,
    widths: np.ndarray | None,
) -> pl.DataFrame:
    """Forecasts and truths `(W, O)` as W*O labelled rows, one window's steps after another's, with
    intervals of the half widths of each step."""
    W, O = forecast.shape
    values = {"forecast": forecast}
    if widths is not None:
        half = np.pad(widths[:O], (0, max(0, O - len(widths))), constant_values=np.nan)
        values |= {"low": forecast - half, "high": forecast + half}
    values |= {"truth": truth.astype(np.float64)}
    columns = {name: value.ravel() for name, value in values.items()}
    found = pl.DataFrame({label: labels, "step": np.tile(np.arange(1, O + 1), W), **columns})
    return found.with_columns(pl.col(*columns).fill_nan(None))
