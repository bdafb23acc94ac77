"""What is waited for around the training: `python benchmarks/start.py [--rounds N]`.

    start   `python train.py experiment=reference` up to its first optimiser step, as a multiple of
            `import torch, lightning`
    help    `--help`, and a mistyped key, in seconds
    sweep   sixteen jobs of about a second in one multirun, as a multiple of the sum of their
            training times and one start

All in CPU seconds of a fresh process, the sweep in seconds; every round in turn.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from overhead import heading, machine, spread, table

ROOT = Path(__file__).resolve().parents[1]
TRAIN = str(ROOT / "train.py")

IMPORT = "import torch, lightning"

FIRST_STEP = f"""
import os, runpy, sys, torch
torch.optim.Adam.step = lambda self: os._exit(7)
sys.argv = ["train.py", "experiment=reference"]
runpy.run_path({TRAIN!r}, run_name="__main__")
"""

SWEEP = ["-m", "experiment=reference", "seed=range(16)"]
SWEEP += ["data.n_train=5120", "trainer.max_epochs=2"]


def cpu(code: int, *words: str) -> float:
    """CPU seconds of a Python that ends with that exit code."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True)
    assert done.returncode == code, done.stderr.decode()
    return spent() - before


def sweep() -> tuple[float, float]:
    """Seconds of the multirun, and of its jobs' training together."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, TRAIN, *SWEEP, "hydra.sweep.dir=sweep"]
        begin = time.perf_counter()
        subprocess.run(words, cwd=folder, check=True, capture_output=True)
        seconds = time.perf_counter() - begin
        files = list(Path(folder).glob("sweep/*/results.json"))
        assert len(files) == 16
        return seconds, sum(json.loads(file.read_text())["seconds"] for file in files)


def seconds_of(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    info, figures = machine("cpu") | {"rounds": rounds}, {}
    for _ in range(rounds):
        start = seconds_of(lambda: cpu(7, "-c", FIRST_STEP))
        whole, training = sweep()
        for name, value in {
            "start / import": cpu(7, "-c", FIRST_STEP) / cpu(0, "-c", IMPORT),
            "--help, s": cpu(0, TRAIN, "--help"),
            "a mistyped key, s": cpu(2, TRAIN, "model.n_hiden=4"),
            "sweep / (training + start)": whole / (training + start),
            "a job's training in it, s": training / 16,
        }.items():
            figures.setdefault(name, []).append(value)
    print(heading("Start", **info), "", sep="\n")
    rows = [[name, spread(values, ".2f")] for name, values in figures.items()]
    print(table(["", "median (min-max)"], rows))


if __name__ == "__main__":
    main()
