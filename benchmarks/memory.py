"""What a long series costs in memory: the peak of one training run through `train.py`.

    python benchmarks/memory.py [--points 50000000]

Writes a float32 series of that many points as Parquet, then trains on it in a fresh process for a
few calls. That process may hold the size of the series plus 1.5 GB at its peak; exit code 1 if it
holds more. Only the training process counts: it is measured by the kernel as it is waited for, and
this one stays small, since a child begins with its parent's peak.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

TRAIN = Path(__file__).resolve().parent.parent / "train.py"

#: Resident memory beyond the series itself, in bytes.
BOUND = 1.5e9

#: Reads, fits, scales and indexes the whole series, and trains on little of it.
FEW_CALLS = [
    "trainer.max_epochs=1",
    "+trainer.limit_train_batches=20",
    "+trainer.limit_val_batches=2",
    "+trainer.limit_test_batches=2",
    "callbacks.pictures=null",
]

WRITE = """
import sys, numpy, polars
n = int(sys.argv[2])
y = numpy.random.default_rng(0).standard_normal(n, dtype=numpy.float32)
y += numpy.sin(numpy.arange(n, dtype=numpy.float32) % 1000)
polars.DataFrame({"y": y}).write_parquet(sys.argv[1])
"""


def peak_of(command: list[str], cwd: str) -> tuple[int, float]:
    """The peak resident memory in bytes of a command that succeeds, and its seconds."""
    start = time.perf_counter()
    child = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"error: {command[1]} ended with exit code {child.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * unit, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=50_000_000, help="rows (50000000)")
    points = parser.parse_args().points
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "series.parquet")
        subprocess.run([sys.executable, "-c", WRITE, path, str(points)], check=True)
        overrides = ["data=series", f"data.path={path}", "data.target=y", *FEW_CALLS]
        peak, seconds = peak_of([sys.executable, str(TRAIN), *overrides], folder)
    size = 4 * points
    rows = {"series": size, "peak": peak, "peak minus series": peak - size, "bound": BOUND}
    print(f"## Memory\n\ntorch {version('torch')}, date {date.today()}, {seconds:.0f} s\n")
    print("| | MB |\n| --- | ---: |")
    for name, value in rows.items():
        print(f"| {name} | {value / 1e6:.0f} |")
    if peak - size > BOUND:
        sys.exit("the bound is broken")


if __name__ == "__main__":
    main()
