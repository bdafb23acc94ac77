"""An interrupted multirun goes on when its command is repeated, and gives the same table."""

import shlex
import signal

import pytest
from left import left, strict_json
from program import ROOT, RUN, Kill, end, forked, run, start, write

WORDS = [word for word in RUN if not word.startswith("hydra.run.dir")]
SWEEP = ["-m", *WORDS, "seed=0,1", "model.n_hidden=3,4", "hydra.sweep.dir=sweep"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("undisturbed")
    assert forked(*SWEEP, cwd=cwd).code == 0
    return outcome(cwd)


def outcome(cwd):
    """The table, and what each job left."""
    jobs = sorted(path.parent for path in (cwd / "sweep").glob("*/results.json"))
    assert len(jobs) == 4
    return (cwd / "sweep/results.csv").read_text(), {job.name: left(job) for job in jobs}


POINTS = [
    ("seqlab.learner:Learner.training_step", 70),
    ("seqlab.engine.runs:lock_folder", 1),
    ("seqlab.training:build", 2),
    ("seqlab.engine.runs:write_text", 1),
    ("seqlab.engine.runs:write_text", 5),
    ("seqlab.engine.checkpoint:write", 1),
    ("seqlab.engine.checkpoint:write", 14),
    ("seqlab.engine.last:Last.on_train_epoch_end", 8),
    ("seqlab.learner:Learner.test_step", 3),
    ("seqlab.engine.tables:tabulate", 1),
]


@pytest.mark.parametrize(
    "point", POINTS[:1] + [pytest.param(p, marks=pytest.mark.slow) for p in POINTS[1:]], ids=str
)
def test_killed_anywhere_and_repeated_it_gives_the_same_table(point, undisturbed, tmp_path):
    assert forked(*SWEEP, cwd=tmp_path, kills=[Kill(*point)]).code == -9
    result = forked(*SWEEP, cwd=tmp_path)
    assert result.code == 0, result.err
    assert outcome(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.2, 0.5, 0.8, 1.1, 1.5, 1.9, 2.3])
def test_killed_again_and_again(after, undisturbed, tmp_path):
    for _ in range(3):
        end(start(*SWEEP, cwd=tmp_path), tmp_path, after=after)
    assert forked(*SWEEP, cwd=tmp_path).code == 0
    assert outcome(tmp_path) == undisturbed


def test_finished_jobs_are_not_run_again(tmp_path):
    words = [*SWEEP, "trainer.max_epochs=1"]
    assert run(*words, cwd=tmp_path).code == 0
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("sweep/*/results.json")}
    assert len(files) == 4
    result = run(*words, cwd=tmp_path)
    assert result.code == 0
    assert result.out.count("finished before") == 4
    assert {path: path.stat().st_mtime_ns for path in files} == files


@pytest.mark.slow
def test_a_signal_prints_the_command_that_goes_on(undisturbed, tmp_path):
    kill = Kill("seqlab.learner:Learner.training_step", 70, signal.SIGTERM)
    result = forked(*SWEEP, cwd=tmp_path, kills=[kill])
    assert result.code == 143
    statuses = [strict_json(p)["status"] for p in sorted(tmp_path.glob("sweep/*/results.json"))]
    assert statuses == ["finished", "stopped"]
    python, script, *words = shlex.split(result.err.splitlines()[-1].partition("with:  ")[2])
    assert (python, script, words) == ("python", str(ROOT / "train.py"), SWEEP)
    assert forked(*words, cwd=tmp_path).code == 0
    assert outcome(tmp_path) == undisturbed


FAILING = """
from pathlib import Path

from lightning.pytorch.callbacks import Callback


class Boom(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, learner):
        if trainer.current_epoch == self.epoch and not Path("mended").exists():
            raise RuntimeError("boom")
"""


def test_a_failed_job_runs_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(write(tmp_path, {"mine/failing.py": FAILING}))
    boom = ["+callbacks.boom._target_=mine.failing.Boom", "+callbacks.boom.epoch=9,2"]
    sweep = ["-m", *WORDS, *boom, "hydra.sweep.dir=sweep"]
    assert run(*sweep, cwd=tmp_path).code == 1
    (tmp_path / "mended").touch()
    result = run(*sweep, cwd=tmp_path)
    assert result.code == 0, result.err
    failed, fine = (strict_json(p) for p in sorted(tmp_path.glob("sweep/*/results.json")))
    assert failed["steps"] == fine["steps"] == 52


@pytest.mark.parametrize("words", [["seed=0,2"], ["seed=0,1,2"], ["seed=0,1", "optim.lr=1e-3"]])
def test_another_multirun_in_its_folder_is_refused(words, tmp_path):
    begin = ["-m", *WORDS, "trainer.max_epochs=1", "hydra.sweep.dir=sweep"]
    assert run(*begin, "seed=0,1", cwd=tmp_path).code == 0
    before = (tmp_path / "sweep/results.csv").read_text()
    result = run(*begin, *words, cwd=tmp_path)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result.err
    assert "hydra.sweep.dir=sweep: holds another multirun" in result.err
    assert (tmp_path / "sweep/results.csv").read_text() == before


def test_a_job_of_another_config_is_not_gone_on_with(tmp_path):
    mine = write(tmp_path, {"mine/optim/mine.yaml": "defaults: [adam]\nclip: 1.0\n"})
    sweep = ["--config-dir=mine", *SWEEP, "optim=mine"]
    kill = Kill("seqlab.engine.last:Last.on_train_epoch_end", 2)
    assert forked(*sweep, cwd=tmp_path, kills=[kill]).code == -9
    write(mine, {"mine/optim/mine.yaml": "defaults: [adam]\nclip: 0.5\n"})
    result = forked(*sweep, cwd=tmp_path)
    assert result.code == 2, result.err
    assert "optim.clip=0.5" in result.err
    assert "last.ckpt has 1.0" in result.err
