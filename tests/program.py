"""Runs `train.py` as `python train.py ...` would, in this process, which saves its imports."""

import contextlib
import io
import json
import math
import os
import re
import runpy
import shlex
import socket
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO
from unittest import mock

import torch
import yaml
from hydra.core.global_hydra import GlobalHydra
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seqlab import cli, runs
from seqlab.data import SequenceData

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

#: Overrides that make a run take well under a second.
SMALL = ["trainer.max_epochs=1", "data.n_train=64", "data.n_val=32", "data.n_test=32"]
TINY = [*SMALL, "data.seq_len=4", "model.n_hidden=2", "callbacks.pictures=null"]


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
    def name(self) -> str:
        """DATE/TIME-XXXXXXXX."""
        return self.folder.relative_to(self.cwd / "outputs").as_posix()

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


def set_up(data: SequenceData, epoch: int = 0, rank: int = 0, ranks: int = 1) -> SequenceData:
    """A DataModule as one process of a run that has not begun has it."""
    progress = SimpleNamespace(current=SimpleNamespace(ready=0))
    data.trainer = SimpleNamespace(
        current_epoch=epoch, strategy=SimpleNamespace(root_device=torch.device("cpu")),
        global_rank=rank, world_size=ranks,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    )  # fmt: skip
    data.setup("fit")
    return data


def strict_json(path: Path) -> dict:
    def refuse(constant):
        raise ValueError(f"{path.name} holds {constant}, which is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def plain(value) -> bool:
    """Whether a value is what YAML and JSON know, and nothing derived from it."""
    if type(value) is dict:
        return all(type(key) is str and plain(item) for key, item in value.items())
    if type(value) is list:
        return all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str)


def events(folder: Path) -> EventAccumulator:
    """What TensorBoard reads from a run, nothing thinned out."""
    kinds = ("scalars", "images", "tensors", "histograms")
    return EventAccumulator(str(folder), dict.fromkeys(kinds, 0)).Reload()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points `(step, value)` of each scalar in the order written, less the NaN at step 0 that
    opens a column of the HParams page."""
    found = events(folder)
    return {
        tag: [(e.step, e.value) for e in found.Scalars(tag) if e.step or not math.isnan(e.value)]
        for tag in found.Tags()["scalars"]
    }


def run(*arguments: str, cwd: Path, streams: tuple[TextIO, TextIO] | None = None) -> Result:
    """`python train.py ARGUMENTS` in `cwd`: with the `train.py` there, else with the project's.

    Its output goes to the two streams instead, where they are given.
    """
    script = cwd / "train.py"
    if not script.exists():
        script = ROOT / "train.py"
    GlobalHydra.instance().clear()
    runs.unique.cache_clear()
    with mock.patch.object(sys, "path", [str(script.parent), *sys.path]):
        return call(
            lambda: runpy.run_path(str(script), run_name="__main__"),
            *(script, arguments, cwd, streams or (io.StringIO(), io.StringIO())),
        )


def seqlab(*arguments: str, cwd: Path) -> Result:
    """`seqlab ARGUMENTS` in `cwd`."""
    return call(cli.main, "seqlab", arguments, cwd, (io.StringIO(), io.StringIO()))


def call(
    program: Callable,
    name: str | Path,
    arguments: Iterable[str],
    cwd: Path,
    streams: tuple[TextIO, TextIO],
) -> Result:
    """Call a program with its arguments as a process of its own would."""
    (out, err), code = streams, 0
    with (
        contextlib.chdir(cwd),
        mock.patch.object(sys, "argv", [str(name), *arguments]),
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
    out, err = (s.getvalue() if isinstance(s, io.StringIO) else "" for s in streams)
    return Result(code, out, err, cwd)


def process(*arguments: str, cwd: Path, **environment: str) -> Result:
    """`python train.py ARGUMENTS` in `cwd`, for what only a process of its own can show."""
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Result(done.returncode, done.stdout, done.stderr, cwd)


@contextlib.contextmanager
def worker(*arguments: str, cwd: Path) -> Iterator[subprocess.Popen]:
    """`seqlab tune ARGUMENTS` in `cwd`, going on by itself; killed at the end if it still runs."""
    code = "import sys; sys.argv[0] = 'seqlab'; from seqlab.cli import main; main()"
    words = [sys.executable, "-c", code, "tune", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=cwd, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def write(folder: Path, files: dict[str, str]) -> Path:
    """Write text files by their path under a folder."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


@contextlib.contextmanager
def tensorboard(*words: str, cwd: Path) -> Iterator[str]:
    """A TensorBoard that answers, at the address given."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [BIN / "tensorboard", *words, "--host", "127.0.0.1", "--port", str(port)],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address, deadline = f"http://127.0.0.1:{port}/", time.monotonic() + 60
    try:
        while True:
            try:
                urllib.request.urlopen(address).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()


def browse(address: str, profile: Path, *flags: str) -> str:
    """What headless Chromium prints about a page, given the time to draw itself."""
    off = ["gpu", "quic", "sync", "background-networking", "component-update"]
    command = ["chromium", "--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars"]
    command += [f"--disable-{feature}" for feature in off]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=100000", *flags, address]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


class Call:
    """Pickled, it is a call."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called
