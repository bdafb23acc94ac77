"""The steps of a CUDA graph, on a CPU: the same computation, run where a GPU would replay it."""

import copy
import logging
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from fitting import ADAM, fit, parts, weights
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import DummyLogger
from torch.nn.utils import get_total_norm
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from seqlab.engine.graph import GraphSteps, run_layer_by_layer
from seqlab.engine.steps import NonFinite, Steps, Warmup
from seqlab.literature import Copy, TemporalOrder
from seqlab.tasks import Sine

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]

FUSED = partial(torch.optim.Adam, lr=1e-2, fused=True)


class OnCPU(GraphSteps):
    """Computes where a GPU would replay, and counts it."""

    n_played = 0

    def has_graphs(self, learner):
        return True

    def record(self, learner, made):
        def play():
            self.n_played += 1
            self.compute(learner, made)

        return play


def both(epochs=2, max_steps=-1, spoil=None, average=None, **how):
    """A run step by step and the same run as a graph would take it: their learners, trainers and
    logged losses. `spoil` changes the data before."""
    found = []
    for kind in (Steps, OnCPU):
        data, learner = parts(**({"optimizer": FUSED} | how))
        old, clip = learner.steps, how.get("clip")
        learner.steps = kind(old.optimizer, old.schedule, clip, old.on_nonfinite, average)
        if spoil:
            spoil(data)
        logged = Losses()
        trainer = fit(
            data, learner, epochs, logger=logged, log_every_n_steps=3, max_steps=max_steps
        )
        found.append((learner, trainer, logged.losses))
    return found


class Losses(DummyLogger):
    """Keeps the losses that are logged, with their steps."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def log_metrics(self, metrics, step):
        self.losses += [(step, metrics["train/loss"])] if "train/loss" in metrics else []


def check_equal(found, played):
    (one, trainer, losses), (other, graph_trainer, graph_losses) = found
    assert torch.equal(weights(one), weights(other))
    assert trainer.global_step == graph_trainer.global_step
    assert losses == graph_losses
    assert len(losses) > 1 or trainer.global_step < 6
    first, second = one.steps.optimizer.state_dict(), other.steps.optimizer.state_dict()
    assert str(first["param_groups"]) == str(second["param_groups"])
    for key, state in first["state"].items():
        for name, value in state.items():
            same = second["state"][key][name]
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(same)), name
    if one.steps.schedule:
        assert one.steps.schedule.state_dict() == other.steps.schedule.state_dict()
    assert trainer.callback_metrics == graph_trainer.callback_metrics
    assert other.steps.why_not is None
    assert other.steps.n_played == played


@pytest.mark.parametrize(("steps_per_call", "played"), [(1, 23), (4, 5), (5, 5), (12, 1), (64, 1)])
def test_a_run_is_the_same_to_the_bit(steps_per_call, played):
    # twelve steps an epoch: the first chunk is taken step by step
    check_equal(both(steps_per_call=steps_per_call), played)


@pytest.mark.parametrize(
    "optimizer",
    [
        FUSED,
        partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1, fused=True),
        partial(torch.optim.Adam, lr=1e-2, amsgrad=True, fused=True),
        partial(torch.optim.SGD, lr=1e-1, momentum=0.9, nesterov=True, fused=True),
    ],
)
def test_with_any_fused_optimiser(optimizer):
    check_equal(both(optimizer=optimizer), 5)


@pytest.mark.parametrize(
    "schedule",
    [
        partial(CosineAnnealingLR, T_max=24),
        partial(StepLR, step_size=5),
        partial(ExponentialLR, gamma=0.9),
        partial(Warmup, warmup_steps=7, total_steps=24),
        partial(OneCycleLR, max_lr=0.1, total_steps=24, cycle_momentum=False),
        partial(ReduceLROnPlateau, patience=0),
    ],
)
def test_with_any_schedule(schedule):
    check_equal(both(schedule=schedule, epochs=2), 5)


def test_with_two_groups_of_parameters():
    def split(weights):
        first, *rest = weights
        return FUSED([{"params": [first], "lr": 1e-3}, {"params": rest}])

    check_equal(both(optimizer=split, schedule=partial(StepLR, step_size=5)), 5)


@pytest.mark.parametrize("clip", [None, 1e-2, 1e3])
def test_with_any_clip(clip):
    check_equal(both(clip=clip), 5)


@pytest.mark.parametrize("accumulate", [2, 3, 5])  # of five, the last step of an epoch has two
def test_with_accumulated_gradients(accumulate):
    (n, played) = {2: (6, 3), 3: (4, 3), 5: (4, 3)}[accumulate]
    check_equal(both(accumulate=accumulate, steps_per_call=n // 2 if n > 4 else 2), played)


@pytest.mark.parametrize("max_steps", [7, 8, 20])
def test_a_run_ends_at_its_last_step(max_steps):
    found = both(max_steps=max_steps)
    assert found[1][1].global_step == max_steps
    check_equal(found, {7: 0, 8: 1, 20: 4}[max_steps])


def test_with_a_target_at_every_step():
    check_equal(both(task=Copy(), seq_len=24), 5)


def spoil(*numbers):
    """Make training sequences infinite."""

    def change(data):
        data.splits["train"].x[list(numbers)] = torch.inf

    return change


@pytest.mark.parametrize("schedule", [None, partial(CosineAnnealingLR, T_max=24)])
@pytest.mark.parametrize("numbers", [(30,), (3, 50, 51, 80)])
def test_steps_that_are_not_finite_are_skipped_alone(numbers, schedule, caplog):
    with caplog.at_level(logging.WARNING, "seqlab"):
        found = both(on_nonfinite="skip", spoil=spoil(*numbers), schedule=schedule, epochs=3)
    half = len(caplog.messages) // 2
    assert caplog.messages[:half] == caplog.messages[half:]  # both runs tell of the same steps
    assert half >= 3
    assert found[1][1].global_step < 36
    check_equal(found, found[1][0].steps.n_played)
    assert found[1][0].steps.n_played >= 6


def test_a_step_that_is_not_finite_stops_the_run_in_the_same_place():
    said = []
    for kind in (Steps, OnCPU):
        data, learner = parts(optimizer=FUSED)
        learner.steps = kind(learner.steps.optimizer)
        calls = []
        take = learner.steps.take

        def later(learner, chunk, take=take, calls=calls):
            calls.append(1)
            if len(calls) == 3:  # the third step of the third chunk
                chunk[0][2].fill_(torch.nan)
            return take(learner, chunk)

        learner.steps.take = later
        with pytest.raises(NonFinite) as stop:
            fit(data, learner)
        said.append((str(stop.value), weights(learner)))
    assert said[0][0] == said[1][0]
    assert "step 11: the loss is nan" in said[0][0]
    assert torch.equal(said[0][1], said[1][1])


class Between(Callback):
    def on_before_optimizer_step(self, trainer, learner, optimizer):
        pass


def noisy(net, draw=torch.randn_like):
    """A network that draws random numbers while it trains."""
    forward = net.forward

    def drawn(x, hidden=None, lengths=None):
        return forward(x + 0.01 * draw(x) * net.training, hidden, lengths)

    net.forward = drawn


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
@pytest.mark.parametrize("drawn", ["dropout", "noise"])
def test_a_network_that_draws_is_the_same_to_the_bit(drawn, on_nonfinite):
    """A chunk is seeded where it begins, in a graph and step by step."""
    found = []
    for why_not in ("asked", None):
        data, learner = parts(optimizer=FUSED, dropout=0.3 if drawn == "dropout" else 0.0)
        learner.steps = OnCPU(learner.steps.optimizer, on_nonfinite=on_nonfinite)
        learner.steps.why_not = why_not
        if drawn == "noise":
            noisy(learner.network)
        trainer = fit(data, learner)
        found.append((weights(learner), trainer.callback_metrics, learner.steps.n_played))
    (one, metrics, none), (other, others, n_played) = found
    assert torch.equal(one, other)
    assert metrics == others
    assert (none, n_played) == (0, 5)


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU])
@pytest.mark.parametrize("bias", [True, False])
def test_layers_one_by_one_give_what_the_stack_gives(kind, bias):
    stack = kind(3, 5, 3, bias=bias, batch_first=True, dropout=0.4)
    x, hidden = torch.randn(4, 6, 3), torch.randn(3, 4, 5)
    hidden = (hidden, torch.randn(3, 4, 5)) if kind is torch.nn.LSTM else hidden
    draw = torch.default_generator.manual_seed
    draw(1)
    trained, _ = stack(x, hidden)  # a CPU's layers draw in the same order
    expected = [stack.eval()(x, given) for given in (None, hidden)]
    run_layer_by_layer(stack)
    for (out, after), given in zip(expected, (None, hidden), strict=True):
        assert torch.equal(stack.eval()(x, given)[0], out)
        stack.train().dropout = 0.0
        again, states = stack(x, given)
        assert torch.equal(again, out)
        for one, other in zip(states, after, strict=True):
            assert torch.equal(one, other)
    stack.dropout = 0.4
    draw(1)
    assert torch.equal(stack(x, hidden)[0], trained)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"task": TemporalOrder(2), "seq_len": 20}, "the sequences differ in their lengths"),
        ({"optimizer": ADAM}, "Adam is not fused"),
        ({"average": 0.9}, "optim.average follows each step"),
        (
            {"schedule": partial(OneCycleLR, max_lr=0.1, total_steps=24)},
            "the schedule changes the momentum",
        ),
    ],
)
def test_where_no_graph_can_be_used_one_line_says_why(how, reason, caplog):
    with caplog.at_level(logging.INFO, "seqlab"):
        (one, *_), (other, *_) = both(**how)
    assert torch.equal(weights(one), weights(other))
    assert other.steps.n_played == 0
    line = f"no CUDA graph, steps are taken one by one: {reason}"
    assert [each for each in caplog.messages if "graph" in each] == [line]


def test_a_network_that_draws_and_a_callback_between_steps_are_seen_too(caplog):
    for change, callbacks, reason in (
        (
            lambda net: noisy(net, lambda x: np.random.standard_normal()),
            [],
            "the network draws random numbers that are not PyTorch's",
        ),
        (lambda net: None, [Between()], "a callback"),
    ):
        data, learner = parts(optimizer=FUSED)
        learner.steps = OnCPU(learner.steps.optimizer)
        change(learner.network)
        with caplog.at_level(logging.INFO, "seqlab"):
            fit(data, learner, callbacks=callbacks)
        assert reason in [each for each in caplog.messages if "graph" in each][-1]
        assert learner.steps.n_played == 0


def test_what_cannot_be_recorded_is_trained_step_by_step(caplog):
    class Refuses(OnCPU):
        def record(self, learner, made):
            raise RuntimeError("operation not permitted\nwhile capturing")

    data, learner = parts(optimizer=FUSED)
    expected = copy.deepcopy(learner)
    learner.steps = Refuses(learner.steps.optimizer)
    with caplog.at_level(logging.INFO, "seqlab"):
        fit(data, learner)
    (line,) = [each for each in caplog.messages if "graph" in each]
    assert line.endswith("the network cannot be recorded: operation not permitted")
    fit(*parts(optimizer=FUSED)[:1], expected)
    assert torch.equal(weights(learner), weights(expected))


def test_on_a_cpu_nothing_is_recorded():
    data, learner = parts(task=Sine(), optimizer=FUSED)
    learner.steps = GraphSteps(learner.steps.optimizer)
    fit(data, learner)
    assert learner.steps.fixed is None
    assert learner.steps.why_not is None


def test_a_norm_that_is_the_clip_is_not_clipped():
    optimizer = partial(torch.optim.Adam, lr=0.0, fused=True)  # so no step changes the next norm
    data, learner = parts(optimizer=optimizer)
    norms = []
    with mock.patch("seqlab.engine.steps.get_total_norm", side_effect=lambda *a, **k: (
        norms.append(get_total_norm(*a, **k)) or norms[-1]
    )):  # fmt: skip
        fit(data, learner, 1)
    check_equal(both(optimizer=optimizer, clip=norms[9].item()), 5)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_in_any_precision(precision):
    found = []
    for kind in (Steps, OnCPU):
        data, learner = parts(optimizer=FUSED)
        learner.steps = kind(learner.steps.optimizer)
        fit(data, learner, precision=precision)
        found.append(weights(learner))
    assert torch.equal(*found)
    assert learner.steps.n_played == 5


def test_no_graph_makes_the_optimiser_s_state():
    """Which would begin anew with each replay."""
    data, learner = parts(optimizer=FUSED, on_nonfinite="skip")
    learner.steps = OnCPU(learner.steps.optimizer, on_nonfinite="skip")
    take, record, calls, steps = learner.steps.take, learner.steps.record, [], []

    def later(learner, chunk):
        calls.append(1)
        if len(calls) == 1:  # no step of the first chunk is taken
            chunk[0].fill_(torch.nan)
        return take(learner, chunk)

    def recorded(learner, made):
        steps.append(learner.trainer.global_step)
        return record(learner, made)

    learner.steps.take, learner.steps.record = later, recorded
    fit(data, learner)
    assert learner.steps.why_not is None
    assert steps == [4]


def test_what_a_callback_changes_between_calls_is_recorded_anew():
    class Decays(Callback):
        def on_train_epoch_start(self, trainer, learner):
            learner.steps.optimizer.param_groups[0]["weight_decay"] = 0.1 * trainer.current_epoch

    found = []
    for kind in (Steps, OnCPU):
        data, learner = parts(optimizer=FUSED)
        learner.steps = kind(learner.steps.optimizer)
        if kind is OnCPU:
            learner.steps.record = mock.Mock(side_effect=learner.steps.record)
        fit(data, learner, callbacks=[Decays()])
        found.append(weights(learner))
    assert torch.equal(*found)
    assert learner.steps.record.call_count == 2


def counting(net):
    """A network that counts its calls."""
    forward, net.n_calls = net.forward, 0

    def counted(x, hidden=None, lengths=None):
        net.n_calls += 1
        return forward(x, hidden, lengths)

    net.forward = counted


# in the list of `test_a_network_that_draws_and_a_callback_between_steps_are_seen_too`:
#     (counting, [], "the network counts in Python"),
