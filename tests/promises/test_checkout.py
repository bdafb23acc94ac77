"""A checkout with a user's own files in it, added as docs/your-own.md says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documents import MINE
from program import ROOT, known, write

#: A user's package of the same name as the tests' own, and files beside ours.
FILES = {
    **MINE,
    "mine/__init__.py": "",
    "mine/network.py": "raise RuntimeError('a user is in the middle of a change')\n",
    "conf/model/mine.yaml": "_target_: mine.network.Network\nwidth: ???\n",
    "conf/experiment/mine.yaml": "# @package _global_\ndata:\n  path: ???\n",
    "conf/experiment/_mine.yaml": "not: [closed\n",
    "conf/data/mine.yaml": "defaults: [_toy]\ntask: null\n",
    "data/mine.csv": "a,b\n",
}

TESTS = ["tests/promises/test_own_classes.py", "tests/test_config.py"]


@pytest.mark.slow
def test_the_suite_passes_with_a_users_files_in_it(tmp_path):
    if known() is None:
        pytest.skip("this is no git checkout")
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for path in filter(Path.exists, known()):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    for command in ("git init -q", "git add ."):
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    write(tmp_path, FILES)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-m", "not slow", *TESTS],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": "src"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
