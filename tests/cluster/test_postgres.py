"""A search over a real PostgreSQL: four workers, one of them killed."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import optuna
import pytest
from children import worker
from left import strict_json

SCRIPT = Path(__file__).with_name("postgres.sh")
BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/nonexistent"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BIN / "initdb").exists(), reason="PostgreSQL is not installed"),
    pytest.mark.skipif(
        not hasattr(os, "getuid") or os.getuid() != 0,
        reason="only root can become the postgres user",
    ),
]

WORDS = [
    "trainer.max_epochs=20", "data.n_train=256", "data.n_val=32", "data.n_test=32",
    "data.steps_per_call=1", "data.seq_len=4", "callbacks.pictures=null",
    "model.n_hidden=range(2,9)", "optim.lr=tag(log,interval(1e-4,1e-1))",
]  # fmt: skip


@pytest.fixture
def database():
    """The address of a server that holds nothing yet."""
    folder = tempfile.mkdtemp()  # not pytest's: only its own user may enter those
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    subprocess.run([SCRIPT, "start", folder, port], check=True, timeout=60)
    yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    subprocess.run([SCRIPT, "stop", folder], check=True, timeout=60)
    shutil.rmtree(folder)


def test_the_trial_of_a_killed_worker_is_tried_again(database, tmp_path):
    options = ["--trials", "12", "--storage", database, "--heartbeat", "5", "--json"]
    with ExitStack() as stack:
        victim, *others = (
            stack.enter_context(worker(*WORDS, *options, cwd=tmp_path)) for _ in "4321"
        )
        deadline = time.monotonic() + 120
        while not (folder := running(victim.pid)):
            assert victim.poll() is None, victim.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        victim.kill()
        ends = [each.communicate(timeout=240) for each in others]
    assert [each.returncode for each in others] == [0, 0, 0], ends
    found = [json.loads(out[out.index("{\n") :]) for out, _ in ends][-1]
    assert found["running"] == found["waiting"] == 0
    assert found["fail"] == 1
    assert found["complete"] + found["pruned"] == 12

    store = optuna.storages.RDBStorage(database)
    trials = optuna.load_study(study_name="search", storage=store).trials
    store.remove_session()
    store.engine.dispose()
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert len(trials) == found["complete"] + found["pruned"] + 1
    folders = {int(path.name.partition("-")[0]): path for path in folder.parent.glob("*/")}
    assert sorted(folders) == list(range(len(trials)))
    assert len(folders) == len(list(folder.parent.glob("*/")))
    lost = trials[int(folder.name.partition("-")[0])]
    assert lost.state.name == "FAIL"
    assert strict_json(folder / "results.json")["status"] == "running"
    (again,) = (trial for trial in trials if trial.system_attrs.get("failed_trial") is not None)
    assert again.system_attrs["failed_trial"] == lost.number
    assert again.params == lost.params
    assert strict_json(folders[again.number] / "results.json")["status"] in ("finished", "pruned")


def running(pid):
    """The folder of the run that a process holds, once it has begun."""
    try:
        files = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return None
    held = [Path(name).parent for name in files if name.endswith("/train.log")]
    begun = [folder for folder in held if (folder / "checkpoints/best.ckpt").exists()]
    return begun[0] if begun else None
