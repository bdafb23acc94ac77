"""What tests start in processes of their own."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from program import Process, call, run

from seqlab.engine.checkpoint import read, write
from seqlab.engine.runs import lock_folder
from seqlab.tools import cli


def write_forever(path, tmpdir):
    """Write 40 MB over and over, each time another content."""
    os.environ["TMPDIR"] = tmpdir
    contents = read(path)
    for i in range(10**9):
        contents["large"] = torch.full((10_000_000,), float(i))
        write(path, contents)


def start_at(moment, words, cwd):
    time.sleep(max(0, moment - time.time()))
    os._exit(run(*words, cwd=cwd).code)


def tune(arguments: tuple[str, ...], cwd: Path, out: Path, err: Path) -> None:
    with out.open("w") as stdout, err.open("w") as stderr:
        done = call(cli.main, "seqlab", ["tune", *arguments], cwd, (stdout, stderr))
    os._exit(done.code)


class Worker(Process):
    """`seqlab tune ARGUMENTS` in `cwd`, asked like a `subprocess.Popen`."""

    def __init__(self, arguments: tuple[str, ...], cwd: Path, folder: Path):
        self.streams = folder / "out", folder / "err"
        super().__init__(target=tune, args=(arguments, cwd, *self.streams))

    def poll(self) -> int | None:
        return self.exitcode

    @property
    def returncode(self) -> int | None:
        return self.exitcode

    def communicate(self, timeout: float | None = None) -> list[str]:
        self.join(timeout)
        assert self.exitcode is not None, f"is not done in {timeout} s"
        return [stream.read_text() for stream in self.streams]


@contextlib.contextmanager
def worker(*arguments: str, cwd: Path) -> Iterator[Worker]:
    """A worker that goes on by itself; killed at the end if it still runs."""
    with tempfile.TemporaryDirectory() as folder:
        process = Worker(arguments, cwd, Path(folder))
        process.start()
        try:
            yield process
        finally:
            process.kill()
            process.join()


def hold_and_die(folder):
    """Hold a run's folder, and end as by a power cut."""
    with lock_folder(folder):
        (folder / "held").touch()
        os._exit(9)
