"""Seconds for a 16-job multirun of the reference network, one at a time, two at a time with joblib,
and on SLURM where one answers; then trials a minute of a search with one, two and four workers:
`python benchmarks/sweeps.py`. A SLURM of this machine alone: tests/cluster/slurm.sh."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from overhead import heading, machine, table

TRAIN = Path(__file__).parents[1] / "train.py"
SEQLAB = Path(sys.executable).with_name("seqlab")
SMALL = ["experiment=reference", "callbacks.pictures=null", "trainer.max_epochs=3"]
SWEEP = [sys.executable, TRAIN, "-m", *SMALL, "seed=range(16)", "hydra.sweep.dir=sweep"]
SPACE = ["model.n_hidden=range(2,33)", "optim.lr=tag(log,interval(1e-4,1e-1))"]
TRIALS = 12


def measure(commands: list[list], folder: str) -> float:
    """Seconds until all of some commands, started at once, have ended."""
    begin = time.perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen(command, cwd=folder, **quiet) for command in commands]
    if any([process.wait() for process in started]):
        sys.exit(f"failed: {commands[0]}")
    return time.perf_counter() - begin


def main() -> None:
    facts, rows, tables = machine("cpu"), [], set()
    ways = {"one at a time": [], "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]}
    if shutil.which("sinfo") and not subprocess.run(["sinfo"], capture_output=True).returncode:
        ways["SLURM"] = ["hydra/launcher=slurm"]
    for name, launcher in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            seconds = measure([[*SWEEP, *launcher]], folder)
            tables.add(Path(folder, "sweep/results.csv").read_text())
        rows.append([f"16 jobs, {name}", f"{seconds:.1f} s", f"{os.getloadavg()[0]:.1f}"])
    if len(tables) > 1:
        sys.exit("the tables differ")
    for workers in (1, 2, 4):
        with tempfile.TemporaryDirectory() as folder:
            command = [SEQLAB, "tune", *SMALL, *SPACE, "--trials", str(TRIALS)]
            seconds = measure([command] * workers, folder)
            done = len(list(Path(folder).glob("outputs/tune/search/*/results.json")))
        rate = f"{60 * done / seconds:.1f} trials a minute"
        rows.append([f"search, workers: {workers}", rate, f"{os.getloadavg()[0]:.1f}"])
    print(heading("Sweeps and searches", **facts, rounds=1), "", sep="\n")
    print(table(["", "", "load average"], rows))


if __name__ == "__main__":
    main()
