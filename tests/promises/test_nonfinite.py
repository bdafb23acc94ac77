"""A number that is not finite stops the run before a step is taken, or its step is skipped."""

import math
import re

import pytest
import torch
from left import scalars, strict_json
from program import TINY, run, write

FILES = ("checkpoints/best.ckpt", "checkpoints/last.ckpt")

SPOILT = """
import torch

from seqlab.tasks import Sine


class Spoilt(Sine):
    def draw(self, n, seq_len, generator):
        x, y = super().draw(n, seq_len, generator)
        if n == 64:
            {where}[17] = {value}
        return x, y
"""


def assert_finite(folder):
    """Every number in every file of a run."""

    def check(value):
        if isinstance(value, torch.Tensor):
            assert value.isfinite().all()
        elif isinstance(value, dict):
            any(map(check, value.values()))
        elif isinstance(value, (list, tuple)):
            any(map(check, value))

    for path in folder.glob("checkpoints/*.ckpt"):
        contents = torch.load(path, weights_only=True)
        for part in ("state_dict", "optimizer_states", "metrics", "sums", "lr_schedulers"):
            check(contents[part])
    strict_json(folder / "results.json")
    for tag, points in scalars(folder).items():
        assert all(math.isfinite(value) for _, value in points), tag


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')", "1e30"])
@pytest.mark.parametrize("where", ["x", "y"])
def test_in_the_data_it_stops_the_run(where, value, tmp_path, monkeypatch):
    if (where, value) == ("x", "1e30"):
        pytest.skip("gates saturate: nothing overflows")
    text = SPOILT.format(where=where, value=value)
    monkeypatch.syspath_prepend(write(tmp_path, {"mine/spoilt.py": text}))
    result = run(*TINY, "data.task._target_=mine.spoilt.Spoilt", cwd=tmp_path)
    assert result.code == 2
    (line,) = (line for line in result.err.splitlines() if "error:" in line)
    assert re.search(r"epoch 1, batch 1, step [12]: the loss is .*(nan|inf)", line), line
    assert result.results["status"] == "failed"
    assert_finite(result.folder)


def test_in_the_data_its_step_is_skipped_if_so_wished(tmp_path, monkeypatch):
    text = SPOILT.format(where="y", value="float('nan')")
    monkeypatch.syspath_prepend(write(tmp_path, {"mine/spoilt.py": text}))
    words = ["data.task._target_=mine.spoilt.Spoilt", "optim.on_nonfinite=skip"]
    result = run(*TINY, *words, "trainer.max_epochs=3", cwd=tmp_path)
    assert result.code == 0, result.err
    assert result.results["steps"] == 3  # of two an epoch
    assert result.err.count("the step is skipped") == 3
    assert_finite(result.folder)


@pytest.mark.parametrize("lr", ["1e30", "1e38"])
def test_a_learning_rate_beyond_reason_stops_the_run(lr, tmp_path):
    result = run(*TINY, f"optim.lr={lr}", "optim.clip=null", "trainer.max_epochs=4", cwd=tmp_path)
    assert result.code == 2
    (line,) = (line for line in result.err.splitlines() if "error:" in line)
    assert re.search(r"epoch \d, batch \d, step \d+: .*; lower optim.lr|weights overflow", line), (
        line
    )
    assert_finite(result.folder)
