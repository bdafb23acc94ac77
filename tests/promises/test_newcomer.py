"""A newcomer follows the README, from a fresh clone without an environment to its last command."""

import re

import pytest
from documents import FILES, typed
from program import ROOT
from shell import Shell, checkout

pytestmark = [pytest.mark.slow, pytest.mark.needs("bash")]


def test_from_a_fresh_clone_to_the_last_command(tmp_path):
    """The installation too, which may need the network. `make test` runs one of the test files."""
    shell = Shell(checkout(tmp_path / "a folder"), PYTEST_ADDOPTS="tests/test_seeds.py")
    assert not (shell.cwd / ".venv").exists()
    said = {
        text: shell.follows(kind, text)
        for kind, text in typed(FILES[0])
        if kind != "inline" or "pip install" in text
    }
    assert re.search("^ +network +0.01", said["make train"], re.MULTILINE)
    assert re.search(r"^\d+ passed", said["make test"], re.MULTILINE)
    assert said['pip install -e ".[export]"']
    assert shell.types("python -c 'import sys; print(sys.prefix)'").strip() == f"{shell.cwd}/.venv"
    # what the docs have beside it for the installation
    for command in (
        "python3 -m venv .venv",
        '.venv/bin/pip install -e ".[dev]" -c constraints.txt',
        'pip install -e ".[tune,cluster]"',
    ):
        assert any((ROOT / "docs").joinpath(name).read_text().count(command) for name in
                   ("install.md", "clusters.md")), command  # fmt: skip
        shell.types(command)
