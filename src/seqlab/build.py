"""Builds everything that a config names: the one place where its classes are called.

What a class would complain of late, or not at all, is checked before.
"""

import copy
import ctypes
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from omegaconf.resolvers import oc
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from seqlab.callbacks import Record
from seqlab.checkpoint import DurableIO
from seqlab.data import SequenceData
from seqlab.errors import UserError, explain, explain_argument, first_line
from seqlab.launch import INSIDE
from seqlab.learner import Learner
from seqlab.runs import register_resolvers
from seqlab.tasks import Task

#: Which kind of class a `_target_` of the config must name: in these places,
KINDS = {
    "data": (SequenceData,),
    "model": (nn.Module,),
    "optim.optimizer": (Optimizer,),
    "optim.schedule": (LRScheduler,),
    "trainer": (L.Trainer,),
}
LATER = ("optim.optimizer", "optim.schedule")
#: and further inside of each group.
INNER = {
    "data": (Task, nn.Module),
    "model": (nn.Module,),
    "optim": (Optimizer, LRScheduler),
    "trainer": (Strategy, Profiler, timedelta),
    "callbacks": (Callback,),
}

ANY = ConfigDict(arbitrary_types_allowed=True)


@dataclass
class Run:
    """Everything a run is made of."""

    config: dict[str, Any]
    data: SequenceData
    learner: Learner
    trainer: L.Trainer
    record: Record


def build(cfg: DictConfig, folder: Path, more: Sequence[Callable[[str], Callback]] = ()) -> Run:
    """Every `instantiate` of the project: the config's classes, checked, called and connected.

    Args:
        cfg: the composed config; `derived` is filled in.
        folder: the run's directory.
        more: from the monitored metric's name to a callback beside the config's.

    Raises:
        UserError: a `_target_` of the wrong kind, a value out of range, or parts that do not fit.
    """
    for group in INNER:
        check_kinds(cfg, group)
    if cfg.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            f"trainer.accelerator={cfg.trainer.accelerator}: PyTorch sees no GPU here; trainer=cpu"
        )
    be_calm()
    check_interpolations(cfg, "")
    check_devices(cfg)
    if type(cfg.seed) is not int or not 0 <= cfg.seed < 2**32:
        raise UserError(f"seed={cfg.seed}: an integer from 0 to 2**32 - 1")
    for key in ("threads", "trainer.log_every_n_steps", "trainer.max_epochs"):
        value = OmegaConf.select(cfg, key)
        if type(value) is not int or value < 1:
            raise UserError(f"{key}={value}: an integer of at least 1")
    published = OmegaConf.to_container(cfg, resolve=False)["published"]
    try:
        TypeAdapter(dict[str, dict[str, float]]).validate_python(published)
    except ValidationError:
        raise UserError(
            f"published={published}: give whose figures, and these by metric, as in "
            "{LSTM: {test/mse: 0.1}}"
        ) from None
    torch.set_num_threads(cfg.threads)
    keep_freed_memory()
    L.seed_everything(cfg.seed, verbose=False)

    # the checkpoint will be read from other folders
    given_path = "path" in cfg.data and not OmegaConf.is_interpolation(cfg.data, "path")
    if given_path and type(OmegaConf.select(cfg, "data.path")) is str:
        cfg.data.path = os.path.abspath(cfg.data.path)
    data = instantiate(cfg.data, _convert_="all")
    cfg.derived.n_inputs, cfg.derived.n_outputs = data.n_inputs, data.n_outputs
    cfg.derived.every_step, cfg.derived.loss = data.every_step, data.objective.loss_name
    check_monitor("monitor", cfg.monitor, data)
    cfg.derived.n_steps = cfg.trainer.max_epochs * data.steps_per_epoch
    parts = {
        "network": instantiate(cfg.model, _convert_="all"),
        "optimizer": instantiate(cfg.optim.optimizer, _convert_="all"),
        "schedule": instantiate(cfg.optim.schedule, _convert_="all"),
    }
    try:
        rest = {"clip": cfg.optim.clip, "on_nonfinite": cfg.optim.on_nonfinite}
        learner = Learner(**parts, **rest, monitor=cfg.monitor, seed=cfg.seed)
        learner.make_optimizer(learner.network.parameters())  # `_partial_`: checked only here
    except ValidationError as error:
        raise UserError(explain_argument(error, "optim")) from error
    except (TypeError, ValueError) as error:
        raise UserError(f"optim.optimizer={given(cfg.optim.optimizer)}: {error}") from error
    check_schedule(cfg, learner)
    learner.example_input_array = torch.zeros(data.batch_size, data.seq_len, data.n_inputs)
    check_network(learner, data)
    callbacks = []
    check_types("trainer", cfg.trainer)
    for name, node in cfg.callbacks.items():
        if node:
            check_types(f"callbacks.{name}", node)
            callbacks.append(instantiate(node, _convert_="all"))
            check_callback(f"callbacks.{name}", callbacks[-1], data)
    if not any(
        isinstance(each, ModelCheckpoint) and each.monitor and each.save_top_k for each in callbacks
    ):
        raise UserError("callbacks.checkpoint: without it no run knows its best epoch")
    config = resolved(cfg)
    record = Record(config, knobs(cfg))
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    logger.NAME_HPARAMS_FILE = "config.yaml"  # is there: Lightning writes no second one
    # not Lightning's for SLURM: several processes are always torchrun's, there too
    elastic = TorchElasticEnvironment.detect()
    environment = TorchElasticEnvironment() if elastic else LightningEnvironment()
    try:
        trainer = instantiate(
            cfg.trainer,
            _convert_="all",
            default_root_dir=folder,
            plugins=[DurableIO(), environment],
            logger=logger,
            callbacks=[*callbacks, record, *(make(cfg.monitor) for make in more)],
        )
    except InstantiationException as error:
        if explain(error.__cause__ or error):
            raise
        said = first_line(error.__cause__ or error)
        raise UserError(f"trainer={given(cfg.trainer)}: {said}") from error
    # Lightning's handlers would send to other ranks from inside, and end with exit code 0
    trainer._signal_connector.register_signal_handlers = lambda: None
    data.prepare(trainer.strategy.root_device)
    takes = signature(learner.network.forward).parameters
    if data.splits["train"].lengths is not None and "lengths" not in takes:
        name = type(learner.network).__name__
        raise UserError(f"model: {name}.forward takes no lengths, and the sequences differ in them")
    return Run(config, data, learner, trainer, record)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain values; what comes from the environment stays the `${oc.env:...}` that
    asks for it, since it may be a secret, or the `${torchrun:...}`, since it may be another when
    the run is resumed."""
    for name in ("oc.env", "torchrun"):
        OmegaConf.register_new_resolver(
            name,
            lambda *words, name=name: f"${{{name}:{','.join(map(str, words))}}}",
            replace=True,
        )
    try:
        return OmegaConf.to_container(cfg, resolve=True)
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
        register_resolvers()


def knobs(cfg: DictConfig, prefix: str = "") -> dict[str, Any]:
    """What one turns: the values given in data, model, optim and seed, less those that follow
    from others by interpolation, and file names."""
    found = {}
    for key in cfg if prefix else ("data", "model", "optim", "seed"):
        if OmegaConf.is_interpolation(cfg, key) or key.startswith("_") or key == "path":
            continue
        if isinstance(cfg[key], DictConfig):
            found |= knobs(cfg[key], f"{prefix}{key}.")
        elif cfg[key] is not None:
            found[prefix + key] = cfg[key]
    return found


def be_calm() -> None:
    """Silence what a user can do nothing about."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # tips, "GPU available: False"
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # what it raises, it also logs
    # Lightning compares a number of steps with a number of calls; and calls torch's old names
    warnings.filterwarnings("ignore", "The number of training batches")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec")
    # of a resumed run: the order of batches and the sums of metrics are restored, by other means
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before")
    warnings.filterwarnings("ignore", "The ``compute`` method of metric")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", "The `srun` command is available")  # and not called for
    warnings.filterwarnings("ignore", "The dirpath has changed")  # of those that write nothing
    # of several processes: metrics are already over all of them, and so is every split
    warnings.filterwarnings("ignore", ".*sync_dist=True")
    warnings.filterwarnings("ignore", ".*DistributedSampler")
    warnings.filterwarnings("ignore", ".*all_gather is deprecated")


def keep_freed_memory() -> None:
    """Have glibc keep freed buffers of up to 256 MB for the next step: given back to the system,
    they come again page by page, for a quarter of the time of a step at B=128 T=100 H=256."""
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(mmap_threshold, 2**28)
        mallopt(trim_threshold, 2**31 - 1)


def check_devices(cfg: DictConfig) -> None:
    """Refuse more processes than the machine has places for, than can share a batch, or others
    than torchrun started, and a precision that the processor has no LSTM in."""
    accelerator, devices = cfg.trainer.accelerator, cfg.trainer.devices
    # Lightning takes bfloat16 for float16 on a CPU
    mixed = str(cfg.trainer.get("precision")) in ("16-mixed", "16", "bf16-mixed", "bf16")
    if mixed and accelerator == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise UserError(
            f"trainer.precision={cfg.trainer.precision}: this processor has no bfloat16; 32-true"
        )
    if type(devices) is not int:
        return
    nodes = cfg.trainer.get("num_nodes", 1)
    here = torch.cuda.device_count() if accelerator in ("gpu", "cuda") else os.cpu_count()
    if devices > here:
        raise UserError(f"trainer.devices={devices}: this machine has {here}")
    if INSIDE:
        started = [int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")]
        if [devices, nodes] != started:
            raise UserError(
                f"trainer.devices={devices}, trainer.num_nodes={nodes}: torchrun started "
                f"{started[0]} on each of {started[1]}, as trainer=ddp finds out"
            )
    elif nodes != 1:
        raise UserError(f"trainer.num_nodes={nodes}: start the run with torchrun on each of them")
    ranks = devices * nodes
    if type(cfg.data.batch_size) is int and cfg.data.batch_size % ranks:
        raise UserError(f"data.batch_size={cfg.data.batch_size}: must be a multiple of {ranks}")


def check_kinds(cfg: DictConfig, path: str) -> None:
    """Refuse a `_target_` that is no class of its place's kind, before any is called."""
    try:
        node = OmegaConf.select(cfg, path)
    except OmegaConfBaseException:
        return  # it is not there yet, or its interpolation is wrong, and told of later
    if not isinstance(node, DictConfig):
        return
    kinds = KINDS.get(path, INNER[path.partition(".")[0]])
    if "_target_" in node or path in KINDS:
        target = node.get("_target_")
        try:
            found = get_object(target)
        except Exception as error:
            said = first_line(error.__cause__ or error)
            raise UserError(f"{path}._target_={target}: {said}") from error
        if not (isinstance(found, type) and issubclass(found, kinds)):
            names = " or ".join(f"{kind.__module__}.{kind.__name__}" for kind in kinds)
            raise UserError(f"{path}._target_={target}: must be a subclass of {names}")
        # the optimiser and its schedule are given the rest of their arguments later
        flags = {"_target_": target} | ({"_partial_": True} if path in LATER else {})
        for key in node:
            if str(key)[:1] == "_" and flags.get(key) != node[key]:
                raise UserError(f"{path}.{key}={node[key]}: {flags.get(key, 'no key to set')}")
    for key in node:
        check_kinds(cfg, f"{path}.{key}")


def check_network(learner: Learner, data: SequenceData) -> None:
    """Refuse a network that does not offer what `RecurrentNetwork` says a network must."""
    network, x = learner.network, learner.example_input_array
    before = copy.deepcopy(network.state_dict())
    for training in (False, True) if data.every_step == "training" else (False,):
        with torch.no_grad():
            got = network.train(training)(x)
        asked = f"model: forward(x {tuple(x.shape)})" + " in training mode" * training
        every_step = training or data.every_step == "always"
        want = (*x.shape[: 1 + every_step], data.n_outputs)
        if not (isinstance(got, tuple) and len(got) == 2 and isinstance(got[0], torch.Tensor)):
            raise UserError(f"{asked} must return (prediction {want}, hidden), got {type(got)}")
        if got[0].shape != want:
            raise UserError(
                f"{asked} must return (prediction {want}, hidden), "
                f"got a prediction {tuple(got[0].shape)}"
            )
    network.load_state_dict(before)  # in training mode a BatchNorm counts what it saw
    network.train()


def given(node: DictConfig) -> dict[str, Any]:
    """The arguments that a part of the config gives its class."""
    return {key: value for key, value in node.items() if key[0] != "_"}


def check_interpolations(node: DictConfig, prefix: str) -> None:
    """Refuse an interpolation of a key that is not there, by the name of the key that asks."""
    for key in node:
        try:
            value = node[key]
        except (MissingMandatoryValue, InterpolationToMissingValueError):
            continue
        except OmegaConfBaseException as error:
            raw = OmegaConf.to_container(node, resolve=False)[key]
            raise UserError(f"{prefix}{key}={raw}: {first_line(error)}") from error
        if isinstance(value, DictConfig):
            check_interpolations(value, f"{prefix}{key}.")


def check_schedule(cfg: DictConfig, learner: Learner) -> None:
    """Refuse values with which the schedule cannot take a step."""
    if learner.make_schedule is None:
        return
    try:
        schedule = learner.make_schedule(learner.make_optimizer(learner.network.parameters()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a step before the optimiser's
            schedule.step(*([1.0] if isinstance(schedule, ReduceLROnPlateau) else []))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"optim.schedule={given(cfg.optim.schedule)}: {error}") from error


def check_types(path: str, node: DictConfig) -> None:
    """Refuse an argument that is not of the type which its class, one of Lightning's, states."""
    types = get_type_hints(get_object(node._target_).__init__)
    for key, value in OmegaConf.to_container(node, resolve=True).items():
        if key in types and not isinstance(value, dict):
            try:
                TypeAdapter(types[key], config=ANY).validate_python(value, strict=True)
            except ValidationError as error:
                said = " or ".join(dict.fromkeys(each["msg"] for each in error.errors()))
                raise UserError(f"{path}.{key}={value}: {said.lower()}") from None


def check_monitor(key: str, monitor: str, data: SequenceData) -> None:
    """Refuse to monitor what the data's objective does not measure, or where more is better."""
    if monitor not in data.objective.monitors:
        raise UserError(f"{key}={monitor}: one of {', '.join(data.objective.monitors)}")


def check_callback(key: str, callback: Callback, data: SequenceData) -> None:
    """Refuse what Lightning's callbacks would notice only in the run."""
    monitor, patience = getattr(callback, "monitor", None), getattr(callback, "patience", 0)
    if monitor is not None:
        check_monitor(f"{key}.monitor", monitor, data)
    if type(patience) is not int or patience < 0:
        raise UserError(f"{key}.patience={patience}: an integer of at least 0")
