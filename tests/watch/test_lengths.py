"""The test by length: in results.json, as a curve of TensorBoard, as a picture."""

import pytest
import torch
from left import events, scalars
from matplotlib.image import imread
from program import SMALL, run

from seqlab.engine.forecaster import load, load_data

LENGTHS = ["data.seq_len=24", "data.min_len=21", "data.test_len=[30,49]", "data.n_test=60"]


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("temporal_order", "accuracy"),
        pytest.param("copy", "accuracy", marks=pytest.mark.slow),
        ("adding", "mse"),
    ],
)
def test_the_test_is_measured_at_each_length(task, metric, tmp_path):
    words = [*SMALL, *LENGTHS, f"data={task}", "callbacks.pictures=null"]
    result = run(*words, cwd=tmp_path)
    assert result.code == 0, result.err
    found = result.results["by_length"]
    assert [*found] == [str(n) for n in range(30, 50)]
    # as the checkpoint predicts
    forecaster = load(result.folder / "checkpoints/best.ckpt")
    data, _ = load_data(forecaster, ())
    assert len(data.splits["test"]) == 60
    for i, value in enumerate(found.values()):
        x, y, lengths = data.splits["test"][3 * i : 3 * i + 3]
        assert data.lengths(60, "test")[3 * i : 3 * i + 3].tolist() == [30 + i] * 3
        prediction = forecaster.predict_scaled(x, lengths).detach()
        if metric == "accuracy":
            known = y != -100
            expected = (prediction.argmax(-1) == y)[known].double().mean()
        else:
            expected = ((prediction - y) ** 2).mean()
        assert value == pytest.approx(float(expected), rel=1e-5)
    if task == "temporal_order":  # one target a sequence, as many sequences of each length
        mean = torch.tensor([*found.values()], dtype=torch.float64).mean()
        assert result.results["metrics"]["test/accuracy"] == pytest.approx(float(mean))
    # the step of TensorBoard's curve is the length
    curve = scalars(result.folder)[f"view/test/by_length/{metric}"]
    assert [(n, pytest.approx(v)) for n, v in curve] == [(int(n), v) for n, v in found.items()]
    assert "view/test/by_length" in events(result.folder).Tags()["images"]
    picture = imread(result.folder / "by_length.png")
    assert picture.shape[1] == 960


def test_a_test_of_one_length_has_none(tmp_path):
    result = run(*SMALL, "callbacks.pictures=null", cwd=tmp_path)
    assert result.results["by_length"] == {}
    assert not (result.folder / "by_length.png").exists()
    assert not [name for name in scalars(result.folder) if "by_length" in name]
