"""A series evaluated from several origins."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from program import TINY, run, seqlab

from seqlab.engine.forecaster import load, load_data

CKPT = "run/checkpoints/best.ckpt"


@pytest.fixture(scope="module")
def shops(tmp_path_factory):
    """A run on three shops of 100 days, the last with twice as many."""
    folder = tmp_path_factory.mktemp("shops")
    rng, tables = np.random.default_rng(0), []
    for g, n in enumerate((100, 100, 200)):
        values = {"day": range(n), "shop": [f"s{g}"] * n, "y": rng.normal(size=n).cumsum()}
        tables.append(pl.DataFrame(values))
    pl.concat(tables).write_csv(folder / "y.csv")
    words = ("data=series", "data.path=y.csv", "data.target=y", "data.time=day", "data.group=shop")
    words += ("data.seq_len=4", "model.n_hidden=2", "trainer.max_epochs=1", "hydra.run.dir=run")
    done = run(*words, "callbacks.pictures=null", cwd=folder)
    assert done.code == 0, done.err
    return folder


def test_each_part_is_measured_by_itself_and_the_whole_stays(shops, monkeypatch):
    monkeypatch.chdir(shops)
    found = json.loads(seqlab("evaluate", CKPT, "--origins", "3", "--json", cwd=shops).out)
    assert found["test"] == json.loads(seqlab("evaluate", CKPT, "--json", cwd=shops).out)
    forecaster = load(CKPT)
    data, _ = load_data(forecaster, ())
    x, y = data.splits["test"][:]
    with torch.inference_mode():
        errors = (data.unscale(forecaster.predict_scaled(x)) - data.unscale(y)).square().numpy()
    parts, at = [[], [], []], 0
    for numbers in data.window_numbers["test"]:  # the parts of each shop follow one another
        for part, piece in zip(
            parts, np.array_split(errors[at : at + len(numbers)], 3), strict=True
        ):
            part.append(piece)
        at += len(numbers)
    assert [len(numbers) for numbers in data.window_numbers["test"]] == [15, 15, 30]
    mse = [np.concatenate(part).mean() for part in parts]
    got = [part["network"]["test/mse"] for part in found["origins"]]
    assert got == pytest.approx(mse, rel=1e-5)
    assert np.mean(got) == pytest.approx(found["test"]["network"]["test/mse"], rel=1e-5)

    lines = seqlab("evaluate", CKPT, "--origins", "3", cwd=shops).out.splitlines()
    (title,) = (i for i, line in enumerate(lines) if line == "test/mse from 3 origins")
    shown = {line.split()[0]: line.split()[1:] for line in lines[title + 4 : title + 7]}
    assert list(shown) == ["network", "persistence", "AR(4)"]
    want = [np.mean(got), min(got), max(got)]
    assert list(map(float, shown["network"][:3])) == pytest.approx(want, rel=1e-3)
    best = [min(part, key=lambda name: part[name]["test/mse"]) for part in found["origins"]]
    assert [int(row[3]) for row in shown.values()] == [best.count(name) for name in shown]


def test_what_has_no_origins(shops, tmp_path):
    found = seqlab("evaluate", CKPT, "--origins", "31", cwd=shops)
    assert (found.code, found.out) == (2, "")
    assert found.err == "error: --origins=31: two test windows for each, and there are 60\n"
    assert run(*TINY, "hydra.run.dir=run", cwd=tmp_path).code == 0
    found = seqlab("evaluate", CKPT, "--origins", "2", cwd=tmp_path)
    assert (found.code, found.out) == (2, "")
    assert found.err == "error: --origins=2: only a series is in order of time\n"
