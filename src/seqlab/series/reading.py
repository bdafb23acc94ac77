"""Reads a series from a CSV or Parquet file and cuts it by time. Letters: N rows, F columns."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from polars.exceptions import PanicException, PolarsError

from seqlab.data import SPLITS
from seqlab.series.ahead import absent_times, gaps

ROW = "__row__"  # a column with each row's number in the file; a text file's header is row 1
MARKS = {".csv": ",;\t", ".tsv": "\t", ".parquet": ""}  # what separates values, by a name's ending

#: Words for a missing number, and for 1 and 0.
WORDS = dict.fromkeys(["", "NA", "N/A", "#N/A", "null", "NULL", "."])
WORDS |= {"True": "1", "true": "1", "TRUE": "1", "False": "0", "false": "0", "FALSE": "0"}

#: The orders in which so many digits may be a date, and two of a date that ends with its year.
DIGITS = {6: ["%Y%m"], 8: ["%Y%m%d", "%d%m%Y", "%m%d%Y"], 12: ["%Y%m%d%H%M"], 14: ["%Y%m%d%H%M%S"]}
YEAR_LAST, ORDERS = r"^(\d{1,2})[-/.](\d{1,2})[-/.](\d{4})", ("$3-$2-$1", "$3-$1-$2")


@dataclass
class Piece:
    """The rows of one group: training, then validation, then test."""

    name: str
    start: int  # its first row
    stop: int  # the row after its last
    cuts: tuple[int, int]  # its first validation row and its first test row
    # the file's rows after its last target, in order: their times and what is known of them
    after: pl.DataFrame | None = field(default=None, compare=False)

    def rows(self, split: str) -> tuple[int, int]:
        """The first row of a split and the one after its last."""
        edges, i = (self.start, *self.cuts, self.stop), SPLITS.index(split)
        return edges[i], edges[i + 1]


@dataclass
class Series:
    """A table of numbers in order of time, group after group."""

    values: np.ndarray  # (N, F), the target first; float32 if the file holds that, else float64
    columns: list[str]  # the F names; those of `known` come last
    times: pl.Series  # (N,) values of the time column, or row numbers from 0; they are only shown
    pieces: list[Piece]  # the groups
    notes: list[str]  # what is odd about the file and not refused, one line each
    own: np.ndarray | None = None  # (N,) bool: the target is the file's own; None: all are
    filled: np.ndarray | None = None  # (N,) bool: a value of the row was filled in; None: of none
    n_known: int = 0  # how many columns are known before their time

    def __post_init__(self):
        self.own = np.ones(len(self.values), bool) if self.own is None else self.own
        self.filled = ~self.own if self.filled is None else self.filled


def read(
    path, target, time, features, group, missing, val_from, test_from, until, time_format, known
) -> Series:
    """Read a file into a `Series`. The arguments are those of `SeriesData`, with the same types.
    Raises a ValueError that names the file, column and row if a value or the file will not do."""
    if missing not in ("error", "drop", "interpolate"):
        raise ValueError(f"missing={missing}: error, drop or interpolate")
    columns = list(dict.fromkeys([target, *features, *known]))
    if {target, *features} & {*known}:
        raise ValueError(f"known={list(known)}: columns that are not the target or in features")
    table = read_table(path, columns, [name for name in (time, group) if name is not None])
    if time is not None:
        table = table.with_columns(parse_time(table, time, path, time_format))
    if until is not None:
        last, first = boundary(table, time, "until", until, time_format), table[time].min()
        table = table.filter(pl.col(time) <= last)
        if len(table) == 0:
            raise ValueError(f"until={until}: {path} begins with {time}={first}")
    given = {"val_from": val_from, "test_from": test_from}
    edges = [boundary(table, time, *item, time_format) for item in given.items()]
    groups = table.partition_by(group, maintain_order=True) if group is not None else [table]
    notes: list[str] = []
    parts = [tidy(part, path, target, time, group, missing, columns, notes) for part in groups]
    n_rows = sum(len(part) for _, part, _ in parts)
    single = all(table.schema[column] == pl.Float32 for column in columns)
    values = np.empty((n_rows, len(columns)), np.float32 if single else np.float64)
    own, filled = np.empty(n_rows, bool), np.zeros(n_rows, bool)
    times, pieces, start = [], [], 0
    for name, part, after in parts:
        n, where = len(part), part[ROW if time is None else time].to_physical().to_numpy()
        # how many rows lie before each boundary
        cuts = [round(e * n) if isinstance(e, float) else (part[time] < e).sum() for e in edges]
        stop = start + n
        for f, column in enumerate(columns):  # a second whole table may not fit in memory
            values[start:stop, f] = part[column].to_numpy()
            bad = ~np.isfinite(values[start:stop, f])
            if bad.any() and missing == "error":
                said = f"{column} in {path} is missing or infinite {bad.sum()} times, first in row"
                row = part[ROW][int(bad.argmax())]
                raise ValueError(f"{said} {row}; missing=interpolate or drop")
            filled[start:stop] |= bad
            if f == 0:
                own[start:stop] = ~bad
            splits = (np.split(rows, cuts) for rows in (values[start:stop, f], bad, where))
            for split, bad, at in zip(*splits, strict=True):  # what is missing is interpolated
                if len(split) and bad.all():
                    raise ValueError(f"{column} in {path} has a split with no value at all")
                if bad.any():
                    split[bad] = np.interp(at[bad], at[~bad], split[~bad])
        after = after.select(*([] if time is None else [time]), *known)
        pieces.append(Piece(name, start, stop, (start + cuts[0], start + cuts[1]), after))
        start = stop
        times.append(part[time] if time is not None else part[ROW] - part[ROW].min())
    return Series(values, columns, pl.concat(times), pieces, notes, own, filled, len(known))


def tidy(
    part: pl.DataFrame, path, target, time, group, missing, columns: list[str], notes: list[str]
) -> tuple[str, pl.DataFrame, pl.DataFrame]:
    """The name of a group; its rows in order of time, without those that are to be dropped and
    with those that are to be filled in; and the rows after its last target. Adds to `notes`."""
    name = shown(part[group][0]) if group is not None else ""
    of = f" of {name}" if name else ""
    if time is not None:
        part = part if part[time].is_sorted() else part.sort(time)  # sorting copies
    given = part[target].fill_null(np.nan).is_not_nan().arg_true()
    n_ahead = len(part) - 1 - given[-1] if len(given) else 0
    part, after = part.head(len(part) - n_ahead), part.tail(n_ahead)
    if n_ahead:
        notes.append(f"{path}: {target}{of} is empty in the last {n_ahead} rows: to be forecast")
    finite = pl.all_horizontal(pl.col(columns).is_finite().fill_null(False))
    whole = part.select(finite).to_series()
    if missing != "error" and not whole.all():
        told = f"{(~whole).sum()} rows{of} miss a value, the first is row"
        dropped, filled = "dropped; windows run across them", "filled in, and no targets"
        done = dropped if missing == "drop" else filled
        notes.append(f"{path}: {told} {part[ROW][whole.arg_min()]}; they are {done}")
    part = part.filter(whole) if missing == "drop" else part
    if time is None:
        return name, part, after
    times = part[time]
    twice = times.filter(times.is_duplicated())
    if len(twice):
        raise ValueError(f"time={time}: {path} has {twice[0]}{of} more than once")
    before = times.gather(gaps(times))
    if len(before):
        absent = absent_times(times) if missing == "interpolate" else times.clear()
        count = f"{len(before)} gap{'s' * (len(before) > 1)}, the first after {before[0]}"
        done = f"{len(absent)} rows are filled in" if len(absent) else "windows run across them"
        notes.append(f"{path}: {time}{of} has {count}; {done}")
        part = pl.concat([part, absent.to_frame(time)], how="diagonal").sort(time)
    return name, part, after


def read_table(path: str, numbers: list[str], others: list[str]) -> pl.DataFrame:
    """Some columns of a file, `numbers` of them as floats, and `ROW`."""
    file, columns = Path(path), list(dict.fromkeys([*numbers, *others]))
    marks = MARKS.get(file.suffix.lower())
    if marks is None:
        raise ValueError(f"path={path}: must end in .tsv, .csv or .parquet")
    if not file.is_file():
        raise ValueError(f"path={path}: no such file")
    with file.open("rb") as opened:
        head = opened.read(2**20)
    if not head.strip():
        raise ValueError(f"path={path}: the file is empty")
    if (head[:4] == b"PAR1") == bool(marks) or (marks and b"\0" in head):
        raise ValueError(f"path={path}: not the {file.suffix[1:]} file that its name says")
    if marks and max(map(len, head.split(b"\n"))) > 500_000:  # polars would take gigabytes
        raise ValueError(f"path={path}: has a line of more than 500 kB, which is no row of a table")
    try:
        headers = {m: pl.read_csv(file, n_rows=0, separator=m, glob=False).columns for m in marks}
        mark = max(headers, key=lambda m: len({*columns} & {*headers[m]}), default="")
        names = headers[mark] if marks else list(pl.read_parquet_schema(file))
        for name in columns:
            if name not in names:
                raise ValueError(f"no column {name} in {path}; it has {shown(', '.join(names))}")
        if marks:
            # all columns: if told to read a few, polars lets a row of too many fields pass
            table = pl.read_csv(file, infer_schema=False, separator=mark, glob=False)
            table = table.with_row_index(ROW, offset=2)
            full = table.filter(pl.any_horizontal(pl.exclude(ROW).str.strip_chars() != ""))
            # an empty line is no row; among others, and without a time, it is a missing value
            table = full if others else table.filter(pl.col(ROW) <= full[ROW].max())
        else:
            table = pl.read_parquet(file, columns=columns).with_row_index(ROW, offset=1)
    except (PolarsError, PanicException, OSError, UnicodeDecodeError, MemoryError) as error:
        line = shown(str(error).strip().partition("\n")[0])
        raise ValueError(f"path={path}: cannot be read: {line}") from None
    table = table.select(ROW, *columns)
    if len(table) == 0:
        raise ValueError(f"path={path}: has a header and no rows")
    for name in numbers:
        given, kind = table[name], table.schema[name]
        if not (kind.is_numeric() or kind in (pl.String, pl.Boolean, pl.Null)):
            raise ValueError(f"{name} in {path} holds {kind}, no numbers")
        if kind == pl.String:
            given = given.str.strip_chars().replace(WORDS)
            if mark == ";" and given.str.contains(",").any():  # decimal commas
                given = given.str.replace_many({",": ".", ".": "?"})
        floats = given if kind.is_float() else given.cast(pl.Float64, strict=False)
        bad = floats.is_null() & given.is_not_null()
        if bad.any():
            row, value = table[ROW][bad.arg_max()], shown(table[name][bad.arg_max()])
            raise ValueError(f"{path} row {row}, {name}={value}: no number")
        table = table.with_columns(floats)
    return table


def parse_time(table: pl.DataFrame, time: str, path: str, form: str | None) -> pl.Series:
    """The time column as numbers or dates; `form` is the `time_format`."""
    given = parsed = table[time]
    if not (given.dtype.is_numeric() or given.dtype in (pl.String, pl.Date, pl.Datetime)):
        raise ValueError(f"time={time}: {path} has {given.dtype} in it, no numbers or dates")
    if given.dtype not in (pl.Date, pl.Datetime):
        numbers = given.cast(pl.Float64, strict=False)
        whole = numbers.cast(pl.Int64, strict=False)
        numbers = whole if (whole == numbers).all() else numbers
        parsed = as_dates((given if given.dtype == pl.String else numbers).cast(pl.String), form)
        if form is None and 2 * parsed.null_count() > len(parsed):
            parsed = numbers
    bad = ~parsed.to_physical().is_finite().fill_null(False)
    if bad.any():
        found = f"row {table[ROW][bad.arg_max()]} has {shown(given[bad.arg_max()])}"
        way_out = "give numbers, dates such as 2026-01-31, or their time_format"
        raise ValueError(f"time={time}: {path} {found}; {way_out}")
    return parsed


def as_dates(text: pl.Series, time_format: str | None) -> pl.Series:
    """Texts as dates, or as moments if any has a time of day; null where they are neither."""
    text, found = text.str.strip_chars(), [text.clear(len(text)).cast(pl.Datetime)]
    ways = [(text, order) for order in DIGITS.get(text.str.len_chars().max(), [])]
    ways += [(text.str.replace(YEAR_LAST, order), None) for order in ORDERS]
    if time_format is not None:  # a quarter is its first month
        months = {f"Q{q}": f"Q{3 * q - 2:02}" for q in range(1, 5)}
        given = text.str.replace_many(months) if "%q" in time_format else text
        ways = [(given, time_format.replace("%q", "%m"))]
    for given, order in ways:
        with suppress(PolarsError):  # none is a date
            dates = given.str.to_datetime(order, strict=False)
            if order and time_format is None:
                dates = dates.set(~dates.dt.year().is_between(1700, 2200), None)
            found.append(dates)
    best, *rest = sorted(found, key=pl.Series.null_count)
    if rest and rest[0].null_count() == 0 and not best.equals(rest[0]):
        first = shown(text[(best != rest[0]).arg_max()])
        told = f"{text.name}={first} can be read in two ways; say which"
        raise ValueError(f"time_format=None: {told}, such as %d/%m/%Y or %m/%d/%Y")
    midnight = best.dtype.time_zone is None and (best.dt.truncate("1d") == best).all()
    return best.cast(pl.Date) if midnight else best


def shown(value: object) -> str:
    """A value from a file, fit to stand in one line."""
    text = "".join(c if c.isprintable() else "?" for c in str(value))
    return text if len(text) <= 200 else f"{text[:200]}..."


def boundary(table, time, name, value, time_format) -> float | pl.Series:
    """A boundary: a fraction in (0, 1) of the rows, or a series of one value of the time column."""
    if isinstance(value, float) and 0 < value < 1 and name != "until":
        return value
    if time is None:
        way_out = "needs `time`," if name == "until" else "a fraction in (0, 1), or"
        raise ValueError(f"{name}={value}: {way_out} a value of `time`")
    kind = table.schema[time]
    with suppress(ValueError, PolarsError):
        if kind.is_numeric():
            return pl.Series([float(value)])
        text, zone = pl.Series([str(value)]), getattr(kind, "time_zone", None)
        found = as_dates(text, time_format)
        found = as_dates(text, None) if found[0] is None else found
        if zone and getattr(found.dtype, "time_zone", None) is None:
            found = found.cast(pl.Datetime).dt.replace_time_zone(zone, ambiguous="earliest")
        if found[0] is not None:
            return found.cast(kind)
    raise ValueError(f"{name}={value}: {time} holds values such as {table[time][0]}")
