"""How good the test is at each length, where the lengths of its sequences differ by plan."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchmetrics import Metric

from seqlab.engine.loggers import add_figure
from seqlab.objectives import Objective
from seqlab.tasks import TaskData
from seqlab.watch import figures


class ByLength(Callback):
    """Measures the test at each length that `data.test_len` or `data.min_len` spreads it over: the
    accuracy of classes, or the loss. The values go to results.json, to TensorBoard as a curve over
    the length, and into `by_length.png`. Of several processes none has the whole test: there it
    measures nothing."""

    def on_test_start(self, trainer: L.Trainer, learner: Any) -> None:
        self.metrics: dict[int, Metric] = {}
        self.lengths: list[int] = []  # of the sequences that are still to come
        data = trainer.datamodule
        if isinstance(data, TaskData) and trainer.world_size == 1:
            low, high = data.ranges["test"]
            self.lengths = data.lengths(len(data.splits["test"]), "test").tolist()
            self.lengths *= low < high

    def on_test_batch_end(
        self, trainer: L.Trainer, learner: Any, prediction: Tensor, batch: Any, *rest: int
    ) -> None:
        if not self.lengths:
            return
        objective, y = learner.objective, batch[1]
        here, self.lengths = self.lengths[: len(y)], self.lengths[len(y) :]
        for length in dict.fromkeys(here):
            begin = here.index(length)
            part = slice(begin, begin + here.count(length))  # in ascending order
            if length not in self.metrics:
                metric = objective.metrics("test")[name_of(objective)]
                self.metrics[length] = metric.to(y.device)
            pair = objective.in_units(prediction[part], y[part])
            self.metrics[length].update(*objective.select(*pair))

    def on_test_end(self, trainer: L.Trainer, learner: Any) -> None:
        if not self.metrics:
            return
        found = {length: float(metric.compute()) for length, metric in self.metrics.items()}
        learner.by_length = found
        name = name_of(learner.objective)
        figure = figures.by_length(found, trainer.datamodule.ranges["train"], name)
        figure.savefig(Path(trainer.default_root_dir, "by_length.png"), dpi=120)
        # `view`, since TensorBoard opens with the first two groups, which are train and val
        for logger in trainer.loggers:
            add_figure(logger, "view/test/by_length", figure, trainer.global_step)
            if isinstance(logger, TensorBoardLogger):
                for length, value in found.items():
                    logger.experiment.add_scalar(f"view/test/by_length/{name}", value, length)


def name_of(objective: Objective) -> str:
    """The metric that is measured: the loss, or of classes the one after it, the accuracy."""
    loss, *others = objective.better()
    return loss if objective.numeric else others[0]
