"""What a forecast of a series is added to. Letters: B batch, T time steps, F columns, O rows to
forecast (outputs), K rows kept."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from seqlab.model import check_sizes

#: What a network of a series predicts: the value itself, or what is added to a base.
Predict = Literal["level", "change", "season", "residual"]


def affine(x: Tensor) -> Tensor:
    """Windows `(B, T, F)` as float64 rows `(B, T*F + 1)` that end with 1."""
    flat = x.flatten(1).double()
    return torch.cat([flat, flat.new_ones(flat.shape[0], 1)], dim=1)


def season_ago(x: Tensor, season: int, lead: int, horizon: int) -> Tensor:
    """The values of the first column one season before each row to forecast, `(B, O)`; `x`
    `(B, T, F)` with T at least `season`."""
    ahead = torch.arange(lead, lead + horizon, device=x.device)
    return x[:, x.shape[1] - season + (ahead - 1) % season, 0]


class OnBase(nn.Module):
    """A network whose output is added to a simple forecast of its window, its base.

    The level of the first column, which may leave the range of the training part, does not reach
    the network. It is given F + 1 columns in its place: the change since the row before, the
    distance from the row K before, and the other columns as they are. Before the first row stands
    the first row, K times. A `head` of the network, its last layer, starts at zero: untrained, it
    is its base.

    Args:
        network: maps `(B, T, F + 1)` to `(B, O)` and a state, as `RecurrentNetwork` says; or to
            several values for each output, `(B, O * Q)`, and the base is added to each.
        predict: the base: `change`, the last value; `season`, the value a season ago; `residual`,
            the least-squares autoregression of the last K rows.
        n_lagged: how many of the F columns, the first, the autoregression reads.
        horizon, lead: O, and how far ahead of the window the first row to forecast is.
        rows: K, the rows of a window, at least 1.
        season: rows in a season, at most K, for `season`.

    Raises:
        ValueError: `predict` is none of these, or a size is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        predict: Predict,
        n_lagged: int,
        horizon: int,
        lead: int,
        rows: int,
        season: int | None = None,
    ):
        super().__init__()
        check_sizes(n_lagged=n_lagged, horizon=horizon, lead=lead, rows=rows)
        if predict not in get_args(Predict)[1:]:
            raise ValueError(f"predict={predict}: one of {', '.join(get_args(Predict)[1:])}")
        if predict == "season" and not (season and 0 < season <= rows):
            raise ValueError(f"season={season}: 1 to {rows}, for predict=season")
        self.network, self.predict, self.rows, self.season = network, predict, rows, season
        self.horizon, self.lead, self.n_lagged = horizon, lead, n_lagged
        if predict == "residual":
            weights = torch.zeros(rows * n_lagged + 1, horizon, dtype=torch.float64)
            self.register_buffer("weights", weights)
        for parameter in getattr(network, "head", nn.Identity()).parameters():
            nn.init.zeros_(parameter)

    def take(self, weights: Tensor) -> None:
        """Take the weights of the autoregression, which are fitted when the data are loaded."""
        if self.predict == "residual":
            self.weights.copy_(weights)

    def forward(self, x: Tensor, hidden: Any = None) -> tuple[Tensor, Any]:
        """`x` `(B, T, F)` to the prediction, of the network's shape, and the state: the network's
        own, and the last rows, `(K, B, F)`."""
        past = x[:, :1].expand(-1, self.rows, -1) if hidden is None else hidden[-1].transpose(0, 1)
        state = None if hidden is None else hidden[0] if len(hidden) == 2 else hidden[:-1]
        rows = torch.cat([past, x], dim=1)
        prediction, state = self.network(self.inputs(rows), state)
        last = rows[:, -self.rows :]
        state = state if isinstance(state, tuple) and len(state) > 1 else (state,)
        values = self.base(last).unsqueeze(2) + prediction.unflatten(1, (self.horizon, -1))
        return values.flatten(1), (*state, last.transpose(0, 1))

    def seen(self, x: Tensor) -> Tensor:
        """What the network is given, `(B, T, F + 1)`, of windows `(B, T, F)`."""
        return self.inputs(torch.cat([x[:, :1].expand(-1, self.rows, -1), x], dim=1))

    def inputs(self, rows: Tensor) -> Tensor:
        """What the network is given, `(B, T, F + 1)`, of `rows` `(B, K + T, F)`."""
        target, new = rows[:, :, :1], slice(self.rows, None)
        change, distance = target[:, 1:] - target[:, :-1], target[:, new] - target[:, : -self.rows]
        return torch.cat([change[:, self.rows - 1 :], distance, rows[:, new, 1:]], dim=2)

    def base(self, last: Tensor) -> Tensor:
        """The base `(B, O)` after the rows `(B, K, F)`."""
        if self.predict == "residual":
            return (affine(last[..., : self.n_lagged]) @ self.weights.double()).to(last.dtype)
        if self.predict == "season":
            return season_ago(last, self.season, self.lead, self.horizon)
        return last[:, -1:, 0].expand(-1, self.horizon)
