"""One run in several processes: the same numbers, the same promises."""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from left import events, left, sha, strict_json
from program import BIN, ROOT, RUN, Result, process, run

from seqlab.engine.checkpoint import read

pytestmark = pytest.mark.needs("several processes")

#: Two processes, without dropout unless asked for.
TWO = [*RUN, "trainer=ddp", "model.dropout=0.0"]
LAST = Path("run", "checkpoints", "last.ckpt")
GO_ON = shlex.join(["python", str(ROOT / "train.py"), "resume=run"])


def processes(*arguments, cwd, command=(sys.executable,), **more):
    """`python train.py ARGUMENTS` to its end; what it started is gone then too."""
    done = subprocess.run(
        [*command, ROOT / "train.py", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=120, **more,
    )  # fmt: skip
    assert children(cwd) == []
    return Result(done.returncode, done.stdout, done.stderr, cwd)


def children(cwd, within=10.0):
    """The processes of this project that run in a folder and are not gone in so many seconds."""
    deadline = time.monotonic() + within
    while True:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes()
                if b"train.py" in words and (entry / "cwd").readlink() == Path(cwd):
                    found.append(int(entry.name))
            except OSError:
                pass
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def points(folder):
    found = events(folder)
    return {
        tag: [(e.step, e.value) for e in found.Scalars(tag) if e.step]
        for tag in found.Tags()["scalars"]
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    result = processes(*TWO, cwd=tmp_path_factory.mktemp("two"))
    assert result.code == 0, result.err
    return result


@pytest.mark.slow
def test_two_processes_give_the_curves_of_one(two, tmp_path):
    assert run(*RUN, "model.dropout=0.0", cwd=tmp_path).code == 0
    one, both = points(tmp_path / "run"), points(two.cwd / "run")
    assert one.keys() == both.keys()
    for tag in one:
        assert [step for step, _ in one[tag]] == [step for step, _ in both[tag]], tag
        for (_, value), (_, expected) in zip(both[tag], one[tag], strict=True):
            assert value == pytest.approx(expected, rel=1e-4, abs=1e-6), tag


@pytest.mark.slow
def test_the_first_alone_writes_and_speaks(two):
    files = {path.name for path in (two.cwd / "run").iterdir()}
    assert {name for name in files if not name.startswith("events.")} == {
        "checkpoints", "config.yaml", "results.json", "train.log",
    }  # fmt: skip
    assert {path.name for path in two.cwd.iterdir()} == {"run"}
    assert two.out.count("Test set") == 1
    assert two.err.count("\n") == 4, two.err
    assert strict_json(two.cwd / "run/results.json")["status"] == "finished"


@pytest.mark.slow
def test_under_torchrun_it_is_the_same_run(two, tmp_path):
    torchrun = [BIN / "torchrun", "--standalone", "--nproc-per-node=2"]
    words = [word for word in TWO if not word.startswith("hydra.run.dir")]
    result = processes(*words, cwd=tmp_path, command=torchrun)
    assert result.code == 0, result.err
    (folder,) = tmp_path.glob("outputs/*/*")
    weights = [
        read(each)["state_dict"] for each in (folder / "checkpoints/last.ckpt", two.cwd / LAST)
    ]
    assert sha(weights[0]) == sha(weights[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What two processes leave with dropout, undisturbed."""
    cwd = tmp_path_factory.mktemp("whole")
    assert processes(*TWO, "model.dropout=0.3", *OFTEN, cwd=cwd).code == 0
    return left(cwd / "run")


OFTEN = ["callbacks.last.every_n_steps=4", "+trainer.val_check_interval=0.5"]


class Running:
    """Two processes in the middle of a long run, and the one that started them."""

    def __init__(self, cwd, *more, command=(sys.executable,)):
        self.cwd, self.err = cwd, (cwd / "err").open("w+")
        self.parent = subprocess.Popen(
            [*command, ROOT / "train.py", *TWO, "model.dropout=0.3", *OFTEN, *more],
            cwd=cwd, stdout=subprocess.DEVNULL, stderr=self.err, text=True,
        )  # fmt: skip

    def ranks(self):
        """The process ids by rank."""
        found = {}
        for pid in children(self.cwd, within=0):
            with open(f"/proc/{pid}/environ", "rb") as file:
                words = file.read().split(b"\0")
            for word in words:
                if word.startswith(b"RANK="):
                    found[int(word[5:])] = pid
        return found

    def wait_for(self, text):
        deadline = time.monotonic() + 60
        while text not in (self.cwd / "err").read_text():
            assert self.parent.poll() is None, (self.cwd / "err").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in [*self.ranks().values(), self.parent.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.parent.wait()
        self.err.close()


LONG = ["trainer.max_epochs=400", "callbacks.early_stopping=null"]


@pytest.mark.slow
@pytest.mark.parametrize("victims", [(0,), (1,), (0, 1), ("parent",), ("torchrun",)], ids=str)
def test_whichever_gets_the_signal_all_end_with_one_checkpoint(victims, tmp_path):
    torchrun = (BIN / "torchrun", "--standalone", "--nproc-per-node=2")
    command = torchrun if victims == ("torchrun",) else (sys.executable,)
    with Running(tmp_path, *LONG, command=command) as running:
        running.wait_for("epoch 2/")
        ranks = running.ranks()
        assert ranks.keys() == {0, 1}
        for victim in victims:
            os.kill(ranks.get(victim, running.parent.pid), signal.SIGTERM)
        sent = time.monotonic()
        code = running.parent.wait(timeout=20)
        assert children(tmp_path) == []
        assert time.monotonic() - sent < 10
        err = (tmp_path / "err").read_text()
    if victims != ("torchrun",):  # which has its own
        assert code == 143, err
        assert err.splitlines()[-1] == f"stopped by SIGTERM; go on with:  {GO_ON}"
        assert "Traceback" not in err
    assert code != 0
    step = read(tmp_path / LAST)["global_step"]
    assert step > 13
    assert strict_json(tmp_path / "run/results.json")["status"] == "stopped"


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_is_killed_takes_the_others_along(victim, tmp_path):
    with Running(tmp_path, *LONG) as running:
        running.wait_for("epoch 2/")
        os.kill(running.ranks()[victim], signal.SIGKILL)
        assert running.parent.wait(timeout=20) != 0
        assert children(tmp_path) == []
        (line,) = (line for line in (tmp_path / "err").read_text().splitlines() if "error" in line)
        assert ("ended by SIGKILL" if victim == 0 else "is gone, or did not answer") in line
    read(tmp_path / LAST)


@pytest.mark.slow
def test_a_killed_parent_leaves_no_children(tmp_path):
    with Running(tmp_path, *LONG) as running:
        running.wait_for("epoch 2/")
        running.parent.kill()
        running.parent.wait()
        assert children(tmp_path) == []


@pytest.mark.slow
def test_killed_and_taken_up_two_processes_end_the_same(whole, tmp_path):
    """Three times, the last time by a signal to one of them."""
    with Running(tmp_path) as running:
        running.wait_for("epoch 1/")
        for pid in running.ranks().values():
            os.kill(pid, signal.SIGKILL)
        running.parent.wait()
    command = [sys.executable, ROOT / "train.py", "resume=run"]
    for sign, victims in ((signal.SIGKILL, 2), (signal.SIGTERM, 1)):
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            line = process.stderr.readline()
            assert "epoch" in line
            ranks = [pid for pid in children(tmp_path, within=0) if pid != process.pid]
            for pid in ranks[-victims:]:
                os.kill(pid, sign)
            process.stderr.read()
    if strict_json(tmp_path / "run/results.json")["status"] != "finished":
        assert processes("resume=run", cwd=tmp_path).code == 0
    assert left(tmp_path / "run") == whole


@pytest.mark.slow
def test_what_two_began_one_ends(tmp_path):
    with Running(tmp_path) as running:
        running.wait_for("epoch 2/")
        for pid in running.ranks().values():
            os.kill(pid, signal.SIGKILL)
        running.parent.wait()
    result = processes("resume=run", "trainer.devices=1", cwd=tmp_path)
    assert result.code == 0, result.err
    assert strict_json(tmp_path / "run/results.json")["steps"] == 52


@pytest.mark.slow
def test_a_multirun_of_two_processes_each(tmp_path):
    words = [word for word in TWO if not word.startswith("hydra.run.dir")]
    result = processes("-m", *words, "seed=0,1", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert result.code == 0, result.err
    folders = sorted(path.parent.name for path in tmp_path.glob("sweep/*/results.json"))
    assert folders == ["0-seed=0", "1-seed=1"]
    assert {path.name for path in tmp_path.iterdir()} == {"sweep"}
    assert (tmp_path / "sweep/results.csv").read_text().count("finished") == 2


@pytest.mark.slow
def test_such_a_multirun_is_repeated_with_a_class_of_ones_own(tmp_path):
    """The last job goes on from its checkpoint; its processes may import what it names."""
    (tmp_path / "mine.py").write_text("from seqlab import LSTMNetwork as Network\n")
    words = [word for word in TWO if not word.startswith("hydra.run.dir")]
    words += ["-m", "model._target_=mine.Network", "seed=0,1", "hydra.sweep.dir=sweep"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert processes(*words, cwd=tmp_path, env=env).code == 0
    path = tmp_path / "sweep/1-seed=1/results.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps(before | {"status": "stopped"}))
    result = processes(*words, cwd=tmp_path, env=env)
    assert result.code == 0, result.err
    assert "error" not in result.err
    after = json.loads(path.read_text())
    assert (after["status"], after["metrics"]) == ("finished", before["metrics"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.devices=99"], "trainer.devices=99: this machine has"),
        (["data.batch_size=7"], "data.batch_size=7: must be a multiple of 2"),
        (["trainer.num_nodes=2"], "trainer.num_nodes=2: start the run with torchrun on each"),
    ],
)
def test_a_mistake_is_told_before_any_process_starts(words, said, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    result = run(*TWO, *words, cwd=tmp_path)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result.err
    assert said in result.err
    assert list(tmp_path.iterdir()) == []
    assert torch.distributed.is_initialized() is False


@pytest.mark.slow
def test_of_a_mistake_that_all_notice_one_tells(tmp_path):
    result = processes(*TWO, "model.n_hidden=0", cwd=tmp_path)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result.err
    assert "model.n_hidden=0" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_port_in_use_is_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "RANK", "LOCAL_RANK")
        inside = dict(zip(names, "22100", strict=True)) | {
            "TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        result = process(*TWO, cwd=tmp_path, **inside)
    assert result.code == 2, result.err
    assert result.err == f"error: MASTER_PORT={port}: in use; give torchrun another\n"


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        (["--nproc-per-node=2"], ["trainer=cpu"], "trainer.devices=1, trainer.num_nodes=1: "),
        (["--nproc-per-node=1"], ["trainer=ddp", "trainer.devices=2"], "trainer.devices=2, "),
    ],
)
@pytest.mark.slow
def test_other_processes_than_torchrun_started(command, words, said, tmp_path):
    command = [BIN / "torchrun", "--standalone", *command]
    result = processes(*words, cwd=tmp_path, command=command)
    (line,) = (line for line in result.err.splitlines() if line.startswith("error: "))
    assert said in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_numbers_that_are_not_finite_stop_all(tmp_path):
    result = processes(*TWO, "optim.lr=1e38", "optim.clip=null", cwd=tmp_path)
    assert result.code == 2, result.err
    assert result.err.count("error:") == 1, result.err
