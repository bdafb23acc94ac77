import json
import re

import numpy as np
import polars as pl
import pytest
import torch
from program import run, seqlab

from seqlab.engine.checkpoint import read, write
from seqlab.engine.errors import UserError
from seqlab.engine.forecaster import load, load_data
from seqlab.engine.intervals import calibrate, complete, coverage, half_widths
from seqlab.engine.report import compare

SHORT = ("model.n_hidden=4", "model.n_layers=1", "trainer.max_epochs=2", "data.seq_len=8")


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A run on a series whose noise does not change, two rows ahead; and its checkpoint."""
    folder = tmp_path_factory.mktemp("noisy")
    noise, values = np.random.default_rng(0).normal(size=6000), [0.0]
    for each in noise:
        values.append(0.8 * values[-1] + each)
    pl.DataFrame({"y": values}).write_csv(folder / "y.csv")
    words = ("data=series", "data.path=y.csv", "data.target=y", "data.horizon=2", *SHORT)
    assert run(*words, "hydra.run.dir=run", cwd=folder).code == 0
    return folder, "run/checkpoints/best.ckpt"


def least_squares(data, *splits):
    """The autoregression on all windows whose targets are in some splits, by numpy."""
    begin, end = data.series.pieces[0].rows(splits[0])[0], data.series.pieces[0].rows(splits[-1])[1]
    values = data.scaler.scale(data.series.values).numpy()[:, 0].astype(np.float64)
    T, O = data.seq_len, data.horizon
    firsts = range(max(begin, T), end - O + 1)
    x = np.stack([[*values[i - T : i], 1.0] for i in firsts])
    return np.linalg.lstsq(x, np.stack([values[i : i + O] for i in firsts]), rcond=None)[0]


def test_a_checkpoint_holds_the_errors_of_its_network_on_the_validation_part(noisy):
    folder, ckpt = noisy
    forecaster = load(folder / ckpt)
    data, objective = load_data(forecaster, ())
    # as it was in training, before the validation part went into the autoregression
    forecaster.network.take(torch.from_numpy(least_squares(data, "train")))
    x, y = data.splits["val"][:]
    with torch.inference_mode():
        expected = (forecaster(x * forecaster.std + forecaster.mean)[0] - data.unscale(y)).abs()
    assert len(expected) == 899  # 900 rows, and two of a horizon
    torch.testing.assert_close(forecaster.errors, expected.sort(dim=0).values, rtol=1e-4, atol=1e-5)
    found = calibrate(forecaster.predict_scaled, data, objective)
    torch.testing.assert_close(found, forecaster.errors, rtol=1e-4, atol=1e-5)


def test_what_is_tested_and_shipped_has_learned_from_the_validation_part_too(noisy):
    folder, ckpt = noisy
    contents, forecaster = read(folder / ckpt), load(folder / ckpt)
    data, objective = load_data(forecaster, ())
    weights = contents["state_dict"]["network.weights"]
    assert torch.equal(weights, contents["data"]["weights"])
    expected = least_squares(data, "train", "val")
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6, atol=1e-9)
    assert abs(weights.numpy() - least_squares(data, "train")).max() > 1e-4
    # the network and AR(8) of the run's table are these
    results = json.loads((folder / "run" / "results.json").read_text())
    rows = compare(data, objective, forecaster.predict_scaled)
    assert rows["network"]["test/mse"] == pytest.approx(results["metrics"]["test/mse"], rel=1e-6)
    assert rows["AR(8)"] == pytest.approx(results["baselines"]["AR(8)"], rel=1e-9)
    # the file is complete: once more changes nothing
    before = (folder / ckpt).read_bytes()
    complete(folder / ckpt, data, objective)
    assert (folder / ckpt).read_bytes() == before
    # what a resumed run goes on from is as it was
    last = read(folder / "run/checkpoints/last.ckpt")["data"]["weights"]
    np.testing.assert_allclose(last.numpy(), least_squares(data, "train"), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_an_interval_holds_the_share_that_was_asked_for_where_the_noise_stays(noisy, level):
    folder, ckpt = noisy
    forecaster = load(folder / ckpt)
    data, objective = load_data(forecaster, ())
    assert coverage(forecaster, data, objective, level) == pytest.approx(level, abs=0.03)
    errors = forecaster.errors
    rank = int(np.ceil((len(errors) + 1) * level))
    assert torch.equal(half_widths(forecaster.errors, level), errors[rank - 1])
    first, second = half_widths(forecaster.errors, 0.9)
    assert 0.7 < first / second < 0.9


def test_predict_adds_them_and_evaluate_says_what_they_hold(noisy):
    folder, ckpt = noisy
    widths = half_widths(load(folder / ckpt).errors, 0.9).numpy()
    words = ("predict", ckpt, "--steps", "3", "--interval", "0.9", "--output", "f.csv")
    assert seqlab(*words, cwd=folder).code == 0
    table = pl.read_csv(folder / "f.csv")
    assert table.columns == ["time", "step", "forecast", "low", "high", "truth"]
    for step in (1, 2):
        rows = table.filter(pl.col("step") == step)
        assert (rows["high"] - rows["forecast"]).to_numpy() == pytest.approx(widths[step - 1])
        assert (rows["forecast"] - rows["low"]).to_numpy() == pytest.approx(widths[step - 1])
    assert table[-1, "step"] == 3
    assert table[-1, "low"] is None
    known = table.filter(pl.col("truth").is_not_null())
    inside = (known["low"] <= known["truth"]) & (known["truth"] <= known["high"])
    said = seqlab("evaluate", ckpt, cwd=folder).out
    hold = float(re.search(r"Intervals of 0.9 hold (\S+) of the test values\.", said)[1])
    assert hold == pytest.approx(inside.mean(), abs=5e-4)


def test_no_interval_is_made_up(noisy):
    folder, ckpt = noisy
    contents = read(folder / ckpt)
    few = contents | {"errors": contents["errors"][:9]}
    write(folder / "few.ckpt", few)
    forecaster = load(folder / "few.ckpt")
    assert torch.equal(half_widths(forecaster.errors, 0.9), contents["errors"][8])
    with pytest.raises(UserError, match=r"--interval=0\.95: 9 validation errors give at most 0\.9"):
        half_widths(forecaster.errors, 0.95)
    write(folder / "none.ckpt", contents | {"errors": None})
    found = seqlab("predict", "none.ckpt", "--interval", "0.9", cwd=folder)
    assert (found.code, found.out) == (2, "")
    assert found.err.count("\n") == 1
    assert "Intervals" not in seqlab("evaluate", "none.ckpt", cwd=folder).out
    assert seqlab("predict", ckpt, "--interval", "1", cwd=folder).code == 2


@pytest.mark.parametrize(
    "errors",
    ["text", torch.ones(3), torch.ones(3, 1), torch.tensor([[2.0, 2], [1, 3]]), -torch.ones(3, 2)],
)
def test_errors_of_a_foreign_file_are_checked(noisy, errors):
    folder, ckpt = noisy
    write(folder / "foreign.ckpt", read(folder / ckpt) | {"errors": errors})
    with pytest.raises(UserError, match="errors: ascending numbers of at least 0"):
        load(folder / "foreign.ckpt")
