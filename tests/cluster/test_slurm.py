"""A multirun on a real SLURM of one node; jobs are preempted, and run out of time."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from left import left, strict_json
from program import ROOT, RUN, run

pytestmark = [
    pytest.mark.slow,
    *(
        pytest.mark.skipif(not shutil.which(part), reason=f"SLURM is not installed: no {part}")
        for part in ("slurmctld", "slurmd", "munged", "sbatch", "srun")
    ),
    pytest.mark.skipif(
        not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can start SLURM's daemons"
    ),
]

WORDS = [word for word in RUN if not word.startswith(("hydra.run.dir", "trainer.max_epochs"))]
LONG = ["trainer.max_epochs=60", "callbacks.early_stopping=null"]
SWEEP = ["-m", *WORDS, *LONG, "seed=0,1", "model.n_hidden=3,4", "hydra.sweep.dir=sweep"]


@pytest.fixture
def slurm(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("slurm")
    script = Path(__file__).with_name("slurm.sh")
    subprocess.run([script, "start", folder], check=True, timeout=60)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    yield
    subprocess.run(["scancel", "--user=root"], check=False)
    subprocess.run([script, "stop", folder], check=True)


def outcome(cwd):
    jobs = sorted(path.parent for path in (cwd / "sweep").glob("*/results.json"))
    assert len(jobs) == 4
    return (cwd / "sweep/results.csv").read_text(), {job.name: left(job) for job in jobs}


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def job(number):
    """SLURM's id of a job of the multirun."""
    command = ["squeue", "--noheader", "--array", "--format=%i"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    (found,) = (each for each in found if each.endswith(f"_{number}"))
    return found


@pytest.mark.parametrize("sign", ["SIGTERM", "SIGUSR1"])
def test_a_job_goes_on_after_preemption_and_after_its_time(sign, slurm, tmp_path):
    """`scontrol requeue` is what preemption does; SIGUSR1 comes ahead of the time limit."""
    (tmp_path / "serial").mkdir()
    assert run(*SWEEP, cwd=tmp_path / "serial").code == 0
    command = [sys.executable, ROOT / "train.py", *SWEEP, "hydra/launcher=slurm"]
    parent = subprocess.Popen(
        command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        (folder,) = wait_for(lambda: list(tmp_path.glob("sweep/1-*/checkpoints")), parent)
        wait_for((folder / "best.ckpt").exists, parent)
        number = job(1)
        if sign == "SIGTERM":
            subprocess.run(["scontrol", "requeue", number], check=True)
        else:
            # it goes on sending for a while when the job ends of it, and then complains
            subprocess.Popen(["timeout", "2", "scancel", "--signal=USR1", number]).wait()
        results = folder.parent / "results.json"
        wait_for(lambda: strict_json(results)["status"] == "stopped", parent)
        queued = ["squeue", "--noheader", "--array", "--state=PENDING", f"--job={number}"]
        wait_for(lambda: subprocess.run(queued, capture_output=True).stdout, parent)
        # SLURM lets a requeued job wait for two minutes
        subprocess.run(["scontrol", "update", f"JobId={number}", "StartTime=now"], check=True)
        out, err = parent.communicate(timeout=200)
    finally:
        parent.kill()
    assert parent.returncode == 0, err
    assert "4 jobs in sweep" in out
    (log,) = tmp_path.glob("sweep/.submitit/*_1/*_log.err")
    assert f"stopped by {sign}" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert outcome(tmp_path) == outcome(tmp_path / "serial")
