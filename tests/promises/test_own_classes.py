"""A network and a task of one's own, added from a folder of one's own: those of the README."""

import importlib
import re

import pytest
import torch
from left import events, scalars
from program import run, write
from test_readme import MINE
from torch.nn.functional import l1_loss, mse_loss

from seqlab.data import seed_of

SWAP = ["--config-dir", "mine/conf", "model=conv", "data=summary"]
FAST = ["data.n_train=2048", "data.n_val=256", "data.n_test=256"]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with `mine/` and nothing else, found by way of PYTHONPATH."""
    folder = write(tmp_path_factory.mktemp("own"), MINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture(scope="module")
def swapped(own, tmp_path_factory):
    (own / "one").mkdir()
    (own / "one/mine").symlink_to(own / "mine")
    return run(*SWAP, *FAST, "trainer.max_epochs=4", cwd=own / "one")


def test_the_network_learns_the_task(swapped):
    assert swapped.code == 0, swapped.err
    assert swapped.err.count("\n") == 4
    assert swapped.config["model"]["_target_"] == "mine.network.CausalConv"
    assert (swapped.config["derived"]["n_inputs"], swapped.config["derived"]["n_outputs"]) == (1, 3)
    metrics, baseline = swapped.results["metrics"], swapped.results["baselines"]["always 1/2"]
    assert metrics["test/mse"] < 0.2 * baseline["test/mse"]


def test_metrics_are_those_over_all_outputs(swapped, own):
    saved = torch.load(swapped.folder / "checkpoints/best.ckpt", weights_only=True)
    network = importlib.import_module("mine.network").CausalConv(1, 3, n_channels=16, width=8)
    network.load_state_dict({k.removeprefix("network."): v for k, v in saved["state_dict"].items()})
    generator = torch.Generator().manual_seed(seed_of(0, "test"))
    x, y = importlib.import_module("mine.task").Summary().draw(256, 24, generator)
    with torch.no_grad():
        prediction, hidden = network(x)
    assert hidden is None
    mse = mse_loss(prediction, y).item()
    per_output = ((prediction - y) ** 2).mean(0) / y.var(0, unbiased=False)
    expected = {
        "test/mse": mse,
        "test/mae": l1_loss(prediction, y).item(),
        "test/r2": (1 - per_output.mean()).item(),
        "test/skill": 1 - mse / mse_loss(torch.full_like(y, 0.5), y).item(),
    }
    for name, value in expected.items():
        assert swapped.results["metrics"][name] == pytest.approx(value, rel=1e-4, abs=1e-4), name


def test_it_is_watched_like_ours(swapped):
    points = scalars(swapped.folder)
    for tag in ("train/mse", "val/mse", "best/val/mse", "lr"):
        assert [step for step, _ in points[tag]] == [64, 128, 192, 256], tag
    assert points["val/mse"][-1][1] == pytest.approx(swapped.results["metrics"]["val/mse"])
    # a network without state has no states to draw
    assert set(events(swapped.folder).Tags()["images"]) == {"prediction", "test/prediction"}


def test_its_table_has_its_parts_and_its_baseline(swapped):
    assert re.search(r"CausalConv, 195 parameters, x \(32, 24, 1\)", swapped.out)
    assert re.search(r"conv +Conv1d +\(32, 16, 31\) +144", swapped.out)
    assert re.search(r"head +Linear +\(32, 3\) +51", swapped.out)
    assert re.search(rf"always 1/2 +{swapped.results['baselines']['always 1/2']['test/mse']:.4g}",
                     swapped.out)  # fmt: skip


def test_the_next_command_printed_finds_the_folder_too(swapped):
    command = swapped.commands["Over five seeds"]
    assert command[:3] == ["python", "train.py", "-m"]
    assert "--config-dir=mine/conf" in "=".join(command)


def test_a_sweep_over_its_keys(own):
    (own / "sweep").mkdir()
    (own / "sweep/mine").symlink_to(own / "mine")
    small = ["data.n_train=64", "data.n_val=32", "data.n_test=32", "callbacks.pictures=null"]
    result = run("-m", *SWAP, *small, "trainer.max_epochs=1", "model.width=2,4", cwd=own / "sweep")
    assert result.code == 0, result.err
    names = [path.name for path in result.folder.iterdir() if path.is_dir()]
    assert sorted(names) == ["0-model.width=2", "1-model.width=4"]
    header = (result.folder / "results.csv").read_text().splitlines()[0]
    assert header.startswith("model.width,best/val/mse")


WRONG = """
import torch
from torch import nn

from seqlab.tasks import Task


class Network(nn.Module):
    def __init__(self, returns: str):
        super().__init__()
        self.returns = returns
        self.head = nn.Linear(1, 1)

    def forward(self, x, hidden=None):
        x = x[:, :, :1]
        prediction = self.head(x[:, -1])
        return {
            "tensor": prediction,
            "triple": (prediction, None, None),
            "flat": (prediction[:, 0], None),
            "last": (prediction, None),
            "sequence": (self.head(x), None),
            "equal": (x.new_zeros(len(x), 4), None),
            "none": None,
        }[self.returns]


class Summing(Task):
    n_inputs, n_outputs = 1, 1

    def __init__(self, returns: str):
        self.returns = returns

    def draw(self, n, seq_len, generator):
        x = torch.rand(n, seq_len, 1, generator=generator)
        return {
            "flat": (x, x.sum((1, 2))),
            "features": (x.expand(-1, -1, 2), x.sum(1)),
            "few": (x[1:], x[1:].sum(1)),
            "double": (x.double(), x.sum(1)),
            "baselines": (x, x.sum(1)),
        }[self.returns]

    def baselines(self, x):
        return {"zero": x.new_zeros(len(x))} if self.returns == "baselines" else {}
"""


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        *(
            (["model=wrong", f"model.returns={returns}"], ["model", "(32, 1)", got])
            for returns, got in {
                "tensor": "Tensor",
                "triple": "tuple",
                "flat": "(32,)",
                "sequence": "(32, 24, 1)",
                "none": "NoneType",
            }.items()
        ),
        (
            ["model=wrong", "model.returns=equal", "data=temporal_order", "data.seq_len=20"],
            ["model", "Network.forward takes no lengths"],
        ),
        (["model=wrong", "model.returns=equal", "data=copy"], ["(32, 30, 9)", "(32, 4)"]),
        (
            ["model=wrong", "model.returns=last", "data=mackey_glass", "data.every_step=training"],
            ["model", "in training mode", "(32, 30, 1)", "(32, 1)"],
        ),
        *(
            (["data=wrong", f"data.task.returns={returns}"], ["data", "Summing", got])
            for returns, got in {
                "flat": "(8192,)",
                "features": "(8192, 24, 2)",
                "few": "(8191, 24, 1)",
                "double": "float64",
                "baselines": "zero",
            }.items()
        ),
    ],
)
def test_a_wrong_return_is_one_line_that_quotes_what_it_got(
    overrides, words, tmp_path, monkeypatch
):
    files = {
        "mine/wrong.py": WRONG,
        "conf/model/wrong.yaml": "_target_: mine.wrong.Network\nreturns: ???\n",
        "conf/data/wrong.yaml": (
            "defaults: [_toy]\ntask:\n  _target_: mine.wrong.Summing\n  returns: ???\n"
        ),
    }
    monkeypatch.syspath_prepend(write(tmp_path, files))
    result = run("--config-dir", "conf", *overrides, cwd=tmp_path)
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", result.err), result.err
    for word in words:
        assert word in result.err
    assert not (tmp_path / "outputs").exists()
