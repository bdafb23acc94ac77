"""`seqlab tune`: a search with Optuna, of which every trial is a run of its own."""

import json
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import click
import optuna
from click.core import ParameterSource
from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Sweep
from omegaconf import DictConfig, OmegaConf
from optuna import exceptions, storages
from optuna.storages import RetryHeartbeatStaleTrialCallback as Retry
from optuna.trial import FrozenTrial, Trial, TrialState
from optuna_integration import PyTorchLightningPruningCallback as Pruning
from sqlalchemy import exc, make_url

from seqlab.engine import usage
from seqlab.engine.build import mode_of
from seqlab.engine.construct import parts_of, untrusted
from seqlab.engine.context import RunContext, command
from seqlab.engine.errors import UserError, first_line
from seqlab.engine.runs import register_resolvers
from seqlab.engine.settings import resolved
from seqlab.tools.shapes import CONF
from seqlab.training import train

#: Where the folders of studies are.
STUDIES = Path("outputs", "tune")


def parse(words: list[str], example: Trial) -> Callable[[Trial], list[str]]:
    """Return what chooses a trial's overrides; some of `words` have several values."""
    settings = {}
    for override in OverridesParser.create().parse_overrides(words):
        key = override.get_key_element()
        if key in settings:
            raise UserError(f"{override.input_line}: {key} is given twice")
        try:
            settings[key] = setting(override, key)
            settings[key](example)
        except ValueError as error:
            raise UserError(f"{override.input_line}: {first_line(error)}") from None
    if not example.params:
        raise UserError("nothing to search; optim.lr=tag(log,interval(1e-4,1e-1)) would do")
    return lambda trial: [choose(trial) for choose in settings.values()]


def setting(override: Override, key: str) -> Callable[[Trial], str]:
    """Return what sets a key to one of the values that an override gives it."""
    sweep = override.value()
    if not isinstance(sweep, Sweep):
        return lambda t: override.input_line
    if override.is_choice_sweep():
        choices = list(override.sweep_string_iterator())
        with suppress(ValueError):  # pictures show numbers in their order
            choices = list(map(int, choices))
        return lambda t: f"{key}={t.suggest_categorical(key, choices)}"
    values = list(sweep.range()) if override.is_range_sweep() else [sweep.start, sweep.end]
    if len(values) < 2 or values[0] >= values[-1]:
        raise ValueError("its start must be below its end, and two values in it")
    low, high, log = values[0], values[-1], "log" in sweep.tags
    step = getattr(sweep, "step", None)  # an interval has none
    if all(isinstance(value, int) for value in values):
        return lambda t: f"{key}={t.suggest_int(key, low, high, step=step or 1, log=log)}"
    return lambda t: f"{key}={t.suggest_float(key, low, high, step=None if log else step, log=log)}"


def composed(overrides: list[str]) -> tuple[DictConfig, dict[str, str | None]]:
    """The config of a trial, and the choice of each config group."""
    register_resolvers()
    cfg, choices = usage.composed([CONF], overrides)
    OmegaConf.set_struct(cfg, True)
    if cfg.trainer.devices not in (1, "1", "auto") or cfg.resume is not None:
        raise UserError("a trial is a new run in one process: leave out trainer.devices and resume")
    return cfg, {key: choice for key, choice in choices.items() if not key.startswith("hydra")}


def lock(path: Path) -> FileLock:
    """A lock for something of a study. The system opens it when the worker that holds it ends."""
    return FileLock(f"{path}.lock", fallback_to_soft=False)


class JournalLock:
    """The lock of a study's file."""

    def __init__(self, journal: Path):
        self.journal, self.lock = journal, lock(journal)
        self.release = self.lock.release

    def acquire(self) -> None:
        """Wait for the lock, and cut off a line that a killed worker did not write whole."""
        self.lock.acquire()
        os.truncate(self.journal, self.journal.read_bytes().rfind(b"\n") + 1)


def open_storage(url: str | None, folder: Path, heartbeat: int) -> storages.BaseStorage:
    """A database, or the file in the study's folder."""
    if url is None:
        path, lock = folder / "journal.log", JournalLock(folder / "journal.log")
        return storages.JournalStorage(storages.journal.JournalFileBackend(str(path), lock))
    retry, shown = Retry(3), url
    for pause in (0.5, 1, 1.5, 2, None):
        try:
            shown = repr(make_url(url))  # without the password
            options = {"heartbeat_interval": heartbeat, "heartbeat_stale_trial_callback": retry}
            return storages.RDBStorage(url, **options)
        except (exc.SQLAlchemyError, exceptions.StorageInternalError, ImportError) as err:
            # workers that start at once may all find no tables in a database, and all make them
            if pause is None or not isinstance(err, exc.IntegrityError | exc.ProgrammingError):
                raise UserError(f"--storage={shown}: {first_line(err.__cause__ or err)}") from None
        time.sleep(pause)


def search(
    words: tuple[str, ...], name: str, storage: str | None, trials: int,
    timeout: float | None, seed: int | None, heartbeat: int,
) -> tuple[optuna.Study, Path]:  # fmt: skip
    """Work on a study until it has so many `trials`, those of others, failed and pruned ones
    included, or until `timeout` seconds have passed. Returns it and its folder. The options are
    those of `seqlab tune`; without `words` the space is the study's, and without words and a name
    on the command line the studies are listed.

    Raises:
        UserError: a mistake in the words, the study's name or the storage.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=exceptions.ExperimentalWarning)
    typed = click.get_current_context()
    if not words and typed.get_parameter_source("study") is ParameterSource.DEFAULT:
        list_studies(storage, typed.params["as_json"])
        typed.exit()
    if not name.isprintable() or re.search(r"[\\:]|(^|/)\s*\.{0,2}\s*(/|$)", name):
        raise UserError(f"--study={name}: give it a name that a folder can have")
    folder, make = STUDIES / name.replace("/", "_")[:118], optuna.load_study
    example = optuna.create_study(sampler=optuna.samplers.RandomSampler(0)).ask()
    if words:
        cfg, _ = composed(parse(list(words), example)(example))
        values, _ = resolved(cfg)
        _, measure, _ = parts_of(values, None)
        way = mode_of(measure, str(cfg.monitor))
        make = partial(optuna.create_study, direction=f"{way}imize", load_if_exists=True)
    try:
        if words or storage:
            folder.mkdir(parents=True, exist_ok=True)
        study = make(storage=open_storage(storage, folder, heartbeat), study_name=name)
    except (KeyError, FileNotFoundError):
        raise UserError(f"--study={name}: no such study; give KEY=SPACE to begin it") from None
    its = study.user_attrs.get("overrides", list(words))
    if words and sorted(its) != sorted(words):
        raise UserError(f"--study={name}: has another space, {shlex.join(its)}; name another")
    again = f"--study={name}: give its KEY=SPACE again to say that its code may run"
    if not words and any(word.lstrip("+~").startswith("hydra") for word in its):
        raise UserError(f"{again}: it changes where Hydra finds config files")
    study.set_user_attr("overrides", its)
    choose = parse(its, example)
    number = None if seed is None else seed + len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=number, constant_liar=True)

    def objective(trial: Trial) -> float:
        held.callback((folder / f"{trial.number}.lock").unlink, missing_ok=True)
        held.enter_context(lock(folder / str(trial.number)))
        choosing.release()
        trial.set_user_attr("overrides", overrides := choose(trial))
        run = folder.absolute() / f"{trial.number}-{time.time_ns() >> 20:x}"
        cfg, groups = composed(overrides)
        repeat = command("seqlab", *sys.argv[1:])
        context = RunContext(run, overrides, folder, again=repeat, groups=groups)

        def watch(monitor: str) -> Pruning:
            trial.set_user_attr("monitor", monitor)
            return Pruning(trial, monitor)

        # the space of a study may be somebody else's
        if not words and (found := untrusted(OmegaConf.to_container(cfg, resolve=True))):
            study.tell(trial, state=TrialState.FAIL)
            print(f"error: {again}: it names {', '.join(found)}", file=sys.stderr)
            sys.exit(2)
        try:
            return train(cfg, context, watch)
        except SystemExit:  # a signal: the trial is for whoever comes next
            study.tell(trial, state=TrialState.FAIL)
            Retry()(study, study.trials[trial.number])
            raise

    start, seen, grace, choosing = time.monotonic(), {}, 2 * heartbeat, lock(folder / "choosing")
    while timeout is None or time.monotonic() < start + timeout:
        # taken for lost, a trial may be another worker's when it ends, which Optuna does not expect
        expected = suppress(AssertionError, ValueError, exceptions.UpdateFinishedTrialError)
        with ExitStack() as held, expected:
            held.enter_context(choosing)  # two workers that count at once would both add the last
            storages.fail_stale_trials(study)
            known, now = study.get_trials(deepcopy=False), time.monotonic()
            running = [t for t in known if t.state == TrialState.RUNNING]
            if storage is None:
                lost = [t for t in running if is_free(lock(folder / str(t.number)))]
            else:  # a worker may have been killed before its first heartbeat
                begun = [t for t in running if not t.params]
                lost = [t for t in begun if now - seen.setdefault(t.number, now) > grace]
            if lost:
                study.tell(lost[0].number, state=TrialState.FAIL)
                if storage is None:
                    Retry(3)(study, lost[0])
            elif len(counted(known)) < trials or any(t.state == TrialState.WAITING for t in known):
                study.optimize(objective, n_trials=1, catch=(Exception,))
            elif running:
                choosing.release()
                time.sleep(1)  # one may be lost, and then is to be tried again
            else:
                break
    return study, folder


def counted(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that have ended or run, but for those that are tried again."""
    again = {number for trial in trials for number in Retry.retry_history(trial)}
    return [t for t in trials if t.state != TrialState.WAITING and t.number not in again]


def is_free(lock: FileLock) -> bool:
    with suppress(Timeout), lock.acquire(blocking=False):
        return True
    return False


def list_studies(storage: str | None, as_json: bool) -> None:
    """Print the studies in a database, or those under outputs/tune/, and how to go on with each."""
    folders = [STUDIES] if storage else [file.parent for file in STUDIES.glob("*/journal.log")]
    found = []
    for store in (open_storage(storage, folder, 60) for folder in sorted(folders)):
        for name in optuna.get_all_study_names(store):
            study = optuna.load_study(study_name=name, storage=store)
            done = study.get_trials(states=[TrialState.COMPLETE])
            each = {"study": name, "trials": len(counted(study.trials))}
            each["best"] = study.best_value if done else None
            each["space"] = study.user_attrs.get("overrides", [])
            go_on = ["--study", name, *(["--storage", storage] if storage else [])]
            found.append(each | {"command": command("seqlab", "tune", *go_on)})
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for each in found:
        best = "none complete" if each["best"] is None else f"best {each['best']:.6g}"
        print(f"{each['study']}: {each['trials']} trials, {best}")
        print(f"  its space:  {shlex.join(each['space'])}")
        print(f"  go on:      {each['command']}")
    if not found:
        begin = command("seqlab", "tune", "optim.lr=tag(log,interval(1e-4,1e-1))")
        print(f"no study in {storage or STUDIES}; KEY=SPACE begins one:  {begin}")


def report(study: optuna.Study, folder: Path) -> dict[str, object]:
    """What came of a search, with its pictures drawn."""
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    found: dict[str, object] = {state.name.lower(): states.count(state) for state in TrialState}
    if not found["complete"]:
        return found
    best = study.best_trial
    plot = {"history": plots.plot_optimization_history}
    if found["complete"] > 1:
        plot["importance"] = plots.plot_param_importances
        plot["parallel"] = plots.plot_parallel_coordinate
    pyplot.switch_backend("agg")
    with pyplot.rc_context({"figure.figsize": (8, 5)}), warnings.catch_warnings(action="ignore"):
        for name, draw in plot.items():
            axes = draw(study, target_name=best.user_attrs.get("monitor", "Objective Value"))
            if name == "history":
                axes.locator_params("x", integer=True)
            if name == "parallel":
                # none is white, and the best is dark
                maximized = study.direction.name == "MAXIMIZE"
                axes.collections[0].set_cmap("winter_r" if maximized else "winter")
                for key, each in zip(sorted(best.params), axes.figure.axes[2:], strict=True):
                    space = best.distributions[key]
                    if isinstance(space, optuna.distributions.IntDistribution) and not space.log:
                        each.locator_params("y", integer=True)
                    each.grid(False)
            axes.figure.savefig(folder / f"{name}.png", bbox_inches="tight")
            pyplot.close(axes.figure)
    found |= {"best": best.value, "trial": best.number, "params": best.params}
    found["command"] = command("train.py", *best.user_attrs["overrides"])
    return found | {"pictures": [str(folder / f"{name}.png") for name in plot]}
