import os
import subprocess

import pytest
import torch

os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and tables would be made to fit


@pytest.fixture(autouse=True, scope="session")
def one_thread():
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
