"""Runs on a GPU: the steps of a call as one CUDA graph are those taken one by one, to the bit.

`tests/gpu/run.sh` runs these and the figures. Where there is no GPU they are skipped.
"""

import functools
import json
from unittest import mock

import pytest
import torch
from left import left
from program import ROOT, Kill, forked, write

from seqlab.languages import FlipFlop, Strings
from seqlab.literature import (
    Adding,
    AddingHS97,
    AddingUniform,
    Copy,
    LongLag,
    Multiplication,
    Reber,
    TemporalOrder,
    TwoSequence,
)
from seqlab.tasks import Random, Sine, TaskData

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here"),
]

#: Three epochs of 70 steps: of 16 a call they are four calls and a shorter one.
GPU = [
    "trainer=gpu", "trainer.max_epochs=3", "trainer.log_every_n_steps=3", "data.batch_size=8",
    "data.n_train=560", "data.n_val=64", "data.n_test=64", "data.seq_len=6", "model.n_hidden=8",
    "callbacks.pictures=null", "hydra.run.dir=run",
]  # fmt: skip
BY_STEP = "optim.graph=false"

MINE = """
import json
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from torch.nn.functional import dropout

from seqlab.model import LSTMNetwork
from seqlab.tasks import Sine


class Played(Callback):
    \"\"\"Leaves behind how many calls were graphs.\"\"\"

    n = 0

    def on_train_start(self, trainer, learner):
        replay = getattr(learner.steps, "replay", None)

        def counted(*args):
            self.n += 1
            return replay(*args)

        learner.steps.replay = counted

    def on_train_end(self, *args):
        Path("played").write_text(str(self.n))

    on_exception = on_train_end


class ByStep(Callback):
    \"\"\"Seeds as for a graph, and takes the steps one by one.\"\"\"

    def on_train_batch_start(self, trainer, learner, batch, batch_idx):
        if learner.steps.fixed is not None:  # the first chunk has prepared the network
            learner.steps.why_not = "asked"


class Waits(Callback):
    \"\"\"Leaves behind what the profiler saw in six calls of the second epoch.\"\"\"

    def on_train_batch_start(self, trainer, learner, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 1):
            activities = torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA
            self.profiler = torch.profiler.profile(activities=activities)
            self.profiler.start()
            torch.cuda.synchronize()
            self.calls = torch.profiler.record_function("six calls")
            self.calls.__enter__()

    def on_train_batch_end(self, trainer, learner, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 6):
            self.calls.__exit__(None, None, None)
            self.profiler.stop()
            events, found = self.profiler.events(), {}
            (span,) = (e.time_range for e in events if e.name == "six calls"
                       and e.device_type == torch.autograd.DeviceType.CPU)
            for event in events:
                if span.start <= event.time_range.start < span.end:
                    found[event.name] = found.get(event.name, 0) + 1
            Path("waits").write_text(json.dumps(found))


class Spoilt(Sine):
    \"\"\"From the second epoch on some targets are no numbers.\"\"\"

    n_drawn = 0

    def draw(self, n, seq_len, generator):
        x, y = super().draw(n, seq_len, generator)
        self.n_drawn += n == 560
        if n == 560 and self.n_drawn > 2:
            y[[17, 230, 231, 402]] = torch.nan
        return x, y


class Asks(LSTMNetwork):
    \"\"\"Asks the device for a number.\"\"\"

    def forward(self, x, hidden=None):
        return super().forward(x if x.isfinite().all() else x.nan_to_num(), hidden)


class Halts(LSTMNetwork):
    \"\"\"Cannot be recorded.\"\"\"

    def forward(self, x, hidden=None):
        if x.is_cuda:
            torch.cuda.synchronize()
        return super().forward(x, hidden)


class Drops(LSTMNetwork):
    \"\"\"Draws random numbers, though no layer of it has a dropout.\"\"\"

    def forward(self, x, hidden=None):
        return super().forward(dropout(x, 0.1, self.training), hidden)
"""


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(write(tmp_path, {"mine/gpu.py": MINE}))


def trained(cwd, *words, code=0):
    """A run of its own in `cwd`, which leaves `run`."""
    cwd.mkdir(parents=True)
    common = [*GPU, "+callbacks.played={_target_: mine.gpu.Played}"]
    if "data=series" in words:  # whose rows decide how many windows there are
        common = [word for word in common if not word.startswith("data.n_")]
    result = forked(*common, *words, cwd=cwd)
    assert result.code == code, result.err
    return result


def found(cwd):
    """All that must be the same, with the tensors on the CPU."""
    with mock.patch.object(torch, "load", functools.partial(torch.load, map_location="cpu")):
        return left(cwd / "run")


def assert_same(cwd, expected):
    now = found(cwd)
    for name in expected:
        assert now[name] == expected[name], name


def n_played(cwd):
    return int((cwd / "played").read_text())


def reasons(cwd):
    """Why steps were taken one by one, as the log says it."""
    _, *said = (cwd / "run/train.log").read_text().split("no CUDA graph, ")
    return [each.partition("\n")[0] for each in said]


#: What a run is given, and how many of its calls are graphs where that is known.
OPTIONS = {
    "plain": ([], 14),
    "a step a call": (["data.steps_per_call=1"], 209),
    "64 steps a call": (["data.steps_per_call=64"], 5),
    "all steps in a call": (["data.steps_per_call=100"], 2),
    "accumulate": (["data.accumulate=2"], 8),
    "a last step of fewer": (["data.accumulate=3"], 8),
    "ends within a call": (["+trainer.max_steps=100"], 5),
    "stops early": (["optim.lr=0", "callbacks.early_stopping.patience=1"], 9),
    "validation twice": (["+trainer.val_check_interval=0.5"], 14),
    "cosine": (["optim/schedule=cosine"], 14),
    "warmup": (["optim/schedule=warmup", "optim.schedule.warmup_steps=30"], 14),
    "plateau": (["optim/schedule=plateau", "optim.schedule.patience=0", "optim.lr=0.3"], 14),
    "small clip": (["optim.clip=0.01"], 14),
    "no clip": (["optim.clip=null"], 14),
    "adamw": (["optim=adamw"], 14),
    "sgd": (["optim=sgd"], 14),
    "sgd, cosine": (["optim=sgd", "optim/schedule=cosine"], 14),
    "fresh sequences": (["data.fresh=true"], 14),
    "bf16-mixed": (["trainer.precision=bf16-mixed"], 14),
    "bf16-true": (["trainer.precision=bf16-true"], 14),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_graph_s_weights_are_those_of_steps_one_by_one_to_the_bit(option, tmp_path):
    words, n = OPTIONS[option]
    trained(tmp_path / "steps", *words, BY_STEP)
    trained(tmp_path / "graph", *words)
    assert reasons(tmp_path / "graph") == []
    assert (n_played(tmp_path / "steps"), n_played(tmp_path / "graph")) == (0, n)
    assert_same(tmp_path / "graph", found(tmp_path / "steps"))


def test_two_runs_step_by_step_agree(tmp_path):
    """If not, the GPU's own computations differ, and the other tests say nothing of graphs."""
    for name in ("one", "two"):
        trained(tmp_path / name, BY_STEP)
    assert_same(tmp_path / "two", found(tmp_path / "one"))


def test_steps_that_are_not_finite_are_skipped_alone(tmp_path):
    words = ["data.task._target_=mine.gpu.Spoilt", "data.fresh=true", "optim.on_nonfinite=skip"]
    skipped = {}
    for name, more in (("steps", [BY_STEP]), ("graph", [])):
        lines = trained(tmp_path / name, *words, *more).err.splitlines()
        skipped[name] = [line for line in lines if "the step is skipped" in line]
    assert 4 <= len(skipped["steps"]) <= 8
    assert skipped["graph"] == skipped["steps"]
    assert n_played(tmp_path / "graph") > 0
    assert_same(tmp_path / "graph", found(tmp_path / "steps"))


def test_a_step_that_is_not_finite_stops_the_run_in_the_same_place(tmp_path):
    words = ["data.task._target_=mine.gpu.Spoilt", "data.fresh=true"]
    said = {}
    for name, more in (("steps", [BY_STEP]), ("graph", [])):
        lines = trained(tmp_path / name, *words, *more, code=2).err.splitlines()
        (said[name],) = (line for line in lines if "error:" in line)
    assert "epoch 2, batch 1, step 84: the loss is nan" in said["steps"]  # within a graph
    assert said["graph"] == said["steps"]
    assert n_played(tmp_path / "graph") == 5


DRAWS = {
    "dropout": ["model.dropout=0.3", "model.n_layers=2"],
    "dropout, gru": ["model=gru", "model.dropout=0.3", "model.n_layers=3"],
    "dropout, bf16-mixed": ["model.dropout=0.3", "trainer.precision=bf16-mixed"],
    "dropout, bf16-true": ["model.dropout=0.3", "trainer.precision=bf16-true"],
    "dropout, transformer": ["model=transformer", "model.dropout=0.3"],
    "one that draws": ["model._target_=mine.gpu.Drops"],
    "dropout, skipped": [
        *("model.dropout=0.3", "data.task._target_=mine.gpu.Spoilt", "data.fresh=true"),
        "optim.on_nonfinite=skip",
    ],
}


@pytest.mark.parametrize("option", DRAWS)
def test_a_graph_draws_what_steps_one_by_one_would_draw(option, tmp_path):
    words, by_step = DRAWS[option], "+callbacks.by_step={_target_: mine.gpu.ByStep}"
    trained(tmp_path / "steps", *words, by_step)
    trained(tmp_path / "graph", *words)
    assert reasons(tmp_path / "graph") == []
    assert n_played(tmp_path / "steps") == 0
    assert n_played(tmp_path / "graph") >= 14 - (option == "dropout, skipped")
    last, expected = found(tmp_path / "graph"), found(tmp_path / "steps")
    for name in ("last", "best", "metrics"):
        assert last[name] == expected[name], name


NETWORKS = {
    "gru": ["model=gru"],
    "lstm, classes at every step": ["data=copy", "data.seq_len=24"],
    "lstm, lengths that differ": ["data=temporal_order", "data.seq_len=20"],
    "minlstm": ["model=minlstm"],
    "transformer": ["model=transformer"],
    "a series": ["data=series", f"data.path={ROOT}/data/sunspots.csv", "data.target=sunspots"],
    "double": ["trainer.precision=64-true"],
    "one that asks": ["model._target_=mine.gpu.Asks"],
    "one that halts": ["model._target_=mine.gpu.Halts"],
}
#: Of which a graph is no wish but a promise.
GRAPHS = ("gru", "lstm, classes at every step", "minlstm", "transformer", "a series")


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_is_trained_by_a_graph_or_one_line_says_why_not(name, tmp_path):
    words = NETWORKS[name]
    trained(tmp_path / "steps", *words, BY_STEP)
    trained(tmp_path / "graph", *words)
    said, expected = reasons(tmp_path / "graph"), found(tmp_path / "steps")
    print(f"{name}: {said or 'a graph'}")
    assert len(said) == (n_played(tmp_path / "graph") == 0)
    assert name not in GRAPHS or not said
    if found(tmp_path / "graph") != expected:
        trained(tmp_path / "again", *words, BY_STEP)
        if found(tmp_path / "again") != expected:
            pytest.skip("two runs step by step differ too")
    assert_same(tmp_path / "graph", expected)


@pytest.mark.parametrize(
    "words", [["data.seq_len=20"], ["data=copy", "data.seq_len=24"]], ids=["values", "classes"]
)
def test_the_device_is_waited_for_once_a_call_at_most(words, tmp_path):
    # ten calls an epoch, and a loss is logged in each
    words = [*words, "data.n_train=1280", "+callbacks.waits={_target_: mine.gpu.Waits}"]
    trained(tmp_path / "one", *words)
    seen = json.loads((tmp_path / "one/waits").read_text())
    print(json.dumps(seen, indent=1))
    kinds = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
    assert seen.get("cudaGraphLaunch") == 6
    assert sum(seen.get(kind, 0) for kind in kinds) <= 6
    assert sum(n for name, n in seen.items() if name.startswith("Memcpy DtoH")) <= 6


def test_fresh_sequences_are_drawn_on_the_device_and_are_alike():
    rest = {"min_len": None, "val_len": None, "test_len": None, "test_task": None, "seed": 0}
    rest |= {"batch_size": 10, "accumulate": 1, "steps_per_call": 4}
    tasks = [Random(3), Sine(), FlipFlop([0.1, 0.9]), *(s() for s in Strings.__subclasses__())]
    tasks += [Adding(), AddingUniform(), AddingHS97(), Multiplication(), TemporalOrder(3), Copy()]
    tasks += [Reber(), LongLag("2a", 9), LongLag("2b", 9), LongLag("2c", 9), TwoSequence("3c")]
    for task in tasks:
        found = {}
        for name in ("cpu", "cuda:0"):
            made = TaskData(task, 24, 4000, 2, 2, fresh=True, **rest)
            made.prepare(torch.device(name))
            first, again, other = (made.training_set(epoch) for epoch in (1, 1, 2))
            assert made.there == (name != "cpu"), task  # nothing has failed there
            assert str(first.x.device) == name
            assert torch.equal(first.x, again.x)
            assert torch.equal(first.y, again.y)
            assert not torch.equal(first.x, other.x)
            found[name] = first.x.cpu(), first.y.cpu().double().nan_to_num()
        for pair in zip(*found.values(), strict=True):
            means = [each.double().mean(0) for each in pair]
            if pair[0].dim() > 1:  # of 2c the longest is drawn too
                steps = min(len(each) for each in means)
                means = [each[:steps] for each in means]
            assert torch.allclose(*means, atol=0.1 * max(1, *(p.abs().max() for p in pair))), task


def test_what_cannot_be_recorded_leaves_no_trace_in_the_next_job(tmp_path):
    """A recording that fails may leave its stream, its memory or the generator behind."""
    words = ["hydra.sweep.dir=sweep", "hydra.sweep.subdir=${hydra.job.num}"]
    words += ["model._target_=mine.gpu.Asks,mine.gpu.Halts,seqlab.model.LSTMNetwork"]
    result = forked("-m", *GPU[:-1], *words, cwd=tmp_path)
    assert result.code == 0, result.err
    for number, name in enumerate(("Asks", "Halts", "LSTMNetwork")):
        package = "seqlab.model" if name == "LSTMNetwork" else "mine.gpu"
        trained(tmp_path / name, f"model._target_={package}.{name}", BY_STEP)
        (tmp_path / f"job {number}").mkdir()
        (tmp_path / f"sweep/{number}").rename(tmp_path / f"job {number}/run")
        expected = found(tmp_path / name)
        # a job of a multirun writes less about it
        expected = {key: expected[key] for key in ("last", "best", "metrics")}
        assert_same(tmp_path / f"job {number}", expected)


#: Four epochs of six calls of four steps and one of two, written down every second call.
RESUMED = ["trainer.max_epochs=4", "data.n_train=208", "data.steps_per_call=4",
           "callbacks.last.every_n_steps=8"]  # fmt: skip
HOW = {"graph": [], "dropout": ["model.dropout=0.3", "model.n_layers=2"]}
GRAPH, LAST = "seqlab.engine.graph:GraphSteps", "seqlab.engine.last:Last"
POINTS = [
    (f"{GRAPH}.begin", 1), (f"{GRAPH}.record", 1),
    (f"{GRAPH}.replay", 1), (f"{GRAPH}.replay", 2), (f"{GRAPH}.replay", 9), (f"{GRAPH}.replay", 17),
    *((f"{LAST}.on_train_batch_start", n) for n in (2, 5, 9, 20)),
    *((f"{LAST}.on_train_batch_end", n) for n in (3, 7, 16, 27)),
    (f"{LAST}.on_validation_start", 2), ("seqlab.learner:Learner.validation_step", 3),
    ("seqlab.watch.record:Record.on_train_epoch_end", 2),
    (f"{LAST}.on_train_epoch_end", 1), (f"{LAST}.on_train_epoch_end", 4),
    ("seqlab.engine.checkpoint:write", 4),
]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a run leaves that is not killed."""

    @functools.cache
    def ask(how):
        cwd = tmp_path_factory.mktemp("undisturbed")
        assert forked(*GPU, *RESUMED, *HOW[how], cwd=cwd).code == 0
        assert reasons(cwd) == []
        return found(cwd)

    return ask


@pytest.mark.parametrize("point", POINTS, ids=str)
@pytest.mark.parametrize("how", HOW)
def test_killed_anywhere_and_resumed_it_ends_the_same(how, point, undisturbed, tmp_path):
    words = [*GPU, *RESUMED, *HOW[how]]
    assert forked(*words, cwd=tmp_path, kills=[Kill(*point)]).code == -9, "not reached"
    result = forked("resume=run", cwd=tmp_path)
    assert result.code == 0, result.err
    assert_same(tmp_path, undisturbed(how))
