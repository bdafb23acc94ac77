"""Reads a series from a CSV or Parquet file and cuts it by time. Letters: N rows, F columns."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from polars.exceptions import ComputeError, PanicException, PolarsError

from seqlab.data import SPLITS

#: The column that `read_table` adds: each row's number in the file; a CSV's header is row 1.
ROW = "__row__"


@dataclass
class Piece:
    """The rows of one group: training, then validation, then test."""

    name: str
    start: int  # its first row
    stop: int  # the row after its last
    cuts: tuple[int, int]  # its first validation row and its first test row

    def rows(self, split: str) -> tuple[int, int]:
        """The first row of a split and the one after its last."""
        edges, i = (self.start, *self.cuts, self.stop), SPLITS.index(split)
        return edges[i], edges[i + 1]


@dataclass
class Series:
    """A table of numbers in order of time, group after group."""

    values: np.ndarray  # (N, F), the target first; float32 if the file holds that, else float64
    columns: list[str]  # the F names
    times: pl.Series  # (N,) values of the time column, or row numbers from 0; they are only shown
    pieces: list[Piece]  # the groups
    notes: list[str]  # what is odd about the file and not refused, one line each


def read(path, target, time, features, group, missing, val_from, test_from, until) -> Series:
    """Read a file into a `Series`. The arguments are those of `SeriesData`, with the same types.
    Raises a ValueError that names the file, column and row if a value or the file will not do."""
    if missing not in ("error", "drop", "interpolate"):
        raise ValueError(f"missing={missing}: error, drop or interpolate")
    columns = list(dict.fromkeys([target, *features]))
    table = read_table(path, columns, [name for name in (time, group) if name is not None])
    if time is not None:
        table = table.with_columns(parse_time(table, time, path))
    if until is not None:
        if time is None:
            raise ValueError(f"until={until}: needs `time`, the column it is a value of")
        first = table[time].min()
        table = table.filter(pl.col(time) <= time_value(table, time, "until", until))
        if len(table) == 0:
            raise ValueError(f"until={until}: {path} begins with {time}={first}")
    groups = table.partition_by(group, maintain_order=True) if group is not None else [table]
    single = all(table.schema[column] == pl.Float32 for column in columns)
    values = np.empty((len(table), len(columns)), np.float32 if single else np.float64)
    times, pieces, notes, start = [], [], [], 0
    for part in groups:
        name = shown(part[group][0]) if group is not None else ""
        if time is not None:
            part = part if part[time].is_sorted() else part.sort(time)  # sorting copies
            notes += check_times(part[time], path, name)
        if missing == "drop":
            part = part.filter(pl.all_horizontal(pl.col(columns).is_finite().fill_null(False)))
        cuts = (cut(part, time, "val_from", val_from), cut(part, time, "test_from", test_from))
        stop = start + len(part)
        for f, column in enumerate(columns):  # a second whole table may not fit in memory
            values[start:stop, f] = part[column].to_numpy()
            bad = ~np.isfinite(values[start:stop, f])
            if bad.any() and missing == "error":
                raise ValueError(
                    f"{column} in {path} is missing or infinite {bad.sum()} times, first in row "
                    f"{part[ROW][int(bad.argmax())]}; missing=interpolate or drop"
                )
            for split in np.split(values[start:stop, f], cuts):  # what is missing is interpolated
                bad = ~np.isfinite(split)
                if len(split) and bad.all():
                    raise ValueError(f"{column} in {path} has a split with no value at all")
                if bad.any():
                    split[bad] = np.interp(np.flatnonzero(bad), np.flatnonzero(~bad), split[~bad])
        pieces.append(Piece(name, start, stop, (start + cuts[0], start + cuts[1])))
        start = stop
        times.append(part[time] if time is not None else part[ROW] - part[ROW].min())
    return Series(values[:start], columns, pl.concat(times), pieces, notes)


def read_table(path: str, numbers: list[str], others: list[str]) -> pl.DataFrame:
    """Some columns of a file, `numbers` of them as floats, and `ROW`."""
    file, columns = Path(path), list(dict.fromkeys([*numbers, *others]))
    is_csv = file.suffix == ".csv"
    if file.suffix not in (".csv", ".parquet"):
        raise ValueError(f"path={path}: must end in .csv or .parquet")
    if not file.is_file():
        raise ValueError(f"path={path}: no such file")
    with file.open("rb") as opened:
        head = opened.read(4096)
    if not head.strip():
        raise ValueError(f"path={path}: the file is empty")
    if (head[:4] == b"PAR1") == is_csv or (is_csv and b"\0" in head):
        raise ValueError(f"path={path}: not the {file.suffix[1:]} file that its name says")
    try:
        names = pl.read_csv(file, n_rows=0).schema if is_csv else pl.read_parquet_schema(file)
        for name in columns:
            if name not in names:
                raise ValueError(f"no column {name} in {path}; it has {shown(', '.join(names))}")
        if is_csv:
            # all columns: if told to read a few, polars lets a row of too many fields pass
            types = dict.fromkeys(numbers, pl.Float64)
            try:
                table = pl.read_csv(file, schema_overrides=types, try_parse_dates=True)
            except ComputeError:
                table = pl.read_csv(file, infer_schema=False)
        else:
            table = pl.read_parquet(file, columns=columns)
        table = table.select(columns).with_row_index(ROW, offset=2 if is_csv else 1)
    except (PolarsError, PanicException, OSError, UnicodeDecodeError) as error:
        line = shown(str(error).strip().partition("\n")[0])
        raise ValueError(f"path={path}: cannot be read: {line}") from None
    if len(table) == 0:
        raise ValueError(f"path={path}: has a header and no rows")
    for name in numbers:
        kind = table.schema[name]
        if not (kind.is_numeric() or kind in (pl.String, pl.Boolean, pl.Null)):
            raise ValueError(f"{name} in {path} holds {kind}, no numbers")
        floats = table[name] if kind.is_float() else table[name].cast(pl.Float64, strict=False)
        bad = floats.is_null() & table[name].is_not_null()
        if bad.any():
            row, value = table[ROW][bad.arg_max()], shown(table[name][bad.arg_max()])
            raise ValueError(f"{path} row {row}, {name}={value}: no number")
        table = table.with_columns(floats)
    return table


def parse_time(table: pl.DataFrame, time: str, path: str) -> pl.Series:
    """The time column as numbers or dates."""
    given = parsed = table[time]
    if given.dtype == pl.String:
        parsed = given.cast(pl.Float64, strict=False)
        if parsed.null_count():
            with suppress(PolarsError):  # the first value is no date
                parsed = given.str.to_datetime(strict=False)
    if not (parsed.dtype.is_numeric() or parsed.dtype.is_temporal()):
        raise ValueError(f"time={time}: {path} has {parsed.dtype} in it, no numbers or dates")
    bad = ~parsed.to_physical().is_finite().fill_null(False)
    if bad.any():
        found = f"row {table[ROW][bad.arg_max()]} has {shown(given[bad.arg_max()])}"
        raise ValueError(f"time={time}: {path} {found}; give numbers or dates such as 2026-01-31")
    return parsed


def shown(value: object) -> str:
    """A value from a file, fit to stand in one line."""
    text = "".join(c if c.isprintable() else "?" for c in str(value))
    return text if len(text) <= 200 else f"{text[:200]}..."


def time_value(table: pl.DataFrame, time: str, name: str, value: float | int | str) -> pl.Expr:
    """The value of the argument `name` as one of the time column."""
    kind = table.schema[time]
    with suppress(ValueError, PolarsError):
        if kind.is_numeric():
            return pl.lit(float(value))
        return pl.lit(pl.Series([value]).str.to_datetime()[0]).cast(kind)
    raise ValueError(f"{name}={value}: {time} holds values such as {table[time][0]}")


def cut(part: pl.DataFrame, time: str | None, name: str, where: float | int | str) -> int:
    """How many rows lie before a boundary: a fraction of the rows in (0, 1), or a time."""
    if isinstance(where, float) and 0 < where < 1:
        return round(where * len(part))
    if time is None:
        raise ValueError(f"{name}={where}: a fraction in (0, 1), or a value of `time`")
    return part.select((pl.col(time) < time_value(part, time, name, where)).sum()).item()


def check_times(times: pl.Series, path: str, group: str) -> list[str]:
    """Refuse two rows of one time in a group; return a note if there are gaps."""
    of = f" of {group}" if group else ""
    steps = times.diff().drop_nulls().to_physical().to_numpy()
    if not steps.all():
        twice = times[int(steps.argmin())]
        raise ValueError(f"time={times.name}: {path} has {twice}{of} more than once")
    # months have 28 to 31 days, so a gap is a step of more than one and a half
    gaps = np.flatnonzero(steps > 1.5 * np.median(steps)) if len(steps) else ()
    if len(gaps) == 0:
        return []
    count = f"{len(gaps)} gap{'s' * (len(gaps) > 1)}, the first after {times[int(gaps[0])]}"
    return [f"{path}: {times.name}{of} has {count}; windows run across them"]
