"""Run directories: their names, the claim on one, what a run leaves there.

Imports nothing heavy: Hydra asks for the names before anything is trained.
"""

import fcntl
import json
import math
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

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
    """Teach the config files `${unique:}`, `${run_name:NUMBER,OVERRIDES}`, `${run_dir:A,B}`,
    which is B where A is null; in all processes of a run but the first, which have none, `.`; and
    `${torchrun:NAME,N}`, what torchrun says in its variable, or N."""
    OmegaConf.register_new_resolver(
        "run_dir", lambda a, b: "." if RANK and a is None else a or b, replace=True
    )
    OmegaConf.register_new_resolver("unique", unique, replace=True)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver(
        "torchrun", lambda name, number: int(os.environ.get(name, number)), replace=True
    )


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
            raise UserError(f"{folder}: another process is writing to it") from None
        yield


def earlier(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """What a multirun's job left in its folder before, as far as it got.

    Raises:
        UserError: it holds a run of other overrides.
    """
    try:
        results = json.loads((folder / "results.json").read_text())
    except FileNotFoundError:
        return {"status": "failed"}
    if sorted(results["overrides"]) != sorted(overrides):
        raise UserError(
            f"hydra.sweep.dir: {folder} holds another run, {' '.join(results['overrides'])}"
        )
    return results


def clear(folder: Path) -> None:
    """Remove what a run left that has nothing to go on from, to begin it again."""
    with hold(folder):
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name == "train.log":
                os.truncate(path, 0)
            else:
                path.unlink()


def quoted(path: str) -> str:
    """A path as a value that Hydra reads as it stands."""
    return path if re.fullmatch(r"[\w./-]+", path) else "'" + path.replace("'", r"\'") + "'"


def remove_empty(folder: Path) -> None:
    """Remove a folder and its parents as long as they are empty and the process is not in them."""
    here = Path.cwd()
    for each in (folder.absolute(), *folder.absolute().parents):
        if each in (here, *here.parents) or not each.is_dir() or any(each.iterdir()):
            return
        each.rmdir()


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
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
