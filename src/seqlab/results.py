"""Tables of runs: at the end of a multirun, and of any folders in `seqlab results`."""

import csv
import json
import math
import os
import shlex
import shutil
import signal
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from seqlab.errors import UserError, one_line_errors
from seqlab.runs import print_table, quoted, remove_empty
from seqlab.signals import ENDING


@dataclass
class Table:
    """Runs, best first: a row each; and where several differ in nothing but the seed, a row for
    each such setting, with mean and standard deviation over its finished seeds."""

    columns: list[str]
    rows: list[list[Any]]
    knobs: list[str]
    settings: list[dict[str, Any]]

    def records(self) -> list[dict[str, Any]]:
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def write(self, path: Path) -> None:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([self.columns, *self.rows])

    def show(self, title: str) -> None:
        print_table(title, self.columns, self.rows)
        if self.settings:
            rows = [
                [
                    f"{value[0]:.4g} ± {value[1]:.2g}" if isinstance(value, list) else value
                    for value in setting.values()
                ]
                for setting in self.settings
            ]
            print_table("mean ± standard deviation over seeds", list(self.settings[0]), rows)


def tabulate(folders: list[Path], base: Path) -> Table:
    """The table of all runs in some folders.

    Args:
        folders: of single runs, of multiruns, or of many of both.
        base: what the names of the runs' folders are told from.

    Raises:
        UserError: there is no run in one of them.
    """
    files = {}
    for folder in folders:
        found = sorted(folder.rglob("results.json"), key=in_order)
        if not found:
            raise UserError(f"{folder}: no run there, it has no results.json")
        files |= {file.parent.resolve(): file for file in found}
    runs = []
    for file in files.values():
        try:
            results = json.loads(file.read_text())
            # none where the run was never built: what is monitored follows from the data
            metrics, monitor = results.get("metrics", {}), results.get("monitor")
            overrides = dict(o.split("=", 1) for o in results["overrides"] if "=" in o)
            tested = monitor and monitor.replace("val/", "test/")
            ends = [metrics.get(f"best/{monitor}"), metrics.get(tested), results["status"]]
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{file}: damaged: {error!r}") from None
        runs.append((file.parent, overrides, monitor, ends))
    monitors = {monitor for *_, monitor, _ in runs if monitor}
    keys = list(dict.fromkeys(key for _, overrides, *_ in runs for key in overrides))
    values = {
        folder: {key: overrides.get(key, configured(folder, key)) for key in keys}
        for folder, overrides, *_ in runs
    }
    keys = [key for key in keys if len({row[key] for row in values.values()}) > 1]
    # failed and unfinished ones last, then by score, then in the order of the jobs
    runs.sort(key=lambda run: math.inf if run[3][0] is None else run[3][0])
    # losses of two kinds stand in one column
    monitor = monitors.pop() if len(monitors) == 1 else ""
    best, tested = f"best/{monitor}".rstrip("/"), monitor.replace("val/", "test/") or "test"
    names = [os.path.relpath(folder, base) for folder, *_ in runs]
    rows = [
        [*(values[folder][key] for key in keys), *ends, name]
        for name, (folder, *_, ends) in zip(names, runs, strict=True)
    ]
    columns = [*keys, best, tested, "status", "folder"]
    return Table(columns, rows, keys, over_seeds(columns, rows, keys))


def in_order(file: Path) -> tuple[Any, ...]:
    """Jobs of a multirun by their number, everything else by name."""
    number = file.parent.name.partition("-")[0]
    return file.parent.parent, int(number) if number.isdecimal() else -1, file.parent


def configured(folder: Path, key: str) -> str | None:
    """The value of a key in a run's config, for runs that do not override it."""
    path = folder / "config.yaml"
    node = yaml.safe_load(path.read_text()) if path.exists() else None
    for part in key.lstrip("+").split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return None if node is None else str(node)


def over_seeds(columns: list[str], rows: list[list[Any]], keys: list[str]) -> list[dict[str, Any]]:
    """For each setting of the knobs but the seed: how many seeds finished, and mean and standard
    deviation of both metrics over them; best first. Empty where no setting has two."""
    if "seed" not in keys:
        return []
    groups: dict[tuple, list[dict[str, Any]]] = {}
    others = [key for key in keys if key != "seed"]
    for row in rows:
        run = dict(zip(columns, row, strict=True))
        if run["status"] == "finished":
            groups.setdefault(tuple(run[key] for key in others), []).append(run)
    found = []
    metrics = columns[len(keys) : len(keys) + 2]
    for setting, runs in groups.items():
        entry = dict(zip(others, setting, strict=True)) | {"seeds": len(runs)}
        for name in metrics:
            values = [math.nan if run[name] is None else run[name] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else math.nan
            entry[name] = [statistics.fmean(values), spread]
        found.append(entry)
    if not any(entry["seeds"] > 1 for entry in found):
        return []
    return sorted(found, key=lambda e: (math.isnan(e[metrics[0]][0]), e[metrics[0]][0]))


class Sweep(Callback):
    """Hydra's hooks around a multirun: short names for its folders, and at the end one table."""

    #: where the multirun of this process writes
    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Leave what all jobs share out of the names of their folders, and give jobs in other
        processes this one's folder.

        Raises:
            SystemExit: the folder holds another multirun, or jobs cannot be launched in the way
                asked for; the exit code is 2.
        """
        folder = Path(config.hydra.sweep.dir)
        typed = list(config.hydra.overrides.task)
        with one_line_errors():
            check_same(folder, typed)
            check_launcher(config.hydra.launcher)
        Sweep.folder = folder
        if not config.hydra.launcher._target_.endswith("BasicLauncher"):
            # jobs run elsewhere, and this process only waits for them
            os.environ["SEQLAB_LAUNCHER"] = str(os.getpid())
            for number in ENDING:
                signal.signal(number, stopped)
        overrides = OverridesParser.create().parse_overrides(typed)
        swept = {o.get_key_element() for o in overrides if o.is_sweep_override()}
        shared = [repr(key) for o in overrides if (key := o.get_key_element()) not in swept]
        config.hydra.overrides.hydra += [
            f"hydra.job.config.override_dirname.exclude_keys=[{','.join(shared)}]",
            f"hydra.sweep.dir={quoted(str(folder))}",
        ]

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the jobs sorted by the monitored metric, and write the same as results.csv.

        Raises:
            SystemExit: a job failed; the exit code is 1.
        """
        folder = Path(config.hydra.sweep.dir)
        table = tabulate([folder], folder)
        table.write(folder / "results.csv")
        table.show(f"{len(table.rows)} jobs in {folder}")
        print(f"Compare them:  tensorboard --logdir {folder}")
        if any(run["status"] != "finished" for run in table.records()):
            sys.exit(1)


def check_same(folder: Path, typed: list[str]) -> None:
    """Refuse the folder of a multirun with other overrides; one with the same is gone on with."""
    file = folder / "multirun.yaml"
    if not (file.exists() and any(folder.glob("*/"))):
        return
    before = OmegaConf.select(OmegaConf.load(file), "hydra.overrides.task")
    if before and sorted(before) != sorted(typed):
        raise UserError(
            f"hydra.sweep.dir={folder}: holds another multirun, {' '.join(before)}; "
            "repeat that, or name a new folder"
        )


def check_launcher(launcher: DictConfig) -> None:
    """Refuse what a launcher would notice only once it has jobs to start."""
    if launcher._target_.endswith("JoblibLauncher") and not launcher.n_jobs:
        raise UserError("hydra.launcher.n_jobs=0: at least 1, or -1 for one on each core")
    if launcher._target_.endswith("SlurmLauncher"):
        for program in ("sbatch", "srun"):
            if not shutil.which(program):
                raise UserError(
                    f"hydra/launcher=slurm: there is no {program} here; hydra/launcher=joblib "
                    "would run the jobs on this machine"
                )


def again(folder: str) -> str:
    """The command line of this multirun or search, to go on in its folder."""
    if Path(sys.argv[0]).name == "seqlab":
        return shlex.join(["seqlab", *sys.argv[1:]])
    words = [word for word in sys.argv[1:] if not word.startswith("hydra.sweep.dir=")]
    folder = quoted(os.path.relpath(folder))
    return shlex.join(["python", "train.py", *words, f"hydra.sweep.dir={folder}"])


def stopped(number: int, frame: FrameType | None) -> None:
    """Stop waiting for jobs that run in other processes."""
    name = signal.Signals(number).name
    print(f"stopped by {name}; go on with:  {again(str(Sweep.folder))}", file=sys.stderr)
    sys.exit(128 + number)


def forget_empty_sweep() -> None:
    """Remove the folder of a sweep in which no job was begun."""
    if not (Sweep.folder and Sweep.folder.is_dir()):
        return
    if {file.name for file in Sweep.folder.glob("*")} <= {"multirun.yaml"}:
        (Sweep.folder / "multirun.yaml").unlink(missing_ok=True)
        remove_empty(Sweep.folder)
