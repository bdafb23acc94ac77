"""Starts the programs: in this process, which saves their imports, or in processes of their own."""

import contextlib
import functools
import importlib
import io
import itertools
import multiprocessing
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO
from unittest import mock

import pytest
import read_once
import torch
import yaml
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from left import strict_json

from seqlab.engine import runs
from seqlab.tools import cli

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"  # the environment is active
# nothing is imported from the project's folder, where a user may have a `mine` too
sys.path[:] = [each for each in sys.path if Path(each or ".").resolve() != ROOT]

read_once.remember()

#: Whether a process is forked from one that has its imports done. It is not safe on macOS, and not
#: known to Windows: there each does them itself.
FORKS = sys.platform == "linux"
if FORKS:
    multiprocessing.set_forkserver_preload(["warm"])

#: Overrides that make a run take well under a second.
SMALL = ["trainer.max_epochs=1", "data.n_train=64", "data.n_val=32", "data.n_test=32"]
TINY = [*SMALL, "data.seq_len=4", "model.n_hidden=2", "callbacks.pictures=null"]
#: Four epochs of thirteen steps, a step a call; validation and test are two batches each.
RUN = [
    "trainer.max_epochs=4", "trainer.log_every_n_steps=1", "data.n_train=104", "data.batch_size=8",
    "data.n_val=10000", "data.n_test=10000", "data.steps_per_call=1", "data.seq_len=4",
    "model.n_hidden=4", "model.dropout=0.3", "callbacks.pictures=null", "hydra.run.dir=run",
]  # fmt: skip


@dataclass
class Result:
    """What a process leaves: exit code, its two streams, and files in the folder it ran in."""

    code: int
    out: str
    err: str
    cwd: Path

    @property
    def folder(self) -> Path:
        """The one run's directory, or the one sweep's."""
        (folder,) = self.cwd.glob("outputs/*/*")
        return folder

    @property
    def commands(self) -> dict[str, list[str]]:
        """What to do next, by the label in front of it: the last lines of a run's stdout."""
        found = re.findall(r"^(\w[\w ]+): +((?:tensorboard|python|seqlab) .*)$", self.out, re.M)
        return {label: shlex.split(command) for label, command in found}

    @property
    def results(self) -> dict:
        """Its results.json, read by the letter: JSON knows no NaN."""
        return strict_json(self.folder / "results.json")

    @property
    def config(self) -> dict:
        return yaml.safe_load((self.folder / "config.yaml").read_text())


def run(*arguments: str, cwd: Path, streams: tuple[TextIO, TextIO] | None = None) -> Result:
    """`python train.py ARGUMENTS` in `cwd`: with the `train.py` there, else with the project's."""
    script, path = cwd / "train.py", [*sys.path, str(cwd)]
    if not script.exists():
        script, path = ROOT / "train.py", sys.path
    GlobalHydra.instance().clear()
    runs.unique.cache_clear()
    program = functools.partial(runpy.run_path, str(script), run_name="__main__")
    # Hydra composes the config once more only to look for `hydra.mode`, which no test gives
    no_mode = mock.patch.object(Hydra, "get_mode", return_value=None)
    with mock.patch.object(sys, "path", path), no_mode:
        return call(program, "train.py", arguments, cwd, streams)


def seqlab(*arguments: str, cwd: Path) -> Result:
    return call(cli.main, "seqlab", arguments, cwd)


def call(program: Callable, name: str, arguments: Iterable[str], cwd: Path, streams=None) -> Result:
    """Call a program with its arguments as a process of its own would."""
    (out, err), code = streams or (io.StringIO(), io.StringIO()), 0
    with (
        contextlib.chdir(cwd),
        mock.patch.object(sys, "argv", [name, *arguments]),
        mock.patch.dict(os.environ),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            program()
        except SystemExit as stop:
            code = stop.code or 0
        except Exception:
            code = 1
            traceback.print_exc()
    # a test's own modules are all called so, and the next test's are others
    for module in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[module]
    out, err = (s.getvalue() if isinstance(s, io.StringIO) else "" for s in (out, err))
    return Result(code, out, err, cwd)


def process(*arguments: str, cwd: Path, **environment: str) -> Result:
    """`python train.py ARGUMENTS` in `cwd`, for what only a process from its very start shows."""
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Result(done.returncode, done.stdout, done.stderr, cwd)


class Process(multiprocessing.get_context("forkserver" if FORKS else "spawn").Process):
    """A process of its own that calls a function, its imports done."""

    def start(self) -> None:
        if FORKS:
            from multiprocessing import forkserver

            # before Python 3.14 that process does not look in the `sys.path` of this one
            path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
            with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(path)):
                forkserver.ensure_running()
        super().start()


@dataclass
class Kill:
    """A signal that a run sends itself when a function has been called so often.

    Args:
        after: `module:Class.method` or `module:function`.
        call: which call of it, from 1.
        sign: the signal.
    """

    after: str
    call: int
    sign: int = getattr(signal, "SIGKILL", 9)

    def arm(self) -> None:
        module, _, name = self.after.partition(":")
        *owner, name = name.split(".")
        owner = functools.reduce(getattr, owner, importlib.import_module(module))
        function, calls = getattr(owner, name), itertools.count(1)

        @functools.wraps(function)
        def counted(*args, **kwargs):
            result = function(*args, **kwargs)
            if next(calls) == self.call:
                os.kill(os.getpid(), self.sign)
            return result

        setattr(owner, name, counted)


def child(
    arguments: list[str], cwd: Path, kills: list[Kill], environment: dict[str, str] | None = None
) -> None:
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored
    for kill in kills:
        kill.arm()
    with (cwd / "out").open("w") as out, (cwd / "err").open("w") as err:
        result = run(*arguments, cwd=cwd, streams=(out, err))
    os._exit(result.code)


def start(*arguments: str, cwd: Path, kills: Iterable[Kill] = (), **environment: str) -> Process:
    """`python train.py ARGUMENTS` in `cwd`, going on by itself."""
    if kills and os.name != "posix":
        pytest.skip("on Windows a process cannot send itself a signal")
    process = Process(target=child, args=(arguments, cwd, list(kills), environment))
    process.start()
    return process


def end(process: Process, cwd: Path, after: float | None = None) -> Result:
    """What it left, when it ends or is killed after so many seconds."""
    process.join(after)
    process.kill()
    process.join()
    out, err = (f.read_text() if f.exists() else "" for f in (cwd / "out", cwd / "err"))
    return Result(process.exitcode, out, err, cwd)


def forked(*arguments: str, cwd: Path, kills: Iterable[Kill] = (), **environment: str) -> Result:
    """`python train.py ARGUMENTS` in `cwd` in a process of its own, which saves its imports."""
    return end(start(*arguments, cwd=cwd, kills=kills, **environment), cwd)


def write(folder: Path, files: dict[str, str]) -> Path:
    """Write text files by their path under a folder."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


@functools.cache
def known() -> set[Path] | None:
    """The files that git has; None where the project is no checkout."""
    command = ["git", "ls-files", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return None if done.returncode else {ROOT / n for n in done.stdout.split("\0")[:-1]}


def ours(pattern: str) -> list[Path]:
    """The project's own files, by a pattern of `Path.glob`, without those that a user added."""
    return sorted(path for path in ROOT.glob(pattern) if known() is None or path in known())
