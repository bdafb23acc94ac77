"""Objectives: the loss that trains a network and the metrics that measure it. Letters: N sequences,
T time steps, O outputs."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection, R2Score

NO_TARGET = -100  #: the class that stands where there is no target
Figure = Callable[[Tensor, Tensor], Tensor]  #: a number for each sequence, or for each target


class Mean(Metric):
    """The mean of all numbers that a `Figure` gives, each with a weight where they have any."""

    def __init__(self, figure: Figure, weights: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.figure, self.weights = figure, weights
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, y: Tensor) -> None:
        values = self.figure(prediction, y)
        weights = torch.ones_like(values) if self.weights is None else self.weights(y)
        self.total, self.count = self.total + (values * weights).sum(), self.count + weights.sum()

    def compute(self) -> Tensor:
        return self.total / self.count


class Objective(ABC):
    """The contract of an objective: all that anyone asks about a network's outputs. For your own,
    subclass `Values` or `Classes` with a `loss_name` and `errors`, and name it in `conf/loss/`.

    Args:
        figures: more metrics, by name; their means are reported, and higher is better.
    """

    loss_name: str  # what the loss is called as a metric
    compared: str | None = None  # the metric that a verdict compares; None: the loss
    title: str  # what that is called in a sentence; by default as the loss
    numeric: bool  # whether answers are numbers, which can be drawn over time
    dtype: torch.dtype  # of the targets
    n_values: int = 1  # of each output: a network predicts those of the first, then of the next
    directions: ClassVar[dict[str, str]]  # by metric, in the tables' order: `min` or `max` is best
    figures: ClassVar[dict[str, Figure]] = {}
    weights: Callable[..., Tensor] | None = None  # of the `errors`, given the targets; else 1 each
    # set by `attach`: from the network's scale to the data's units in float64; what MASE divides by
    unscale: Callable[[Tensor], Tensor] = staticmethod(Tensor.double)
    mase_scale: float | None = None
    references: ClassVar[dict[str, float]] = {}  # the first baseline's loss on each split

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "loss_name" in vars(cls):
            cls.title = vars(cls).get("title", cls.loss_name)
        if "errors" in vars(cls):
            cls.weights = vars(cls).get("weights")
        if "errors" in vars(cls) and "loss" not in vars(cls):
            cls.loss = Objective.loss
            if "loss_name" not in vars(cls):
                raise TypeError(f"{cls.__name__} has errors of its own: give it a loss_name too")

    def __init__(self, **figures: Figure):
        self.figures = figures

    @abstractmethod
    def errors(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The numbers that the loss is the mean of, by `weights`, for what `select` returned."""

    @abstractmethod
    def own_metrics(self) -> dict[str, Metric]:
        """The metrics by name, without the loss and the figures."""

    def target_shape(self, n_outputs: int) -> tuple[int, ...]:
        """The shape of one target."""
        return (n_outputs,)

    def select(self, prediction: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The predictions and targets that `errors` and the metrics are given."""
        return prediction, y

    def in_units(self, prediction: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and targets as metrics compare them: in the data's units, float64."""
        return self.unscale(prediction), self.unscale(y)

    def answer(self, prediction: Tensor) -> Tensor:
        """What a prediction stands for: numbers in the data's units, or classes."""
        return self.unscale(prediction)

    def quantiles(self, prediction: Tensor) -> dict[float, Tensor]:
        """Forecast quantiles as `answer` gives forecasts, by their levels in ascending order."""
        return {}

    def truth(self, y: Tensor) -> Tensor:
        """Targets as `answer` gives predictions, in float64, NaN where there is none."""
        return self.unscale(y)

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The scalar that is trained."""
        return self.errors(*self.select(prediction, y)).mean()

    def attach(self, data: Any) -> "Objective":
        """Take the data's units, and the first baseline's loss on each split, for the skill."""
        self.unscale, self.mase_scale, self.references = data.unscale, data.mase_scale, {}
        for split in data.splits:
            mean = Mean(self.errors, self.weights).set_dtype(torch.float64)
            for x, y, *_ in data.whole(split):
                for name, baseline in list(data.baselines(x).items())[:1]:
                    want = (*y.shape[: 1 + data.every_step], data.n_outputs)
                    if baseline.shape != want:
                        owner = type(getattr(data, "task", data)).__name__
                        said = f"must return {want}, got {tuple(baseline.shape)} for {name}"
                        raise ValueError(f"{owner}.baselines {said}")
                    mean.update(*self.select(*self.in_units(baseline, y)))
            if mean.total > 0:
                self.references[split] = mean.compute().item()
        return self

    def better(self) -> dict[str, str]:
        """Every metric that may be reported, in the order of the tables, with its direction."""
        return {self.loss_name: "min"} | self.directions | dict.fromkeys(self.figures, "max")

    def monitors(self) -> dict[str, str]:
        """The validation metrics that may decide what is best, with their directions."""
        known = {self.loss_name, *self.own_metrics(), *self.figures}
        known |= {"skill"} if "val" in self.references else set()
        known |= {"mase"} if self.mase_scale and "mae" in known else set()
        return {f"val/{name}": which for name, which in self.better().items() if name in known}

    def metrics(self, split: str) -> MetricCollection:
        """The metrics of one split, named `split/name`, summed in float64."""
        found = {self.loss_name: Mean(self.errors, self.weights)} | self.own_metrics()
        found |= {name: Mean(figure) for name, figure in self.figures.items()}
        # torchmetrics would take two of our means that are equal after one batch for one metric
        groups = not any(isinstance(metric, Mean) for metric in found.values())
        collection = MetricCollection(found, prefix=f"{split}/", compute_groups=groups)
        return collection.set_dtype(torch.float64)

    def measure(self, metrics: MetricCollection, prediction: Tensor, y: Tensor) -> None:
        """Add a batch to the metrics of a split."""
        metrics.update(*self.select(*self.in_units(prediction, y)))

    def values(self, split: str, metrics: MetricCollection) -> dict[str, Tensor]:
        """The values of a split's metrics; where known the skill, 1 - loss / loss of the first
        baseline, and MASE, the MAE over a naive forecast's in training (Hyndman & Koehler 2006)."""
        values = metrics.compute()
        if split in self.references:
            loss = values[f"{split}/{self.loss_name}"]
            values[f"{split}/skill"] = 1 - loss / self.references[split]
        if self.mase_scale and f"{split}/mae" in values:
            values[f"{split}/mase"] = values[f"{split}/mae"] / self.mase_scale
        return values


class Values(Objective):
    """Numbers, trained on their squared error. Targets are `(N, O)`, or `(N, T, O)` at every step
    with NaN where there is none, float32; predictions have the same shape. Metrics: MSE, its root,
    MAE, R2."""

    loss_name, title, numeric, dtype = "mse", "MSE", True, torch.float32
    directions: ClassVar = dict(mse="min", rmse="min", mae="min", r2="max", mase="min", skill="max")

    def select(self, prediction: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and targets `(N, O)` of all steps that have a target."""
        if y.dim() == 2:
            return prediction, y
        missing = y.isnan()
        if not missing.any():  # selecting rows costs a small network a twentieth of its step
            return prediction.flatten(0, -2), y.flatten(0, -2)
        known = ~missing.any(-1)
        return prediction[known], y[known]

    def errors(self, prediction: Tensor, y: Tensor) -> Tensor:
        return mse_loss(prediction, y, reduction="none")

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        return mse_loss(*self.select(prediction, y))

    def own_metrics(self) -> dict[str, Metric]:
        root = MeanSquaredError(squared=False)
        return dict(mse=MeanSquaredError(), rmse=root, mae=MeanAbsoluteError(), r2=R2Score())


class Classes(Objective):
    """One of O classes, trained on the cross-entropy in nats. Targets are integers, `(N,)` or at
    every step `(N, T)`, `NO_TARGET` where there is none; predictions are logits `(N, O)` or
    `(N, T, O)`. Metrics: `ce`, the cross-entropy; `accuracy` over all targets; `solved`, the share
    of sequences with every target right."""

    loss_name, title, numeric, dtype = "ce", "cross-entropy", False, torch.int64
    directions: ClassVar = dict(ce="min", accuracy="max", solved="max", skill="max")
    # to select the targets that are there, a GPU would be waited for
    weights = staticmethod(lambda y: (y != NO_TARGET).flatten().double())

    def target_shape(self, n_outputs: int) -> tuple[int, ...]:
        return ()

    def errors(self, prediction: Tensor, y: Tensor) -> Tensor:
        pair = prediction.flatten(0, -2), y.flatten()
        return cross_entropy(*pair, ignore_index=NO_TARGET, reduction="none")

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(prediction.flatten(0, -2), y.flatten(), ignore_index=NO_TARGET)

    def own_metrics(self) -> dict[str, Metric]:
        return dict(accuracy=Mean(self.right, Classes.weights), solved=Mean(self.solved))

    def right(self, prediction: Tensor, y: Tensor) -> Tensor:
        """For each target whether the likeliest class is it."""
        return (self.answer(prediction) == y).flatten().double()

    def solved(self, prediction: Tensor, y: Tensor) -> Tensor:
        """For each sequence whether all of its targets are right."""
        right = (self.answer(prediction) == y) | (y == NO_TARGET)
        return right.reshape(len(y), -1).all(dim=1).double()

    def answer(self, prediction: Tensor) -> Tensor:
        return prediction.argmax(-1)

    def truth(self, y: Tensor) -> Tensor:
        return y.double().masked_fill(y == NO_TARGET, torch.nan)

    def in_units(self, prediction: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return prediction.double(), y
