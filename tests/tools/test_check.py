"""`seqlab check` finds each of these faults by its name, and ours pass."""

import re
import subprocess
import sys

import pytest
from program import BIN, ROOT, seqlab, write

from seqlab.tools import check

#: Classes of a user's, each with a fault but the first.
MINE = '''
import time

import numpy as np
import torch
from torch import nn
from torch.nn.functional import dropout

from seqlab.objectives import Values
from seqlab.series.windows import SeriesData
from seqlab.tasks import Sine, TaskData


class Good(nn.Module):
    def __init__(self, n_inputs, n_outputs, every_step=False):
        super().__init__()
        self.rnn, self.every_step = nn.GRU(n_inputs, 16, batch_first=True), every_step
        self.head = nn.Linear(16, n_outputs)

    def forward(self, x, hidden=None):
        out, hidden = self.rnn(x, hidden)
        return self.read(out if self.every_step else out[:, -1]), hidden

    def read(self, out):
        return self.head(out)


class Squeezed(Good):
    def read(self, out):
        return self.head(out).squeeze(0)


class Unused(Good):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.extra = nn.Linear(3, 4)


class Detached(Good):
    def read(self, out):
        return self.head(out.detach())


class Cut(Good):
    def read(self, out):
        return self.head(out).detach()


class Frozen(Good):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.head.requires_grad_(False)


class Biased(Good):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        nn.init.constant_(self.head.bias, 100.0)


class Headless(Good):
    """Its last layer has another name, so on a base it does not start at zero."""

    def __init__(self, n_inputs, n_outputs):
        super().__init__(n_inputs, n_outputs)
        self.last, self.head = nn.Linear(16, n_outputs), nn.Identity()
        nn.init.normal_(self.last.weight, std=3.0)

    def read(self, out):
        return self.last(out)


class Tiny(nn.Module):
    def __init__(self, n_inputs, n_outputs):
        super().__init__()
        self.head = nn.Linear(n_inputs, n_outputs)

    def forward(self, x, hidden=None):
        return self.head(x.mean(1)), None


class Normed(Good):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.norm = nn.BatchNorm1d(16)

    def read(self, out):
        return self.head(self.norm(out))


class Centred(Good):
    def read(self, out):
        return self.head(out - out.mean(0))


class Ahead(nn.Module):
    """A convolution that is padded on both sides; it claims to carry a state."""

    def __init__(self, n_inputs, n_outputs):
        super().__init__()
        self.conv = nn.Conv1d(n_inputs, n_outputs, 3, padding=1)

    def forward(self, x, hidden=None, lengths=None):
        return self.conv(x.mT).mT, x[:, -1:]


class Unpadded(Good):
    def forward(self, x, hidden=None, lengths=None):
        return super().forward(x, hidden)


class Forgetful(Good):
    def forward(self, x, hidden=None):
        return super().forward(x)


class Skipping(Good):
    def step(self, x_BF, hidden=None):
        return self.forward(x_BF.unsqueeze(1), None)


class Restless(Good):
    def read(self, out):
        return self.head(dropout(out))


class Raising(Good):
    def read(self, out):
        if self.training:
            raise ZeroDivisionError("no training today")
        return self.head(out)


class Timed(Good):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        generator = torch.Generator().manual_seed(time.time_ns())
        self.head.weight.data.normal_(std=0.1, generator=generator)


class Unsaved(Good):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.register_buffer("scale", torch.rand(16), persistent=False)

    def read(self, out):
        return self.head(self.scale * out)


class Given(Sine):
    """The target, in other units, stands in the second input of the third step."""

    n_inputs = 2

    def draw(self, n, seq_len, generator):
        x, y = super().draw(n, seq_len, generator)
        x = torch.cat([x, torch.randn(x.shape, generator=generator)], 2)
        x[:, 2, 1] = 3 * y[:, 0] - 1
        return x, y

    def baselines(self, x):
        return {}


class Large(Sine):
    def draw(self, n, seq_len, generator):
        x, y = super().draw(n, seq_len, generator)
        return x, 1000 + 500 * y


class Unseeded(Sine):
    def draw(self, n, seq_len, generator):
        x = torch.from_numpy(np.random.default_rng().random((n, seq_len, 1), np.float32))
        return x, x[:, -1]


class Same(TaskData):
    """Its validation sequences are the first of the training part."""

    def load(self, device):
        splits = super().load(device)
        splits["val"].x[:] = splits["train"].x[: len(splits["val"].x)]
        splits["val"].y[:] = splits["train"].y[: len(splits["val"].y)]
        return splits


class Shared(SeriesData):
    """The targets of its first validation windows are those of the last training windows."""

    def load(self, device):
        self.window_numbers["val"] = [numbers - 5 for numbers in self.window_numbers["val"]]
        return super().load(device)


class Sorted(Values):
    """It compares the largest prediction with the largest target, whosever they are."""

    loss_name = "sorted"

    def errors(self, prediction, y):
        return (prediction.sort(0).values - y.sort(0).values).square()
'''

SIZES = ["data.n_train=256", "data.n_val=128", "data.n_test=32", "data.seq_len=8"]
SINE = [*SIZES, "model=mine"]
SYMBOLS = ["data=copy", *SIZES[:3], "data.seq_len=24", "model=mine"]
SERIES = ["data=series", f"data.path={ROOT}/data/sunspots.csv", "data.target=sunspots"]


def network(name, *words):
    return [*(words or SINE), f"model._target_=planted.{name}"]


def task(name):
    return [*SINE, "model._target_=planted.Good", f"data.task._target_=planted.{name}"]


#: By check: what it is to find in which config.
PLANTED = [
    ("shapes", network("Squeezed"), r"1 sequences give \(1,\), not \(1, 1\): look for squeeze"),
    ("gradients", network("Unused"), "extra.weight, extra.bias: no gradient; is it used"),
    ("gradients", network("Detached"), "rnn.weight_ih_l0, .* and 1 more: no gradient"),
    ("gradients", network("Cut"), "the loss depends on no weight: look for detach"),
    ("gradients", network("Frozen"), "head.weight, head.bias: frozen"),
    ("first loss", network("Biased"), r"^(1e\+04|9.9\de\+03|1.0\de\+04); best constant 0.\d+"),
    ("first loss", network("Headless", *SERIES, "model=mine"), r"its base \d.*: let the last"),
    ("first loss", task("Large"), r"the targets are about (1e\+03|9\d\d|1.0\de\+03): scale"),
    ("one batch", network("Tiny"), r"the loss of 8 sequences stays at 0.\d+, a tenth would be"),
    ("one batch", network("Cut"), "RuntimeError: .*does not require grad"),
    ("samples apart", network("Normed"), "in training other sequences .*: look for BatchNorm"),
    ("samples apart", network("Centred"), "in evaluation other .*: look for a mean or a view"),
    ("causal", network("Ahead", *SYMBOLS), "later steps change earlier predictions, by"),
    ("padding", network("Unpadded", "data=temporal_order", *SIZES[:3], "data.seq_len=20",
                        "model=mine"), "what stands in the padding changes predictions, by"),
    ("state", network("Forgetful"), "two parts are predicted otherwise than the whole, by"),
    ("state", network("Skipping"), "`step` predicts otherwise"),
    ("evaluation", network("Restless"), "two predictions differ: give functional.dropout"),
    ("target in inputs", task("Given"), "input 2 of step 3 of 8 gives the target away: leave"),
    ("shuffled targets", [*network("Good"), "loss=sorted"], "does each prediction meet its own"),
    ("splits", [*network("Good"), "data._target_=planted.Same"],
     "100.0% of 128 validation sequences are training ones; 0.0% by luck: split"),
    ("splits", [*SERIES, "data._target_=planted.Shared"], "5 rows are targets of both: split by"),
    ("seeds", network("Timed"), "head.weight: not the same twice; draw with torch's"),
    ("seeds", task("Unseeded"), "two builds begin with other data: draw them from the seed"),
    ("checkpoint", network("Unsaved"), "read back it predicts otherwise, by .*: keep what forw"),
    ("learning rate", [*network("Good"), "optim.lr=10"], "^10; .*: try optim.lr=[1-9]e-0"),
    ("learning rate", [*network("Good"), "optim.lr=1e-9"], "^1e-09; .*: try optim.lr=[1-9]e-0"),
]  # fmt: skip


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with classes and config files of a user's."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    write(tmp_path, {
        "planted.py": MINE,
        "conf/model/mine.yaml": "_target_: planted.Good\n",
        "conf/loss/sorted.yaml": "_target_: planted.Sorted\n",
    })  # fmt: skip
    return tmp_path


def checked(words, cwd):
    """The exit code of `seqlab check`, and by check its verdict and what it found."""
    found = seqlab("check", "--config-dir", "conf", *words, cwd=cwd)
    lines = [re.fullmatch(r"(ok  |FAIL|skip) ([a-z ]+): (.+)", x) for x in found.out.splitlines()]
    assert lines, found
    assert all(lines), found
    return found.code, {line[2]: (line[1].strip(), line[3]) for line in lines}


def name_of(function):
    return function.__name__.replace("_", " ")


NAMES = list(map(name_of, check.CHECKS))


@pytest.mark.parametrize(
    ("name", "words", "said"), PLANTED, ids=lambda v: v[-1] if isinstance(v, list) else None
)
def test_each_check_finds_its_fault(name, words, said, mine, monkeypatch):
    one = next(function for function in check.CHECKS if name_of(function) == name)
    monkeypatch.setattr(check, "CHECKS", (one,))
    code, found = checked(words, mine)
    assert (code, found[name][0]) == (1, "FAIL"), found
    assert re.search(said, found[name][1]), found


def test_each_check_has_a_fault_to_find():
    assert {name for name, _, _ in PLANTED} == set(NAMES)


@pytest.mark.parametrize("words", [[], SINE], ids=["ours", "a network without a fault"])
def test_what_is_sound_passes_and_nothing_is_left(words, mine):
    before = sorted(mine.rglob("*"))
    code, found = checked([*SIZES[:3], *words], mine)
    assert code == 0, found
    assert list(found) == NAMES
    skipped = {name: said for name, (verdict, said) in found.items() if verdict == "skip"}
    assert skipped == {
        "causal": "one prediction, after the last step",
        "padding": "all sequences have the same length",
    }
    assert sorted(path for path in mine.rglob("*") if "__pycache__" not in path.parts) == before


def test_the_learning_rates_are_drawn(mine, monkeypatch):
    monkeypatch.setattr(check, "CHECKS", (check.learning_rate,))
    found = seqlab("check", *SIZES, "model.n_layers=1", "--picture", "a.png", cwd=mine)
    assert (found.code, found.err) == (0, "a.png: the loss over the learning rate\n")
    assert (mine / "a.png").read_bytes().startswith(b"\x89PNG")
    sweep = {"rates": [1e-3, 1e-2, 1e-1], "losses": [3.0, 1.0, 2.0], "optim.lr": 1e-2,
             "fastest fall": 2e-2}  # fmt: skip
    (axes,) = check.draw(sweep).axes
    curve, chosen, fastest = axes.lines
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == (sweep["rates"], sweep["losses"])
    assert (chosen.get_xdata()[0], fastest.get_xdata()[0]) == (1e-2, 2e-2)
    assert axes.get_xscale() == "log"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.n_hiden=3"], "model.n_hiden: no such key; did you mean model.n_hidden? "),
        (["model=gone"], "model=gone: no such choice; "),
        (["trainer=null"], "Config group override must be a string or a list. Got NoneType"),
        (["model.n_hidden=0"], "model.n_hidden=0: at least 1"),
        (["data.n_train=many"], "data.n_train=many: it should be a valid integer"),
        (["data=series"], "data.path=???: Missing mandatory value: path"),
        (["--config-dir", "gone"], "--config-dir=gone: no such folder"),
        (["--picture", "a.txt"], "--picture=a.txt: must end in .png, .pdf or .svg"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_no_run_takes_is_one_line(words, said, mine, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["seqlab", "check", *words])
    found = seqlab("check", *words, cwd=mine)
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith(f"error: {said}")
    assert found.err.count("\n") == 1


def test_a_class_that_raises_fails_the_check_that_it_meets(mine, monkeypatch):
    monkeypatch.setattr(check, "CHECKS", (check.samples_apart, check.evaluation))
    code, found = checked(network("Raising"), mine)
    assert (code, found["samples apart"]) == (1, ("FAIL", "ZeroDivisionError: no training today"))
    assert found["evaluation"][0] == "ok"


CO2 = f"data=series data.path={ROOT}/data/co2.csv data.target=co2 data.time=date"
CO2 += " data.missing=interpolate data.season=52 data.seq_len=52 data.horizon=13"
SUNSPOTS = " ".join(SERIES)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "", "data=random", "model=gru", "data=random model=gru model.n_layers=1 optim.lr=1e-3",
        *(f"experiment={name}" for name in (
            "reference", "temporal_order", "temporal_order_3", "reber", "copy_t10", "copy_t50",
            "adding_t50", "adding_hs97_t100", "multiplication_t100", "sunspots", "mackey_glass",
        )), CO2,
        *(f"model={name} {data}" for name in ("minlstm", "transformer")
          for data in ("", "data=reber", "data=temporal_order", SUNSPOTS)),
        *(f"loss={name} {data}" for name in ("mae", "huber", "quantile")
          for data in ("", f"{SUNSPOTS} data.horizon=3")), "loss=cross_entropy data=copy",
        *(f"optim={name}" for name in ("adamw", "sgd", "rmsprop")),
        *(f"optim/schedule={name}" for name in ("cosine", "plateau", "onecycle", "warmup")),
    ],
)  # fmt: skip
def test_all_of_ours_pass(words, mine):
    code, found = checked(words.split(), mine)
    assert code == 0, {name: said for name, (verdict, said) in found.items() if verdict == "FAIL"}


@pytest.mark.slow
def test_it_takes_seconds(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [BIN / "seqlab", "check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 15
    assert list(tmp_path.iterdir()) == []
