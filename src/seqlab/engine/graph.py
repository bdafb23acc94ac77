"""Optimiser steps on a GPU: those of a chunk as one CUDA graph.

A small network's step is some fifty kernels. Starting them one by one takes longer than they run.
A graph starts those of a whole chunk at once. The weights are those of `Steps` to the bit.

Letters: S optimiser steps, A accumulated batches, B batch, G groups of parameters.
"""

import copy
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.lr_scheduler import ReduceLROnPlateau

from seqlab.data import Batch
from seqlab.engine.errors import first_line
from seqlab.engine.steps import Steps, log, needs_lightning_step
from seqlab.learner import Learner


@dataclass
class Recording:
    """The steps of a chunk as a graph: what it reads, what it leaves, and how to run it."""

    inputs: list[Tensor]
    rates_SG: Tensor
    play: Callable[[], None] | None = None
    results: tuple[Tensor, ...] = ()  # predictions, targets; losses and how many steps were taken


class GraphSteps(Steps):
    """Takes the steps of a chunk as one CUDA graph; arguments as in `Steps`. The first chunk is
    taken step by step. Where no graph can be used all are, and one line of the log says why."""

    why_not: str | None = None
    fixed: list[Any] | None = None  # the optimiser's constants, once a chunk was taken

    def seed(self, learner: Learner, *key: int | str) -> None:
        """As in `Steps`; in training once a chunk, since a graph is not seeded within."""
        if key[0] != "dropout" or not self.has_graphs(learner):
            super().seed(learner, *key)

    def take(self, learner: Learner, chunk: Batch) -> tuple[list[Tensor], list[Tensor]]:
        trainer, shapes = learner.trainer, tuple(part.shape for part in chunk)
        if not self.has_graphs(learner):
            return super().take(learner, chunk)
        super().seed(learner, "dropout", trainer.global_step)
        if self.why_not or chunk[0].dim() == 3:
            return super().take(learner, chunk)
        if self.fixed is None:
            self.fixed = []
            return self.begin(learner, chunk)
        ends = trainer.max_steps >= 0 and trainer.global_step + len(chunk[0]) > trainer.max_steps
        # before the first step optimisers have no state, and a graph would make it ever again
        if ends or trainer.global_step == 0:
            return super().take(learner, chunk)
        if self.fixed != (constants := self.constants()):  # a callback may change the optimiser
            self.fixed, self.recordings = constants, {}
        if shapes not in self.recordings:
            # an epoch has at most three: whole ones, a shorter one, and one of fewer batches
            if len(self.recordings) == 3:
                return super().take(learner, chunk)
            fine = torch.float64 if learner.device.type == "cpu" else torch.float32
            groups = len(self.optimizer.param_groups)
            rates_SG = torch.zeros(len(chunk[0]), groups, dtype=fine, device=learner.device)
            made = Recording([part.clone() for part in chunk], rates_SG)
            try:
                made.play = self.record(learner, made)
            except Exception as error:  # a network of one's own may do anything
                while error.__context__:  # the end of a recording that has failed fails too
                    error = error.__context__
                self.give_up(f"the network cannot be recorded: {first_line(error)}")
                return super().take(learner, chunk)
            self.recordings[shapes] = made
        return self.replay(learner, chunk, self.recordings[shapes])

    def has_graphs(self, learner: Learner) -> bool:
        """Whether the device knows graphs."""
        return learner.device.type == "cuda"

    def begin(self, learner: Learner, chunk: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Take the steps of the first chunk, and see whether those to come can be a graph."""
        optimizer, on_gpu = self.optimizer, learner.device.type == "cuda"
        stacks = [each for each in learner.network.modules() if isinstance(each, nn.RNNBase)]
        dropping = [each for each in stacks if each.dropout and on_gpu]
        between = needs_lightning_step(learner)
        reasons = {
            "the sequences differ in their lengths": len(chunk) > 2,
            "several processes, a profiler, a loss scale or a callback": between,
            f"{type(optimizer).__name__} is not fused": not optimizer.defaults.get("fused"),
            "optim.average follows each step": self.average,
            "the schedule changes the momentum": "max_momentum" in optimizer.param_groups[0],
            "cuDNN's dropout has a state of its own": not all(map(is_plain, dropping)),
            "anomalies are looked for": torch.is_anomaly_enabled(),
        }
        if found := [reason for reason, holds in reasons.items() if holds]:
            self.give_up(found[0])
            return super().take(learner, chunk)
        for stack in stacks:
            stack.flatten_parameters()  # a conversion to another precision leaves them in pieces
        for stack in dropping:
            run_layer_by_layer(stack)
        before = states(), numbers(learner.network)
        taken = super().take(learner, chunk)
        if before[0] != states():
            self.give_up("the network draws random numbers that are not PyTorch's")
        elif before[1] != numbers(learner.network):
            self.give_up("the network counts in Python, which a graph does not run")
        elif on_gpu and self.asks(learner, chunk):
            self.give_up("the loss is computed with numbers that the device is waited for")
        return taken

    def asks(self, learner: Learner, chunk: Batch) -> bool:
        """Whether a loss waits for the device. A recording of it would fail, and leave memory,
        and before PyTorch 2.13 the generator, as they are within one."""
        kept = [each.clone() for each in learner.network.buffers()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this is a prototype
            torch.cuda.set_sync_debug_mode("error")
        try:
            learner.compute(tuple(part[0, 0] for part in chunk))
        except RuntimeError:
            return True
        finally:
            torch.cuda.set_sync_debug_mode("default")
            for each, value in zip(learner.network.buffers(), kept, strict=True):
                each.copy_(value)
        return False

    def constants(self) -> list[Any]:
        """What of the optimiser is the same in each replay: all but the rates."""
        return [
            [(key, value) for key, value in group.items() if key not in ("params", "lr")]
            + [(id(weight), weight.requires_grad) for weight in group["params"]]
            for group in self.optimizer.param_groups
        ]

    def give_up(self, reason: str) -> None:
        """Take all steps one by one from now on."""
        self.why_not = reason
        log.info(f"no CUDA graph, steps are taken one by one: {reason}")

    def record(self, learner: Learner, made: Recording) -> Callable[[], None]:
        """Record the steps of a chunk; nothing is computed."""
        graph, groups = torch.cuda.CUDAGraph(), self.optimizer.param_groups
        before = [dict(group) for group in groups]
        try:
            for group in groups:
                group["capturable"] = True  # Adam asks for it
            torch.cuda.synchronize()
            # the outer one puts the stream back, which the inner one does not if it fails
            with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
                self.compute(learner, made)
        finally:
            for group, kept in zip(groups, before, strict=True):
                group.clear()
                group.update(kept)
        return graph.replay

    def compute(self, learner: Learner, made: Recording) -> None:
        """The steps of a chunk without asking the device for a number. After a gradient that is
        not finite no more steps are taken."""
        optimizer, weights = self.optimizer, list(learner.network.parameters())
        groups, A = optimizer.param_groups, made.inputs[0].shape[1]
        rates = [group["lr"] for group in groups]
        # float32, which fused optimisers read; of 64-true and bf16-true the default is another
        bad = good = torch.zeros((), dtype=torch.float32, device=learner.device)
        predictions, targets, losses = [], [], []
        try:
            for step_AB, rates_G in zip(zip(*made.inputs, strict=True), made.rates_SG, strict=True):
                for group, rate in zip(groups, rates_G, strict=True):
                    group["lr"] = rate
                for batch in zip(*step_AB, strict=True):
                    loss, prediction, y = learner.compute(batch)
                    (loss / (loss.isfinite() * A)).backward()
                    predictions.append(prediction.detach())
                    targets.append(y)
                gradients = [weight.grad for weight in weights if weight.grad is not None]
                norm = get_total_norm(gradients, foreach=True)
                bad = torch.maximum(bad, (~norm.isfinite()).float())
                good = good + (1 - bad)
                # of one up to 1e-6 below the clip, too, PyTorch would make it a little smaller
                larger = norm * (norm > self.clip)
                clip_grads_with_norm_(weights, self.clip, larger, foreach=True)
                optimizer.found_inf = bad  # fused optimisers leave the weights as they are then
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.detach())
            outcome = torch.cat([torch.stack(losses), good[None]])
            made.results = torch.cat(predictions), torch.cat(targets), outcome
        finally:
            optimizer.found_inf = None
            optimizer.zero_grad()
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate

    def replay(
        self, learner: Learner, chunk: Batch, made: Recording
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Take the steps of a chunk."""
        trainer, schedule, groups = learner.trainer, self.schedule, self.optimizer.param_groups
        if isinstance(schedule, ReduceLROnPlateau):
            schedule = None
        before, rates = schedule and copy.deepcopy(schedule.state_dict()), []
        for _ in range(len(chunk[0])):
            rates.append([group["lr"] for group in groups])
            if schedule:
                schedule.step()
        for here, part in zip(made.inputs, chunk, strict=True):
            here.copy_(part)
        rates_SG = torch.tensor(rates, dtype=made.rates_SG.dtype)
        made.rates_SG.copy_(rates_SG, non_blocking=True)  # which else waits for the device
        made.play()
        predictions, targets, outcome = made.results
        *losses, good = outcome.tolist()  # the one time that the device is waited for
        n_good, step = int(good), trainer.global_step
        if schedule and n_good < len(rates):
            schedule.load_state_dict(before)
            for group, rate in zip(groups, rates[0], strict=True):
                group["lr"] = rate
            for _ in range(n_good):
                schedule.step()
        # Lightning counts optimiser steps here and offers no public way to count one
        progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for count in (progress.total, progress.current):
            count.ready += n_good
            count.completed += n_good
        every = trainer.log_every_n_steps
        for i in range(every - step % every, n_good + 1, every):
            for logger in learner.loggers:
                logger.log_metrics({"train/loss": losses[i - 1]}, step + i)
        if step + n_good == trainer.max_steps:
            trainer.should_stop = True
        if n_good == len(losses):
            return [predictions], [targets]
        rows = len(predictions) // len(losses) * n_good
        taken = [[part[:rows]] if rows else [] for part in (predictions, targets)]
        # the one that is not finite is told of, and those after it are taken, step by step
        if learner.device.type == "cuda":  # what they draw is theirs
            generator = torch.cuda.default_generators[learner.device.index]
            generator.set_offset(generator.get_offset() // len(losses) * n_good)
        rest = super().take(learner, tuple(part[n_good:] for part in chunk))
        return taken[0] + rest[0], taken[1] + rest[1]


def states() -> tuple[str, str]:
    """Where the generators of NumPy and Python are."""
    return repr(np.random.get_state(legacy=False)["state"]), repr(random.getstate())


def is_plain(stack: nn.RNNBase) -> bool:
    """Whether `run_layer_by_layer` knows how."""
    return isinstance(stack, nn.LSTM | nn.GRU) and not (stack.bidirectional or stack.proj_size)


def run_layer_by_layer(stack: nn.LSTM | nn.GRU) -> None:
    """Have the layers run one by one in training, with PyTorch's dropout between them. That of
    cuDNN has a state of its own, which no replay would set."""
    whole, n_layers, is_lstm = stack.forward, stack.num_layers, isinstance(stack, nn.LSTM)
    run = torch.lstm if is_lstm else torch.gru
    # the weights of one layer are no block of memory
    warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous")

    def forward(x: Tensor, hidden: Any = None) -> tuple[Tensor, Any]:
        if not stack.training or not isinstance(x, Tensor) or x.dim() != 3:
            return whole(x, hidden)
        if hidden is None:
            zeros = x.new_zeros(n_layers, x.shape[not stack.batch_first], stack.hidden_size)
            hidden = (zeros, zeros) if is_lstm else zeros
        after = []
        for i in range(n_layers):
            here = tuple(s[i : i + 1] for s in hidden) if is_lstm else hidden[i : i + 1]
            how = stack.bias, 1, 0.0, True, False, stack.batch_first
            x = dropout(x, stack.dropout) if i else x
            x, *states = run(x, here, stack.all_weights[i], *how)
            after.append(states)
        states = tuple(torch.cat(each) for each in zip(*after, strict=True))
        return x, states if is_lstm else states[0]

    stack.forward = forward


def numbers(network: nn.Module) -> list[dict[str, Any]]:
    """The plain numbers that the modules of a network keep."""
    kinds = (bool, int, float)
    return [{k: v for k, v in vars(m).items() if type(v) in kinds} for m in network.modules()]
