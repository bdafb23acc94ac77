"""What a second process gives at a size where arithmetic dominates, with gloo on this machine:
`python benchmarks/processes.py`. Strong scaling keeps the global batch, weak the batch of each."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TRAIN = Path(__file__).parents[1] / "train.py"
SIZE = [
    "model.n_hidden=256", "data.seq_len=100", "data.n_val=256", "data.n_test=256",
    "trainer.max_epochs=1", "callbacks.pictures=null",
]  # fmt: skip
STEPS, BATCH = 40, 64

for name, processes, batch in (("one", 1, BATCH), ("strong", 2, BATCH), ("weak", 2, 2 * BATCH)):
    words = [*SIZE, f"data.batch_size={batch}", f"data.n_train={STEPS * batch}"]
    words += ["trainer=ddp" if processes > 1 else "trainer=cpu", "hydra.run.dir=run"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, TRAIN, *words], cwd=folder, check=True, capture_output=True)
        results = json.loads(Path(folder, "run/results.json").read_text())
    speed = STEPS * batch / results["seconds"]
    volume = 4 * results["parameters"] / 1e6
    print(
        f"{name:6} {processes} x {batch // processes:3}  {speed:7.0f} sequences/s  "
        f"{volume:.1f} MB a step  load average {os.getloadavg()[0]:.1f}",
        flush=True,
    )
