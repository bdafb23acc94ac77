"""`seqlab check`: the examination that good practitioners do by hand before they train. Letters: B
batch, T time steps, F input features, O outputs, N sequences."""

import copy
import io
import math
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from itertools import accumulate, chain, islice, pairwise, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.nn.utils import clip_grad_norm_
from torch.optim import LBFGS, Adam, Optimizer

from seqlab.data import Batch
from seqlab.engine import signals
from seqlab.engine.build import Run, build
from seqlab.engine.construct import untrusted
from seqlab.engine.context import RunContext
from seqlab.engine.errors import first_line, one_line_errors
from seqlab.engine.forecaster import load
from seqlab.engine.runs import LAST, register_resolvers
from seqlab.engine.usage import composed, read
from seqlab.learner import Learner
from seqlab.objectives import NO_TARGET, Objective
from seqlab.series.base import OnBase
from seqlab.series.windows import WindowData
from seqlab.tools.shapes import CONF
from seqlab.watch.figures import BASELINE, NETWORK, TARGET

#: Sequences of each split that are looked at, at most, unless they have over 2,000 numbers.
MOST = 512

#: The trainer's keys in place of the config's: on the CPU, in float32, without a word.
TRAINER = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}
TRAINER |= {"precision": "32-true", "enable_progress_bar": False}
TRAINER |= {"val_check_interval": 1.0, "check_val_every_n_epoch": 1}


class Fault(Exception):
    """What a check found, and what to try."""


class Skip(Exception):
    """Why a check does not apply."""


@dataclass
class Case:
    """What is examined: a run that was built and not started, and another of the same config."""

    run: Run
    again: Run
    train: Batch  # x `(N, T, F)`, targets and, where they differ, lengths `(N,)`
    val: Batch
    every: bool  # whether there is a target at every step
    sweep: dict[str, Any]  # what the learning rates have shown

    @property
    def batch(self) -> Batch:
        """One batch of the training set."""
        return tuple(part[: self.run.data.batch_size] for part in self.train)

    def batches(self, parts: Batch) -> Iterator[Batch]:
        """Batches of some sequences, over and over."""
        split = [part.split(self.run.data.batch_size) for part in parts]
        return chain.from_iterable(repeat(list(zip(*split, strict=True))))

    def untrained(self) -> Learner:
        """The learner with its optimiser; a copy, so that no check changes another's."""
        return copy.deepcopy(self.run.learner)

    def probe(self) -> Learner:
        """A copy whose zero weights are drawn at random, so that nothing hides behind them."""
        learner = self.untrained().eval()
        for weight in learner.network.parameters():
            if not weight.count_nonzero():
                nn.init.normal_(weight, std=0.1)
        return learner


def examine(
    overrides: tuple[str, ...], config_dir: str | None, sweep: dict[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """Examine the config that a command line composes to; `sweep` is filled for `draw`.

    Yields:
        For each check its verdict, `ok`, `FAIL` or `skip`, its name and what it found.

    Raises:
        UserError: what a run would refuse too.
    """
    register_resolvers()
    own = ["--config-dir", config_dir] if config_dir else []
    with one_line_errors(CONF):
        cfg, _ = composed(*read(CONF, [*own, *overrides]))
    sys.path += [os.getcwd(), str(CONF.parent)]  # where train.py finds classes of the user's
    with TemporaryDirectory() as folder, signals.handled():
        case = opened(cfg, Path(folder), sweep)
        for check in CHECKS:
            torch.manual_seed(0)
            try:
                verdict, said = "ok", check(case)
            except Skip as reason:
                verdict, said = "skip", str(reason)
            except Exception as error:  # whatever a class of the user's raises
                name = "" if isinstance(error, Fault) else f"{type(error).__name__}: "
                verdict, said = "FAIL", name + first_line(error)
            yield verdict, check.__name__.replace("_", " "), said


def opened(cfg: DictConfig, folder: Path, sweep: dict[str, Any]) -> Case:
    """Build what the config names, twice: few sequences of a task, no loggers, and no callbacks but
    those that write checkpoints."""
    kept = {f"callbacks.{name}": None for name in set(cfg.callbacks or ()) - {"checkpoint", "last"}}
    for name in ("n_train", "n_val", "n_test") if "task" in (cfg.data or ()) else ():
        if isinstance(n := cfg.data.get(name), int):
            kept[f"data.{name}"] = min(n, max(cfg.data.batch_size, 4 * MOST))
    kept |= {f"trainer.{name}": value for name, value in TRAINER.items() if cfg.trainer}
    for key, value in kept.items():
        OmegaConf.update(cfg, key, value)
    cfg.logger = {}
    run = build(cfg, RunContext(folder, []))
    with redirect_stderr(io.StringIO()):  # notes on a file were printed once
        again = build(cfg, RunContext(folder, []))
    run.data.trainer, again.data.trainer = run.trainer, again.trainer
    parts = gathered(run.data.train_dataloader()), gathered(run.data.val_dataloader())
    return Case(run, again, *parts, run.data.every_step, sweep)


def gathered(batches: Iterable[Batch], most: int = MOST) -> Batch:
    """The first sequences, of one length T, of some batches or of chunks of batches."""
    parts: list[Batch] = []
    for batch in batches:
        if batch[0].dim() > 3:
            batch = tuple(part.flatten(0, 2) for part in batch)
        if not parts or batch[0].shape[1:] == parts[0][0].shape[1:]:
            parts.append(batch)
        n = sum(len(each[0]) for each in parts)
        if n >= most or n * batch[0][0].numel() > 2000 * most:
            break
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


@torch.no_grad()
def predict(learner: Learner, x: Tensor, *lengths: Tensor, hidden: Any = None, seed: int = 0):
    """What the network returns, a function of the seed: `(prediction, hidden)`."""
    torch.manual_seed(seed)
    return learner.network(x.to(learner.dtype), hidden, *lengths)


def expect_same(one: Tensor, other: Tensor, what: str) -> None:
    """A Fault if two predictions differ by more than float32's rounding, 1e-4 of the largest."""
    off = (one - other).abs().max() / one.abs().max().clamp(min=1e-12)
    if not off <= 1e-4:
        difference, colon, way = what.partition(":")
        raise Fault(f"{difference}, by {off:.2g} of the largest{colon}{way}")


def steps(learner: Learner, batches: Iterable[Batch], optimizer: Optimizer, clip: float = 1.0):
    """Train on batches, yielding the loss before each step."""
    for batch in batches:
        loss = learner.compute(batch)[0]
        yield loss.item()
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(learner.network.parameters(), clip)
        optimizer.step()


def constant_loss(objective: Objective, prediction: Tensor, y: Tensor) -> float:
    """The least loss of a prediction that is the same for every sequence, at each step its own."""
    best = torch.zeros_like(prediction[0])
    if y.is_floating_point() and y.shape == prediction.shape:
        best = y.nanmean(0).nan_to_num()
    solver = LBFGS([best.requires_grad_()], max_iter=30, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = objective.loss(best.expand_as(prediction), y)
        loss.backward()
        return loss

    solver.step(closure)
    return closure().item()


def other_steps(x: Tensor) -> Tensor:
    """Sequences made of the same time steps `(F)`, in any order."""
    flat = x.flatten(0, 1)
    return flat[torch.randperm(len(flat))].view_as(x)


def listed(names: list[str]) -> str:
    """A few names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def shapes(case: Case) -> str:
    """Finds a network for one batch size alone, as by `squeeze()` or a fixed `view`. Validation has
    other sizes than training, and `seqlab stream` has B = 1."""
    learner, (x, _, *lengths) = case.untrained().eval(), case.batch
    loss = learner.compute(case.batch)[0]
    if loss.dim() or not loss.isfinite():
        raise Fault(f"the loss is {loss.detach()}: it must be one finite number")
    prediction, _ = predict(learner, x, *lengths)
    for n in (1, 2):
        few, _ = predict(learner, x[:n], *(part[:n] for part in lengths))
        if few.shape != (want := (n, *prediction.shape[1:])):
            got = tuple(few.shape)
            raise Fault(f"{n} sequences give {got}, not {want}: look for squeeze() and view()")
    return f"x {tuple(x.shape)}, prediction {tuple(prediction.shape)}"


def gradients(case: Case) -> str:
    """Finds a layer that is not used, or cut off by `detach()` or a dead activation, and one that
    is frozen. A gradient that is zero on four batches counts as none."""
    learner = case.probe().train()
    named = dict(learner.network.named_parameters())
    if frozen := [name for name, weight in named.items() if not weight.requires_grad]:
        raise Fault(f"{listed(frozen)}: frozen, it stays as it was drawn; requires_grad is False")
    for batch in islice(case.batches(case.train), 4):
        loss = learner.compute(batch)[0]
        if not loss.requires_grad:
            raise Fault("the loss depends on no weight: look for detach() and no_grad()")
        loss.backward()
    if none := [name for name, w in named.items() if w.grad is None or not w.grad.any()]:
        raise Fault(f"{listed(none)}: no gradient; is it used in forward, without detach()?")
    return f"{sum(weight.numel() for weight in named.values())} parameters, all reached"


def first_loss(case: Case) -> str:
    """Finds outputs that start far off, as from a bias of 100, and numbers that are not scaled. At
    zero the loss is ln O for O classes, or the mean square. It may start at twice that, or twice
    the best constant's; at ten times for numbers, since outputs of few units start as large as 1.
    On a base it may be twice the base's: a layer named `head` starts at zero."""
    learner, (x, y, *_) = case.untrained().eval(), case.train
    objective, network = learner.objective, learner.network
    with torch.no_grad():
        loss, prediction, _ = learner.compute(case.train)
    if y.is_floating_point() and (size := y.abs().nanmean()) > 100:
        raise Fault(f"the targets are about {size:.3g}: scale them to about 1")
    if isinstance(network, OnBase):
        base = network.base(x[:, -network.rows :])
        base = base.repeat_interleave(prediction.shape[1] // base.shape[1], 1)
        known, most = {"its base": objective.loss(base, y).item()}, 2
    else:
        most = 10 if objective.numeric else 2
        zero = objective.loss(torch.zeros_like(prediction), y).item()
        known = {"best constant": constant_loss(objective, prediction, y), "zero": zero}
    said = "; ".join([f"{loss:.3g}", *(f"{name} {least:.3g}" for name, least in known.items())])
    if not loss <= most * max(known.values()):
        raise Fault(f"{said}: let the last layer start near zero")
    return said


def one_batch(case: Case) -> str:
    """Finds a network that cannot learn: too small, cut off, or by a loss that does not tell it the
    target. Adam at 1e-2, or else at 1e-3, learns eight sequences by heart in 600 steps, two with a
    target at every step: to a tenth of the loss at the start and of the best constant's."""
    n, lowest = 2 if case.every else 8, math.inf
    batch = tuple(part[:n] for part in case.train)
    for rate in (1e-2, 1e-3):
        learner = case.untrained().eval()  # without dropout
        start, prediction, y = learner.compute(batch)
        aim = start.item()
        if not case.every:  # a constant for each step would know much of two sequences
            aim = min(aim, constant_loss(learner.objective, prediction.detach(), y))
        adam = Adam(learner.network.parameters(), lr=rate)
        for step, loss in enumerate(steps(learner, repeat(batch, 600), adam)):
            lowest = min(lowest, loss)
            if loss <= 0.1 * aim:
                return f"{n} sequences by heart in {step} steps"
    said = f"the loss of {n} sequences stays at {lowest:.3g}, a tenth would be {0.1 * aim:.3g}"
    raise Fault(f"{said}: more hidden units, or look for detach()")


def samples_apart(case: Case) -> str:
    """Finds a network in which the sequences of a batch see one another, as by a mean over the
    wrong axis, or in training by BatchNorm: LayerNorm does not. All but the first sequence become
    copies of the second; the first one's prediction must stay."""
    x, _, *lengths = case.batch
    if len(x) < 2:
        raise Skip("a batch is one sequence")
    others = [torch.cat([p[:1], p[1:2].expand_as(p[1:])]) for p in (x, *lengths)]
    for mode, way in (("evaluation", "a mean or a view over the batch"), ("training", "BatchNorm")):
        learner = case.probe().train(mode == "training")
        one, other = (predict(learner, *parts)[0][0] for parts in ((x, *lengths), others))
        expect_same(one, other, f"in {mode} other sequences change a prediction: look for {way}")
    return f"{len(x)} sequences, in evaluation and in training"


def causal(case: Case) -> str:
    """Finds a network with a target at every step that reads later steps, which no forecast has: a
    convolution that is not padded on the left, attention without a mask."""
    if not case.every:
        raise Skip("one prediction, after the last step")
    learner, x, cut = case.probe(), case.batch[0], case.batch[0].shape[1] // 2
    changed = torch.cat([x[:, :cut], other_steps(x[:, cut:])], 1)
    one, other = (predict(learner, each)[0][:, :cut] for each in (x, changed))
    expect_same(one, other, "later steps change earlier predictions: mask, or pad on the left")
    return f"{x.shape[1] - cut} later steps change nothing in {cut} earlier ones"


def padding(case: Case) -> str:
    """Finds a network that ignores the lengths. What stands in the padding must not matter, and the
    shortest sequence alone, without any, must be predicted as it is among longer ones."""
    x, _, *given = case.batch
    if not given:
        raise Skip("all sequences have the same length")
    learner, (lengths,) = case.probe(), given
    real = torch.arange(x.shape[1]) < lengths[:, None]
    changed = torch.where(real[:, :, None], x, other_steps(x))
    one, other = (predict(learner, each, lengths)[0] for each in (x, changed))
    pair = (one[real], other[real]) if case.every else (one, other)
    expect_same(*pair, "what stands in the padding changes predictions: use the lengths")
    i, n = int(lengths.argmin()), int(lengths.min())
    alone, among = predict(learner, x[i : i + 1, :n])[0][0], one[i, :n] if case.every else one[i]
    expect_same(alone, among, f"{n} steps are predicted otherwise among longer sequences")
    return f"lengths from {n} to {int(lengths.max())}"


def state(case: Case) -> str:
    """Finds a state that does not hold what later steps need, or is not taken up: a sequence in two
    parts must be predicted as in one, and so must one that `step` is given step by step."""
    learner, x, cut = case.probe(), case.batch[0], case.batch[0].shape[1] // 2
    if not cut:
        raise Skip("a sequence is one step")
    whole, (first, hidden) = predict(learner, x)[0], predict(learner, x[:, :cut])
    if hidden is None:
        raise Skip("the network carries none")
    last = predict(learner, x[:, cut:], hidden=hidden)[0]
    parts = torch.cat([first, last], 1) if case.every else last
    expect_same(whole, parts, "two parts are predicted otherwise than the whole: use the state")
    hidden, singly = None, hasattr(learner.network, "step")
    for x_BF in x.unbind(1) if singly else ():
        last, hidden = learner.network.step(x_BF, hidden)
    if singly:
        expect_same(whole[:, -1] if case.every else whole, last, "`step` predicts otherwise")
    return f"{cut} + {x.shape[1] - cut} steps{', or single ones,' if singly else ''} are the whole"


def evaluation(case: Case) -> str:
    """Finds randomness that is left on in `eval()`: two predictions must be equal to the bit."""
    learner, (x, _, *lengths) = case.probe(), case.batch
    one, other = (predict(learner, x, *lengths, seed=seed)[0] for seed in (0, 1))
    if not torch.equal(one, other):
        raise Fault("two predictions differ: give functional.dropout training=self.training")
    return "two predictions are equal to the bit"


def target_in_inputs(case: Case) -> str:
    """Finds the target among the inputs: a number from which it follows up to 1e-4 of its
    deviation. With a target at every step it is looked for in that step. It cannot find a target
    under noise or in several numbers: a good input looks the same."""
    x, y = case.train[:2]
    T, F = x.shape[1:]
    x, y = (x.flatten(0, 1), y.flatten(0, 1)) if case.every else (x.flatten(1), y)
    if not y.is_floating_point():
        x, y = x[y != NO_TARGET], y[y != NO_TARGET]
        y = torch.cat([y[:, None], one_hot(y)], 1)
    known = y.isfinite().all(1)
    x, y = (p[known].double() - p[known].double().mean(0) for p in (x, y))
    cosine = (x.T @ y) / (x.norm(dim=0)[:, None] * y.norm(dim=0)).clamp(min=1e-12)
    left, i = (1 - cosine.square()).clamp(min=0).sqrt().amin(1).min(0)
    if left < 1e-4:
        where = "the same step" if case.every else f"step {int(i) // F + 1} of {T}"
        raise Fault(f"input {int(i) % F + 1} of {where} gives the target away: leave it out")
    return f"the nearest of {x.shape[1]} leaves {left:.2g} of the target's deviation"


def shuffled_targets(case: Case) -> str:
    """Finds a loss that falls although nobody knows the targets: one that compares predictions with
    the targets of others, or a `compute` that shows the network the target. After 60 steps on
    targets of other sequences the loss on such validation data must not be below 0.8 of the best
    constant's. A target among the inputs is shuffled away: `target_in_inputs` is for that."""
    learner, parts = case.untrained().train(), []
    for x, y, *lengths in (case.train, case.val):
        order = torch.randperm(len(x))  # what ends a sequence of targets goes with them
        parts.append((x, y[order], *(n[order] if case.every else n for n in lengths)))
    adam = Adam(learner.network.parameters(), lr=1e-2)
    for _ in steps(learner, islice(case.batches(parts[0]), 60), adam):
        pass
    with torch.no_grad():
        loss, prediction, y = learner.eval().compute(parts[1])
    least = constant_loss(learner.objective, prediction, y)
    said = f"validation loss {loss:.3g}; best constant {least:.3g}"
    if loss < 0.8 * least:
        raise Fault(f"{said}: does each prediction meet its own target alone?")
    return said


def splits(case: Case) -> str:
    """Finds validation sequences that stand in the training part, and windows of a series that
    share targets with it. A task may draw one twice by chance, and does so within the training part
    too: a fault is what lies five standard errors above that."""
    data = case.run.data
    if isinstance(data, WindowData):
        ahead = np.arange(data.horizon)  # from a window's first target on
        numbers = (np.concatenate(data.window_numbers[split]) for split in ("train", "val"))
        one, other = ({*(first[:, None] + ahead).flat} for first in numbers)
        if one & other:
            raise Fault(f"{len(one & other)} rows are targets of both: split by time")
        return f"{len(one)} and {len(other)} rows are targets, none of both"
    train, val = (
        [row.numpy().tobytes() for row in gathered(loader, 10_000)[0]]
        for loader in (data.train_dataloader(), data.val_dataloader())
    )
    seen = Counter(train)
    share = sum(row in seen for row in val) / len(val)
    chance = sum(n for n in seen.values() if n > 1) / len(train)
    said = f"{share:.1%} of {len(val)} validation sequences are training ones; {chance:.1%} by luck"
    if share > chance + 5 * math.sqrt((chance + 1 / len(val)) / len(val)):
        raise Fault(f"{said}: split, or draw, them apart")
    return said


def seeds(case: Case) -> str:
    """Finds what the seed does not decide, such as weights drawn by the time: two builds must agree
    to the bit, in weights, first batch and first loss."""
    batches, losses = [], []
    one, other = (run.learner.network.state_dict() for run in (case.run, case.again))
    if differ := [name for name in one if not torch.equal(one[name], other[name])]:
        raise Fault(f"{listed(differ)}: not the same twice; draw with torch's generator")
    for run in (case.run, case.again):
        torch.manual_seed(0)
        batches.append(gathered(run.data.train_dataloader()))
        losses.append(copy.deepcopy(run.learner).train().compute(case.batch)[0].item())
    if not all(map(torch.equal, *batches)):
        raise Fault("two builds begin with other data: draw them from the seed")
    if losses[0] != losses[1]:
        raise Fault(f"first losses {losses[0]} and {losses[1]}: draw with torch's generator")
    return f"two builds agree to the bit, first loss {losses[0]:.6g}"


def checkpoint(case: Case) -> str:
    """Finds what a checkpoint does not keep: a buffer that is not in the `state_dict`, a number
    that `forward` changes. A short run is saved, and read as `seqlab predict` reads it."""
    run, trainer, (x, _, *lengths) = case.again, case.again.trainer, case.val
    trainer.fit_loop.max_epochs = trainer.limit_train_batches = trainer.limit_val_batches = 1
    with warnings.catch_warnings(action="ignore"):
        trainer.fit(run.learner, run.data)
    file = Path(trainer.default_root_dir, LAST)
    saved = trainer.strategy.load_checkpoint(file, weights_only=True)
    run.learner.load_state_dict(saved["state_dict"])  # of `optim.average` it has the average
    before = predict(run.learner.eval(), x, *lengths)[0]
    torch.manual_seed(1)
    run.learner.network = load(file, untrusted(run.config)).network
    what = "read back it predicts otherwise: keep what forward uses with register_buffer"
    expect_same(before, predict(run.learner.eval(), x, *lengths)[0], what)
    return f"{file.stat().st_size} bytes, read back it predicts the same"


def learning_rate(case: Case) -> str:
    """Finds an `optim.lr` that is far off, by a range test (Smith 2017): on one batch, by 15 steps
    for each factor of ten, from 1e-7 to 100. Too high is where the loss reaches twice its start;
    too low is a hundredth of the rate at which it falls fastest to a new low."""
    learner = case.untrained().train()
    optimizer, clip = learner.steps.optimizer, learner.steps.clip
    names = ("lr", "initial_lr", "max_lr")  # a schedule has set the first step's
    chosen = max(group.get(name, 0.0) for group in optimizer.param_groups for name in names)
    rates, losses, mean = torch.logspace(-7, 2, 136).tolist(), [], 0.0
    raised = steps(learner, repeat(case.batch), optimizer, clip)
    for n, rate in enumerate(rates, start=1):
        for group in optimizer.param_groups:
            group["lr"] = rate
        mean = 0.8 * mean + 0.2 * next(raised)
        losses.append(mean / (1 - 0.8**n))
        if not losses[-1] <= losses[0] + abs(losses[0]):
            break
    lowest = accumulate(losses, min)  # a fall from a bump is none
    falls = [before - after for before, after in pairwise(lowest)] or [0.0]
    best, worst = rates[falls.index(max(falls)) + 1], rates[n - 1] if n < len(rates) else math.inf
    case.sweep |= {"rates": rates[:n], "losses": losses, "optim.lr": chosen, "fastest fall": best}
    said = f"{chosen:g}; the loss falls fastest at {best:.1g}, diverges at {worst:.1g}"
    if chosen >= worst or (chosen < best / 100 and min(losses) < 0.9 * losses[0]):
        raise Fault(f"{said}: try optim.lr={best / 3:.0e}")
    return said


CHECKS = (shapes, gradients, first_loss, one_batch, samples_apart, causal, padding, state)
CHECKS += (evaluation, target_in_inputs, shuffled_targets, splits, seeds, checkpoint, learning_rate)


def draw(sweep: dict[str, Any]) -> Figure:
    """The loss over the learning rate, with the rate of the config."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(sweep["rates"], sweep["losses"], color=NETWORK)
    for name, colour in (("optim.lr", TARGET), ("fastest fall", BASELINE)):
        axes.axvline(sweep[name], color=colour, ls="--", label=f"{name} {sweep[name]:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss of a batch in training")
    axes.legend(frameon=False)
    return figure
