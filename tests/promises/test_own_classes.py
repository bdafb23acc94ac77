"""A network, a task and a loss of one's own, added from a folder of one's own: those of
docs/your-own.md, through everything that a run goes through."""

import importlib
import json
import re
import shutil

import pytest
import torch
from documents import MINE
from left import events, scalars, strict_json
from program import ROOT, run, seqlab, write
from torch.nn.functional import l1_loss, mse_loss

from seqlab.data import seed_of

OWN = ["--config-dir", "mine/conf", "model=conv", "data=summary", "loss=log_cosh"]
FAST = ["data.n_train=2048", "data.n_val=256", "data.n_test=256"]
SMALL = ["data.n_train=64", "data.n_val=32", "data.n_test=32", "callbacks.pictures=null"]
BEST = "checkpoints/best.ckpt"
METRICS = ["log_cosh", "mse", "rmse", "mae", "r2", "skill"]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with `mine/` and nothing else, found by way of PYTHONPATH."""
    folder = write(tmp_path_factory.mktemp("own"), MINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture(scope="module")
def trained(own):
    shutil.copytree(own / "mine", own / "one/mine")
    return run(*OWN, *FAST, "trainer.max_epochs=4", cwd=own / "one")


@pytest.fixture(scope="module")
def tested(trained):
    """Predictions of the best checkpoint on the test set, and the targets, both `(256, 3)`: made
    from the classes, the weights and the seed, without anything of the engine."""
    saved = torch.load(trained.folder / BEST, weights_only=True)
    network = importlib.import_module("mine.network").CausalConv(1, 3, n_channels=16, width=8)
    network.load_state_dict({k.removeprefix("network."): v for k, v in saved["state_dict"].items()})
    generator = torch.Generator().manual_seed(seed_of(0, "test"))
    x, y = importlib.import_module("mine.task").Summary().draw(256, 24, generator)
    with torch.no_grad():
        prediction, hidden = network(x)
    assert hidden is None
    return prediction, y


def test_the_network_learns_the_task(trained):
    assert trained.code == 0, trained.err
    assert trained.err.count("\n") == 4
    assert trained.config["model"]["_target_"] == "mine.network.CausalConv"
    assert trained.config["loss"] == {"_target_": "mine.loss.LogCosh", "scale": 0.1}
    saved = torch.load(trained.folder / BEST, weights_only=True)
    sizes = {"n_inputs": 1, "n_outputs": 3, "every_step": False, "base": None, "n_values": 1}
    assert saved["sizes"] == sizes
    assert (trained.results["monitor"], trained.results["mode"]) == ("val/log_cosh", "min")
    metrics, baseline = trained.results["metrics"], trained.results["baselines"]["always 1/2"]
    assert metrics["test/mse"] < 0.2 * baseline["test/mse"]
    assert metrics["test/log_cosh"] < 0.2 * baseline["test/log_cosh"]


def log_coshes(error):
    """The loss of docs/your-own.md, by its definition."""
    return 0.1**2 * (error.double() / 0.1).cosh().log()


def test_metrics_are_those_over_all_outputs(trained, tested):
    prediction, y = tested
    log_cosh = log_coshes(prediction - y).mean().item()
    per_output = ((prediction - y) ** 2).mean(0) / y.var(0, unbiased=False)
    expected = {
        "test/log_cosh": log_cosh,
        "test/mse": mse_loss(prediction, y).item(),
        "test/mae": l1_loss(prediction, y).item(),
        "test/r2": (1 - per_output.mean()).item(),
        "test/skill": 1 - log_cosh / log_coshes(0.5 - y).mean().item(),
    }
    for name, value in expected.items():
        assert trained.results["metrics"][name] == pytest.approx(value, rel=1e-4, abs=1e-4), name
    assert trained.results["metrics"]["test/log_cosh"] == pytest.approx(log_cosh, rel=1e-5)


def test_its_loss_is_what_is_trained_and_decides_what_is_best(trained, own):
    values = [value for _, value in scalars(trained.folder)["val/log_cosh"]]
    best = trained.results["metrics"]["best/val/log_cosh"]
    assert min(values) == pytest.approx(best, rel=1e-6)
    # one step an epoch: the loss of the step is the epoch's metric
    shutil.copytree(own / "mine", own / "steps/mine")
    words = [*SMALL, "data.n_train=32", "trainer.log_every_n_steps=1", "trainer.max_epochs=2"]
    result = run(*OWN, *words, cwd=own / "steps")
    assert result.code == 0, result.err
    points = scalars(result.folder)
    for (step, loss), (at, metric) in zip(
        points["train/loss"], points["train/log_cosh"], strict=True
    ):
        assert (step, loss) == (at, pytest.approx(metric, rel=1e-5))


def test_it_is_watched_like_ours(trained):
    points = scalars(trained.folder)
    tags = "train/log_cosh train/mse val/log_cosh val/mse train/best/val/log_cosh train/lr"
    for tag in tags.split():
        assert [step for step, _ in points[tag]] == [64, 128, 192, 256], tag
    assert points["val/mse"][-1][1] == pytest.approx(trained.results["metrics"]["val/mse"])
    # a network without state has no states to draw
    images = set(events(trained.folder).Tags()["images"])
    assert images == {"view/val/prediction", "view/test/prediction"}


def test_its_table_has_its_parts_and_its_baseline(trained):
    assert re.search(r"CausalConv, 195 parameters, x \(32, 24, 1\)", trained.out)
    assert re.search(r"conv +Conv1d +\(32, 16, 31\) +144", trained.out)
    assert re.search(r"head +Linear +\(32, 3\) +51", trained.out)
    first, second = (
        trained.results["baselines"]["always 1/2"][f"test/{name}"] for name in ("log_cosh", "mse")
    )
    assert re.search(
        r" +test/log_cosh +test/mse +test/rmse +test/mae +test/r2 +test/skill", trained.out
    )
    assert re.search(rf"always 1/2 +{first:.4g} +{second:.4g}", trained.out)


def test_the_verdict_is_about_its_loss(trained):
    loss = trained.results["metrics"]["test/log_cosh"]
    best = trained.results["baselines"]["always 1/2"]["test/log_cosh"]
    said = f"The network beats always 1/2: log_cosh {loss:.4g} against {best:.4g}."
    assert said in trained.out


def test_the_next_command_printed_finds_the_folder_too(trained):
    command = trained.commands["Over five seeds"]
    assert command[:3] == ["python", str(ROOT / "train.py"), "-m"]
    assert "--config-dir=mine/conf" in "=".join(command)


def test_evaluate_gives_the_same(trained):
    checkpoint = str(trained.folder / BEST)
    found = seqlab("evaluate", checkpoint, "--trust", "mine", "--json", cwd=trained.cwd)
    assert found.code == 0, found.err
    rows = json.loads(found.out)
    row = {name: v for name, v in rows["network"].items() if name.startswith("test/")}
    assert row.keys() == {f"test/{name}" for name in METRICS}
    for name, value in row.items():
        assert value == pytest.approx(trained.results["metrics"][name], rel=1e-6), name
    assert rows["always 1/2"] == pytest.approx(trained.results["baselines"]["always 1/2"])


def test_predict_gives_its_answers(trained, tested):
    checkpoint = str(trained.folder / BEST)
    found = seqlab("predict", checkpoint, "--trust", "mine", cwd=trained.cwd)
    assert found.code == 0, found.err
    header, *lines = found.out.splitlines()
    assert header == "case,step,forecast,truth"
    values = torch.tensor([[float(cell) for cell in line.split(",")[2:]] for line in lines])
    for column, expected in zip(values.T, tested, strict=True):
        torch.testing.assert_close(column.reshape(256, 3), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_without_trust_a_command_runs_none_of_it(command, trained):
    found = seqlab(command, str(trained.folder / BEST), cwd=trained.cwd)
    assert found.code == 2
    assert re.fullmatch(r"error: model\._target_=mine\.network\.CausalConv: [^\n]+\n", found.err)
    assert "--trust mine" in found.err


def test_a_resume_takes_it_further(own):
    shutil.copytree(own / "mine", own / "long/mine")
    cwd, words = own / "long", [*OWN, *SMALL, "hydra.run.dir=run"]
    assert run(*words, "trainer.max_epochs=1", cwd=cwd).code == 0
    resume = ["--config-dir", "mine/conf", "resume=run", "trainer.max_epochs=3"]
    refused = run(*resume, cwd=cwd)
    assert (refused.code, refused.out) == (2, "")
    assert "trust=[mine]" in refused.err
    resumed = run(*resume, "trust=[mine]", cwd=cwd)
    assert resumed.code == 0, resumed.err
    whole = run(*words[:-1], "hydra.run.dir=whole", "trainer.max_epochs=3", cwd=cwd)
    assert whole.code == 0, whole.err
    left, expected = (strict_json(cwd / name / "results.json") for name in ("run", "whole"))
    assert left["metrics"] == expected["metrics"]
    assert (left["epochs"], left["steps"]) == (3, 6)
    weights, others = (
        torch.load(cwd / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("run", "whole")
    )
    assert all(torch.equal(weights[name], others[name]) for name in others)


def test_a_multirun_over_its_keys(own):
    shutil.copytree(own / "mine", own / "multirun/mine")
    swept = ["model.width=2,4", "loss.scale=0.1,1"]
    result = run("-m", *OWN, *SMALL, "trainer.max_epochs=1", *swept, cwd=own / "multirun")
    assert result.code == 0, result.err
    names = [path.name for path in result.folder.iterdir() if path.is_dir()]
    assert sorted(names) == [
        "0-loss.scale=0.1,model.width=2",
        "1-loss.scale=1,model.width=2",
        "2-loss.scale=0.1,model.width=4",
        "3-loss.scale=1,model.width=4",
    ]
    header = (result.folder / "results.csv").read_text().splitlines()[0]
    assert header == "model.width,loss.scale,best/val/log_cosh,test/log_cosh,status,folder"


# a metric of one's own, of which the highest is the best

SHARES = """
from seqlab.objectives import Values


class Shares(Values):
    def __init__(self, limit: float):
        super().__init__(near=self.near, far=self.far)
        self.limit = limit

    def near(self, prediction, y):
        return ((prediction - y).abs() < self.limit).all(1).double()

    def far(self, prediction, y):
        return 1 - self.near(prediction, y)
"""


@pytest.mark.parametrize(("name", "first_is_best"), [("near", False), ("far", True)])
def test_of_a_metric_of_ones_own_the_highest_is_the_best(
    name, first_is_best, tmp_path, monkeypatch
):
    files = {
        "mine/shares.py": SHARES,
        "mine/conf/loss/shares.yaml": "_target_: mine.shares.Shares\nlimit: 0.3\n",
    }
    monkeypatch.syspath_prepend(write(tmp_path, files))
    words = ["loss=shares", f"monitor=val/{name}", "trainer.max_epochs=6", "model.n_hidden=8"]
    words += ["data.n_train=640", "data.n_val=500", "data.n_test=500", "callbacks.pictures=null"]
    words += ["callbacks.early_stopping.patience=2"]
    result = run("--config-dir", "mine/conf", *words, cwd=tmp_path)
    assert result.code == 0, result.err
    left = result.results
    assert (left["monitor"], left["mode"]) == (f"val/{name}", "max")
    points = scalars(result.folder)
    values = [value for _, value in points[f"val/{name}"]]
    # training lets `near` rise and `far` fall; two epochs without a new best end the second run
    best = values.index(max(values))
    assert (best == 0) == first_is_best
    assert values.index(min(values)) == (len(values) - 1 if first_is_best else 0)
    assert left["epochs"] == len(values) == (3 if first_is_best else 6)
    assert left["metrics"][f"best/val/{name}"] == pytest.approx(max(values))
    saved = torch.load(result.folder / BEST, weights_only=True)
    assert saved["global_step"] == 20 * (best + 1)
    assert saved["metrics"][f"val/{name}"] == pytest.approx(max(values))
    highest = [max(values[: n + 1]) for n in range(len(values))]
    assert [v for _, v in points[f"train/best/val/{name}"]] == pytest.approx(highest)
    checkpoint = str(result.folder / BEST)
    found = seqlab("evaluate", checkpoint, "--trust", "mine", "--json", cwd=tmp_path)
    assert found.code == 0, found.err
    for which in ("near", "far", "mse"):
        tested = json.loads(found.out)["network"][f"test/{which}"]
        assert tested == pytest.approx(left["metrics"][f"test/{which}"]), which


# what one's own classes may get wrong

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


SWAP = """
from lightning.pytorch.callbacks import Callback
from torch import nn

class Swap(Callback):
    def on_test_start(self, trainer, learner):
        for weight in learner.network.parameters():
            nn.init.constant_(weight, 0.5)
"""


@pytest.mark.parametrize(
    "callback",
    ["{_target_: mine.swap.Swap}",
     "{_target_: lightning.pytorch.callbacks.EMAWeightAveraging, decay: 0.5}"],
)  # fmt: skip
def test_what_is_tested_is_the_file_whatever_a_callback_puts_in_place(callback, tmp_path):
    write(tmp_path, {"mine/swap.py": SWAP})
    words = [*SMALL, "trainer.max_epochs=2", "data.steps_per_call=1", "data.seq_len=4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        result = run(*words, f"+callbacks.more={callback}", cwd=tmp_path)
        assert result.code == 0, result.err
        again = seqlab("evaluate", str(result.folder / BEST), "--json", cwd=tmp_path)
    assert again.code == 0, again.err
    found = {key: v for key, v in result.results["metrics"].items() if key.startswith("test/")}
    row = json.loads(again.out)["network"]
    assert {key: value for key, value in row.items() if key.startswith("test/")} == found
