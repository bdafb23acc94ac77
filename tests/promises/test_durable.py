"""Checkpoints on real disks: killed while they are written, and when there is no room."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from children import start_at, write_forever
from left import strict_json
from program import RUN, Process, forked

from seqlab.engine.checkpoint import read, write


@pytest.mark.slow
@pytest.mark.needs("/dev/shm")
def test_killed_a_hundred_and_fifty_times_none_is_torn_and_none_leaked(tmp_path):
    assert forked(*RUN, cwd=tmp_path).code == 0
    path = tmp_path / "run/checkpoints/last.ckpt"
    beside = path.with_name(".last.ckpt.part")
    elsewhere = Path("/dev/shm") / f"seqlab-{os.getpid()}"  # another file system
    elsewhere.mkdir()
    assert os.stat(elsewhere).st_dev != os.stat(path).st_dev
    in_the_middle = 0
    try:
        for i in range(150):
            beside.unlink(missing_ok=True)
            child = Process(target=write_forever, args=(path, str(elsewhere)))
            child.start()
            while not beside.exists():
                time.sleep(0.0005)
            time.sleep(0.001 * (i % 50))
            child.kill()
            child.join()
            large = read(path).get("large", torch.zeros(1))
            assert (large == large[0]).all()
            in_the_middle += beside.exists()
            names = {file.name for file in path.parent.iterdir()}
            assert names <= {"best.ckpt", "last.ckpt", beside.name}
        assert in_the_middle > 30, "the kills came at no interesting moments"
        write(path, read(path))
        assert not beside.exists()
        assert list(elsewhere.iterdir()) == []
    finally:
        shutil.rmtree(elsewhere)


def test_a_disk_that_fills_up_ends_the_run_and_spares_the_checkpoint(small_disk, tmp_path):
    words = [*RUN, "model.n_hidden=64"]
    assert forked(*words, cwd=tmp_path).code == 0
    size = (tmp_path / "run/checkpoints/last.ckpt").stat().st_size
    # room for the best and the last, not for another last beside them
    disk = small_disk(int(2.6 * size))
    result = forked(*words, cwd=disk)
    assert result.code == 2, result.err
    (line,) = (line for line in result.err.splitlines() if "error" in line)
    assert re.search(r"\w+.ckpt: the disk is full: [\d.]+ MB to write, [\d.]+ free$", line)
    assert "Traceback" not in result.err
    last = read(disk / "run/checkpoints/last.ckpt")
    assert last["global_step"] < 52
    assert not list(disk.rglob("*.part"))
    # with room again, the run goes on
    subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
    if strict_json(disk / "run/results.json")["status"] != "finished":
        assert forked("resume=run", cwd=disk).code == 0
    assert strict_json(disk / "run/results.json")["steps"] == 52


@pytest.mark.slow
def test_ten_pairs_started_at_once_never_share_a_folder(tmp_path):
    words = [*RUN[:-1], "trainer.max_epochs=1"]
    children = []
    for pair in range(10):
        start = time.time() + 0.3
        for _ in range(2):
            child = Process(target=start_at, args=(start, words, tmp_path))
            child.start()
            children.append(child)
        if pair % 2:
            for child in children:
                child.join()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert len(list(tmp_path.glob("outputs/*/*/results.json"))) == 20


def test_of_two_that_name_one_folder_at_once_one_is_refused(tmp_path):
    start = time.time() + 0.3
    children = [Process(target=start_at, args=(start, RUN, tmp_path)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert sorted(child.exitcode for child in children) == [0, 2]
