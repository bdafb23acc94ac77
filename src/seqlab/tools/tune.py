"""`seqlab tune`: a search with Optuna, of which every trial is a run of its own."""

import fcntl
import math
import os
import secrets
import shlex
import sys
import time
import warnings
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from optuna_integration import PyTorchLightningPruningCallback
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from seqlab.engine.build import resolved
from seqlab.engine.construct import KINDS, construct, objective_of
from seqlab.engine.context import RunContext
from seqlab.engine.errors import UserError, first_line
from seqlab.engine.runs import register_resolvers
from seqlab.tools.shapes import CONF
from seqlab.training import train

#: What Optuna draws the value of a key from, by key.
Space = dict[str, CategoricalDistribution | FloatDistribution | IntDistribution]


def parse(words: tuple[str, ...] | list[str]) -> tuple[Space, list[str]]:
    """Tell Hydra overrides with several values, the space, from the fixed ones.

    Raises:
        UserError: there is no space, or one that holds nothing or contradicts itself.
    """
    space, fixed = {}, {}
    for override in OverridesParser.create().parse_overrides(list(words)):
        key = override.get_key_element()
        if key in space or key in fixed:
            raise UserError(f"{override.input_line}: {key} is given twice")
        if override.is_sweep_override():
            try:
                space[key] = distribution(override)
            except ValueError as error:
                raise UserError(f"{override.input_line}: {first_line(error)}") from None
        else:
            fixed[key] = override.input_line
    if not space:
        raise UserError("nothing to search; optim.lr=tag(log,interval(1e-4,1e-1)) would do")
    return space, list(fixed.values())


def distribution(override: Override) -> CategoricalDistribution | FloatDistribution | IntDistribution:
    match sweep := override.value():
        case ChoiceSweep():
            return CategoricalDistribution(list(override.sweep_string_iterator()))
        case IntervalSweep():
            if not sweep.start < sweep.end:
                raise ValueError("its start must be below its end")
            values, step = [sweep.start, sweep.end], None
        case RangeSweep():
            values, step = list(sweep.range()), abs(sweep.step)
            if not values:
                raise ValueError("it holds no value")
        case _:
            raise ValueError("search with range, interval, choice or a list of values")
    low, high, log = min(values), max(values), "log" in sweep.tags
    if all(isinstance(value, int) for value in values):
        return IntDistribution(low, high, log, step or 1)
    return FloatDistribution(low, high, log, None if log else step)


def composed(overrides: list[str]) -> DictConfig:
    """The config of one trial.

    Raises:
        UserError: its trials would each need several processes.
        hydra.errors.HydraException: an override is wrong.
    """
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides)
    if cfg.trainer.devices not in (1, "1", "auto") or cfg.resume is not None:
        raise UserError("a trial is a new run in one process: leave out trainer.devices and resume")
    return cfg


def direction(cfg: DictConfig) -> str:
    """Optuna's word for which direction of the monitored metric is better."""
    if cfg.monitor is None:
        return "minimize"  # the loss
    values, _ = resolved(cfg)
    data = construct(values["data"], KINDS["data"], "data", None)
    better = {f"val/{k}": v for k, v in objective_of(values["loss"], data, None).better().items()}
    if cfg.monitor not in better:
        raise UserError(f"monitor={cfg.monitor}: one of {', '.join(better)}")
    return f"{better[cfg.monitor]}imize"


class JournalLock:
    """The lock of the study's file. Unlike Optuna's, which are files too, the system unlocks it
    when its worker ends, however that is."""

    def __init__(self, journal: Path):
        self.journal = journal

    def acquire(self) -> bool:
        """Wait for the lock, and cut off the line that a killed worker did not write whole."""
        self.file = self.journal.open("a+b")
        fcntl.flock(self.file, fcntl.LOCK_EX)
        end = self.file.seek(0, os.SEEK_END)
        if end and os.pread(self.file.fileno(), 1, end - 1) != b"\n":
            self.file.truncate(self.journal.read_bytes().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self.file.close()


def open_storage(url: str | None, folder: Path, heartbeat: int) -> JournalStorage | RDBStorage:
    """The file in the study's folder, or a database.

    Raises:
        UserError: there is no such database.
    """
    if url is None:
        folder.mkdir(parents=True, exist_ok=True)
        journal = folder / "journal.log"
        return JournalStorage(JournalFileBackend(str(journal), JournalLock(journal)))
    retry, attempt, shown = RetryHeartbeatStaleTrialCallback(max_retry=3), 0, url
    while True:
        try:
            shown = repr(make_url(url))  # without the password
            return RDBStorage(
                url, heartbeat_interval=heartbeat, heartbeat_stale_trial_callback=retry
            )
        except (SQLAlchemyError, StorageInternalError, ImportError) as error:
            # workers that start at once may all find no tables in a database, and all make them
            if attempt == 4 or not isinstance(error, IntegrityError | ProgrammingError):
                said = first_line(error.__cause__ or error)
                raise UserError(f"--storage={shown}: {said}") from None
        attempt += 1
        time.sleep(0.5 * attempt)


def open_study(
    words: tuple[str, ...], name: str, storage: str | None, folder: Path, heartbeat: int
) -> tuple[optuna.Study, Space, list[str]]:
    """A study, new if there is none of this name, with its space and its fixed overrides."""
    begin = "give KEY=SPACE to begin it"
    if words:
        space, fixed = parse(words)
        firsts = {key: getattr(d, "low", None) for key, d in space.items()}
