"""Jobs of a multirun side by side, in processes of their own."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from hydra.errors import MissingConfigException
from left import left
from program import ROOT, RUN, process, run

from seqlab.engine.errors import explain

WORDS = [word for word in RUN if not word.startswith("hydra.run.dir")]
SWEEP = ["-m", *WORDS, "seed=0,1", "model.n_hidden=3,4", "hydra.sweep.dir=sweep"]
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("serial")
    assert run(*SWEEP, cwd=cwd).code == 0
    return outcome(cwd)


def outcome(cwd):
    jobs = sorted(path.parent for path in (cwd / "sweep").glob("*/results.json"))
    assert len(jobs) == 4
    return (cwd / "sweep/results.csv").read_text(), {job.name: left(job) for job in jobs}


@pytest.mark.slow
def test_two_at_a_time_give_the_table_of_one_at_a_time(serial, tmp_path):
    result = process(*SWEEP, *JOBLIB, cwd=tmp_path)
    assert result.code == 0, result.err
    assert outcome(tmp_path) == serial


@pytest.mark.slow
@pytest.mark.needs("signals")
@pytest.mark.parametrize("sign", ["SIGKILL", "SIGTERM"])
def test_killed_and_repeated_it_is_the_same_table(sign, serial, tmp_path):
    command = [sys.executable, ROOT / "train.py", *SWEEP, *JOBLIB]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as parent:
        while not list(tmp_path.glob("sweep/*/checkpoints/best.ckpt")):
            assert parent.poll() is None
            time.sleep(0.05)
        os.kill(parent.pid, getattr(signal, sign))
        said = parent.stderr.read()  # as long as a worker lives
    assert parent.returncode == (-9 if sign == "SIGKILL" else 143), said
    if sign == "SIGTERM":
        assert f"go on with:  {shlex.join(['python', str(ROOT / 'train.py'), '-m'])}" in said
        assert "Traceback" not in said
    result = process(*SWEEP, *JOBLIB, cwd=tmp_path)
    assert result.code == 0, result.err
    assert outcome(tmp_path) == serial


@pytest.mark.slow
def test_a_job_that_fails_stops_no_other(tmp_path):
    words = ["-m", *WORDS, *JOBLIB, "model.n_hidden=0,3", "hydra.sweep.dir=sweep"]
    result = process(*words, cwd=tmp_path)
    assert result.code == 1
    lines = (tmp_path / "sweep/results.csv").read_text().splitlines()
    assert [line.split(",")[3] for line in lines[1:]] == ["finished", "failed"]
    assert "error: 0-model.n_hidden=0: model.n_hidden=0: at least 1" in result.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs=0: at least"),
        (
            ["hydra/launcher=joblib", "hydra.launcher.n_jobs=two"],
            "hydra.launcher.n_jobs: Value 'two'",
        ),
        (["hydra/launcher=nope"], "hydra/launcher=nope: no such choice"),
        (["hydra/launcher=slurm"], "hydra/launcher=slurm: there is no sbatch here"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(words, said, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    result = run("-m", *WORDS, *words, "seed=0,1", cwd=tmp_path)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result.err
    assert said in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["sbatch", "srun"])
def test_half_of_slurm_is_none(missing, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None if name == missing else name)
    result = run("-m", *WORDS, "hydra/launcher=slurm", "seed=0,1", cwd=tmp_path)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result.err
    assert f"hydra/launcher=slurm: there is no {missing} here" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("choice", ["joblib", "submitit_slurm"])
def test_a_launcher_that_is_not_installed(choice):
    error = MissingConfigException("", f"hydra/launcher/{choice}", ["basic"])
    assert explain(error).endswith(f"{choice} is not installed; pip install -e '.[cluster]'")
