"""Your own series: read, split by time, scale on the training part, window as views.

Letters: N rows, T time steps in a window, F columns, O steps ahead (outputs), W windows.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from seqlab.errors import UserError

ROW = "__row__"

#: What polars raises for a damaged file.
UNREADABLE = pl.exceptions.PolarsError, pl.exceptions.PanicException


@dataclass
class Piece:
    """One group's rows `[start, stop)` of a series, cut by time at `cuts`: training rows before
    the first, validation rows up to the second, test rows from there on."""

    name: str
    start: int
    stop: int
    cuts: tuple[int, int]

    def rows(self, split: str) -> tuple[int, int]:
        """The rows of one split."""
        edges = self.start, *self.cuts, self.stop
        i = ("train", "val", "test").index(split)
        return edges[i], edges[i + 1]


@dataclass
class Series:
    """A table of numbers in order of time.

    values: `(N, F)` float64, or float32 where that is what the file holds; the target first,
        groups one after the other.
    columns: the F names.
    times: `(N,)` values of the time column, or row numbers, for the eye.
    pieces: the groups.
    notes: what was noticed and let pass, a line each.
    """

    values: np.ndarray
    columns: list[str]
    times: pl.Series
    pieces: list[Piece]
    notes: list[str]


def read(
    path: str,
    target: str,
    time: str | None,
    features: list[str],
    group: str | None,
    missing: str,
    val_from: float | int | str,
    test_from: float | int | str,
    until: float | int | str | None,
) -> Series:
    """Read a CSV or Parquet file into a `Series`; the arguments are those of `SeriesData`.

    Raises:
        UserError: the file or a value in it will not do; names the file, column and row.
    """
    columns = list(dict.fromkeys([target, *features]))
    table = read_table(path, columns, [name for name in (time, group) if name])
    table = table.with_row_index(ROW, offset=2 if path.endswith(".csv") else 1)
    if time:
        table = table.with_columns(parse_time(table, time, path))
    if until is not None:
        if not time:
            raise UserError(f"data.until={until}: needs data.time, the column it is a value of")
        first = table[time].min()
        table = table.filter(pl.col(time) <= time_value(table, time, until, "until"))
        if len(table) == 0:
            raise UserError(f"data.until={until}: {path} begins with {time}={first}")
    parts = table.partition_by(group, maintain_order=True) if group else [table]
    single = all(table.schema[column] == pl.Float32 for column in columns)
    values = np.empty((len(table), len(columns)), np.float32 if single else np.float64)
    times, pieces, notes, start = [], [], [], 0
    for part in parts:
        name = shown(part[group][0]) if group else ""
        if time:
            part = part if part[time].is_sorted() else part.sort(time)  # which copies
            notes += check_times(part, time, path, name)
        if missing == "drop":
            part = part.filter(pl.all_horizontal(pl.col(columns).is_finite().fill_null(False)))
        cuts = (cut(part, time, "val_from", val_from), cut(part, time, "test_from", test_from))
        block = values[start : start + len(part)]
        for f, column in enumerate(columns):  # a column at a time: the table may fill the memory
            block[:, f] = part[column].to_numpy()
        fill_missing(block, columns, part[ROW], cuts, missing, path)
        pieces.append(Piece(name, start, start + len(part), (start + cuts[0], start + cuts[1])))
        start += len(part)
        times.append(part[time] if time else part[ROW] - part[ROW].min())
    return Series(values[:start], columns, pl.concat(times), pieces, notes)


def read_table(path: str, numbers: list[str], others: list[str]) -> pl.DataFrame:
    """The named columns of a file, `numbers` of them as floats."""
    file = Path(path)
    if file.suffix not in (".csv", ".parquet"):
        raise UserError(f"data.path={path}: must end in .csv or .parquet")
    if not file.is_file():
        raise UserError(f"data.path={path}: no such file")
    with file.open("rb") as opened:
        head = opened.read(4096)
    if not head.strip():
        raise UserError(f"data.path={path}: the file is empty")
    if (head[:4] == b"PAR1") != (file.suffix == ".parquet") or (
        b"\0" in head and file.suffix == ".csv"
    ):
        raise UserError(f"data.path={path}: not the {file.suffix[1:]} file that its name says")
    try:
        if file.suffix == ".parquet":
            names = list(pl.read_parquet_schema(file))
        else:
            names = pl.read_csv(file, n_rows=0).columns
        for name in [*numbers, *others]:
            if name not in names:
                has = shown(", ".join(names))
                raise UserError(f"data: no column {name} in {path}; it has {has}")
        columns = list(dict.fromkeys([*numbers, *others]))
        if file.suffix == ".parquet":
            table = pl.read_parquet(file, columns=columns)
        else:
            # all columns, since polars lets a row of too many fields pass where it reads a few
            types = dict.fromkeys(numbers, pl.Float64)
            try:
                table = pl.read_csv(file, schema_overrides=types, try_parse_dates=True)
            except pl.exceptions.ComputeError:
                table = pl.read_csv(file, infer_schema=False)
            table = table.select(columns)
    except (*UNREADABLE, OSError, UnicodeDecodeError) as error:
        line = shown(str(error).strip().partition("\n")[0])
        raise UserError(f"data.path={path}: cannot be read: {line}") from None
    if len(table) == 0:
        raise UserError(f"data.path={path}: has a header and no rows")
    for name in numbers:
        kind = table.schema[name]
        if not (kind.is_numeric() or kind in (pl.String, pl.Boolean, pl.Null)):
            raise UserError(f"data: {name} in {path} holds {kind}, no numbers")
        if not kind.is_numeric():
            bad = table[name].cast(pl.Float64, strict=False).is_null() & table[name].is_not_null()
            row = bad.arg_max()
            if bad[row]:
                line = row + (2 if file.suffix == ".csv" else 1)
                value = shown(table[name][row])
                raise UserError(f"data: {path} row {line}, {name}={value}: no number")
    others = [name for name in numbers if not table.schema[name].is_float()]
    return table.with_columns(pl.col(others).cast(pl.Float64))


def parse_time(table: pl.DataFrame, time: str, path: str) -> pl.Series:
    """The time column as numbers or dates."""
    column, advice = table[time], "give numbers or dates such as 2026-01-31"
    parsed = column
    if column.dtype == pl.String:
        parsed = column.cast(pl.Float64, strict=False)
        if parsed.null_count():
            with suppress(pl.exceptions.PolarsError):  # the first value is no date
                parsed = column.str.to_datetime(strict=False)
    bad = parsed.is_null()
    if parsed.dtype.is_float():
        bad |= ~parsed.is_finite()
    elif not (parsed.dtype.is_numeric() or parsed.dtype.is_temporal()):
        raise UserError(f"data.time={time}: {path} has {parsed.dtype} in it; {advice}")
    if bad.any():
        first = bad.arg_max()
        value = shown(column[first])
        raise UserError(f"data.time={time}: {path} row {table[ROW][first]} has {value}; {advice}")
    return parsed


def shown(value: object) -> str:
    """A value from a file as it can stand in one line."""
    text = "".join(c if c.isprintable() else "?" for c in str(value))
    return text if len(text) <= 200 else f"{text[:200]}..."


def time_value(table: pl.DataFrame, time: str, value: float | int | str, key: str) -> pl.Expr:
    """A value of the config as one of the time column."""
    kind = table.schema[time]
    try:
        if kind.is_numeric():
            return pl.lit(float(value))
        if isinstance(value, str):
            return pl.lit(pl.Series([value]).str.to_datetime()[0]).cast(kind)
    except (ValueError, pl.exceptions.PolarsError):
        pass
    raise UserError(f"data.{key}={value}: {time} holds values such as {table[time][0]}")


def cut(part: pl.DataFrame, time: str | None, key: str, where: float | int | str) -> int:
    """How many rows lie before a boundary: a fraction of the rows in (0, 1), or a time."""
    if isinstance(where, float) and 0 < where < 1:
        return round(where * len(part))
    if not time:
        raise UserError(f"data.{key}={where}: a fraction in (0, 1), or a value of data.time")
    return int((part.select(pl.col(time) < time_value(part, time, where, key))).to_series().sum())


def check_times(part: pl.DataFrame, time: str, path: str, name: str) -> list[str]:
    """Refuse two rows of one time; note gaps, which windows will run across."""
    of = f" of {name}" if name else ""
    steps = part[time].diff().drop_nulls()
    if len(steps) == 0:
        return []
    same = np.flatnonzero(steps.to_physical().to_numpy() == 0)
    if len(same):
        raise UserError(
            f"data.time={time}: {path} has {part[time][int(same[0])]}{of} more than once"
        )
    # months have 28 to 31 days: only a step of more than one and a half is a gap
    physical = steps.to_physical().to_numpy()
    gaps = np.flatnonzero(physical > 1.5 * np.median(physical))
    if len(gaps) == 0:
        return []
    count, first = f"{len(gaps)} gap{'s' * (len(gaps) > 1)}", part[time][int(gaps[0])]
    return [f"{path}: {time}{of} has {count}, the first after {first}; windows run across them"]


def fill_missing(
    block: np.ndarray,
    columns: list[str],
    rows: pl.Series,
    cuts: tuple[int, int],
    missing: str,
    path: str,
) -> None:
    """Refuse or interpolate NaN and infinity, in place."""
    for f, name in enumerate(columns):
        bad = ~np.isfinite(block[:, f])
        if not bad.any():
            continue
        if missing == "error":
            raise UserError(
                f"data: {name} in {path} is missing or infinite {bad.sum()} times, first in row "
                f"{rows[int(bad.argmax())]}; data.missing=interpolate or drop"
            )
        # each split by itself, so that no later value reaches an earlier split
        for start, stop in zip((0, *cuts), (*cuts, len(block)), strict=True):
            here, known = bad[start:stop], np.flatnonzero(~bad[start:stop])
            if here.any() and len(known):
                values = block[start:stop, f]
                values[here] = np.interp(np.flatnonzero(here), known, values[known])
        if not np.isfinite(block[:, f]).all():
            raise UserError(f"data: {name} in {path} has a split with no value at all")


@dataclass
class Scaler:
    """Subtracts a mean and divides by a standard deviation, one of each a column; the target's
    are the first. In float64, since a price of a million may move by a cent."""

    mean: list[float]
    std: list[float]

    @classmethod
    def fit(cls, series: Series) -> "Scaler":
        """The moments of the training rows.

        Raises:
            UserError: a column is constant there.
        """
        rows = [series.values[slice(*piece.rows("train"))] for piece in series.pieces]
        training = rows[0] if len(rows) == 1 else np.concatenate(rows)
        mean, std = (moment(axis=0, dtype=np.float64) for moment in (training.mean, training.std))
        for f, name in enumerate(series.columns):
            if not std[f] > 1e-12 * abs(mean[f]):
                raise UserError(f"data: {name} is constant in the training part: nothing to learn")
        return cls(mean.tolist(), std.tolist())

    def scale(self, values: np.ndarray) -> Tensor:
        """`(N, F)` in the data's units to a float32 tensor of mean 0 and deviation 1."""
        scaled = np.empty(values.shape, np.float32)
        for f, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            for start in range(0, len(values), 1_000_000):  # in float64, a part at a time
                rows = slice(start, start + 1_000_000)
                scaled[rows, f] = (values[rows, f].astype(np.float64) - mean) / std
        return torch.from_numpy(scaled)

    def unscale(self, target: Tensor) -> Tensor:
        """Targets or predictions of any shape back to the data's units, float64."""
        return target.double() * self.std[0] + self.mean[0]


def naive_error(series: Series, lag: int) -> float:
    """The mean absolute error on the training rows of a forecast by the value `lag` rows before:
    the scale of MASE (Hyndman & Koehler 2006)."""
    errors, n = 0.0, 0
    for piece in series.pieces:
        target = series.values[slice(*piece.rows("train")), 0]
        change = target[lag:] - target[:-lag]
        errors += float(np.abs(change, out=change).sum(dtype=np.float64))
        n += len(change)
    return errors / n


def windows(values: Tensor, seq_len: int, horizon: int, lead: int) -> tuple[Tensor, Tensor]:
    """Every window of a series with its targets, as views of `values` `(N, F)`: no copy.

    Returns:
        x `(W, T, F)` and y `(W, T, O)`, where `x[w]` is rows w to w+T-1 and `y[w, t]` the target
        (column 0) of the O rows from w+t+lead on; W = N - T - lead - O + 2.
    """
    y = values[lead:, 0].unfold(0, horizon, 1)
    x = values[: len(y)]
    return x.unfold(0, seq_len, 1).transpose(1, 2), y.unfold(0, seq_len, 1).transpose(1, 2)


def window_rows(series: Series, split: str, seq_len: int, horizon: int, lead: int) -> list[range]:
    """Which of `windows` have all their targets in one split and all their rows in one group, a
    range for each group. Their inputs may reach back into the split before.

    Raises:
        UserError: a group is too short to have two windows in the split.
    """
    ranges = []
    for piece in series.pieces:
        low, high = piece.rows(split)
        if high < low:
            raise UserError("data.val_from: must lie before data.test_from")
        first = max(piece.start, low - seq_len - lead + 1)
        last = high - seq_len - lead - horizon + 1
        if last - first < 1:
            of = f" of {piece.name}" if piece.name else ""
            raise UserError(
                f"data: the {split} part{of} has {high - low} rows, too few for two windows of "
                f"data.seq_len={seq_len} and data.horizon={horizon}"
            )
        ranges.append(range(first, last + 1))
    return ranges


def autoregression(batches: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """The least-squares weights `(T*F + 1, O)` of an affine map from windows to targets.

    Takes the windows a batch at a time: the triangular factor of all rows so far replaces them
    (sequential QR, as exact as least squares over all at once, in the memory of one batch).
    """
    factor = None
    for x, y in batches:
        rows = torch.cat([affine(x), y.double()], dim=1)
        factor = rows if factor is None else torch.cat([factor, rows])
        factor = torch.linalg.qr(factor, mode="r").R
    n = factor.shape[1] - y.shape[1]
    # gelsd: a noise-free series makes its lags nearly dependent
    return torch.linalg.lstsq(factor[:, :n], factor[:, n:], driver="gelsd").solution


def affine(x: Tensor) -> Tensor:
    """Windows `(B, T, F)` as float64 rows `(B, T*F + 1)` that end with 1."""
    flat = x.flatten(1).double()
    return torch.cat([flat, flat.new_ones(len(flat), 1)], dim=1)


def mackey_glass(n: int, tau: int) -> np.ndarray:
    """`n` values, one time unit apart, of the Mackey-Glass equation (Mackey & Glass 1977):
    dx/dt = 0.2 x(t-tau) / (1 + x(t-tau)^10) - 0.1 x(t), from x = 1.2, after 1000 units to forget
    the start; chaotic from tau = 17 on. Fourth-order Runge-Kutta steps of 0.1.
    """
    per_unit, forget = 10, 1000
    h, delay = 1 / per_unit, tau * per_unit
    x = [1.2] * (delay + 1)

    def slope(now: float, then: float) -> float:
        return 0.2 * then / (1 + then**10) - 0.1 * now

    for i in range(delay, delay + (forget + n) * per_unit):
        now, then, later = x[i], x[i - delay], x[i - delay + 1]
        between = (then + later) / 2
        k1 = slope(now, then)
        k2 = slope(now + h / 2 * k1, between)
        k3 = slope(now + h / 2 * k2, between)
        k4 = slope(now + h * k3, later)
        x.append(now + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
    return np.array(x[delay + forget * per_unit :: per_unit][:n])
