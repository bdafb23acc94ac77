"""One function: config in, trained run and its score out."""

import logging
import math
import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from seqlab import runs
from seqlab.callbacks import Record, versions
from seqlab.checkpoint import DurableIO
from seqlab.data import SequenceData
from seqlab.errors import UserError, explain, explain_argument, first_line
from seqlab.evaluation import as_table, compare, verdict
from seqlab.learner import Learner
from seqlab.model import layers
from seqlab.tasks import Task

#: Which kind of class each `_target_` of the config must name.
KINDS = {
    "data": SequenceData,
    "data.task": Task,
    "model": nn.Module,
    "optim.optimizer": Optimizer,
    "optim.schedule": LRScheduler,
    "trainer": L.Trainer,
    "callbacks.*": Callback,
}


@dataclass
class Run:
    """Everything a run is made of."""

    data: SequenceData
    learner: Learner
    trainer: L.Trainer


def train(cfg: DictConfig) -> float:
    """Build what the config names, fit it, test its best checkpoint and write the results.

    Args:
        cfg: the composed config of `conf/config.yaml`; `derived` is filled in here.

    Returns:
        The best value of `monitor`. In a multirun, NaN for a job that failed: what went wrong is
        told on stderr and in its results.json, and the other jobs go on.

    Raises:
        UserError, hydra.errors.HydraException: the config names something that cannot be built.
            No run directory is left then.
    """
    hydra = HydraConfig.get()
    multirun = hydra.mode == RunMode.MULTIRUN
    folder = Path(hydra.runtime.output_dir)
    overrides = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    results = {"status": "failed", "overrides": overrides}
    runs.claim(folder)
    # Lightning's own handler would end the run with exit code 0
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        run = build(cfg, folder)
        results["monitor"] = cfg.monitor  # the default follows from the data
        runs.write_results(folder, results | {"status": "running"})
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
        if not multirun:
            print_layers(run.learner)
        with log_file(folder / "train.log"):
            results |= fit_and_test(run, cfg.monitor, OmegaConf.to_container(cfg.published))
    except Exception as error:
        line = explain(error)
        if not multirun and not (folder / "config.yaml").exists():
            runs.unclaim(folder)
            raise
        results["error"] = line or f"{type(error).__name__}: {error}"
        runs.write_results(folder, results)
        if not multirun:
            raise
        if line is None:
            traceback.print_exc()
        print(f"error: {folder.name}: {results['error']}", file=sys.stderr)
        return math.nan
    runs.write_results(folder, results)
    score = results["metrics"][f"best/{cfg.monitor}"]
    if multirun:
        print(f"{folder.name}: best {cfg.monitor} {score:.4g}")
    else:
        report(results, os.path.relpath(folder))
    return score


def build(cfg: DictConfig, folder: Path) -> Run:
    """Every `instantiate` of the project: the config's classes, checked, called and connected.

    Raises:
        UserError: a `_target_` of the wrong kind, a value out of range, or parts that do not fit.
    """
    for key, kind in KINDS.items():
        check_kind(cfg, key, kind)
    if cfg.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            f"trainer.accelerator={cfg.trainer.accelerator}: PyTorch sees no GPU here; trainer=cpu"
        )
    be_calm()
    check_interpolations(cfg, "")
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
    L.seed_everything(cfg.seed, verbose=False)

    if "path" in cfg.data:  # the checkpoint will be read from other folders
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
        learner = Learner(**parts, clip=cfg.optim.clip, monitor=cfg.monitor, seed=cfg.seed)
        learner.make_optimizer(learner.network.parameters())  # `_partial_`: checked only here
    except ValidationError as error:
        raise UserError(explain_argument(error, "optim")) from error
    except (TypeError, ValueError) as error:
        raise UserError(f"optim.optimizer={given(cfg.optim.optimizer)}: {error}") from error
    check_schedule(cfg, learner)
    learner.example_input_array = torch.zeros(data.batch_size, data.seq_len, data.n_inputs)
    check_network(learner, data)
    callbacks = []
    for name, node in cfg.callbacks.items():
        if node:
            callbacks.append(instantiate(node, _convert_="all"))
            check_callback(f"callbacks.{name}", callbacks[-1], data)
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    logger.NAME_HPARAMS_FILE = "config.yaml"  # is there: Lightning writes no second one
    try:
        trainer = instantiate(
            cfg.trainer,
            _convert_="all",
            default_root_dir=folder,
            plugins=[DurableIO()],
            logger=logger,
            callbacks=[*callbacks, Record(OmegaConf.to_container(cfg, resolve=True), knobs(cfg))],
        )
    except InstantiationException as error:
        if explain(error.__cause__ or error):
            raise
        said = first_line(error.__cause__ or error)
        raise UserError(f"trainer={given(cfg.trainer)}: {said}") from error
    data.prepare(trainer.strategy.root_device)
    takes = signature(learner.network.forward).parameters
    if data.splits["train"].lengths is not None and "lengths" not in takes:
        name = type(learner.network).__name__
        raise UserError(f"model: {name}.forward takes no lengths, and the sequences differ in them")
    return Run(data, learner, trainer)


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


def check_kind(cfg: DictConfig, key: str, kind: type) -> None:
    """Refuse a `_target_` that is no class of its group's kind, before it is called."""
    group, _, rest = key.partition(".")
    keys = [f"{group}.{name}" for name in cfg[group]] if rest == "*" else [key]
    for name in keys:
        target = OmegaConf.select(cfg, f"{name}._target_")
        if OmegaConf.select(cfg, name) is None:
            continue
        try:
            found = get_object(target)
        except Exception as error:
            raise UserError(f"{name}._target_={target}: {first_line(error.__cause__)}") from error
        if not (isinstance(found, type) and issubclass(found, kind)):
            raise UserError(
                f"{name}._target_={target}: must be a subclass of {kind.__module__}.{kind.__name__}"
            )


def check_network(learner: Learner, data: SequenceData) -> None:
    """Refuse a network that does not offer what `RecurrentNetwork` says a network must."""
    x = learner.example_input_array
    shape = (*x.shape[: 1 + data.every_step], data.n_outputs)
    want = f"(prediction {shape}, hidden)"
    learner.eval()
    with torch.no_grad():
        got = learner.network(x)
    learner.train()
    if not (isinstance(got, tuple) and len(got) == 2 and isinstance(got[0], torch.Tensor)):
        raise UserError(f"model: forward(x {tuple(x.shape)}) must return {want}, got {type(got)}")
    if got[0].shape != shape:
        raise UserError(
            f"model: forward(x {tuple(x.shape)}) must return {want}, "
            f"got a prediction {tuple(got[0].shape)}"
        )


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


def fit_and_test(run: Run, monitor: str, published: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Fit, test the best checkpoint, and say what came of it: the contents of results.json. The
    figures of others, by whose they are and by metric, are rows of the table like the baselines."""
    trainer, learner, data = run.trainer, run.learner, run.data
    start, cpu = time.perf_counter(), time.process_time()
    trainer.fit(learner, data)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    measured = dict(trainer.callback_metrics)
    trainer.test(learner, data, ckpt_path="best", weights_only=True, verbose=False)
    measured |= trainer.callback_metrics
    best = trainer.checkpoint_callback
    values = {name: value.item() for name, value in measured.items()}
    rows = compare(data, data.test_dataloader()) | published
    columns, cells = as_table({"network": values, **rows})
    lines = [columns, ["---"] * len(columns), *cells]
    text = "\n".join("|".join("" if v is None else str(v) for v in line) for line in lines)
    trainer.logger.experiment.add_text("test", text)
    return {
        "status": "finished",
        "metrics": {**values, f"best/{monitor}": best.best_model_score.item()},
        "baselines": rows,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu, 1),
        "steps_per_second": round(trainer.global_step / seconds, 1),
        "parameters": sum(p.numel() for p in learner.network.parameters()),
        "best_checkpoint": os.path.relpath(best.best_model_path, trainer.default_root_dir),
        "versions": versions(),
        "git": git_revision(),
    }


def print_layers(learner: Learner) -> None:
    """The network's parts with the shapes that come out of them."""
    x, network = learner.example_input_array, learner.network
    total = sum(p.numel() for p in network.parameters())
    runs.print_table(
        f"{type(network).__name__}, {total} parameters, x {tuple(x.shape)}",
        ["part", "type", "output", "parameters"],
        layers(network, x),
    )


def report(results: dict[str, Any], folder: str) -> None:
    """The end of a run on the console: the network beside the baselines, and what to do next."""
    rows = {"network": results["metrics"], **results["baselines"]}
    runs.print_table(
        f"Test set, best of {results['epochs']} epochs "
        f"({results['steps']} steps, {results['seconds']:.0f} s)",
        *as_table(rows),
    )
    print(verdict(rows), end="\n\n")
    print(f"Look at it:       tensorboard --logdir {folder}")
    knobs = [o for o in results["overrides"] if not o.startswith("seed=")]
    command = shlex.join(["python", "train.py", "-m", *config_dir(), *knobs, "seed=0,1,2,3,4"])
    print(f"Over five seeds:  {command}")
    print(f"Use it:           seqlab predict {folder}/{results['best_checkpoint']}")


def config_dir() -> list[str]:
    """The `--config-dir` of this command line, as words of the next one."""
    sources = HydraConfig.get().runtime.config_sources
    return [
        f"--config-dir={os.path.relpath(source.path)}"
        for source in sources
        if source.provider == "command-line"
    ]


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Send this run's log lines to a file, and to stderr where no progress bar stands."""
    handlers: list[logging.Handler] = [logging.FileHandler(path)]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    if not sys.stderr.isatty():
        handlers.append(logging.StreamHandler())
    log = logging.getLogger("seqlab")
    log.setLevel(logging.INFO)
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def git_revision() -> str | None:
    """The commit of the working tree, with `+changes` if files differ; None outside git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    try:
        return subprocess.check_output(
            command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return None
