"""A signal ends a run between two batches, with a checkpoint; twice, at once."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from left import left, strict_json
from program import ROOT, RUN, TINY, Kill, Process, end, forked, run, start
from unread import unread

from seqlab.engine.checkpoint import read
from seqlab.learner import Learner

pytestmark = pytest.mark.needs("signals")

CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 138, "SIGHUP": 129}
CODES = {getattr(signal, name): code for name, code in CODES.items() if hasattr(signal, name)}
TRAINING, VALIDATION = (
    "seqlab.learner:Learner.training_step",
    "seqlab.learner:Learner.validation_step",
)


SAVING = "seqlab.engine.last:Last.on_save_checkpoint"
GO_ON = shlex.join(["python", str(ROOT / "train.py"), "resume=run"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("undisturbed")
    assert forked(*RUN, cwd=cwd).code == 0
    return left(cwd / "run")


@pytest.mark.parametrize(
    "sign",
    [signal.SIGTERM, *(pytest.param(s, marks=pytest.mark.slow) for s in [*CODES][1:])],
    ids=lambda sign: sign.name,
)
@pytest.mark.parametrize(
    ("place", "call", "step"),
    [(TRAINING, 20, 20), (TRAINING, 26, 26), (VALIDATION, 5, 39),
     ("seqlab.watch.record:Record.on_train_epoch_end", 2, 26),
     ("seqlab.learner:Learner.test_step", 1, 52)],
)  # fmt: skip
def test_it_ends_with_a_checkpoint_of_that_step_and_can_be_taken_up(
    sign, place, call, step, undisturbed, tmp_path
):
    result = forked(*RUN, cwd=tmp_path, kills=[Kill(place, call, sign)])
    assert result.code == CODES[sign]
    assert read(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == step
    assert strict_json(tmp_path / "run/results.json")["status"] == "stopped"
    last = result.err.splitlines()[-1]
    assert last == f"stopped by {sign.name}; go on with:  {GO_ON}"
    assert "Traceback" not in result.err
    assert forked("resume=run", cwd=tmp_path).code == 0
    assert left(tmp_path / "run") == undisturbed


@pytest.mark.parametrize("sign", CODES, ids=lambda sign: sign.name)
@pytest.mark.parametrize("place", ["seqlab.tasks:TaskData.load", "seqlab.training:build"])
def test_before_training_it_ends_and_leaves_nothing(sign, place, tmp_path):
    result = forked(*RUN, cwd=tmp_path, kills=[Kill(place, 1, sign)])
    assert (result.code, result.out, result.err) == (CODES[sign], "", "")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("sign", CODES, ids=lambda sign: sign.name)
def test_a_second_signal_ends_it_at_once(sign, tmp_path):
    """The second comes in the middle of what the first made it do."""
    kills = [Kill(TRAINING, 20, sign), Kill(SAVING, 4, sign)]
    result = forked(*RUN, cwd=tmp_path, kills=kills)
    assert result.code == CODES[sign]
    assert "stopped by" not in result.err
    assert read(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 13


@pytest.mark.parametrize("place", [TRAINING, pytest.param(VALIDATION, marks=pytest.mark.slow)])
def test_a_multirun_stops_there(place, tmp_path):
    words = [word for word in RUN if not word.startswith("hydra.run.dir")]
    kills = [Kill(place, 70 if place == TRAINING else 11, signal.SIGTERM)]
    result = forked("-m", *words, "seed=0,1,2", "hydra.sweep.dir=sweep", cwd=tmp_path, kills=kills)
    assert result.code == 143
    status = {
        path.parent.name: strict_json(path)["status"]
        for path in (tmp_path / "sweep").glob("*/results.json")
    }
    assert status == {"0-seed=0": "finished", "1-seed=1": "stopped"}
    command = shlex.split(result.err.splitlines()[-1].partition("go on with:  ")[2])
    assert forked(*command[2:], cwd=tmp_path).code == 0
    assert strict_json(tmp_path / "sweep/1-seed=1/results.json")["status"] == "finished"


def test_from_outside_it_takes_no_longer_than_a_batch(tmp_path):
    """As Ctrl-C does."""
    words = [*RUN, "trainer.max_epochs=100000", "callbacks.early_stopping=null"]
    process = start(*words, cwd=tmp_path)
    while not (tmp_path / "err").exists() or "epoch 3/" not in (tmp_path / "err").read_text():
        assert process.is_alive()
        time.sleep(0.01)
    sent = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    result = end(process, tmp_path, after=30)
    assert result.code == 130
    assert time.monotonic() - sent < 5
    assert result.err.endswith(f"go on with:  {GO_ON}\n")


def test_the_handlers_of_whoever_calls_are_back_afterwards(tmp_path):
    before = {sign: signal.getsignal(sign) for sign in CODES}
    assert run(*TINY, cwd=tmp_path).code == 0
    assert {sign: signal.getsignal(sign) for sign in CODES} == before


def test_where_the_end_of_the_terminal_is_ignored_the_run_goes_on(tmp_path):
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        kill = Kill(TRAINING, 20, signal.SIGHUP)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Learner, "training_step", Learner.training_step)
            kill.arm()
            result = run(*RUN, cwd=tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert result.code == 0, result.err
    assert strict_json(tmp_path / "run/results.json")["steps"] == 52


@pytest.mark.parametrize(
    ("words", "file"),
    [
        pytest.param(RUN, None, marks=pytest.mark.needs("terminals")),
        pytest.param(
            ["-m", *TINY, "hydra.sweep.dir=run"], "/dev/full", marks=pytest.mark.needs("/dev/full")
        ),
    ],
)
def test_output_that_nobody_reads_ends_no_run(words, file, tmp_path):
    child = Process(target=unread, args=(words, tmp_path, file))
    child.start()
    assert end(child, tmp_path, 120).code == 0
    (path,) = (tmp_path / "run").rglob("results.json")
    results = strict_json(path)
    assert results["status"] == "finished"
    assert (path.parent / results["best_checkpoint"]).exists()
    lines = (path.parent / "train.log").read_text().splitlines()
    assert len(lines) == results["epochs"]
    assert (tmp_path / "run/results.csv").exists() == ("-m" in words)


@pytest.mark.slow
@pytest.mark.needs("bash", "/dev/full")
@pytest.mark.parametrize("streams", [">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>&1", "2>&1 | true"])
@pytest.mark.parametrize("mode", ["", "-m seed=0,1 hydra.sweep.dir=run"])
def test_nor_do_streams_that_were_closed_or_are_full(mode, streams, tmp_path):
    words = [sys.executable, str(ROOT / "train.py"), *TINY, "hydra.run.dir=run"]
    line = f"set -o pipefail; {shlex.join(words)} {mode} {streams}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    paths = list((tmp_path / "run").rglob("results.json"))
    assert [strict_json(path)["status"] for path in paths] == ["finished"] * (2 if mode else 1)
    assert (tmp_path / "run/results.csv").exists() == bool(mode)


@pytest.mark.needs("bash")
def test_help_of_which_one_line_is_read_is_quiet(tmp_path):
    command = shlex.join([sys.executable, str(ROOT / "train.py"), "--help"])
    line = f"{command} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
