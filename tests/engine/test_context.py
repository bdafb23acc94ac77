"""The commands that a run prints, in shells of several kinds."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from program import ROOT, TINY

from seqlab.engine.context import RunContext, command, quoted


@pytest.fixture
def shell(monkeypatch):
    """A shell in which the environment is not active."""
    monkeypatch.setenv("PATH", os.defpath)


def test_programs_are_called_by_name_where_the_environment_is_active():
    assert command("tensorboard", "--logdir", "a b") == "tensorboard --logdir 'a b'"
    assert command("train.py", "seed=1") == "python train.py seed=1"


def test_and_by_their_path_where_it_is_not(shell):
    program, *words = shlex.split(command("seqlab", "results", "runs, all"))
    assert Path(program).samefile(Path(sys.executable).with_name("seqlab"))
    assert words == ["results", "runs, all"]


@pytest.mark.parametrize("folder", ["run", "a b", "2-model.n_hidden=8,optim.lr=0.01", "it's"])
def test_the_command_that_goes_on_names_the_folder_so_that_hydra_reads_it(folder, tmp_path):
    context = RunContext(tmp_path / folder, [], trust=("mine",))
    *_, resume, trust = shlex.split(context.go_on())
    assert resume == f"resume={quoted(os.path.relpath(tmp_path / folder))}"
    assert trust == "trust=[mine]"


def test_what_a_run_prints_can_be_pasted_where_it_was_started(tmp_path):
    """In bash, without an active environment, in a folder with a space in its name."""
    cwd = tmp_path / "my runs"
    cwd.mkdir()
    plain = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    plain |= {"PATH": os.defpath}

    def bash(line):
        return subprocess.run(
            ["bash", "-c", line], cwd=cwd, env=plain, capture_output=True, text=True, timeout=120
        )

    words = [sys.executable, str(ROOT / "train.py"), *TINY, "hydra.run.dir='a b'"]
    result = bash(shlex.join(words))
    assert result.returncode == 0, result.stderr
    lines = dict(line.split(":  ", 1) for line in result.stdout.splitlines() if ":  " in line)
    commands = {key: value.strip() for key, value in lines.items()}
    assert commands.keys() == {"Look at it", "Over five seeds", "Use it"}
    used = bash(commands["Use it"])
    assert used.returncode == 0, used.stderr
    assert used.stdout.startswith("case,step,forecast,truth\n")
    looked = bash(commands["Look at it"].replace("--logdir", "--version --logdir"))
    assert looked.returncode == 0, looked.stderr
    seeds = bash(f"{commands['Over five seeds']} hydra.sweep.dir=sweep")
    assert seeds.returncode == 0, seeds.stderr
    assert len(list(cwd.glob("sweep/*/results.json"))) == 5
