import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and tables would be made to fit

LINUX, POSIX = sys.platform == "linux", os.name == "posix"
#: What a test may need that not every system has: whether it is here, and how one says that not.
NEEDS = {
    "signals": (POSIX and hasattr(signal, "SIGHUP"), "there are no signals like those of Linux"),
    "fork": (LINUX and hasattr(os, "fork"), "a process cannot be forked safely"),
    "bash": (POSIX and shutil.which("bash"), "bash is not installed"),
    "chromium": (shutil.which("chromium"), "chromium is not installed"),
    "pipes": (hasattr(os, "mkfifo"), "a folder cannot hold pipes"),
    "terminals": (hasattr(os, "openpty"), "no terminal can be opened"),
    "/proc": (Path("/proc/self/fd").exists(), "there is no /proc"),
    "/dev/full": (Path("/dev/full").exists(), "there is no /dev/full"),
    "/dev/shm": (Path("/dev/shm").exists(), "there is no /dev/shm"),
    "memory limits": (LINUX, "a process cannot be given a limit of its memory"),
    "several processes": (LINUX, "a run of several processes has been tried on Linux alone"),
}


def pytest_configure(config):
    config.addinivalue_line("markers", "needs(*names): skipped where the system has not all of it")


def pytest_runtest_setup(item):
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            here, otherwise = NEEDS[name]
            if not here:
                pytest.skip(otherwise)


def pytest_xdist_auto_num_workers(config):
    """Of `-n auto`: one more than there are cores, since tests wait for processes and the disk."""
    return (os.cpu_count() or 1) + (config.option.markexpr == "not slow")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """All that is imported stays: the garbage collector need not visit a million objects."""
    gc.disable()
    with contextlib.ExitStack() as afterwards:
        afterwards.callback(gc.enable)
        afterwards.callback(gc.freeze)
        return (yield)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    import torch  # not by the process that only hands out tests

    torch.set_num_threads(1)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a given size."""
    mounted = []

    def mount(size):
        disk = tmp_path / "disk"
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk]
        try:
            subprocess.run(command, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("no right to mount a file system")
        mounted.append(disk)
        return disk

    yield mount
    for disk in mounted:
        subprocess.run(["umount", "-l", disk], check=True)
