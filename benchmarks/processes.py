"""What a second process gives at a size where arithmetic dominates, with gloo on this machine:
`python benchmarks/processes.py`. Strong scaling keeps the global batch, weak the batch of each."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from overhead import heading, machine, table

TRAIN = Path(__file__).parents[1] / "train.py"
SIZE = ["model.n_hidden=256", "data.seq_len=100", "data.n_val=256", "data.n_test=256"]
SIZE += ["trainer.max_epochs=1", "callbacks.pictures=null"]
STEPS, BATCH = 40, 64


def main() -> None:
    facts, rows = machine("cpu"), []
    for name, processes, batch in (("one", 1, BATCH), ("strong", 2, BATCH), ("weak", 2, 2 * BATCH)):
        words = [*SIZE, f"data.batch_size={batch}", f"data.n_train={STEPS * batch}"]
        words += ["trainer=ddp" if processes > 1 else "trainer=cpu", "hydra.run.dir=run"]
        command = [sys.executable, TRAIN, *words]
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            results = json.loads(Path(folder, "run/results.json").read_text())
        speed = f"{STEPS * batch / results['seconds']:.0f}"
        share = f"{processes} x {batch // processes}"
        rows.append([name, share, speed, f"{os.getloadavg()[0]:.1f}"])
    megabytes = f"{4 * results['parameters'] / 1e6:.1f}"
    print(heading("Processes", **facts, rounds=1, gradients=f"{megabytes} MB a step"), "", sep="\n")
    print(table(["scaling", "batch", "sequences a second", "load average"], rows))


if __name__ == "__main__":
    main()
