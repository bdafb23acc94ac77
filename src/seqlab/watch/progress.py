"""Progress on the console."""

import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

log = logging.getLogger("seqlab")


class Bar(RichProgress):
    """A bar with what was last said below it: side by side they need more than 80 columns."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(task.description) for task in self.tasks)


class Progress(ProgressBar):
    """One bar for the whole fit on a terminal, and a log line after every validation.

    Without a terminal there is no bar and so no control character; the lines remain.
    """

    def __init__(self):
        super().__init__()
        self.bar, self.enabled = None, sys.stderr.isatty()

    def disable(self) -> None:
        """Lightning calls this in all processes of a run but the first."""
        self.enabled = False

    def on_train_start(self, trainer: L.Trainer, learner: Any) -> None:
        self.since = time.perf_counter(), trainer.global_step
        if self.enabled:
            columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
            # four times a second: each takes some ms
            self.bar = Bar(*columns, console=Console(stderr=True), refresh_per_second=4)
            chunks = self.total_train_batches * trainer.max_epochs
            done = trainer.fit_loop.total_batch_idx + 1
            self.task = self.bar.add_task("", total=chunks, completed=done)
            self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.bar:
            self.bar.update(self.task, completed=trainer.fit_loop.total_batch_idx + 1)

    def on_validation_end(self, trainer: L.Trainer, learner: Any) -> None:
        if trainer.sanity_checking:
            return
        start, from_step = self.since
        rate = (trainer.global_step - from_step) / (time.perf_counter() - start)
        # over the epoch so far; it was summed up on the device and is read only here
        trained = f"train/{learner.objective.loss_name}"
        loss = learner.objective.values("train", learner.metrics["train"])[trained].item()
        monitored = trainer.callback_metrics[learner.monitor].item()
        line = (
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  step {trainer.global_step}  "
            f"{trained} {loss:.4g}  {learner.monitor} {monitored:.4g}  {rate:.0f} steps/s"
        )
        log.info(line)
        if self.bar:
            self.bar.update(self.task, description=line)

    def on_train_end(self, *args: Any) -> None:
        if self.bar:
            self.bar.stop()

    on_exception = on_train_end
