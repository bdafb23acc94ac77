"""Builds a run from its config: data, objective, network, optimiser, callbacks and trainer."""

import copy
import ctypes
import logging
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from inspect import signature
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BaseFinetuning, Callback, ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from seqlab.data import Chunks, SequenceData
from seqlab.engine import loggers
from seqlab.engine.checkpoint import DurableIO, read
from seqlab.engine.construct import KINDS, construct, network_of, parts_of, prepare
from seqlab.engine.context import RunContext
from seqlab.engine.errors import UserError
from seqlab.engine.last import Last
from seqlab.engine.processes import INSIDE
from seqlab.engine.runs import LAST
from seqlab.engine.settings import check_devices, resolved
from seqlab.engine.steps import Steps
from seqlab.learner import Learner
from seqlab.objectives import Objective
from seqlab.sources import LoaderData

#: Callbacks of Lightning's that do not go with a run here, and what does.
INSTEAD = {
    "LearningRateFinder": "seqlab tune searches for optim.lr",
    "BatchSizeFinder": "set data.batch_size",
    "BackboneFinetuning": "no network here has a backbone; subclass BaseFinetuning for yours",
    "SpikeDetection": "it needs a loss a call; optim.on_nonfinite=skip skips steps",
    "GradientAccumulationScheduler": "data.accumulate adds gradients here",
    "StochasticWeightAveraging": "its average is saved in no checkpoint; that of optim.average is",
    "ModelPruning": "its masks are saved in no checkpoint; prune what seqlab.load returns",
}


@dataclass
class Run:
    """What a run is made of."""

    config: dict[str, Any]  # resolved, plain values, as checkpoints hold it
    data: SequenceData
    objective: Objective
    learner: Learner
    trainer: L.Trainer
    best: ModelCheckpoint
    last: Last


def build(
    cfg: DictConfig,
    context: RunContext,
    trust: tuple[str, ...] | None = None,
    watch: Callable[[str], Callback] | None = None,
) -> Run:
    """Construct and connect what a config names.

    `trust` are the packages whose classes may be named, None for a config of the user's own;
    `watch` makes one more callback from the monitored metric's name.

    Raises:
        UserError: a class of the wrong kind, a value out of range, or parts that do not fit.
    """
    values, config = resolved(cfg)
    check_devices(values["trainer"], values["data"].get("batch_size"))
    silence()
    keep_freed_memory()
    torch.set_num_threads(values["threads"])
    L.seed_everything(values["seed"], verbose=False)

    data, objective, sizes = parts_of(values, trust)
    monitor = values["monitor"] or f"val/{objective.loss_name}"
    network = network_of(values["model"], sizes, trust)
    n_steps = values["trainer"]["max_epochs"] * data.steps_per_epoch
    given = {"T_max": n_steps, "total_steps": n_steps, "mode": mode_of(objective, monitor)}
    steps = build_steps(values["optim"], network, given, trust)
    learner = Learner(network, objective, steps, monitor, values["seed"])

    callbacks, monitored = {}, {"monitor": monitor}
    for name, node in values["callbacks"].items():
        if not node:
            continue
        path = f"callbacks.{name}"
        given = {"config": config, "sizes": sizes, "overrides": context.overrides}
        if isinstance(node, dict) and "monitor" in node:
            watched = monitor if node["monitor"] is None else str(node["monitor"])
            monitored[f"{path}.monitor"] = watched
            given |= {"monitor": watched, "mode": mode_of(objective, watched)}
        made = callbacks[name] = construct(node, KINDS["callbacks"], path, trust, **given)
        if isinstance(made, ModelCheckpoint) and made.dirpath is None:  # or the first logger says
            made.dirpath = str(context.folder / "checkpoints")
        if getattr(made, "patience", 0) < 0:
            raise UserError(f"{path}.patience={made.patience}: at least 0")
        for kind, way in INSTEAD.items():
            if isinstance(made, getattr(L.pytorch.callbacks, kind)):
                raise UserError(f"{path}._target_={node['_target_']}: {way}")
        if type(made) is BaseFinetuning:
            raise UserError(f"{path}._target_={node['_target_']}: name a subclass of it")
    best, last = callbacks.get("checkpoint"), callbacks.get("last")
    if not (isinstance(best, ModelCheckpoint) and best.monitor and best.save_top_k):
        raise UserError("callbacks.checkpoint: without it no run knows its best epoch")
    if best.save_weights_only or best.every_n_epochs > values["trainer"]["max_epochs"]:
        key = "save_weights_only" if best.save_weights_only else "every_n_epochs"
        said = "then no epoch is kept that can be tested"
        raise UserError(f"callbacks.checkpoint.{key}={getattr(best, key)}: {said}")
    if best.filename == "last":
        raise UserError("callbacks.checkpoint.filename=last: the name of the file to resume from")
    if not isinstance(last, Last):
        raise UserError("callbacks.last: without it no run can be resumed")
    last.best = best
    others = [each for each in callbacks.values() if each is not last]
    others += [watch(monitor)] if watch else []
    made = loggers.build(values["logger"], context, trust)
    given = {"default_root_dir": context.folder, "logger": made}
    # what a run resumes from is written last, when every other callback has seen the epoch
    given["callbacks"] = [*others, last]
    # not Lightning's for SLURM: several processes are always torchrun's, there too
    environment = TorchElasticEnvironment() if INSIDE else LightningEnvironment()
    given["plugins"] = [DurableIO(), environment]
    trainer = construct(values["trainer"], KINDS["trainer"], "trainer", trust, **given)
    x = torch.zeros(data.batch_size, data.seq_len, data.n_inputs)
    if trainer.world_size == 1:  # where a large network is tried sooner
        x, _ = x.to(trainer.strategy.root_device), learner.to(trainer.strategy.root_device)
    check_network(network, x, data, objective.n_values)
    # before weights are restored, which a network of another precision would round
    trainer.precision_plugin.convert_module(learner)
    learner.example_input_array = x.to(learner.dtype)
    if trainer.world_size > 1 and isinstance(data, LoaderData):
        said = "the loaders of the data are read by one process; seqlab.sources.ArrayData is shared"
        raise UserError(f"trainer.devices={values['trainer']['devices']}: {said}")
    prepare(data, objective, trainer.strategy.root_device)
    if not (values["init_from"] or values["init_head"]):
        raise UserError("init_head=false: give init_from=CKPT, whose other weights are taken")
    if (path := values["init_from"]) and not (context.folder / LAST).exists():  # a resumed run's
        start_from(path, values["init_head"], network.network if data.base else network)
    if data.base:
        network.take(data.weights)
        trainer.num_sanity_val_steps = sys.maxsize  # the untrained network may be the best
    n_chunks, limit = len(Chunks(data)), trainer.limit_train_batches
    n_chunks = min(n_chunks, limit) if type(limit) is int else int(n_chunks * limit)
    interval = trainer.val_check_interval
    if type(interval) is int and interval > n_chunks and trainer.check_val_every_n_epoch:
        said = f"an epoch has {n_chunks} calls of the training step, see data.steps_per_call"
        raise UserError(f"trainer.val_check_interval={interval}: {said}")
    for key, metric in monitored.items():
        if metric not in objective.monitors():
            raise UserError(f"{key}={metric}: one of {', '.join(objective.monitors())}")
    differ = any(split.lengths is not None for split in data.splits.values())
    if differ and "lengths" not in signature(network.forward).parameters:
        name = type(network).__name__
        raise UserError(f"model: {name}.forward takes no lengths, and the sequences differ in them")
    return Run(config, data, objective, learner, trainer, best, last)


def mode_of(objective: Objective, metric: str) -> str:
    """Which direction of a metric `split/name` is better."""
    return objective.better().get(metric.partition("/")[2], "min")


def build_steps(
    optim: dict[str, Any], network: nn.Module, given: dict[str, Any], trust: tuple | None
) -> Steps:
    """The optimiser, its schedule, and what takes their steps; `given` is for the schedule."""
    path, schedule = "optim.optimizer", None
    weights = list(network.parameters())
    optimizer = construct(optim["optimizer"], KINDS[path], path, trust, params=weights)
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UserError(f"{path}._target_=torch.optim.LBFGS: it takes several passes for a step")
    if node := optim.get("schedule"):
        path = "optim.schedule"
        schedule = construct(node, KINDS[path], path, trust, optimizer=optimizer, **given)
        try:  # a step, which may fail, of a copy, which may change
            trial = copy.deepcopy(schedule)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a step before the optimiser's
                trial.step(*([1.0] if isinstance(trial, ReduceLROnPlateau) else []))
        except (TypeError, ValueError, ArithmeticError) as error:
            raise UserError(f"{path}={node}: {error}") from error
        n_steps = given["total_steps"]
        if isinstance(schedule, OneCycleLR) and schedule.total_steps < n_steps:  # it would raise
            said = f"at least {n_steps}, the steps of the run"
            raise UserError(f"{path}.total_steps={schedule.total_steps}: {said}")
    keys = ("clip", "on_nonfinite", "average")  # an older run's config has no average
    node = {key: optim[key] for key in keys if key in optim}
    kind = "graph.GraphSteps" if optim.get("graph") else "steps.Steps"
    node["_target_"] = f"seqlab.engine.{kind}"
    return construct(node, (Steps,), "optim", None, optimizer=optimizer, schedule=schedule)


def start_from(path: str, head: bool, network: nn.Module) -> None:
    """Put the weights of the checkpoint at `path` into a network of the same kind, with or without
    those of its last layer, the `head`. Of a network on a base the inner one has and takes them."""
    contents, ours, name = read(path), network.state_dict(), type(network).__name__
    sizes, saved = contents.get("sizes"), contents["state_dict"].items()
    start = "network.network." if isinstance(sizes, dict) and sizes.get("base") else "network."
    theirs = {k.removeprefix(start): v for k, v in saved if k.startswith(start)}
    layers = [each for each in {**ours, **theirs} if head or not each.startswith("head.")]
    for layer in layers:
        found = (weights.get(layer) for weights in (theirs, ours))
        there, here = (tuple(w.shape) if torch.is_tensor(w) else "missing" for w in found)
        if there != here:
            way = "; init_head=false takes all but the head's" if layer.startswith("head.") else ""
            raise UserError(f"init_from={path}: {layer} is {there}, in this {name} {here}{way}")
    network.load_state_dict({layer: theirs[layer] for layer in layers}, strict=False)


def silence() -> None:
    """Silence what a user can do nothing about."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # tips, "GPU available: False"
    for text in (
        "The number of training batches",  # Lightning compares steps with chunks
        ".*isinstance.treespec, LeafSpec",  # and calls torch by an old name
        "The ``compute`` method of metric",  # whose sums a resumed run has restored
        "Checkpoint directory .* exists and is not empty",
        "Experiment logs directory .* exists",  # a resumed run keeps its rows
        "You're resuming from a checkpoint that ended before",  # the order follows from the seed
        "The `srun` command is available",  # and not called for
        "The dirpath has changed",  # of processes that write nothing
        ".*sync_dist=True",  # of several processes: metrics are over all of them already,
        ".*DistributedSampler",  # and so is every split
        ".*all_gather is deprecated",
        "You requested to overfit",  # the order follows from the seed
    ):
        warnings.filterwarnings("ignore", text)
    threading.excepthook = report_thread


def report_thread(args: threading.ExceptHookArgs) -> None:
    """Report an error of a thread, but not of TensorBoard's writer, which tells its caller too."""
    if not type(args.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(args)


def keep_freed_memory() -> None:
    """Have glibc keep freed buffers of up to 256 MB for the next step: returned to the system,
    they come back page by page, in a quarter of the time of a step at B=128 T=100 H=256."""
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-3, 2**28)  # M_MMAP_THRESHOLD of malloc.h
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def check_network(network: nn.Module, x: Tensor, data: SequenceData, n_values: int = 1) -> None:
    """Refuse a network that does not offer what `RecurrentNetwork` says a network must, with so
    many values for each output."""
    before = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        got = network.eval()(x)
    network.load_state_dict(before)
    network.train()
    want = (*x.shape[: 1 + data.every_step], data.n_outputs * n_values)
    asked = f"model: forward(x {tuple(x.shape)}) must return (prediction {want}, hidden), got"
    if not (isinstance(got, tuple) and len(got) == 2 and isinstance(got[0], Tensor)):
        raise UserError(f"{asked} {type(got)}")
    if got[0].shape != want:
        raise UserError(f"{asked} a prediction {tuple(got[0].shape)}")
