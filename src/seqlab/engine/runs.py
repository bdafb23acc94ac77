"""Run folders: their names, taking and locking one, what a run writes there. Imports nothing
heavy: Hydra asks for the names before anything is trained.
"""

import errno
import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from seqlab.engine.context import from_here
from seqlab.engine.errors import UserError

#: The number of this process among those of its run. Only the first writes files.
RANK = int(os.environ.get("RANK", 0))

#: Where the checkpoint to resume from stands in a run's folder.
LAST = Path("checkpoints", "last.ckpt")

#: What a process holds locked while it writes to a run's folder.
LOCK = ".lock"


@cache
def unique() -> str:
    """Random letters, the same through one process, which keep two runs' folders apart."""
    return secrets.token_hex(4)


def register_resolvers() -> None:
    """Define what the config files use."""
    ways = {
        "unique": unique,
        # `${run_dir:A,B}`: A, or B where A is null; only a run's first process has a folder
        "run_dir": lambda a, b: "." if RANK and a is None else a or b,
        # `${run_name:NUMBER,OVERRIDES}`: a job of a multirun, as one short folder name
        "run_name": lambda n, words: f"{n}-{words.replace('/', '_')}"[:120].rstrip("-"),
        # `${torchrun:NAME,N}`: torchrun's variable NAME, or N
        "torchrun": lambda name, n: int(os.environ.get(name, n)),
        # `${project:PATH}`: a file that comes with the project
        "project": lambda path: str(Path(__file__).parents[3] / path),
    }
    for name, way in ways.items():
        OmegaConf.register_new_resolver(name, way, replace=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Take a folder for one new run, lock it, and remove it if the run never began."""
    if RANK:
        yield
        return
    try:
        (folder / "checkpoints").mkdir(parents=True)
    except FileExistsError:
        said = "holds another run; leave it out, or name a new folder"
        raise UserError(f"hydra.run.dir={folder}: {said}") from None
    except OSError:
        remove_empty(folder)  # Hydra made it
        raise
    # what the start writes, in this order
    files = [folder / name for name in ("train.log", "results.json", "config.yaml")]
    files = [path for path in files if not path.exists()]
    try:
        with lock_folder(folder):
            yield
    except BaseException:
        if not (files and files[-1].exists()):
            for path in files:
                path.unlink(missing_ok=True)
            remove_empty(folder / "checkpoints")
        raise


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder. The system unlocks it when this process ends, however."""
    if RANK:
        yield
        return
    import filelock  # only now: it takes 30 ms

    # a file of its own: on Windows nobody can write to a locked file, its owner included
    path = folder / LOCK
    try:
        lock = filelock.FileLock(path, fallback_to_soft=False).acquire(blocking=False)
    except filelock.Timeout:
        raise UserError(f"{folder}: another process is writing to it") from None
    with lock:
        (folder / "train.log").touch()
        try:
            yield
        finally:
            with suppress(OSError):  # on Windows `filelock` removes it when it is unlocked
                path.unlink()


def clear(folder: Path) -> None:
    """Remove what a run left that cannot be resumed, so that it can begin again."""
    with lock_folder(folder):
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()


def remove_empty(folder: Path) -> None:
    """Remove a folder and its parents as long as they are empty and not those of this process."""
    with suppress(OSError):  # a path from here has no parent in which this process is
        os.removedirs(from_here(folder))


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write `results.json`; NaN and infinity become null, since JSON has neither."""
    write_text(folder / "results.json", json.dumps(finite(results), indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    if not RANK:
        write_whole(path, text.encode())


def write_whole(path: Path, body: bytes) -> None:
    """Write a file beside its target, flush it to the disk and rename it into place: at every
    moment, also when the disk is full, the target is the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            error.filename = str(path)
            raise
        size, free = len(body) / 1e6, shutil.disk_usage(path.parent).free / 1e6
        said = f"the disk is full: {size:.1f} MB to write, {free:.1f} free"
        raise UserError(f"{path}: {said}") from None
    with suppress(PermissionError):  # Windows opens no folder
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def finite(value: Any) -> Any:
    """A nested value as JSON has it, with null in place of NaN and infinity."""
    return json.loads(json.dumps(value, default=str), parse_constant=lambda name: None)


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Send this run's log lines to a file, and to stderr where no progress bar stands."""
    if RANK:
        yield
        return
    handlers: list[logging.Handler] = [logging.FileHandler(path, encoding="utf-8")]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    if not sys.stderr.isatty():
        handlers.append(logging.StreamHandler())
    log = logging.getLogger("seqlab")
    log.setLevel(logging.INFO)
    with ExitStack() as undo:
        for handler in handlers:
            log.addHandler(undo.enter_context(closing(handler)))
            undo.callback(log.removeHandler, handler)
        yield


def git_revision() -> str | None:
    """The commit of the working tree, with `+changes` if files differ; None outside git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    with suppress(OSError):
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
        return done.stdout.strip() or None
    return None
