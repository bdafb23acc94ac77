"""MNIST-1D, as its package makes it and as a run trains on it."""

import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from program import run

from seqlab.data import SPLITS
from seqlab.literature import MNIST1D

get_dataset_args = pytest.importorskip("mnist1d.data").get_dataset_args

REST = {"seq_len": None, "n_classes": None, "batch_size": 50, "accumulate": 1, "steps_per_call": 4}


def make(shuffled=False, n_val=500, seed=0):
    data = MNIST1D(shuffled, n_val, seed=seed, **REST)
    data.read()
    data.prepare(torch.device("cpu"))
    return data


@pytest.fixture
def fewer(monkeypatch):
    """800 + 200 sequences, since all take more than a second."""
    arguments = get_dataset_args(as_dict=True) | {"num_samples": 1000}
    monkeypatch.setattr("mnist1d.data.get_dataset_args", lambda: SimpleNamespace(**arguments))


def test_it_is_the_dataset_of_the_paper():
    data = make()
    assert (data.n_inputs, data.n_outputs, data.seq_len) == (1, 10, 40)
    assert [len(data.splits[split]) for split in SPLITS] == [3500, 500, 1000]
    x, y = (torch.cat([data.splits[s][:][part] for s in SPLITS]) for part in (0, 1))
    assert y.bincount().tolist() == [500] * 10
    assert x.mean() == pytest.approx(0, abs=1e-6)
    assert x.std() == pytest.approx(1, abs=1e-4)
    # what the package made when this was written, on Linux with NumPy 2 and SciPy 1.17
    assert y[:10].tolist() == [2, 6, 4, 5, 6, 6, 6, 0, 3, 1]
    assert x[0, :4, 0].tolist() == pytest.approx([-0.33201, -0.47191, -0.77870, -1.00974], abs=1e-4)


@pytest.mark.slow
def test_it_is_the_same_for_every_seed_and_leaves_all_generators_as_they_were(fewer):
    random_state, torch_state = random.getstate(), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()
    data, other = make(n_val=100), make(n_val=300, seed=1)
    assert random.getstate() == random_state
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)
    for part in (0, 1):
        (train, val, test), (less, more, same) = (
            [each.splits[s][:][part] for s in SPLITS] for each in (data, other)
        )
        assert torch.equal(test, same)
        assert torch.equal(val, more[200:])  # validation is the end of what is not tested
        assert torch.equal(torch.cat([train, val]), torch.cat([less, more]))


@pytest.mark.slow
def test_shuffled_is_one_other_order_of_the_steps_for_all_sequences(fewer):
    data, other = make().splits["test"], make(shuffled=True).splits["test"]
    assert torch.equal(data.y, other.y)
    order = [
        (data.x == step[:, None]).all(0).nonzero()[:, 0].tolist() for step in other.x.unbind(1)
    ]
    assert sorted(order) == [[t] for t in range(40)]
    assert order != [[t] for t in range(40)]


@pytest.mark.parametrize("n_val", [1, 4000])
def test_a_validation_part_out_of_range_is_refused(n_val):
    with pytest.raises(ValueError, match=f"^n_val={n_val}: from 2 to 3999$"):
        make(n_val=n_val)


def test_without_the_package_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mnist1d.data", None)
    result = run("data=mnist1d", cwd=tmp_path)
    assert result.code == 2
    assert result.err == "error: data: mnist1d is not installed: pip install mnist1d\n"


@pytest.mark.slow
def test_a_gru_is_soon_better_than_logistic_regression(tmp_path):
    # 600 steps on half of the sequences; other seeds reach 0.47 to 0.53
    sizes = ["trainer.max_epochs=6", "model.n_hidden=32", "data.n_val=2000", "data.batch_size=20"]
    result = run("experiment=mnist1d", *sizes, cwd=tmp_path)
    assert result.code == 0, result.err
    assert result.results["metrics"]["test/accuracy"] > 0.4  # 0.32 in the paper
    assert "GRU (Greydanus 2020)" in result.out
