"""Seconds for a 16-job multirun of the reference network, one at a time and two at a time with
joblib; on SLURM too where SLURM_CONF or the system names one: `python benchmarks/sweeps.py`."""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN = Path(__file__).parents[1] / "train.py"
SWEEP = ["-m", "experiment=reference", "seed=range(16)", "callbacks.pictures=null"]

ways = {"serial": [], "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]}
if shutil.which("sbatch"):
    ways["slurm"] = ["hydra/launcher=slurm"]
tables = []
for name, launcher in ways.items():
    with tempfile.TemporaryDirectory() as folder:
        words = [*SWEEP, "hydra.sweep.dir=sweep", "trainer.max_epochs=3", *launcher]
        begin = time.perf_counter()
        subprocess.run([sys.executable, TRAIN, *words], cwd=folder, check=True, capture_output=True)
        print(f"{name:8} {time.perf_counter() - begin:6.1f} s", flush=True)
        tables.append(Path(folder, "sweep/results.csv").read_text())
if any(table != tables[0] for table in tables):
    sys.exit("the tables differ")
