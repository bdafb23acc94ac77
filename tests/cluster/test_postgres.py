"""A search over a real PostgreSQL: four workers, one of them killed."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from program import strict_json

BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/nonexistent"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BIN / "initdb").exists(), reason="PostgreSQL is not installed"),
    pytest.mark.skipif(os.getuid() != 0, reason="only root can become the postgres user"),
]

WORDS = [
    "trainer.max_epochs=20", "data.n_train=256", "data.n_val=32", "data.n_test=32",
    "data.steps_per_call=1", "data.seq_len=4", "callbacks.pictures=null",
    "model.n_hidden=range(2,9)", "optim.lr=tag(log,interval(1e-4,1e-1))",
]  # fmt: skip


@pytest.fixture
def database():
    """The address of a server that holds nothing yet."""
    folder = Path(tempfile.mkdtemp())  # not pytest's: only its own user may enter those
    shutil.chown(folder, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def postgres(*command):
        words = ["runuser", "-u", "postgres", "--", *map(str, command)]
        subprocess.run(words, check=True, cwd=folder, stdout=subprocess.DEVNULL)

    postgres(BIN / "initdb", "-D", folder / "data", "--auth=trust")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder}"
    control = [BIN / "pg_ctl", "-D", folder / "data", "-w", "-l", folder / "log"]
    postgres(*control, "-o", options, "start")
    yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    postgres(*control, "-m", "immediate", "stop")
    shutil.rmtree(folder)


def test_the_trial_of_a_killed_worker_is_tried_again(database, tmp_path):
    code = "import sys; sys.argv[0] = 'seqlab'; from seqlab.cli import main; main()"
    options = ["--trials", "12", "--storage", database, "--heartbeat", "1", "--json"]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, "tune", *WORDS, *options],
            cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(4)
    ]  # fmt: skip
    try:
        victim, *others = workers
        deadline = time.monotonic() + 120
        while not (mine := running(victim.pid)):
            assert victim.poll() is None, victim.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        victim.kill()
        victim.communicate()
        ends = [worker.communicate(timeout=240) for worker in others]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in others] == [0, 0, 0], ends
    found = [json.loads(out[out.index("{\n") :]) for out, _ in ends][-1]
    assert found["running"] == found["waiting"] == 0
    assert found["fail"] == 1
    assert 12 <= found["complete"] + found["pruned"] <= 15
    folders = sorted(tmp_path.glob("outputs/tune/search/*/results.json"))
    ended = {path: strict_json(path) for path in folders}
    lost = ended[mine / "results.json"]
    assert lost["status"] == "running"
    again = [each for each in ended.values() if each["overrides"] == lost["overrides"]]
    assert sorted(each["status"] for each in again)[0] in ("finished", "pruned")
    assert len(again) == 2


def running(pid):
    """The folder of the run that a process holds, once it has begun."""
    try:
        files = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return None
    held = [Path(name).parent for name in files if name.endswith("/train.log")]
    begun = [folder for folder in held if (folder / "checkpoints/best.ckpt").exists()]
    return begun[0] if begun else None
