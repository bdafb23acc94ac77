"""`seqlab tune`: a search with Optuna, of which every trial is a run of its own."""

import fcntl
import math
import os
import shlex
import time
import warnings
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from omegaconf import OmegaConf, open_dict
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import (
    BaseStorage,
    RDBStorage,
    RetryHeartbeatStaleTrialCallback,
    fail_stale_trials,
)
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState
from optuna_integration import PyTorchLightningPruningCallback
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, ProgrammingError, SQLAlchemyError

from seqlab import runs
from seqlab.errors import UserError, first_line
from seqlab.shapes import CONF
from seqlab.training import train

#: Starting at once, workers may all find no tables in a database, and all make them.
ATTEMPTS = 5


def parse(words: tuple[str, ...]) -> tuple[dict[str, BaseDistribution], list[str]]:
    """Tell what is searched from what is fixed.

    Args:
        words: Hydra's overrides; those with several values are the space.

    Raises:
        UserError: there is no space, or one that holds nothing or contradicts itself.
    """
    space, fixed, keys = {}, [], set()
    for override in OverridesParser.create().parse_overrides(list(words)):
        key = override.get_key_element()
        if key in keys:
            raise UserError(f"{override.input_line}: {key} is given twice")
        keys.add(key)
        if override.is_sweep_override():
            space[key] = distribution(override)
        else:
            fixed.append(override.input_line)
    if not space:
        raise UserError("nothing to search; optim.lr=tag(log,interval(1e-4,1e-1)) would do")
    return space, fixed


def distribution(override: Override) -> BaseDistribution:
    """What Optuna draws a key's value from."""
    text, sweep = override.input_line, override.value()
    log = "log" in getattr(sweep, "tags", ())
    try:
        match sweep:
            case IntervalSweep():
                if not sweep.start < sweep.end:
                    raise ValueError("its start must be below its end")
                whole = isinstance(sweep.start, int) and isinstance(sweep.end, int)
                kind = IntDistribution if whole else FloatDistribution
                return kind(sweep.start, sweep.end, log=log)
            case RangeSweep():
                values = list(sweep.range())
                if not values:
                    raise ValueError("it holds no value")
                low, high, step = min(values), max(values), abs(sweep.step)
                whole = all(isinstance(value, int) for value in values)
                kind = IntDistribution if whole else FloatDistribution
                return kind(low, high, step=step if whole or not log else None, log=log)
            case ChoiceSweep():
                return CategoricalDistribution(list(override.sweep_string_iterator()))
    except ValueError as error:
        raise UserError(f"{text}: {first_line(error)}") from None
    raise UserError(f"{text}: search with range, interval, choice or a list of values")


def open_storage(url: str | None, folder: Path, heartbeat: int) -> BaseStorage:
    """The file in the study's folder, or a database.

    Raises:
        UserError: there is no such database.
    """
    if url is None:
        folder.mkdir(parents=True, exist_ok=True)
        journal = folder / "journal.log"
        return JournalStorage(JournalFileBackend(str(journal), JournalLock(journal)))
    try:
        shown = make_url(url).render_as_string(hide_password=True)
    except ArgumentError as error:
        raise UserError(f"--storage={url}: {first_line(error)}") from None
    for attempt in range(ATTEMPTS):
        try:
            return RDBStorage(
                url,
                heartbeat_interval=heartbeat,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=3),
            )
        except (IntegrityError, ProgrammingError) as error:
            if attempt == ATTEMPTS - 1:
                raise UserError(f"--storage={shown}: {first_line(error)}") from None
            time.sleep(0.5 * (attempt + 1))
        except (StorageInternalError, SQLAlchemyError, ImportError) as error:
            said = first_line(error.__cause__ or error)
            raise UserError(f"--storage={shown}: {said}") from None
    raise AssertionError


class JournalLock:
    """Of the study's file: the system lets go of it when its worker ends, however that is."""

    def __init__(self, journal: Path):
        self.journal = journal

    def acquire(self) -> bool:
        """Wait for the lock, and take back the line that a killed worker did not write whole."""
        self.file = self.journal.open("a+b")
        fcntl.flock(self.file, fcntl.LOCK_EX)
        end = self.file.seek(0, os.SEEK_END)
        self.file.seek(max(end - 1, 0))
        if self.file.read() not in (b"", b"\n"):
            self.file.truncate(self.journal.read_bytes().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Let the next one have it."""
        self.file.close()


def search(
    words: tuple[str, ...],
    name: str,
    storage: str | None,
    trials: int,
    timeout: float | None,
    seed: int | None,
    heartbeat: int,
) -> tuple[optuna.Study, Path]:
    """Work on a study until it has so many trials; other workers count too.

    Args:
        words: the space and fixed overrides; none: those of the study.
        name: of the study, and of its folder under outputs/tune/.
        storage: a database's URL; None: a file in that folder.
        trials: how many the study is to have, failed and pruned ones included.
        timeout: seconds after which this worker starts no other.
        seed: of the draws; None: another each time.
        heartbeat: seconds between two signs of life of a worker, in a database.

    Raises:
        UserError: an unknown study, another space than the study's, no such storage, a mistake in
            the config.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    if not CONF.is_dir():
        raise UserError("the config files are not beside this package: install it with pip -e")
    space, fixed = parse(words) if words else ({}, [])
    if words:
        compose_run([*fixed, *(f"{key}={first(d)}" for key, d in space.items())])
    folder = Path("outputs", "tune", runs.run_name(0, name).partition("-")[2])
    if not words and storage is None and not (folder / "journal.log").exists():
        raise UserError(f"--study={name}: no such study in {folder}; give KEY=SPACE to begin it")
    store = open_storage(storage, folder, heartbeat)
    try:
        if words:
            study = optuna.create_study(storage=store, study_name=name, load_if_exists=True)
        else:
            study = optuna.load_study(storage=store, study_name=name)
    except KeyError:
        raise UserError(f"--study={name}: no such study; give KEY=SPACE to begin it") from None
    known = study.user_attrs.get("overrides")
    if words and known is None:
        study.set_user_attr("overrides", list(words))
    elif words and sorted(known) != sorted(words):
        raise UserError(f"--study={name}: has another space, {shlex.join(known)}; name another")
    elif not words:
        space, fixed = parse(tuple(known))
    drawn = None if seed is None else seed + len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=drawn, constant_liar=True)
    study.pruner = optuna.pruners.MedianPruner()
    folder.mkdir(parents=True, exist_ok=True)

    mine = 0

    def objective(trial: optuna.Trial) -> float:
        nonlocal mine
        mine = trial.number
        overrides = [*fixed, *(f"{key}={draw(trial, key, d)}" for key, d in space.items())]
        trial.set_user_attr("overrides", overrides)
        cfg = compose_run(overrides, folder / f"{trial.number}-{runs.unique()}")
        with open_dict(cfg):
            del cfg["hydra"]
        try:
            return train(cfg, partial(PyTorchLightningPruningCallback, trial))
        except SystemExit:  # a signal: the trial is for whoever comes next
            study.tell(trial, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)
            raise

    seen: dict[int, float] = {}
    until = math.inf if timeout is None else time.monotonic() + timeout
    while time.monotonic() < until:
        if storage:
            fail_stale_trials(study)
            fail_unbegun(study, seen, 2 * heartbeat)
        states = count(study)
        waiting, running = states[TrialState.WAITING], states[TrialState.RUNNING]
        if not waiting and done(study) + (running if storage else 0) >= trials:
            if not (storage and running):
                break
            time.sleep(1)  # for one that may be lost, and then is to be tried again
        else:
            try:
                study.optimize(objective, n_trials=1, catch=(Exception,))
            except Exception:
                # it was slow, taken for lost, and is another worker's by now
                if not study.get_trials(deepcopy=False)[mine].state.is_finished():
                    raise
            runs.unique.cache_clear()
    return study, folder


def fail_unbegun(study: optuna.Study, seen: dict[int, float], grace: float) -> None:
    """Fail the trials whose workers were gone before the first heartbeat.

    Args:
        study: the study.
        seen: when this worker first saw each such trial, by its number; filled in here.
        grace: seconds that a trial is given to begin.
    """
    now = time.monotonic()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if "overrides" not in trial.user_attrs and now - seen.setdefault(trial.number, now) > grace:
            with suppress(UpdateFinishedTrialError, ValueError):
                study.tell(trial.number, state=TrialState.FAIL)


def count(study: optuna.Study) -> Counter:
    return Counter(trial.state for trial in study.get_trials(deepcopy=False))


def done(study: optuna.Study) -> int:
    """How many trials have come to an end, those tried again not counted twice."""
    trials = study.get_trials(deepcopy=False)
    retried = {number for t in trials for number in t.system_attrs.get("retry_history", [])}
    return sum(t.state.is_finished() and t.number not in retried for t in trials)


def first(space: BaseDistribution) -> Any:
    """A value of a space, to try a config with."""
    return space.choices[0] if isinstance(space, CategoricalDistribution) else space.low


def draw(trial: optuna.Trial, key: str, space: BaseDistribution) -> Any:
    """The next value of a key to try."""
    match space:
        case CategoricalDistribution():
            return trial.suggest_categorical(key, space.choices)
        case IntDistribution():
            return trial.suggest_int(key, space.low, space.high, step=space.step, log=space.log)
    return trial.suggest_float(key, space.low, space.high, step=space.step, log=space.log)


def compose_run(overrides: list[str], folder: Path | None = None) -> Any:
    """The config of a run, and Hydra told of it as of a job of a multirun.

    Raises:
        UserError: its trials would each need several processes.
        hydra.errors.HydraException: an override is wrong.
    """
    runs.register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [*overrides, "hydra.mode=MULTIRUN"], return_hydra_config=True)
    if cfg.trainer.devices not in (1, "1", "auto") or cfg.resume is not None:
        raise UserError("a trial is a new run in one process: leave out trainer.devices and resume")
    if folder:
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(folder.absolute())
            cfg.hydra.sweep.dir = str(folder.parent)
            cfg.hydra.job.name = "train"
        OmegaConf.set_readonly(cfg.hydra, False)
        HydraConfig.instance().set_config(cfg)
    return cfg


def report(study: optuna.Study, folder: Path) -> dict[str, Any]:
    """What came of a search, with its pictures drawn."""
    states = count(study)
    found: dict[str, Any] = {state.name.lower(): states[state] for state in TrialState}
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if complete:
        best = study.best_trial
        command = shlex.join(["python", "train.py", *best.user_attrs["overrides"]])
        found |= {"best": best.value, "trial": best.number, "params": best.params}
        found |= {"command": command, "pictures": draw_study(study, folder, len(complete))}
    return found


def draw_study(study: optuna.Study, folder: Path, complete: int) -> list[str]:
    """History, importance of the knobs, parallel coordinates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    drawn = [("history", plots.plot_optimization_history)]
    if complete > 1:
        drawn.append(("importance", plots.plot_param_importances))
        drawn.append(("parallel", plots.plot_parallel_coordinate))
    files = []
    for name, plot in drawn:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figure = plot(study).figure
            figure.set_size_inches(8, 5)
            figure.savefig(folder / f"{name}.png", bbox_inches="tight")
        pyplot.close(figure)
        files.append(os.path.join(folder, f"{name}.png"))
    return files
