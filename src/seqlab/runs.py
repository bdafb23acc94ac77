"""Run directories: their names, the claim on one, what a run leaves there, tables of many runs.

Imports nothing heavy: Hydra asks for the names before anything is trained.
"""

import csv
import fcntl
import json
import math
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from seqlab.errors import UserError

#: The number of this process among those of its run; the first alone writes.
RANK = int(os.environ.get("RANK", 0))


@cache
def unique() -> str:
    """Random letters, the same through one process: what keeps two runs' folders apart."""
    return secrets.token_hex(4)


def run_name(number: int, overrides: str) -> str:
    """A sweep's sub-folder: the job's number and what it overrides, as one short folder name."""
    return f"{number}-{overrides.replace('/', '_')}"[:120].rstrip("-")


def register_resolvers() -> None:
    """Teach the config files `${unique:}`, `${run_name:NUMBER,OVERRIDES}` and `${run_dir:A,B}`,
    which is B where A is null; in all processes of a run but the first, which have none, `.`."""
    OmegaConf.register_new_resolver(
        "run_dir", lambda a, b: "." if RANK and a is None else a or b, replace=True
    )
    OmegaConf.register_new_resolver("unique", unique, replace=True)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Take a folder for one new run, and refuse one that belongs to another; give it back if the
    run never began."""
    if RANK:
        yield
        return
    try:
        (folder / "checkpoints").mkdir(parents=True)
    except FileExistsError:
        raise UserError(
            f"hydra.run.dir={folder}: holds another run; leave it out, or name a new folder"
        ) from None
    try:
        with hold(folder):
            yield
    except BaseException:
        if not (folder / "results.json").exists():
            (folder / "train.log").unlink()
            remove_empty(folder / "checkpoints")
        raise


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep other runs from a folder. The system lets go when this process ends, however."""
    if RANK:
        yield
        return
    with (folder / "train.log").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"resume={folder}: another process is writing to it") from None
        yield


def remove_empty(folder: Path) -> None:
    """Remove a folder and its parents as long as they are empty and the process is not in them."""
    here = Path.cwd()
    for each in (folder.absolute(), *folder.absolute().parents):
        if each in (here, *here.parents) or not each.is_dir() or any(each.iterdir()):
            return
        each.rmdir()


def forget_empty_sweep() -> None:
    """Remove the folder of a sweep in which no job was begun."""
    if not (Sweep.folder and Sweep.folder.is_dir()):
        return
    if {file.name for file in Sweep.folder.glob("*")} <= {"multirun.yaml"}:
        (Sweep.folder / "multirun.yaml").unlink(missing_ok=True)
        remove_empty(Sweep.folder)


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write `results.json`; NaN and infinity become null, which JSON can say."""
    write(folder / "results.json", json.dumps(finite(results), indent=2, default=str) + "\n")


def write(path: Path, text: str) -> None:
    """Write a text file whole or not at all; only the first process of a run does."""
    if RANK:
        return
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text)
    beside.replace(path)


def finite(value: Any) -> Any:
    """The same nested value with null in place of NaN and infinity."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Sweep(Callback):
    """Hydra's hooks around a multirun: short names for its folders, and at the end one table."""

    #: where the multirun of this process writes
    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Leave what all jobs share out of the names of their folders."""
        Sweep.folder = Path(config.hydra.sweep.dir)
        overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        shared = [repr(o.get_key_element()) for o in overrides if not o.is_sweep_override()]
        config.hydra.overrides.hydra.append(
            f"hydra.job.config.override_dirname.exclude_keys=[{','.join(shared)}]"
        )

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the jobs sorted by the monitored metric, and write the same as results.csv.

        Raises:
            SystemExit: a job failed; the exit code is 1.
        """
        folder = Path(config.hydra.sweep.dir)
        jobs = [
            (file.parent.name, json.loads(file.read_text()))
            for file in folder.glob("*/results.json")
        ]
        # failed jobs last, then by score, then in the order of the jobs
        jobs.sort(key=lambda job: int(job[0].partition("-")[0]))
        # what is monitored follows from the data; losses of two kinds are not compared
        monitor = next((r["monitor"] for _, r in jobs if "monitor" in r), "monitor")
        best, tested = f"best/{monitor}", monitor.replace("val/", "test/")
        scores = {name: results.get("metrics", {}).get(best) for name, results in jobs}
        jobs.sort(key=lambda job: math.inf if scores[job[0]] is None else scores[job[0]])
        knobs = [dict(o.split("=", 1) for o in results["overrides"]) for _, results in jobs]
        keys = list(dict.fromkeys(key for row in knobs for key in row))
        keys = [key for key in keys if len({row.get(key) for row in knobs}) > 1]
        columns = [*keys, best, tested, "status", "folder"]
        rows = [
            [
                *(row.get(key) for key in keys),
                *(results.get("metrics", {}).get(name) for name in (best, tested)),
                results["status"],
                name,
            ]
            for row, (name, results) in zip(knobs, jobs, strict=True)
        ]
        with (folder / "results.csv").open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
        print_table(f"{len(jobs)} jobs in {folder}", columns, rows)
        print(f"Compare them:  tensorboard --logdir {folder}")
        if any(results["status"] != "finished" for _, results in jobs):
            sys.exit(1)


def print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print rows under their columns; numbers with four digits, None as a dash."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left", box=box.SIMPLE)
    for row in rows:
        table.add_row(
            *("-" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row)
        )
    # a pipe has no width to fit into
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
