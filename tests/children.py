"""What tests start in processes of their own."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from program import run

from seqlab.engine.checkpoint import read, write
from seqlab.engine.runs import lock_folder


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


@contextlib.contextmanager
def worker(*arguments: str, cwd: Path) -> Iterator[subprocess.Popen]:
    """`seqlab tune ARGUMENTS` in `cwd`, going on by itself; killed at the end if it still runs."""
    code = "import sys; sys.argv[0] = 'seqlab'; from seqlab.tools.cli import main; main()"
    words = [sys.executable, "-c", code, "tune", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=cwd, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def hold_and_die(folder):
    """Hold a run's folder, and end as by a power cut."""
    with lock_folder(folder):
        (folder / "held").touch()
        os._exit(9)
