"""Hydra's hooks around runs and multiruns. Imports nothing heavy."""

import math
import os
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from seqlab.engine.context import command, multirun_command, quoted, runs_here
from seqlab.engine.errors import UserError, one_line_errors
from seqlab.engine.runs import remove_empty
from seqlab.engine.signals import ENDING
from seqlab.engine.tables import tabulate


class Sweep(Callback):
    """Short names for the folders of a multirun's jobs, and at the end one table."""

    #: where the multirun of this process writes
    folder: Path | None = None

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with one_line_errors():
            make_folder("hydra.run.dir", config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Leave what all jobs share out of the names of their folders; exit with code 2 if the
        jobs cannot be launched as asked."""
        folder = Path(config.hydra.sweep.dir)
        typed = list(config.hydra.overrides.task)
        with one_line_errors():
            check_same(folder, typed)
            check_launcher(config.hydra.launcher)
            make_folder("hydra.sweep.dir", config)
        Sweep.folder = folder
        if not runs_here(config.hydra.launcher):  # this process only waits for the jobs
            os.environ["SEQLAB_LAUNCHER"] = str(os.getpid())
            for number in ENDING:
                signal.signal(number, stopped)
        loader = GlobalHydra.instance().config_loader()  # finds what `GROUP=glob(*)` stands for
        params = config.hydra.sweeper.get("params") or {}
        words = [f"{key}={value}" for key, value in params.items()] + typed
        overrides = OverridesParser.create(loader).parse_overrides(words)
        self.swept = {o.get_key_element(): o for o in overrides if o.is_sweep_override()}
        shared = [repr(o.key_or_group) for o in overrides if o.get_key_element() not in self.swept]
        config.hydra.overrides.hydra += [
            f"hydra.job.config.override_dirname.exclude_keys=[{','.join(shared)}]",
            f"hydra.sweep.dir={quoted(str(folder))}",
        ]

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Tell which job of a multirun begins, where one runs after the other."""
        hydra = config.hydra
        # another sweeper makes jobs as it goes
        counted = hydra.sweeper._target_.endswith("BasicSweeper") and runs_here(hydra.launcher)
        if hydra.mode != RunMode.MULTIRUN or not counted:
            return
        sizes = (len(list(o.sweep_string_iterator())) for o in self.swept.values())
        own = [o for o in hydra.overrides.task if o.partition("=")[0] in self.swept]
        said = f"job {hydra.job.num + 1} of {math.prod(sizes)}"
        print(f"{said}: {' '.join(own)}" if own else said, flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the jobs, best first, and write the same as results.csv; exit with code 1 if a job
        failed."""
        folder = Path(config.hydra.sweep.dir)
        with one_line_errors():  # Hydra would make a warning of anything but SystemExit
            table = tabulate([folder], folder)
            table.write(folder / "results.csv")
        table.show(f"{len(table.rows)} jobs in {folder}")
        if any(folder.glob("*/events.*")):  # TensorBoard may not be among the loggers
            print(f"Compare them:  {command('tensorboard', '--logdir', str(folder))}")
        if any(run["status"] != "finished" for run in table.records()):
            sys.exit(1)


def make_folder(key: str, config: DictConfig) -> None:
    """Make the folder to write to, which Hydra would make next."""
    folder = Path(OmegaConf.select(config, key))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}={folder}: {error.strerror}; name another folder") from None


def check_same(folder: Path, typed: list[str]) -> None:
    """Refuse the folder of a multirun with other overrides; with the same ones it goes on."""
    file, before = folder / "multirun.yaml", None
    if file.exists() and any(folder.glob("*/")):
        before = OmegaConf.select(OmegaConf.load(file), "hydra.overrides.task")
    if before and sorted(before) != sorted(typed):
        said = f"holds another multirun, {' '.join(before)}; repeat that, or name a new folder"
        raise UserError(f"hydra.sweep.dir={folder}: {said}")


def check_launcher(launcher: DictConfig) -> None:
    """Refuse what a launcher would notice only when it has jobs to start."""
    if launcher._target_.endswith("JoblibLauncher") and not launcher.n_jobs:
        raise UserError("hydra.launcher.n_jobs=0: at least 1, or -1 for one on each core")
    for program in ("sbatch", "srun"):
        if launcher._target_.endswith("SlurmLauncher") and not shutil.which(program):
            other = "hydra/launcher=joblib would run the jobs on this machine"
            raise UserError(f"hydra/launcher=slurm: there is no {program} here; {other}")


def stopped(number: int, frame: FrameType | None) -> None:
    """Stop waiting for jobs that run in other processes."""
    name, command = signal.Signals(number).name, multirun_command(str(Sweep.folder))
    print(f"stopped by {name}; go on with:  {command}", file=sys.stderr)
    sys.exit(128 + number)


def forget_empty_sweep() -> None:
    """Remove the folder of a multirun in which no job was begun."""
    if Sweep.folder and {file.name for file in Sweep.folder.glob("*")} <= {"multirun.yaml"}:
        (Sweep.folder / "multirun.yaml").unlink(missing_ok=True)
        remove_empty(Sweep.folder)
