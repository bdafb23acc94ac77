"""Windows of a series, and forecasts that need no network. Letters: N rows, T time steps in a
window, F columns, O rows to forecast (outputs), W windows."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from seqlab.data import SPLITS, SequenceData, Split
from seqlab.model import check_sizes
from seqlab.series.base import Predict, affine, season_ago
from seqlab.series.future import Calendar, check_calendar, with_inputs_ahead
from seqlab.series.reading import Piece, Series, read


@dataclass
class Scaler:
    """Subtracts each column's mean and divides by its standard deviation; the target's come first.
    It computes in float64, since a price of a million may move by a cent."""

    mean: list[float]
    std: list[float]

    @classmethod
    def fit(cls, series: Series, differences: bool = False) -> "Scaler":
        """The moments of the training rows; with `differences` the target's deviation is that of
        its changes from row to row. Refuses a column that is constant there."""
        parts = [series.values[slice(*piece.rows("train"))] for piece in series.pieces]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        mean, std = (moment(axis=0, dtype=np.float64) for moment in (rows.mean, rows.std))
        for f, name in enumerate(series.columns):
            if not std[f] > 1e-12 * abs(mean[f]):
                raise ValueError(f"{name} is constant in the training part: nothing to learn")
        if differences:
            changes = np.concatenate([np.diff(part[:, 0].astype(np.float64)) for part in parts])
            std[0] = changes.std() if changes.std() > 1e-12 * std[0] else std[0]
        return cls(mean.tolist(), std.tolist())

    def scale(self, values: np.ndarray) -> Tensor:
        """`(N, F)` in the data's units to a float32 tensor of mean 0 and deviation 1."""
        scaled = np.empty(values.shape, np.float32)
        for start in range(0, len(values), 100_000):  # in float64 all may not fit in memory
            rows = slice(start, start + 100_000)
            scaled[rows] = (values[rows] - np.array(self.mean)) / self.std
        return torch.from_numpy(scaled)

    def unscale(self, target: Tensor) -> Tensor:
        """Targets or predictions of any shape back to the data's units, float64."""
        # of fewer windows than steps the overlapping targets would come out in another layout
        return target.double().contiguous() * self.std[0] + self.mean[0]


def naive_error(series: Series, lag: int) -> float:
    """The mean absolute error, on the training rows, of forecasting the value `lag` rows before:
    the scale of MASE (Hyndman & Koehler 2006). Values that are not the file's own are left out."""
    errors = []
    for piece in series.pieces:
        rows = slice(*piece.rows("train"))
        target, own = series.values[rows, 0], series.own[rows]
        errors.append(np.abs(target[lag:] - target[:-lag])[own[lag:] & own[:-lag]])
    return sum(float(e.sum(dtype=np.float64)) for e in errors) / sum(map(len, errors))


def windows(values: Tensor, seq_len: int, horizon: int, lead: int) -> tuple[Tensor, Tensor]:
    """Every window of a series `(N, F)` with its targets, as views of it: x `(W, T, F)` and y
    `(W, O)`. `x[w]` is rows w to w+T-1, and `y[w]` the target (column 0) of the O rows from
    w+T-1+lead on. W = N - T - lead - O + 2, or 0."""
    after = values[seq_len + lead - 1 :, 0]
    if len(after) < horizon:
        return values.new_empty(0, seq_len, values.shape[1]), values.new_empty(0, horizon)
    y = after.unfold(0, horizon, 1)
    return values.unfold(0, seq_len, 1)[: len(y)].transpose(1, 2), y


def autoregression(batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The least-squares weights `(T*F + 1, O)` of an affine map from windows to targets. After each
    batch, the triangular factor of all rows so far replaces them (sequential QR, as exact as least
    squares over all at once, in the memory of one batch)."""
    factor = None
    for x, y in batches:
        block = torch.cat([affine(x), y.double()], dim=1)
        factor = block if factor is None else torch.cat([factor, block])
        factor = torch.linalg.qr(factor, mode="r").R
    n, factor = factor.shape[1] - y.shape[1], factor.cpu()
    # gelsd, which a GPU has not: a noise-free series makes its lags nearly dependent
    return torch.linalg.lstsq(factor[:, :n], factor[:, n:], driver="gelsd").solution


def long_enough(series: Series, seq_len: int) -> list[Piece]:
    """The groups with a window's rows, all of them the test split; names the others."""
    found = []
    for piece in series.pieces:
        n = piece.stop - piece.start
        if n >= seq_len:
            found.append(replace(piece, cuts=(piece.start, piece.start)))
        else:
            series.notes.append(f"{piece.name} is left out: {n} rows, and a window has {seq_len}")
    if not found:
        most = max(piece.stop - piece.start for piece in series.pieces)
        raise ValueError(f"{most} rows: a window has seq_len={seq_len}")
    return found


class WindowData(SequenceData):
    """Forecasts a series: the next values of its first column from a window of its last rows. The
    scaler and the autoregression are fitted on the training part, and saved in checkpoints. Once
    the best epoch is known, the autoregression is fitted again, on the validation part too.

    Args:
        source: the series, already cut into splits.
        seq_len: T, rows in a window.
        horizon: O, rows to forecast at once.
        lead: how far ahead of the window's end the first of them is; 1 is the next row.
        season: rows in a season, at most `seq_len`, for the seasonal baseline; or None.
        predict: what the network's output is added to, as in `OnBase`; `level`: to nothing.
        calendar: cycles that each row is given as two inputs, of `future.Calendar`.
        fitted: the `state_dict` of a run that is evaluated on another file: nothing is fitted, and
            the whole series is the test split.
        rest: `batch_size`, `accumulate`, `steps_per_call` and `seed`, as in `SequenceData`.
    """

    def __init__(
        self,
        source: Series,
        seq_len: int,
        horizon: int,
        lead: int,
        season: int | None,
        predict: Predict,
        calendar: list[Calendar],
        fitted: dict[str, Any] | None = None,
        **rest: int,
    ):
        super().__init__(**rest)
        lag = 1 if season is None else season
        check_sizes(seq_len=seq_len, horizon=horizon, lead=lead, season=lag)
        if lag > seq_len:
            raise ValueError(f"season={season}: at most seq_len={seq_len}")
        self.source, self.seq_len, self.horizon, self.lead = source, seq_len, horizon, lead
        self.season, self.calendar, self.predict = season, calendar, predict
        check_calendar(calendar, source.times)
        if predict not in get_args(Predict):
            raise ValueError(f"predict={predict}: one of {', '.join(get_args(Predict))}")
        if predict == "season" and season is None:
            raise ValueError("predict=season: give season, the rows in one")
        if fitted is not None:
            source.pieces = long_enough(source, seq_len)
        # the columns of which only the past is known, and then what is known of rows to come
        self.n_lagged = len(source.columns) - source.n_known
        self.series = with_inputs_ahead(source, calendar, lead, horizon)
        self.n_inputs, self.n_outputs = len(self.series.columns), horizon
        if predict != "level":
            self.base = {"_target_": "seqlab.series.base.OnBase", "predict": predict}
            self.base |= {"n_lagged": self.n_lagged, "horizon": horizon, "lead": lead}
            self.base |= {"rows": seq_len, "season": season}
        splits, least = (SPLITS, 2) if fitted is None else (("test",), 0)
        self.window_numbers = {split: self.windows_in(split, least) for split in splits}
        if fitted is not None:
            self.load_state_dict(fitted)
            return
        self.n_train = n_train = sum(map(len, self.window_numbers["train"]))
        if n_train < self.batch_size:
            raise ValueError(f"training windows={n_train}: at least batch_size={self.batch_size}")
        self.scaler = Scaler.fit(self.series, predict != "level")
        self.mase_scale = naive_error(source, lag)
        self.weights: Tensor | None = None  # of the autoregression

    def windows_in(self, split: str, least: int, last: str | None = None) -> list[np.ndarray]:
        """The numbers of the `windows` whose targets are all in one split, or in those from it to
        `last`, and the file's own, as the last row is, and whose rows are all in one group, for
        each group; refuses a group with fewer than `least`. Inputs may reach back into the split
        before."""
        found, series = [], self.series
        unknown = np.concatenate([[0], np.cumsum(~series.own)])
        for piece in series.pieces:
            low, high = piece.rows(split)[0], piece.rows(last or split)[1]
            if high < low:
                raise ValueError("val_from: must lie before test_from")
            reach = self.seq_len + self.lead - 1  # from a window's first row to its first target
            numbers = np.arange(max(piece.start, low - reach), high - reach - self.horizon + 1)
            first = numbers + reach
            own = unknown[first + self.horizon] == unknown[first]
            # a value filled in at the window's end leads up to the first target
            found.append(numbers[own & ~series.filled[numbers + self.seq_len - 1]])
            if len(found[-1]) < least:
                of = f" of {piece.name}" if piece.name else ""
                few = f"two windows of seq_len={self.seq_len} and horizon={self.horizon}"
                raise ValueError(f"the {split} part{of} has {high - low} rows, too few for {few}")
        return found

    def load(self, device: torch.device) -> dict[str, Split]:
        values = self.scaler.scale(self.series.values).to(device)
        self.windows = x, y = windows(values, self.seq_len, self.horizon, self.lead)
        splits = {}
        for name, groups in self.window_numbers.items():
            numbers = np.concatenate(groups)
            low, high = (numbers[0], numbers[-1] + 1) if len(numbers) else (0, 0)
            if high - low == len(numbers):  # without a gap: views
                splits[name] = Split(x[low:high], y[low:high])
            else:
                splits[name] = Split(x, y, torch.from_numpy(numbers).to(device))
        if self.weights is None:
            self.fit_weights(self.window_numbers["train"])
        return splits

    def fit_weights(self, groups: list[np.ndarray]) -> None:
        """Fit the autoregression on windows by their numbers in each group."""
        x, y = self.windows
        # a million windows settle T*F + 1 weights; a longer series is thinned evenly
        numbers = np.concatenate(groups)
        numbers = torch.from_numpy(numbers[:: -(-len(numbers) // 1_000_000)]).to(x.device)
        batches = ((x[part][..., : self.n_lagged], y[part]) for part in numbers.split(16_384))
        self.weights = autoregression(batches)

    def refit(self) -> None:
        """Fit the autoregression on the training and the validation part together. The scaler stays
        as it is, since the network knows its scale."""
        self.fit_weights(self.windows_in("train", 0, last="val"))

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        """Persistence; the value one season before, where `season` is given; the least-squares
        autoregression AR(T) on the same window, without what is known of the rows to come."""
        past = x[..., : self.n_lagged]
        found = {"persistence": x[:, -1:, 0].expand(-1, self.horizon)}
        if self.season:
            found["seasonal naive"] = season_ago(x, self.season, self.lead, self.horizon)
        return found | {f"AR({self.seq_len})": (affine(past) @ self.weights.to(x.device)).float()}

    def unscale(self, y: Tensor) -> Tensor:
        return self.scaler.unscale(y)

    def advice(self, best: str | None) -> str | None:
        (train, test), season = map(self.own_targets, ("train", "test")), self.likely_season()
        beyond = np.maximum(train.min() - test, test - train.max())
        if self.base is None and np.mean(beyond > 0) > 0.05:
            said = f"{np.mean(beyond > 0):.0%} of the test values lie outside the training range"
            said = f"{said}, by up to {beyond.max():.3g}"
            return f"{said}; data.predict=residual learns what does not depend on the level"
        if self.season is None and season:
            return f"the series repeats itself every {season} rows; data.season={season} says so"
        nearer = {"persistence": "change", "seasonal naive": "season"}.get(best, self.predict)
        if self.predict != nearer:
            return f"{best} is strong here; data.predict={nearer} learns what it leaves"
        if self.n_train < 500:
            said = f"{self.n_train} windows to learn from are few"
            return f"{said}; a smaller network may do, model.n_hidden=8 model.n_layers=1"
        return None

    def own_targets(self, split: str) -> np.ndarray:
        """The values of the target in one split that are the file's own."""
        rows = [slice(*piece.rows(split)) for piece in self.series.pieces]
        return np.concatenate([self.series.values[r, 0][self.series.own[r]] for r in rows])

    def likely_season(self) -> int | None:
        """The lag of at least 3 and at most T by which the changes of the first group's training
        part are most alike, if their correlation is above 0.5."""
        target = self.series.values[slice(*self.series.pieces[0].rows("train")), 0]
        changes = np.diff(target.astype(np.float64))
        changes -= changes.mean()
        lags = range(3, min(self.seq_len, len(changes) // 3) + 1)
        alike = {lag: changes[lag:] @ changes[:-lag] for lag in lags}
        best = max(alike, key=alike.get, default=None)
        return best if best and alike[best] > 0.5 * (changes @ changes) else None

    def state_dict(self) -> dict[str, Any]:
        """What was fitted, for the checkpoint."""
        fitted = {"mean": self.scaler.mean, "std": self.scaler.std, "mase_scale": self.mase_scale}
        fitted |= {"columns": self.series.columns, "weights": self.weights}
        return {**fitted, "digest": self.digest}

    @cached_property
    def digest(self) -> str:
        """Of every value, so that a run is not resumed on others."""
        return blake2b(self.series.values, digest_size=16).hexdigest()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "train" in self.window_numbers and state["digest"] != self.digest:
            first = self.window_numbers["test"][0][0] + self.seq_len + self.lead - 1
            said = "the series is not that of the training; its test part begins with"
            print(f"note: {said} {self.series.times[int(first)]}", file=sys.stderr)
        self.scaler = Scaler(state["mean"], state["std"])
        self.mase_scale, self.weights = state["mase_scale"], state["weights"]


class SeriesData(WindowData):
    """A series of your own, from a file.

    Args:
        path: a .csv, .tsv or .parquet file.
        target: the column to forecast.
        time: a column to order by, numbers or dates, no value twice; None: rows are in order.
        features: further input columns.
        known: further columns whose values are known before their time, as a price or a holiday is;
            also those of the rows to forecast, at the file's end, where the target is empty.
        group: a column that names the series, for a file of many; windows stay within one.
        missing: what to do about empty, NaN and infinite values: `error`, `drop` their rows, or
            `interpolate` in proportion to time, each split by itself; what is filled in is never a
            target.
        val_from, test_from: where each begins: a fraction of rows in (0, 1), or a value of `time`.
        until: the last value of `time` to use; None: all.
        time_format: how the times of a text file are written, as in `%d.%m.%Y`; None: found out.
        rest: as in `WindowData`.
    """

    def __init__(
        self,
        path: str,
        target: str,
        time: str | None,
        features: list[str],
        known: list[str],
        group: str | None,
        missing: Literal["error", "drop", "interpolate"],
        val_from: float | int | str,
        test_from: float | int | str,
        until: float | int | str | None,
        time_format: str | None,
        **rest: Any,
    ):
        if rest.get("fitted") is not None:  # another file, all of it the test split
            val_from, test_from, until = 0.5, 0.5, None
        edges = val_from, test_from, until, time_format, known
        source = read(path, target, time, features, group, missing, *edges)
        super().__init__(source, **rest)
        for note in source.notes[:5]:
            print(f"note: {note}", file=sys.stderr)
