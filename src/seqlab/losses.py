"""Losses to choose beside a task's own. Letters: N sequences, O outputs, Q levels of quantiles."""

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, huber_loss, l1_loss
from torchmetrics import Metric, MetricCollection

from seqlab.objectives import NO_TARGET, Classes, Mean, Values


class MAE(Values):
    """Numbers, trained on their absolute error: the forecast tends to the median."""

    loss_name, title = "mae", "MAE"

    def errors(self, prediction: Tensor, y: Tensor) -> Tensor:
        return l1_loss(prediction, y, reduction="none")


class Huber(Values):
    """Numbers, trained on the Huber loss (Huber 1964): half the squared error up to `delta`, above
    0, and linear beyond, so that an outlier pulls no harder than an error of `delta`."""

    loss_name, title = "huber", "Huber loss"

    def __init__(self, delta: float):
        super().__init__()
        if not 0 < delta < torch.inf:
            raise ValueError(f"delta={delta}: a finite number above 0")
        self.delta = delta

    def errors(self, prediction: Tensor, y: Tensor) -> Tensor:
        return huber_loss(prediction, y, reduction="none", delta=self.delta)


class Quantile(Values):
    """Numbers, of which the network predicts Q quantiles each, trained on the pinball loss (Koenker
    & Bassett 1978). Predictions are `(N, O * Q)`, or `(N, T, O * Q)` at every step: the Q quantiles
    of the first output, then those of the second. Training takes them as they are. Before they are
    measured or answered those of an output are sorted, which makes their loss no larger
    (Chernozhukov, Fernandez-Val & Galichon 2010). A prediction `(N, O)`, such as a baseline's,
    stands for all Q levels.

    The answer is the quantile whose level is nearest to 1/2. Metrics: `pinball`, and `coverage`,
    the share of the targets from the lowest to the highest quantile, of several levels; and of the
    answer those of `Values` and of the figures.

    Args:
        levels: Q probabilities in (0, 1), ascending.
        n_outputs: O.
    """

    # a point forecast stands for all levels, which no spread does well: the answers are compared
    loss_name, compared, title = "pinball", "mae", "MAE"
    directions: ClassVar = {"pinball": "min", "coverage": "max"} | Values.directions

    def __init__(self, levels: list[float], n_outputs: int):
        super().__init__()
        ascending = all(low < high for low, high in pairwise([0, *levels, 1]))
        if not (levels and ascending):
            raise ValueError(f"levels={levels}: probabilities in (0, 1), in ascending order")
        self.levels, self.n_values, self.n_outputs = levels, len(levels), n_outputs
        self.middle = min(range(len(levels)), key=lambda i: abs(levels[i] - 0.5))
        self.levels_Q = torch.tensor(levels, dtype=torch.float64)

    def each(self, prediction: Tensor) -> Tensor:
        """Predictions `(.., O * Q)` or `(.., O)` as `(.., O, Q)`."""
        if prediction.shape[-1] == self.n_outputs:
            return prediction.unsqueeze(-1).expand(*prediction.shape, self.n_values)
        return prediction.unflatten(-1, (self.n_outputs, self.n_values))

    def errors(self, prediction: Tensor, y: Tensor) -> Tensor:
        # moved once, since a GPU that replays a captured step copies nothing from the CPU
        self.levels_Q = self.levels_Q.to(y.device)
        below_NOQ = y.unsqueeze(-1) - self.each(prediction)
        return self.levels_Q.to(y.dtype) * below_NOQ + (-below_NOQ).relu()

    def in_units(self, prediction: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        values = self.each(self.unscale(prediction)).sort(dim=-1).values
        return values.flatten(-2), self.unscale(y)

    def quantiles(self, prediction: Tensor) -> dict[float, Tensor]:
        values = self.each(self.unscale(prediction)).sort(dim=-1).values
        return dict(zip(self.levels, values.unbind(-1), strict=True))

    def answer(self, prediction: Tensor) -> Tensor:
        return self.quantiles(prediction)[self.levels[self.middle]]

    def covered(self, prediction: Tensor, y: Tensor) -> Tensor:
        """For each target whether it is from its lowest to its highest quantile."""
        values = self.each(prediction)
        return ((values[..., 0] <= y) & (y <= values[..., -1])).double()

    def own_metrics(self) -> dict[str, Metric]:
        coverage = {"coverage": Mean(self.covered)} if self.n_values > 1 else {}
        return coverage | super().own_metrics()

    def monitors(self) -> dict[str, str]:
        """All but the coverage, which is best where it is as the levels say."""
        return {name: way for name, way in super().monitors().items() if name != "val/coverage"}

    def measure(self, metrics: MetricCollection, prediction: Tensor, y: Tensor) -> None:
        prediction, y = self.select(*self.in_units(prediction, y))
        answer = self.each(prediction)[..., self.middle]
        for name, metric in metrics.items(keep_base=True):
            metric.update(prediction if name in ("pinball", "coverage") else answer, y)


class CrossEntropy(Classes):
    """One of O classes, trained on the cross-entropy. With `weights`, one above 0 for each class,
    the loss is PyTorch's `cross_entropy` with them, a mean in which a target counts as much as its
    class. It is called `weighted_ce`, and `ce` is a metric beside it. `n_outputs` is O."""

    def __init__(self, weights: list[float] | None, n_outputs: int):
        super().__init__()
        if weights is None:
            return
        if len(weights) != n_outputs or not all(0 < weight < torch.inf for weight in weights):
            said = f"{n_outputs} finite numbers above 0, one for each class"
            raise ValueError(f"weights={weights}: {said}")
        self.loss_name, self.title = "weighted_ce", "weighted cross-entropy"
        self.weights_O, self.weights = torch.tensor(weights, dtype=torch.float64), self.of_targets

    def of_targets(self, y: Tensor) -> Tensor:
        """The weight of each target, 0 where there is none."""
        return self.weights_O.to(y.device)[y.flatten().clamp(min=0)] * Classes.weights(y)

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        if self.weights is Classes.weights:
            return super().loss(prediction, y)
        self.weights_O = self.weights_O.to(y.device)  # once, as above
        logits, weights_O = prediction.flatten(0, -2), self.weights_O.to(prediction.dtype)
        return cross_entropy(logits, y.flatten(), weights_O, ignore_index=NO_TARGET)

    def own_metrics(self) -> dict[str, Metric]:
        return {"ce": Mean(self.errors, Classes.weights)} | super().own_metrics()
