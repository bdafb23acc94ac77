"""What a task's outputs are: the loss that trains them and the metrics that measure them.

Letters: N sequences, T time steps, O outputs.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss
from torchmetrics import (
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    MetricCollection,
    R2Score,
)

#: The class of a step that has no target.
NO_TARGET = -100

#: From predictions and targets to a number for each sequence, or for each target.
Figure = Callable[[Tensor, Tensor], Tensor]


class Mean(Metric):
    """The mean of all numbers that `of` makes of predictions and targets."""

    def __init__(self, of: Figure):
        super().__init__()
        self.of = of
        for name in ("total", "count"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, y: Tensor) -> None:
        values = self.of(prediction, y)
        self.total += values.sum()
        self.count += values.numel()

    def compute(self) -> Tensor:
        return self.total / self.count


class Objective:
    """What the two below have in common.

    Args:
        figures: the task's own metrics, by name; their means are reported beside the others.
    """

    #: The metric that is the loss, and those that may be monitored: lower is better.
    loss_name: str
    monitors: tuple[str, ...]
    #: Of the targets.
    dtype: torch.dtype

    def __init__(self, **figures: Figure):
        self.figures = figures

    def metrics(self, split: str) -> MetricCollection:
        """The metrics of one split, named `split/name`, summed in float64."""
        found = self.own() | {name: Mean(of) for name, of in self.figures.items()}
        # two of our means that are equal after the first batch would be taken for one
        groups = not any(isinstance(metric, Mean) for metric in found.values())
        collection = MetricCollection(found, prefix=f"{split}/", compute_groups=groups)
        return collection.set_dtype(torch.float64)


class Values(Objective):
    """Numbers, trained on their squared error.

    Targets are `(N, O)`, or `(N, T, O)` at every step with NaN where there is none, float32;
    predictions have the same shape. Metrics: MSE, its root, MAE, R2.
    """

    loss_name = "mse"
    monitors = ("val/mse", "val/mae")  # lower is better
    dtype = torch.float32

    def target_shape(self, n_outputs: int) -> tuple[int, ...]:
        """The shape of one target."""
        return (n_outputs,)

    def rows(self, prediction: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and targets `(N, O)`, of all steps that have a target."""
        if y.dim() == 2:
            return prediction, y
        missing = y.isnan()
        if not missing.any():  # to choose rows costs a small network a twentieth of its step
            return prediction.flatten(0, -2), y.flatten(0, -2)
        known = ~missing.any(-1)
        return prediction[known], y[known]

    def errors(self, prediction: Tensor, y: Tensor) -> Tensor:
        """What the loss is the mean of."""
        return mse_loss(*self.rows(prediction, y), reduction="none")

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        return mse_loss(*self.rows(prediction, y))

    def own(self) -> dict[str, Metric]:
        return {
            "mse": MeanSquaredError(),
            "rmse": MeanSquaredError(squared=False),
            "mae": MeanAbsoluteError(),
            "r2": R2Score(),
        }

    def answer(self, prediction: Tensor) -> Tensor:
        """A prediction as the targets are given."""
        return prediction


class Classes(Objective):
    """One of O classes, trained on the cross-entropy (in nats).

    Targets are integers, `(N,)` or at every step `(N, T)`, `NO_TARGET` where there is none;
    predictions are logits `(N, O)` or `(N, T, O)`. Metrics: `ce`, the cross-entropy; `accuracy`
    over all targets; `solved`, the share of sequences with every target right.
    """

    loss_name = "ce"
    monitors = ("val/ce",)
    dtype = torch.int64

    def target_shape(self, n_outputs: int) -> tuple[int, ...]:
        """The shape of one target."""
        return ()

    def rows(self, prediction: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """As they are: metrics need to know which targets are of one sequence."""
        return prediction, y

    def errors(self, prediction: Tensor, y: Tensor) -> Tensor:
        """What the loss is the mean of."""
        known = y != NO_TARGET
        return cross_entropy(prediction[known], y[known], reduction="none")

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(prediction.flatten(0, -2), y.flatten(), ignore_index=NO_TARGET)

    def own(self) -> dict[str, Metric]:
        own = {"ce": self.errors, "accuracy": self.right, "solved": self.solved}
        return {name: Mean(of) for name, of in own.items()}

    def answer(self, prediction: Tensor) -> Tensor:
        """A prediction as the targets are given: the likeliest class."""
        return prediction.argmax(-1)

    def right(self, prediction: Tensor, y: Tensor) -> Tensor:
        """For each target whether the likeliest class is it."""
        return (self.answer(prediction) == y)[y != NO_TARGET].double()

    def solved(self, prediction: Tensor, y: Tensor) -> Tensor:
        """For each sequence whether all of its targets are right."""
        right = (self.answer(prediction) == y) | (y == NO_TARGET)
        return right.reshape(len(y), -1).all(dim=1).double()
