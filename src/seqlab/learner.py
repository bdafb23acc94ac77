"""The LightningModule: what is computed for a batch, and what is measured. Letters: B batch, T time
steps, F input features, O outputs."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from seqlab.data import SPLITS, Batch
from seqlab.objectives import Objective


class Learner(L.LightningModule):
    """Trains a network on chunks of batches and measures it on each split. One call of
    `training_step` takes several optimiser steps, which is manual optimisation in Lightning's
    sense; `trainer.global_step` counts optimiser steps.

    Args:
        network: takes x `(B, T, F)` and returns `(prediction, hidden)`, the prediction `(B, O)`,
            or `(B, T, O)` with a target at every step.
        objective: the loss and the metrics.
        steps: takes the optimiser steps of a chunk, see `seqlab.engine.steps.Steps`.
        monitor: the metric, `split/name`, that decides what is best.
        seed: with the step it decides the dropout and other noise of the network's.
    """

    def __init__(
        self, network: nn.Module, objective: Objective, steps: Any, monitor: str, seed: int
    ):
        super().__init__()
        self.automatic_optimization = False
        self.network, self.objective, self.steps = network, objective, steps
        self.monitor, self.seed = monitor, seed
        # in a dict they are no part of the module: `bf16-true` would sum them in bfloat16
        self.metrics = {split: objective.metrics(split) for split in SPLITS}
        self.by_length: dict[int, float] = {}  # of the test; a callback fills it

    def forward(self, x: Tensor, *lengths: Tensor) -> Tensor:
        """`x` `(B, T, F)`, with the `lengths` `(B,)` where they differ, to the prediction."""
        return self.network(x.to(self.dtype), None, *lengths)[0]

    def compute(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The loss (a scalar), the predictions and the targets of one batch, in training and in
        evaluation. Override this to train in another way."""
        x, y, *lengths = batch
        prediction = self(x, *lengths)
        return self.objective.loss(prediction, y), prediction, y

    def configure_optimizers(self) -> Any:
        return self.steps.configure()

    def on_fit_start(self) -> None:
        for metrics in self.metrics.values():
            metrics.to(self.device)

    on_test_start = on_fit_start

    def training_step(self, chunk: Batch, batch_idx: int) -> None:
        predictions, targets = self.steps.take(self, chunk)
        if predictions:
            pair = torch.cat(predictions), torch.cat(targets)
            self.objective.measure(self.metrics["train"], *pair)

    def on_train_epoch_end(self) -> None:
        self.log_metrics("train")
        schedule = self.lr_schedulers()
        if isinstance(schedule, ReduceLROnPlateau):
            schedule.step(self.trainer.callback_metrics[self.monitor])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.steps.seed(self, "val", self.trainer.global_step, batch_idx)
        _, prediction, y = self.compute(batch)
        self.objective.measure(self.metrics["val"], prediction, y)

    def on_validation_epoch_end(self) -> None:
        self.log_metrics("val")

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.steps.seed(self, "test", batch_idx)
        _, prediction, y = self.compute(batch)
        self.objective.measure(self.metrics["test"], prediction, y)
        return prediction

    def on_test_epoch_end(self) -> None:
        self.log_metrics("test")

    def log_metrics(self, split: str) -> None:
        """Log the metrics of one split over what they have seen, and begin anew."""
        values = self.objective.values(split, self.metrics[split])
        self.metrics[split].reset()
        name = f"{split}/{self.objective.loss_name}"
        if not values[name].isfinite():
            self.steps.refuse(self, self.trainer.global_step, f"{name} is {values[name]:.3g}")
        # for callbacks to read; left to plot them itself, Lightning would count calls, not steps
        self.log_dict(values, logger=False)
        if split == "train":
            values["train/lr"] = float(self.optimizers().param_groups[0]["lr"])
            self.log("lr", values["train/lr"], logger=False)
        # one point of the test is no curve: it stands in the table
        if split != "test" and not self.trainer.sanity_checking:
            points = {key: float(value) for key, value in values.items()}
            for logger in self.loggers:
                logger.log_metrics(points, self.trainer.global_step)
