"""`seqlab tune`: a search with Optuna, of which every trial is a run of its own."""

import fcntl
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Sweep
from omegaconf import DictConfig
from optuna import exceptions, storages
from optuna.trial import Trial, TrialState
from optuna_integration import PyTorchLightningPruningCallback
from sqlalchemy import exc, make_url

from seqlab.engine.build import mode_of, resolved
from seqlab.engine.construct import KINDS, construct, objective_of
from seqlab.engine.context import RunContext
from seqlab.engine.errors import UserError, first_line
from seqlab.engine.runs import register_resolvers
from seqlab.tools.shapes import CONF
from seqlab.training import train


def parse(words: list[str], example: Trial) -> Callable[[Trial], list[str]]:
    """Return what draws the overrides of a trial; some of `words` have several values."""
    space, fixed = {}, {}
    for override in OverridesParser.create().parse_overrides(words):
        key, text = override.get_key_element(), override.input_line
        try:
            if key in space or key in fixed:
                raise ValueError(f"{key} is given twice")
            if override.is_sweep_override():
                space[key] = partial(suggestion(override), name=key)
                space[key](example)
            else:
                fixed[key] = text
        except ValueError as error:
            raise UserError(f"{text}: {first_line(error)}") from None
    if not space:
        raise UserError("nothing to search; optim.lr=tag(log,interval(1e-4,1e-1)) would do")
    return lambda trial: [*fixed.values(), *(f"{key}={space[key](trial)}" for key in space)]


def suggestion(override: Override) -> Callable[..., Any]:
    """The method of a trial that draws one of the values that an override gives."""
    sweep = override.value()
    if not isinstance(sweep, Sweep):
        raise ValueError("search with range, interval, choice or a list of values")
    if override.is_choice_sweep():
        return partial(Trial.suggest_categorical, choices=list(override.sweep_string_iterator()))
    step, values = None, [sweep.start, getattr(sweep, "end", None)]
    if override.is_range_sweep():
        step, values = sweep.step, list(sweep.range())
    if len(values) < 2 or values[0] >= values[-1]:
        raise ValueError("its start must be below its end, and two values in it")
    options = {"low": values[0], "high": values[-1], "log": "log" in sweep.tags}
    if all(isinstance(value, int) for value in values):
        return partial(Trial.suggest_int, **options, step=step or 1)
    return partial(Trial.suggest_float, **options, step=None if options["log"] else step)


def composed(overrides: list[str]) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides)
    if cfg.trainer.devices not in (1, "1", "auto") or cfg.resume is not None:
        raise UserError("a trial is a new run in one process: leave out trainer.devices and resume")
    return cfg


def direction(cfg: DictConfig) -> str:
    """Optuna's word for which direction is better of what a config monitors."""
    values, _ = resolved(cfg)
    data = construct(values["data"], KINDS["data"], "data", None)
    objective = objective_of(values.get("loss"), data, None)
    return f"{mode_of(objective, str(cfg.monitor))}imize"


class JournalLock:
    """Keeps other workers out of a study's file. The system opens it when its worker is killed."""

    def __init__(self, journal: Path):
        self.journal = journal

    def acquire(self) -> None:
        """Wait for the lock, and cut off a line that a killed worker did not write whole."""
        self.file = self.journal.open("a+b")
        fcntl.flock(self.file, fcntl.LOCK_EX)
        self.file.truncate(self.journal.read_bytes().rfind(b"\n") + 1)

    def release(self) -> None:
        self.file.close()


def open_storage(url: str | None, folder: Path, heartbeat: int) -> storages.BaseStorage:
    """A database, or the file in the study's folder."""
    if url is None:
        path, lock = folder / "journal.log", JournalLock(folder / "journal.log")
        return storages.JournalStorage(storages.journal.JournalFileBackend(str(path), lock))
    retry, shown = storages.RetryHeartbeatStaleTrialCallback(3), url
    for pause in (0.5, 1, 1.5, 2, None):
        try:
            shown = repr(make_url(url))  # without the password
            options = {"heartbeat_interval": heartbeat, "heartbeat_stale_trial_callback": retry}
            return storages.RDBStorage(url, **options)
        except (exc.SQLAlchemyError, exceptions.StorageInternalError, ImportError) as error:
            # workers that start at once may all find no tables in a database, and all make them
            if pause is None or not isinstance(error, exc.IntegrityError | exc.ProgrammingError):
                said = first_line(error.__cause__ or error)
                raise UserError(f"--storage={shown}: {said}") from None
        time.sleep(pause)


def search(
    words: tuple[str, ...], name: str, storage: str | None, trials: int,
    timeout: float | None, seed: int | None, heartbeat: int,
) -> tuple[optuna.Study, Path]:  # fmt: skip
    """Work on a study until it has so many trials. Returns the study and its folder.

    Args:
        words: the space and fixed overrides; none: those of the study.
        name: of the study, and of its folder under outputs/tune/.
        storage: a database's URL; None: a file in that folder.
        trials: how many the study is to have, other workers', failed and pruned ones included.
        timeout: seconds after which this worker starts no other.
        seed: of the draws; None: another each time.
        heartbeat: seconds between two signs of life of a worker, in a database.

    Raises:
        UserError: a mistake in the words, the study's name or the storage.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=exceptions.ExperimentalWarning)
    folder, make = Path("outputs", "tune", name.replace("/", "_")[:118]), optuna.load_study
    example = optuna.create_study(sampler=optuna.samplers.RandomSampler(0)).ask()
    if words:
        way = direction(composed(parse(list(words), example)(example)))
        make = partial(optuna.create_study, direction=way, load_if_exists=True)
    try:
        if words or storage:
            folder.mkdir(parents=True, exist_ok=True)
        study = make(storage=open_storage(storage, folder, heartbeat), study_name=name)
    except (KeyError, FileNotFoundError):
        raise UserError(f"--study={name}: no such study; give KEY=SPACE to begin it") from None
    known = study.user_attrs.get("overrides", list(words))
    if words and sorted(known) != sorted(words):
        raise UserError(f"--study={name}: has another space, {shlex.join(known)}; name another")
    study.set_user_attr("overrides", known)
    draw = parse(known, example)
    number = None if seed is None else seed + len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=number, constant_liar=True)

    def objective(trial: Trial) -> float:
        trial.set_user_attr("begun", trial.number)  # a retried trial has the attributes of the lost
        trial.set_user_attr("overrides", overrides := draw(trial))
        run = folder.absolute() / f"{trial.number}-{time.time_ns() >> 20:x}"
        context = RunContext(run, overrides, folder, again=shlex.join(["seqlab", *sys.argv[1:]]))
        watch = partial(PyTorchLightningPruningCallback, trial)
        try:
            return train(composed(overrides), context, watch)
        except SystemExit:  # a signal: the trial is for whoever comes next
            study.tell(trial, state=TrialState.FAIL)
            storages.RetryHeartbeatStaleTrialCallback()(study, study.trials[trial.number])
            raise

    start, seen = time.monotonic(), {}
    while timeout is None or time.monotonic() < start + timeout:
        storages.fail_stale_trials(study)
        known, now = study.get_trials(deepcopy=False), time.monotonic()
        retried = {number for t in known for number in t.system_attrs.get("retry_history", [])}
        # in a file nobody knows which of those that run are of killed workers
        left_out = () if storage else (TrialState.RUNNING,)
        states = {t.number: t.state for t in known if t.number not in retried if t.state not in left_out}
        # and in a database one may be gone before its first heartbeat
        running = (t for t in found if t.state == TrialState.RUNNING)
