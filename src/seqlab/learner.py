"""The LightningModule: loss, metrics, optimiser.

Letters: B batch, T time steps, F input features, O outputs.
"""

import logging
import math
from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import MetricCollection

from seqlab.arguments import Positive, checked
from seqlab.data import SPLITS, Batch
from seqlab.errors import UserError
from seqlab.evaluation import derived_metrics
from seqlab.seeds import seed_of

log = logging.getLogger("seqlab")


#: What Lightning calls around each backward pass and each step.
HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")


class Learner(L.LightningModule):
    """Trains a network on what the DataModule yields and measures it on each split.

    Optimisation is manual in Lightning's sense, because one call of `training_step` takes several
    optimiser steps; `trainer.global_step` counts those, and schedules advance with them.

    Args:
        network: takes x `(B, T, F)`, returns `(prediction, hidden)`, the prediction `(B, O)`, or
            `(B, T, O)` when the data have a target at every step. The loss and the metrics are
            those of the data's `objective`.
        optimizer: given the parameters, returns the optimiser.
        schedule: given the optimiser, returns the schedule of its learning rate, stepped after
            every optimiser step (a plateau schedule after every epoch, on `monitor`); or None.
        clip: the largest norm of the gradient, above 0; larger ones are scaled down to it. None
            leaves gradients as they are.
        on_nonfinite: what to do when a loss or a gradient is infinite or no number, before the
            optimiser sees it: `stop` the run, or `skip` the step.
        monitor: the metric, `split/name`, that decides what is best; lower is better.
        seed: with the step, decides the dropout.
    """

    @checked
    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., LRScheduler] | None,
        clip: Positive | None,
        on_nonfinite: Literal["stop", "skip"],
        monitor: str,
        seed: int,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.network = network
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self.clip, self.on_nonfinite = math.inf if clip is None else clip, on_nonfinite
        self.monitor, self.seed = monitor, seed

    def setup(self, stage: str) -> None:
        trainer = self.trainer
        # Lightning's own backward pass and step, in whose hooks a small network spends a fifth of
        # its time, only where one of them does something
        self.watched = (
            not isinstance(trainer.strategy, SingleDeviceStrategy)
            or not isinstance(trainer.profiler, PassThroughProfiler)
            or getattr(trainer.precision_plugin, "scaler", None) is not None
            or any(overridden(hook, each) for hook in HOOKS for each in (self, *trainer.callbacks))
        )
        self.objective = self.trainer.datamodule.objective
        self.train_metrics, self.val_metrics, self.test_metrics = map(
            self.objective.metrics, SPLITS
        )

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.network.parameters())
        if self.make_schedule is None:
            return optimizer
        return [optimizer], [self.make_schedule(optimizer)]

    def forward(self, x: Tensor, *lengths: Tensor) -> Tensor:
        """`x` `(B, T, F)`, with the `lengths` `(B,)` if they differ, to the prediction."""
        return self.network(x.to(self.dtype), None, *lengths)[0]

    def training_step(self, call: list[list[Batch]], batch_idx: int) -> None:
        if isinstance(call[0], Tensor):  # a plain DataLoader's (x, y)
            call = [[call]]
        optimizer, schedule = self.optimizers(use_pl_optimizer=self.watched), self.lr_schedulers()
        backward = self.manual_backward if self.watched else Tensor.backward
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        every, weights = self.trainer.log_every_n_steps, list(self.network.parameters())
        predictions, targets = [], []
        for batches in call:
            step = self.trainer.global_step
            self.seed_dropout(step)
            for x, y, *lengths in batches:
                prediction = self(x, *lengths)
                loss = self.objective.loss(prediction, y)
                # a loss that is not finite is divided by 0, so that the gradient tells of it, to
                # every rank
                backward(loss / (loss.isfinite() * len(batches)))
                predictions.append(prediction.detach())
                targets.append(y)
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            norm = get_total_norm(gradients, foreach=True)
            if not math.isfinite(norm):
                self.refuse(step + 1, f"the loss is {loss:.3g}, the gradient's norm {norm:.3g}")
                optimizer.zero_grad()
                del predictions[-len(batches) :], targets[-len(batches) :]
                continue
            if norm > self.clip:
                clip_grads_with_norm_(weights, self.clip, norm, foreach=True)
            if not self.watched:
                progress.increment_ready()
            optimizer.step()
            if not self.watched:
                progress.increment_completed()
            optimizer.zero_grad()
            if schedule is not None and not isinstance(schedule, ReduceLROnPlateau):
                schedule.step()
            if (step + 1) % every == 0 and self.logger:
                loss = self.trainer.strategy.reduce(loss.detach(), reduce_op="mean")
                self.logger.log_metrics({"train/loss": loss.item()}, step + 1)
        if predictions:
            self.measure(self.train_metrics, torch.cat(predictions), torch.cat(targets))

    def refuse(self, step: int, what: str) -> None:
        """Tell of a number that is not finite.

        Raises:
            UserError: `on_nonfinite` is `stop`.
        """
        batch = self.trainer.fit_loop.batch_idx + 1
        where = f"epoch {self.current_epoch + 1}, batch {batch}, step {step}"
        if self.on_nonfinite == "stop":
            raise UserError(f"{where}: {what}; lower optim.lr, or optim.on_nonfinite=skip")
        log.warning(f"{where}: {what}; the step is skipped")

    def seed_dropout(self, step: int) -> None:
        """Make this step's random numbers a function of (seed, step, rank)."""
        device = self.device
        # a seeded generator costs 1 us, torch.manual_seed, which visits every device, 250
        generator = (
            torch.default_generator
            if device.type == "cpu"
            else torch.cuda.default_generators[device.index]
        )
        generator.manual_seed(seed_of(self.seed, "dropout", step, self.global_rank))

    def on_train_epoch_end(self) -> None:
        self.log_metrics("train", self.train_metrics)
        schedule = self.lr_schedulers()
        if isinstance(schedule, ReduceLROnPlateau):
            schedule.step(self.trainer.callback_metrics[self.monitor])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        x, y, *lengths = batch
        self.measure(self.val_metrics, self(x, *lengths), y)

    def on_validation_epoch_end(self) -> None:
        self.log_metrics("val", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        x, y, *lengths = batch
        self.measure(self.test_metrics, self(x, *lengths), y)

    def on_test_epoch_end(self) -> None:
        self.log_metrics("test", self.test_metrics)

    def measure(self, collection: MetricCollection, prediction: Tensor, y: Tensor) -> None:
        """Take predictions and targets into the metrics, in the data's own units."""
        data = self.trainer.datamodule
        if self.training and data.every_step == "training":  # what validation measures too
            prediction, y = prediction[:, -1], y[:, -1]
        collection.update(*self.objective.rows(data.unscale(prediction), data.unscale(y)))

    def log_metrics(self, split: str, collection: MetricCollection) -> None:
        """Log one split's metrics over what it has seen."""
        values = collection.compute()
        collection.reset()
        name = f"{split}/{self.objective.loss_name}"
        if not values[name].isfinite():
            self.refuse(self.trainer.global_step, f"{name} is {values[name]:.3g}")
        values |= derived_metrics(split, values, self.trainer.datamodule)
        if split == "train":
            values["lr"] = torch.tensor(float(self.optimizers().param_groups[0]["lr"]))
        # for callbacks to read; left to plot them itself, Lightning would count calls, not steps
        self.log_dict(values, logger=False)
        if self.logger and not self.trainer.sanity_checking:
            self.logger.log_metrics(values, self.trainer.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the epoch's training metrics have summed so far, of each rank.

        Raises:
            UserError: a weight is not finite.
        """
        if not all(weight.isfinite().all() for weight in self.network.state_dict().values()):
            raise UserError(f"step {self.trainer.global_step}: weights overflow; lower optim.lr")
        checkpoint["sums"] = {
            f"{name}/{key}": self.all_gather(sums).reshape(-1, *sums.shape)
            for name, metric in self.train_metrics.items(keep_base=True)
            for key, sums in metric.metric_state.items()
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, metric in self.train_metrics.items(keep_base=True):
            for key in metric.metric_state:
                ranks = checkpoint["sums"][f"{name}/{key}"]
                if len(ranks) != self.trainer.world_size:  # as many ranks no longer: one takes all
                    ranks = torch.cat([ranks.sum(0, keepdim=True), torch.zeros_like(ranks[:1])])
                setattr(metric, key, ranks[min(self.global_rank, len(ranks) - 1)].clone())


def overridden(hook: str, owner: Callback | L.LightningModule) -> bool:
    """Whether a class gives one of Lightning's hooks something to do."""
    empty = (getattr(Callback, hook), getattr(L.LightningModule, hook))
    return getattr(type(owner), hook) not in empty
