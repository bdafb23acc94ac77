"""How optimiser steps are taken: several per chunk, accumulation, the check for finite numbers,
clipping, the schedule, counting and logging.

Letters: S optimiser steps, A accumulated batches, B batch.
"""

import logging
import math
import random
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from seqlab.data import Batch, seed_of
from seqlab.learner import Learner

log = logging.getLogger("seqlab")

#: What Lightning calls around each backward pass and each step.
HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")


class NonFinite(ValueError):
    """A loss, a gradient or a metric is infinite or no number."""


class Steps:
    """Takes the optimiser steps of a chunk, one after the other.

    Args:
        optimizer: of the network's parameters.
        schedule: of its learning rate, stepped after every optimiser step; a plateau schedule is
            stepped by the learner, after every epoch. None: a constant rate.
        clip: the largest norm of the gradient, above 0; larger ones are scaled down. None: any.
        on_nonfinite: what to do when a loss or a gradient is infinite or no number, before the
            optimiser sees it: `stop` the run, or `skip` the step.
        average: the decay of an `Average` of the weights, in [0, 1). None: there is none.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: LRScheduler | ReduceLROnPlateau | None = None,
        clip: float | None = None,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        average: float | None = None,
    ):
        if clip is not None and not 0 < clip < math.inf:
            raise ValueError(f"clip={clip}: a finite number above 0, or null")
        if on_nonfinite not in ("stop", "skip"):
            raise ValueError(f"on_nonfinite={on_nonfinite}: stop or skip")
        if average is not None and not 0 <= average < 1:
            raise ValueError(f"average={average}: at least 0 and below 1, or null")
        self.optimizer, self.schedule = optimizer, schedule
        self.clip, self.on_nonfinite = math.inf if clip is None else clip, on_nonfinite
        self.average = None if average is None else Average(average)
        self.use_lightning_step: bool | None = None

    def configure(self) -> Any:
        """What Lightning's `configure_optimizers` returns."""
        if self.schedule is None:
            return self.optimizer
        return [self.optimizer], [self.schedule]

    def seed(self, learner: Learner, *key: int | str) -> None:
        """Make what is drawn from now on, such as the dropout of one step, a function of (the run's
        seed, key, rank): a resumed run then draws what the undisturbed run drew. PyTorch's, NumPy's
        and Python's own generator take 1, 3 and 7 us."""
        seed = seed_of(learner.seed, *key, learner.global_rank)
        # torch.manual_seed, which visits every device, would take 250 us
        cpu, gpus = torch.default_generator, torch.cuda.default_generators
        (cpu if learner.device.type == "cpu" else gpus[learner.device.index]).manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)

    def take(self, learner: Learner, chunk: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Train on a chunk of tensors `(S, A, B, ...)`, or on a plain DataLoader's batch
        `(B, ...)`, which is one step. Returns the predictions and the targets of all batches whose
        step was taken."""
        if chunk[0].dim() == 3:
            chunk = tuple(part[None, None] for part in chunk)
        trainer = learner.trainer
        if self.use_lightning_step is None:
            self.use_lightning_step = needs_lightning_step(learner)
        lightning = self.use_lightning_step
        optimizer = learner.optimizers(use_pl_optimizer=lightning)
        backward = learner.manual_backward if lightning else Tensor.backward
        # Lightning counts optimiser steps here and offers no public way to count one
        progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        each_step = self.schedule is not None and not isinstance(self.schedule, ReduceLROnPlateau)
        every, weights = trainer.log_every_n_steps, list(learner.network.parameters())
        predictions, targets, on_gpu = [], [], learner.device.type == "cuda"
        for step_AB in zip(*(part.unbind() for part in chunk), strict=True):
            step, n_batches = trainer.global_step, len(step_AB[0])
            self.seed(learner, "dropout", step)
            for batch in zip(*(part.unbind() for part in step_AB), strict=True):
                loss, prediction, y = learner.compute(batch)
                # a loss that is not finite is divided by 0: the gradient then shows it on every
                # rank
                backward(loss / (loss.isfinite() * n_batches))
                predictions.append(prediction.detach())
                targets.append(y)
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            norm = get_total_norm(gradients, foreach=True)
            if not math.isfinite(norm):
                what = f"the loss is {loss:.3g}, the gradient's norm {norm:.3g}"
                self.refuse(learner, step + 1, what)
                optimizer.zero_grad()
                del predictions[-n_batches:], targets[-n_batches:]
                continue
            if norm > self.clip:
                clip_grads_with_norm_(weights, self.clip, norm, foreach=True)
            if not lightning:
                progress.increment_ready()
            # SGD computes with float64 rates, and a graph gives it float32
            rates = [group["lr"] for group in optimizer.param_groups] if on_gpu else []
            for group, rate in zip(optimizer.param_groups, rates, strict=False):
                group["lr"] = float(np.float32(rate))
            optimizer.step()
            for group, rate in zip(optimizer.param_groups, rates, strict=False):
                group["lr"] = rate
            if not lightning:
                progress.increment_completed()
            optimizer.zero_grad()
            if self.average:
                self.average.update(weights)
            if each_step:
                self.schedule.step()
            if (step + 1) % every == 0 and learner.loggers:
                loss = trainer.strategy.reduce(loss.detach(), reduce_op="mean").item()
                for logger in learner.loggers:
                    logger.log_metrics({"train/loss": loss}, step + 1)
            if step + 1 == trainer.max_steps:  # within a chunk Lightning does not look
                trainer.should_stop = True  # and validates an epoch that ends early only if told
                break
        return predictions, targets

    def refuse(self, learner: Learner, step: int, what: str) -> None:
        """Report a number that is not finite.

        Raises:
            NonFinite: unless `on_nonfinite` is `skip`.
        """
        batch = learner.trainer.fit_loop.batch_idx + 1
        where = f"epoch {learner.current_epoch + 1}, batch {batch}, step {step}"
        if self.on_nonfinite == "stop":
            raise NonFinite(f"{where}: {what}")
        log.warning(f"{where}: {what}; the step is skipped")


class Average:
    """An exponential average of a network's weights, with Adam's correction of its start: after n
    steps the weights after the k-th count `decay ** (n - k)`, as a share of the sum of these. It is
    in the network's place when that is validated and written; it is trained on without.

    Args:
        decay: in [0, 1); at 0 it is the weights themselves.
    """

    SAVED = ("n_steps", "values", "kept")

    def __init__(self, decay: float):
        self.decay, self.n_steps = decay, 0
        self.values: list[Tensor] = []  # the average of each weight, in float32 or finer
        self.kept: list[Tensor] = []  # the weights, while the average is in their place

    @torch.no_grad()
    def update(self, weights: list[Tensor]) -> None:
        """Take in the weights after one more optimiser step."""
        self.n_steps += 1
        share = (1 - self.decay) / (1 - self.decay**self.n_steps)
        fine = [w.to(torch.promote_types(w.dtype, torch.float32)) for w in weights]
        if self.n_steps == 1:
            self.values = [w.clone() for w in fine]
        for i, weight in enumerate(fine):  # restored ones are on the CPU
            self.values[i] = self.values[i].to(weight.device).lerp_(weight, share)

    @torch.no_grad()
    def begin(self, network: nn.Module) -> None:
        """Put the average in the place of the weights; before the first step it is they."""
        if self.n_steps and not self.kept:
            self.kept = [weight.clone() for weight in network.parameters()]
            for weight, value in zip(network.parameters(), self.values, strict=True):
                weight.copy_(value)

    @torch.no_grad()
    def end(self, network: nn.Module) -> None:
        """Put the weights back."""
        for weight, kept in zip(network.parameters(), self.kept, strict=bool(self.kept)):
            weight.copy_(kept)
        self.kept = []

    def write(self, learner: Learner, checkpoint: dict[str, Any], resumable: bool) -> None:
        """Put the average into a checkpoint as the weights and, to go on from, both."""
        outside = not self.kept
        self.begin(learner.network)
        # copies: else they would be what is put back
        checkpoint["state_dict"] = {k: value.clone() for k, value in learner.state_dict().items()}
        if resumable:
            checkpoint["average"] = {key: getattr(self, key) for key in self.SAVED}
        if outside:
            self.end(learner.network)

    def restore(self, network: nn.Module, saved: dict[str, Any]) -> None:
        """Go on from what `write` wrote, with the weights in their place."""
        self.n_steps, self.values, self.kept = (saved[key] for key in self.SAVED)
        self.end(network)


class Warmup(LRScheduler):
    """Raises the learning rate in equal steps, then lowers it to 0 along half a cosine (Loshchilov
    & Hutter 2017).

    Args:
        warmup_steps: optimiser steps until the optimiser's own rate is reached, at least 1.
        total_steps: optimiser steps in all, more than these.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int, total_steps: int):
        if not 1 <= warmup_steps < total_steps:
            raise ValueError(f"warmup_steps={warmup_steps}: at least 1, below {total_steps} in all")
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        step, rest = self.last_epoch + 1, self.total_steps - self.warmup_steps
        share = min(step - self.warmup_steps, rest) / rest
        factor = (1 + math.cos(math.pi * share)) / 2 if share > 0 else step / self.warmup_steps
        return [rate * factor for rate in self.base_lrs]


def needs_lightning_step(learner: Learner) -> bool:
    """Whether Lightning's own backward pass and optimiser step are needed, in whose hooks a small
    network spends a fifth of its time: for several processes, a profiler, a loss scale, or a
    callback between steps."""
    trainer = learner.trainer
    owners = learner, *trainer.callbacks
    return (
        not isinstance(trainer.strategy, SingleDeviceStrategy)
        or not isinstance(trainer.profiler, PassThroughProfiler)
        or getattr(trainer.precision_plugin, "scaler", None) is not None
        or any(is_overridden(hook, owner) for hook in HOOKS for owner in owners)
    )
