"""A loss that one chooses, `loss=NAME`, through everything that a run goes through."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import onnxruntime
import polars as pl
import pytest
import torch
from left import left, strict_json
from program import RUN, TINY, Kill, forked, run, seqlab

from seqlab.engine.forecaster import load, load_data
from seqlab.engine.intervals import half_widths

BEST = "run/checkpoints/best.ckpt"
HERE = "hydra.run.dir=run"


def table_of(found):
    """The columns of a run's table, whichever way it stands."""
    return re.findall(r"test/(\w+)", found.out)


@pytest.mark.parametrize(
    ("data", "own", "chosen"), [("sine", "mse", "mse"), ("reber", "ce", "cross_entropy")]
)
def test_the_loss_of_the_task_and_the_same_one_chosen_give_one_run(data, own, chosen, tmp_path):
    words = [*TINY, f"data={data}", "data.seq_len=20", "trainer.max_epochs=2"]
    found = []
    for loss in ("task", chosen):
        result = run(*words, f"loss={loss}", f"hydra.run.dir={loss}", cwd=tmp_path)
        assert result.code == 0, result.err
        saved = torch.load(tmp_path / loss / "checkpoints/last.ckpt", weights_only=True)
        results = strict_json(tmp_path / loss / "results.json")
        assert results["monitor"] == f"val/{own}"
        found.append((results["metrics"], results["baselines"], saved["state_dict"]))
    assert found[0][:2] == found[1][:2]
    assert all(torch.equal(found[0][2][name], each) for name, each in found[1][2].items())


@pytest.mark.parametrize(
    ("loss", "metric", "compared", "title"),
    [
        ("mae", "mae", "mae", "MAE"),
        ("huber", "huber", "huber", "Huber loss"),
        # one value for all levels, as a baseline has it, would lose whatever it is
        ("quantile", "pinball", "mae", "MAE"),
    ],
)
def test_what_is_monitored_the_table_and_the_verdict_follow_the_loss(
    loss, metric, compared, title, tmp_path
):
    result = run(*TINY, f"loss={loss}", HERE, cwd=tmp_path)
    assert result.code == 0, result.err
    results = strict_json(tmp_path / "run/results.json")
    assert (results["monitor"], results["mode"]) == (f"val/{metric}", "min")
    metrics, baseline = results["metrics"], results["baselines"]["persistence"]
    assert metrics[f"best/val/{metric}"] == metrics[f"val/{metric}"]
    columns = table_of(result)
    assert columns[0] == metric
    assert len(set(columns)) == len(columns)
    first, second = metrics[f"test/{metric}"], baseline[f"test/{metric}"]
    assert metrics["test/skill"] == pytest.approx(1 - first / second)
    first, second = metrics[f"test/{compared}"], baseline[f"test/{compared}"]
    word = "beats" if first < second else "LOSES TO"
    said = f"The network {word} persistence: {title} {first:.4g} against {second:.4g}."
    assert said in result.out
    again = seqlab("evaluate", BEST, "--json", cwd=tmp_path)
    row = json.loads(again.out)["network"]
    assert row == pytest.approx({k: v for k, v in metrics.items() if k.startswith("test/")})


def test_the_metrics_that_a_task_brings_along_are_measured_beside_any_loss(tmp_path):
    words = [*TINY, "data=adding_hs97", "data.seq_len=20", "monitor=val/within", HERE]
    result = run(*words, "loss=quantile", cwd=tmp_path)
    assert result.code == 0, result.err
    assert strict_json(tmp_path / "run/results.json")["mode"] == "max"
    forecaster = load(tmp_path / BEST)
    data, objective = load_data(forecaster, ())
    x, y, lengths = data.splits["test"][:]
    with torch.inference_mode():
        answer = objective.answer(forecaster.predict_scaled(x, lengths))
    within = ((answer - y).abs() < 0.04).double().mean().item()
    metrics = strict_json(tmp_path / "run/results.json")["metrics"]
    assert metrics["test/within"] == pytest.approx(within)


def test_weights_of_classes_decide_what_is_best(tmp_path):
    words = [*TINY, "data=temporal_order", "data.seq_len=20", HERE]
    result = run(*words, "loss=cross_entropy", "loss.weights=[1,2,3,4]", cwd=tmp_path)
    assert result.code == 0, result.err
    results = strict_json(tmp_path / "run/results.json")
    assert results["monitor"] == "val/weighted_ce"
    assert table_of(result)[:2] == ["weighted_ce", "ce"]
    # all classes alike: ln 4, however they are weighted
    for name in ("weighted_ce", "ce"):
        assert results["baselines"]["all alike"][f"test/{name}"] == pytest.approx(np.log(4))
    assert results["baselines"]["all alike"]["test/skill"] == pytest.approx(0, abs=1e-6)
    assert "weighted cross-entropy" in result.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["loss=cross_entropy"], r"loss=seqlab\.losses\.CrossEntropy: for classes, .*loss=task"),
        (["loss=mse", "data=reber"], r"loss=seqlab\.objectives\.Values: for numbers, .*"),
        (["loss=quantile", "data=copy"], r"loss=seqlab\.losses\.Quantile: for numbers, .*"),
        (["loss=quantile", "loss.levels=[0.5,1.5]"], r"loss\.levels=\[0\.5, 1\.5\]: .* \(0, 1\)"),
        (["loss=quantile", "loss.levels=[0.9,0.1]"], r"loss\.levels=\[0\.9, 0\.1\]: .*ascending.*"),
        (["loss=quantile", "loss.levels=0.5"], r"loss\.levels=0\.5: it should be a valid list"),
        (["loss=huber", "loss.delta=0"], r"loss\.delta=0: a finite number above 0"),
        (
            ["loss=cross_entropy", "data=reber", "loss.weights=[1,2]"],
            r"loss\.weights=\[1, 2\]: 7 finite numbers above 0, one for each class",
        ),
        (["loss=quantile", "monitor=val/coverage"], r"monitor=val/coverage: one of val/pinball"),
    ],
)  # fmt: skip
def test_a_loss_that_does_not_fit_is_one_line_before_training(words, said, tmp_path):
    result = run(*words, HERE, cwd=tmp_path)
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(f"error: {said}[^\n]*\n", result.err), result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_multirun_compares_losses(tmp_path):
    words = [*TINY, "loss=mse,mae,huber", "hydra.sweep.dir=sweep"]
    result = run("-m", *words, cwd=tmp_path)
    assert result.code == 0, result.err
    header, *rows = (tmp_path / "sweep/results.csv").read_text().splitlines()
    assert header == "loss,best,test,metric,status,folder"
    found = {row.split(",")[0]: row.split(",")[3:5] for row in rows}
    assert found == {loss: [loss, "finished"] for loss in ("mse", "mae", "huber")}
    # by one metric, whatever is trained
    words[-2:] = "loss=mse,quantile", "hydra.sweep.dir=alike", "monitor=val/mae"
    assert run("-m", *words, cwd=tmp_path).code == 0
    header = (tmp_path / "alike/results.csv").read_text().splitlines()[0]
    assert header == "loss,best/val/mae,test/mae,status,folder"


WRONG = """
from torch import nn

class One(nn.Module):
    def __init__(self, n_inputs, n_outputs):
        super().__init__()
        self.head = nn.Linear(n_inputs, 1)

    def forward(self, x, hidden=None):
        return self.head(x[:, -1]), None
"""


def test_a_network_with_too_few_values_for_the_levels_is_told(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/one.py").write_text(WRONG)
    monkeypatch.syspath_prepend(tmp_path)
    result = run("loss=quantile", "~model", "+model={_target_: mine.one.One}", HERE, cwd=tmp_path)
    assert (result.code, result.out) == (2, "")
    said = "must return (prediction (32, 3), hidden), got a prediction (32, 1)"
    assert said in result.err
    assert result.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["quantile", "mae"])
def test_killed_within_an_epoch_and_resumed_it_ends_the_same(loss, tmp_path):
    """The sums of the epoch's metrics go on too."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    kill = Kill("seqlab.engine.last:Last.on_train_batch_end", 18)
    words = [*RUN, f"loss={loss}", "callbacks.last.every_n_steps=1", "trainer.max_epochs=2"]
    assert forked(*words, cwd=tmp_path / "whole").code == 0
    assert forked(*words, cwd=tmp_path / "killed", kills=[kill]).code == -9
    resumed = forked("resume=run", cwd=tmp_path / "killed")
    assert resumed.code == 0, resumed.err
    found, expected = (left(tmp_path / name / "run") for name in ("killed", "whole"))
    for name in expected:
        assert found[name] == expected[name], name


# quantiles of a series


O, LEVELS = 2, [0.1, 0.5, 0.9]
COLUMNS = ["q0.1", "q0.5", "q0.9"]


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A run on two series whose noise is skewed, two rows ahead."""
    folder = tmp_path_factory.mktemp("noisy")
    generator, tables = np.random.default_rng(0), []
    for group in ("a", "b"):
        values = [0.0]
        for noise in generator.exponential(size=2000):
            values.append(0.8 * values[-1] + noise)
        tables.append(pl.DataFrame({"t": range(2001), "g": [group] * 2001, "y": values}))
    pl.concat(tables).write_csv(folder / "y.csv")
    words = ["data=series", "data.path=y.csv", "data.target=y", "data.time=t", "data.group=g"]
    words += [f"data.horizon={O}", "data.seq_len=8", "model.n_hidden=4", "model.n_layers=1"]
    words += ["loss=quantile", "optim.lr=0.03", "trainer.max_epochs=5", HERE]
    words += ["callbacks.pictures=null"]
    result = run(*words, cwd=folder)
    assert result.code == 0, result.err
    return folder


def test_quantiles_hold_the_shares_that_their_levels_say(noisy):
    metrics = strict_json(noisy / "run/results.json")["metrics"]
    assert metrics["test/coverage"] == pytest.approx(0.8, abs=0.04)
    assert seqlab("predict", BEST, "--output", "f.csv", cwd=noisy).code == 0
    known = pl.read_csv(noisy / "f.csv").filter(pl.col("truth").is_not_null())
    for name, level in zip(COLUMNS, LEVELS, strict=True):
        assert (known["truth"] <= known[name]).mean() == pytest.approx(level, abs=0.05), name
    inside = ((known["q0.1"] <= known["truth"]) & (known["truth"] <= known["q0.9"])).mean()
    assert inside == pytest.approx(metrics["test/coverage"], abs=1e-3)
    # the noise is skewed, and so are they; two rows ahead they reach further
    up, down = ((known[name] - known["q0.5"]).abs().mean() for name in ("q0.9", "q0.1"))
    assert up > 1.5 * down
    first, second = (known.filter(pl.col("step") == step) for step in (1, 2))
    assert (second["q0.9"] - second["q0.1"]).mean() > 1.1 * (first["q0.9"] - first["q0.1"]).mean()
    mae = (known["forecast"] - known["truth"]).abs().mean()
    assert mae == pytest.approx(metrics["test/mae"], rel=1e-6)


def test_predict_has_a_column_for_each_level_and_none_beyond_the_horizon(noisy):
    words = ("predict", BEST, "--steps", "3", "--interval", "0.9", "--output", "g.csv")
    assert seqlab(*words, cwd=noisy).code == 0
    table = pl.read_csv(noisy / "g.csv")
    assert table.columns == [
        "group", "time", "step", "forecast", "low", "high", *COLUMNS, "truth"
    ]  # fmt: skip
    assert (table["forecast"] == table["q0.5"]).all()
    filled = table.filter(pl.col("step") <= O)
    assert (filled["q0.1"] <= filled["q0.5"]).all()
    assert (filled["q0.5"] <= filled["q0.9"]).all()
    beyond = table.filter(pl.col("step") == 3)
    assert beyond["time"].to_list() == [2003, 2003]
    assert beyond["forecast"].is_not_null().all()
    assert all(beyond[name].is_null().all() for name in ("low", *COLUMNS, "truth"))
    # the intervals stay those of the errors of the answer
    forecaster = load(noisy / BEST)
    assert forecaster.errors.shape[1] == O
    widths = half_widths(forecaster.errors, 0.9).tolist()
    for step in (1, 2):
        rows = table.filter(pl.col("step") == step)
        reach = (rows["high"] - rows["forecast"]).to_numpy()
        assert reach == pytest.approx(widths[step - 1])
    # what follows the end, by the network alone
    _, objective = load_data(forecaster, ())
    last = pl.read_csv(noisy / "y.csv").filter(pl.col("g") == "b")["y"][-8:].to_numpy()
    x = forecaster.scale(torch.tensor(last)[None, :, None])
    with torch.inference_mode():
        found = objective.quantiles(forecaster.predict_scaled(x))
    after = table[-3:-1]
    for name, level in zip(COLUMNS, LEVELS, strict=True):
        assert after[name].to_list() == pytest.approx(found[level][0].tolist(), rel=1e-6)
    few = seqlab("predict", BEST, "--steps", "1", cwd=noisy)
    assert few.out.splitlines()[0] == "group,time,step,forecast,q0.1,q0.5,q0.9,truth"
    cells = few.out.splitlines()[-1].split(",")
    assert [float(cell) for cell in cells[4:7]] == pytest.approx(after.row(0)[6:9], rel=1e-6)


def test_evaluate_and_several_origins_follow_the_loss(noisy):
    metrics = strict_json(noisy / "run/results.json")["metrics"]
    found = json.loads(seqlab("evaluate", BEST, "--origins", "2", "--json", cwd=noisy).out)
    test = {name: v for name, v in metrics.items() if name.startswith("test/")}
    assert found["test"]["network"] == pytest.approx(test, rel=1e-6)
    said = seqlab("evaluate", BEST, "--origins", "2", cwd=noisy).out
    assert "test/mae from 2 origins" in said
    assert ": MAE " in said
    for name in ("test/pinball", "test/mae"):
        mean = np.mean([part["network"][name] for part in found["origins"]])
        assert mean == pytest.approx(test[name], rel=0.01)


def test_the_checkpoint_says_how_many_values_there_are(noisy):
    forecaster = load(noisy / BEST)
    assert (forecaster.sizes["n_outputs"], forecaster.sizes["n_values"]) == (O, 3)
    prediction, hidden = forecaster(torch.zeros(4, 8, 1))
    assert prediction.shape == (4, O * 3)
    for t in range(8):
        step, hidden = forecaster.step(torch.zeros(4, 1), None if t == 0 else hidden)
    torch.testing.assert_close(step, prediction)


def test_stream_writes_every_value(noisy, monkeypatch):
    lines = io.TextIOWrapper(io.BytesIO(b"1\n2\n3\n"))
    monkeypatch.setattr(sys, "stdin", lines)
    found = seqlab("stream", BEST, cwd=noisy)
    assert found.code == 0, found.err
    values = [list(map(float, line.split(","))) for line in found.out.splitlines()]
    assert [len(each) for each in values] == [O * 3] * 3
    expected = load(noisy / BEST)(torch.tensor([[[1.0], [2.0], [3.0]]]))[0][0]
    assert values[-1] == pytest.approx(expected.tolist(), rel=1e-5)


def test_shapes_shows_every_value(noisy):
    shown = json.loads(seqlab("shapes", BEST, "--json", cwd=noisy).out)["shapes"]
    assert [row[1] for row in shown if row[0] == "prediction"] == ["(32, 6)"]
    shown = json.loads(seqlab("shapes", "loss=quantile", "--json", cwd=noisy).out)["shapes"]
    assert [row[1] for row in shown if row[0] == "prediction"] == ["(10, 3)"]


@pytest.mark.slow
def test_onnx_gives_every_value(noisy):
    code = "from seqlab.tools.cli import main; main()"
    command = [sys.executable, "-c", code, "export", BEST, "--format", "onnx", "--output", "q.onnx"]
    done = subprocess.run(command, cwd=noisy, capture_output=True, text=True)
    assert "onnxruntime agrees with PyTorch" in done.stderr
    session, x = onnxruntime.InferenceSession(noisy / "q.onnx"), torch.rand(3, 8, 1)
    (got,) = session.run(["forecast"], {"x": x.numpy()})
    with torch.inference_mode():
        expected = load(noisy / BEST)(x)[0].numpy()
    assert got.shape == (3, O * 3)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
