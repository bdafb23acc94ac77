"""One run on two hosts: two network namespaces of this machine, joined by a cable."""

import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from left import strict_json
from program import BIN, ROOT, RUN, process, run

from seqlab.engine.checkpoint import read

SCRIPT = Path(__file__).with_name("hosts.sh")
NAME = f"seqlab{os.getpid()}"


def can_make_hosts():
    return not subprocess.run(["ip", "netns", "add", NAME], capture_output=True).returncode and (
        not subprocess.run(["ip", "netns", "del", NAME], capture_output=True).returncode
    )


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(os, "getuid") or os.getuid() != 0,
        reason="only root can make network namespaces",
    ),
    pytest.mark.skipif(not shutil.which("ip"), reason="ip (iproute2) is not installed"),
    pytest.mark.skipif(
        not (shutil.which("ip") and can_make_hosts()), reason="`ip netns add` does not work here"
    ),
]

WORDS = [word for word in RUN if not word.startswith("hydra.run.dir")]
WORDS += ["trainer=ddp", "model.dropout=0.0"]
#: Seconds that the others are given to answer.
TIMEOUT = 10
LONG = [
    "trainer.max_epochs=60", "callbacks.early_stopping=null",
    f"trainer.strategy.timeout.seconds={TIMEOUT}",
]  # fmt: skip
LOST = "error: another process of this run is gone, or did not answer within trainer.strategy"


@contextmanager
def torchrun(host, folders, *words):
    """torchrun on a host, in its own folder, from where the other's files are not to be seen."""
    command = [SCRIPT, "on", NAME, str(host), folders[1 - host]]
    command += [BIN / "torchrun", "--nnodes=2", f"--node-rank={host}", "--nproc-per-node=1"]
    command += ["--master-addr=10.77.0.1", "--master-port=29500", ROOT / "train.py"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "cable", "OMP_NUM_THREADS": "1"}
    with (
        (folders[host] / "out").open("w") as out,
        (folders[host] / "err").open("w") as err,
        subprocess.Popen(
            [*command, *WORDS, *words],
            cwd=folders[host], env=environment, stdout=out, stderr=err,
        ) as process,
    ):  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()


@pytest.fixture
def folders(tmp_path):
    """What each host has of its own."""
    subprocess.run([SCRIPT, "start", NAME], check=True)
    (tmp_path / "zero").mkdir()
    (tmp_path / "one").mkdir()
    yield [tmp_path / "zero", tmp_path / "one"]
    subprocess.run([SCRIPT, "stop", NAME], check=True)


def err(folder):
    return (folder / "err").read_text()


def test_two_hosts_give_the_weights_of_one_process(folders, tmp_path):
    with torchrun(0, folders) as first, torchrun(1, folders) as second:
        codes = [first.wait(timeout=120), second.wait(timeout=120)]
    assert codes == [0, 0], [err(folder) for folder in folders]
    assert run(*WORDS, "trainer=cpu", "hydra.run.dir=alone", cwd=tmp_path).code == 0
    (both,), alone = folders[0].glob("outputs/*/*"), tmp_path / "alone"
    ours, theirs = (read(f / "checkpoints/last.ckpt")["state_dict"] for f in (both, alone))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    metrics = [strict_json(f / "results.json")["metrics"] for f in (both, alone)]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4)
    assert {path.name for path in folders[1].iterdir()} == {"out", "err"}
    assert (folders[1] / "out").read_text() == ""
    assert "Warning" not in err(folders[1])


@pytest.mark.parametrize("event", ["cut", "first", "second"])
def test_a_cut_cable_or_a_killed_process_ends_all_and_one_host_goes_on(event, folders):
    with torchrun(0, folders, *LONG) as first, torchrun(1, folders, *LONG) as second:
        deadline = time.monotonic() + 90
        while "epoch 2/" not in err(folders[0]):
            assert first.poll() is None, err(folders[0])
            assert time.monotonic() < deadline
            time.sleep(0.05)
        begin = time.monotonic()
        if event == "cut":
            subprocess.run([SCRIPT, "cut", NAME], check=True)
        else:
            os.kill(child({"first": first, "second": second}[event].pid), signal.SIGKILL)
        codes = [first.wait(timeout=60), second.wait(timeout=60)]
        seconds = time.monotonic() - begin
    print(f"{event}: all ended after {seconds:.1f} s")
    assert seconds < TIMEOUT + 20
    assert codes == [1, 1]  # torchrun's own
    for folder, lost in zip(folders, (event != "first", event != "second"), strict=True):
        lines = [line for line in err(folder).splitlines() if line.startswith("error: ")]
        assert len(lines) == lost
        assert all(LOST in line for line in lines)
    (folder,) = folders[0].glob("outputs/*/*")
    assert read(folder / "checkpoints/last.ckpt")["global_step"] >= 13
    words = [f"resume={folder.relative_to(folders[0])}", "trainer.devices=1"]
    if event != "first":
        assert f"go on with:  python {ROOT}/train.py {words[0]}" in err(folders[0])
    result = process(*words, cwd=folders[0])
    assert result.code == 0, result.err
    results = strict_json(folder / "results.json")
    assert (results["status"], results["steps"]) == ("finished", 60 * 13)


def child(pid):
    """The one process that another has started."""
    (found,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(found)
