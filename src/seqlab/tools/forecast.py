"""Forecasts of a trained network, as a table and from several origins. Letters: W windows, O steps
ahead (outputs), N forecasts by name, P parts."""

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import torch

from seqlab.data import SequenceData
from seqlab.engine.errors import UserError
from seqlab.engine.forecaster import Forecaster
from seqlab.engine.intervals import half_widths
from seqlab.engine.report import Rows, compare, compared
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
        where there is none. Given a level, `low` and `high` stand behind `forecast`. Then come the
        quantiles, if the network predicts any, as `q0.1`. Beyond the step O both are null.

    Raises:
        UserError: the rows after the end need what is not known.
    """
    if steps:
        check_steps(data, steps)
    half_O = None if level is None else half_widths(forecaster.errors, level)

    def columns(prediction: torch.Tensor, y: torch.Tensor) -> dict[str, np.ndarray]:
        found = {"forecast": objective.answer(prediction)}
        if half_O is not None:
            middle = found["forecast"].flatten(1)
            found |= {"low": middle - half_O, "high": middle + half_O}
        found |= {f"q{level}": each for level, each in objective.quantiles(prediction).items()}
        found["truth"] = truth = objective.truth(y)
        shape = len(y), truth.shape[1:].numel()
        return {name: each.double().reshape(shape).numpy() for name, each in found.items()}

    torch.set_num_threads(forecaster.config["threads"])
    parts, O = [], data.n_outputs
    if isinstance(data, WindowData):  # a file may end before the first target
        parts.append(columns(torch.empty(0, O * objective.n_values), torch.empty(0, O)))
    for x, y, *lengths in data.whole("test"):
        parts.append(columns(forecaster.predict_scaled(x, *lengths), y))
        done(len(x))
    most = max(part["truth"].shape[1] for part in parts)  # batches may differ in T
    whole = {n: np.concatenate([filled(part[n], most) for part in parts]) for n in parts[0]}
    if not isinstance(data, WindowData):
        n_cases, n_steps = whole["forecast"].shape
        found = table("case", pl.Series(np.arange(1, n_cases + 1).repeat(n_steps)), whole)
        classes = pl.col("forecast", "truth").cast(pl.Int64)
        return found if objective.numeric else found.with_columns(classes)
    tables, at, after_end = [], 0, []

    def answer(window: np.ndarray) -> np.ndarray:
        x = forecaster.scale(torch.from_numpy(window)[None])
        after_end.append(columns(forecaster.predict_scaled(x), torch.full((1, O), torch.nan)))
        return after_end[-1]["forecast"][0]

    for i, piece in enumerate(data.series.pieces):
        windows = data.window_numbers["test"][i]
        rows = windows[:, None] + data.seq_len - 1 + data.lead + np.arange(data.horizon)
        # the truth as the file has it, not by way of the scaler
        known = {name: values[at : at + len(windows)] for name, values in whole.items()}
        known["truth"] = data.series.values[rows, 0]
        found = [table("time", data.series.times.gather(rows.ravel()), known)]
        at += len(windows)
        after_end.clear()
        after = forecast_after(data, i, N := steps or O, answer)
        if after:
            first = {name: filled(values, N) for name, values in after_end[0].items()}
            values = first | {"forecast": after[1][None]}
            found.append(table("time", after[0], values))
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


@torch.inference_mode()
def from_origins(
    forecaster: Forecaster, data: SequenceData, objective: Objective, n_origins: int
) -> list[Rows]:
    """The metrics of the network, as it is, and of the baselines from several origins: the test
    part of each group of a series is cut into as many parts, and each is measured by itself.

    Raises:
        UserError: it is no series, or a part has fewer than two windows.
    """
    if not isinstance(data, WindowData):
        raise UserError(f"--origins={n_origins}: only a series is in order of time")
    whole, ends = data.splits["test"], np.cumsum([0, *map(len, data.window_numbers["test"])])
    groups = [np.array_split(np.arange(*edges), n_origins) for edges in pairwise(ends)]
    parts = [np.concatenate(part) for part in zip(*groups, strict=True)]
    if min(map(len, parts)) < 2:
        said = f"two test windows for each, and there are {ends[-1]}"
        raise UserError(f"--origins={n_origins}: {said}")
    found = []
    for part in map(torch.from_numpy, parts):
        index = part if whole.index is None else whole.index[part]
        data.splits["test"] = replace(whole, index=index)
        found.append(compare(data, objective, forecaster.predict_scaled))
    data.splits["test"] = whole
    return found


def spread(objective: Objective, parts: list[Rows]) -> tuple[str, list[str], list[tuple]]:
    """A title, column names and cells: each forecast's error over the parts of `from_origins`."""
    key = compared(objective)
    names = [name for name, row in parts[0].items() if key in row and name != "noise floor"]
    losses_NP = np.array([[part[name][key] for part in parts] for name in names])
    best = np.bincount(losses_NP.argmin(axis=0), minlength=len(names))
    summary = losses_NP.mean(axis=1), losses_NP.min(axis=1), losses_NP.max(axis=1), best
    cells = list(zip(names, *(each.tolist() for each in summary), strict=True))
    return f"{key} from {len(parts)} origins", ["", "mean", "lowest", "highest", "best in"], cells


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


def filled(values: np.ndarray, steps: int) -> np.ndarray:
    """Values `(.., O)` for so many steps, NaN beyond O."""
    more = [(0, 0)] * (values.ndim - 1) + [(0, max(0, steps - values.shape[-1]))]
    return np.pad(values, more, constant_values=np.nan)[..., :steps]


def table(label: str, labels: pl.Series, values: dict[str, np.ndarray]) -> pl.DataFrame:
    """Forecasts, truths and what else there is by name, each `(W, O)`, as W*O labelled rows, one
    window's steps after another's."""
    W, O = values["forecast"].shape
    columns = {name: value.astype(np.float64).ravel() for name, value in values.items()}
    found = pl.DataFrame({label: labels, "step": np.tile(np.arange(1, O + 1), W), **columns})
    return found.with_columns(pl.col(*columns).fill_nan(None))
