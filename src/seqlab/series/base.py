"""What a forecast of a series is added to. Letters: B batch, T time steps, F columns, H hidden
units, K rows kept, L layers, O rows to forecast (outputs)."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from seqlab.model import check_sizes

#: What a network of a series predicts: the value itself, or what is added to a base.
Predict = Literal["level", "change", "season", "residual"]


def affine(x: Tensor) -> Tensor:
    """Windows `(B, T, F)` as float64 rows `(B, T*F + 1)` that end with 1."""
    flat = x.flatten(1).double()
    return torch.cat([flat, flat.new_ones(len(flat), 1)], dim=1)


def season_ago(x: Tensor, season: int, lead: int, horizon: int) -> Tensor:
    """The values of the first column one season before each row to forecast, `(B, O)`; `x`
    `(B, T, F)` with T at least `season`."""
    ahead = torch.arange(lead, lead + horizon, device=x.device)
    return x[:, x.shape[1] - season + (ahead - 1) % season, 0]


class OnBase(nn.Module):
    """A network whose output is added to a simple forecast of its window, its base. It is given
    the first column as differences from row to row, so that the level, which may leave the range
    of the training part, reaches it no more; the other columns it is given as they are.

    A `head` of the network, its last layer, starts at zero: the untrained network is its base.

    Args:
        network: maps `(B, T, F)` to `(B, O)` and a state, as `RecurrentNetwork` says.
        predict: the base: `change`, the last value; `season`, the value a season ago; `residual`,
            the least-squares autoregression of the whole window.
        n_inputs: F.
        horizon, lead: O, and how far ahead of the window the first row to forecast is.
        rows: K, how many rows the base needs, at least 1: the season, or T for `residual`.

    Raises:
        ValueError: `predict` is none of these.
    """

    def __init__(
        self,
        network: nn.Module,
        predict: Predict,
        n_inputs: int,
        horizon: int,
        lead: int,
        rows: int,
    ):
        super().__init__()
        check_sizes(n_inputs=n_inputs, horizon=horizon, lead=lead, rows=rows)
        if predict not in get_args(Predict)[1:]:
            raise ValueError(f"predict={predict}: one of {', '.join(get_args(Predict)[1:])}")
        self.network, self.predict, self.rows = network, predict, rows
        self.horizon, self.lead = horizon, lead
        if predict == "residual":
            weights = torch.zeros(rows * n_inputs + 1, horizon, dtype=torch.float64)
            self.register_buffer("weights", weights)
        for parameter in getattr(network, "head", nn.Identity()).parameters():
            nn.init.zeros_(parameter)

    def take(self, weights: Tensor) -> None:
        """Take the weights of the autoregression, which are fitted when the data are loaded."""
        if self.predict == "residual":
            self.weights.copy_(weights)

    def forward(self, x: Tensor, hidden: Any = None) -> tuple[Tensor, Any]:
        """`x` `(B, T, F)` to the prediction `(B, O)` and the state: the network's own, and the
        last K rows, `(B, K, F)`. Before the first row stands the first row, K times."""
        past = x[:, :1].expand(-1, self.rows, -1) if hidden is None else hidden[-1]
        state = None if hidden is None else hidden[0] if len(hidden) == 2 else hidden[:-1]
        prediction, state = self.network(self.inputs(x, past), state)
        past = torch.cat([past, x], dim=1)[:, -self.rows :]
        state = state if isinstance(state, tuple) and len(state) > 1 else (state,)
        return self.base(past) + prediction, (*state, past)

    def inputs(self, x: Tensor, past: Tensor) -> Tensor:
        """What the network is given, `(B, T, F)`: the first column as differences."""
        target = torch.cat([past[:, -1:, :1], x[:, :, :1]], dim=1)
        return torch.cat([target.diff(dim=1), x[:, :, 1:]], dim=2)

    def base(self, past: Tensor) -> Tensor:
        """The base `(B, O)` after the rows `(B, K, F)`."""
        if self.predict == "residual":
            return (affine(past) @ self.weights.double()).to(past.dtype)
        if self.predict == "season":
            return season_ago(past, self.rows, self.lead, self.horizon)
        return past[:, -1:, 0].expand(-1, self.horizon)
