import copy

import pytest
import torch
from fitting import ADAM, batches_of, fit, learner_of, parts, weights
from torch.nn.functional import cross_entropy, mse_loss

from seqlab.engine.build import check_network
from seqlab.engine.errors import UserError
from seqlab.engine.steps import Steps
from seqlab.learner import Learner
from seqlab.literature import MackeyGlass, Reber, TemporalOrder
from seqlab.model import LSTMNetwork
from seqlab.objectives import Values
from seqlab.tasks import Random, Sine, Task

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]


def test_one_seed_gives_the_same_weights_and_another_does_not():
    trained = []
    for seed in (0, 0, 1):
        data, learner = parts(dropout=0.5, seed=seed)
        fit(data, learner)
        trained.append(weights(learner))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_the_dropout_is_a_function_of_seed_and_step():
    trained = []
    for seed in (0, 0, 1):
        data, learner = parts(dropout=0.5)
        learner.seed = seed
        torch.manual_seed(len(trained))  # a state that is carried along is of no account
        fit(data, learner)
        trained.append(weights(learner))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_logged_metrics_are_those_of_the_whole_split():
    data, learner = parts(steps_per_call=2)
    trainer = fit(data, learner, epochs=1)
    x, y = data.splits["val"][:]
    with torch.no_grad():
        error = learner.eval()(x) - y
    mse, variance = error.square().mean().item(), (y - y.mean()).square().mean().item()
    persistence = (x[:, -1] - y).square().mean().item()
    metrics = trainer.callback_metrics
    assert metrics["val/mse"] == pytest.approx(mse, rel=1e-5)
    assert metrics["val/mae"] == pytest.approx(error.abs().mean().item(), rel=1e-5)
    assert metrics["val/r2"] == pytest.approx(1 - mse / variance, rel=1e-4)
    assert metrics["val/skill"] == pytest.approx(1 - mse / persistence, rel=1e-4)
    assert {f"train/{name}" for name in ("mse", "mae", "r2", "skill")} <= set(metrics)


def test_training_metrics_are_the_mean_over_the_epochs_batches():
    losses = []

    class Watch(LSTMNetwork):
        def forward(self, x, hidden=None):
            prediction, hidden = super().forward(x, hidden)
            if self.training:
                losses.append(prediction.detach())
            return prediction, hidden

    data, learner = parts()
    learner.network.__class__ = Watch
    trainer = fit(data, learner, epochs=1)
    targets = [y for _, y in batches_of(data, 0)]
    expected = mse_loss(torch.cat(losses), torch.cat(targets)).item()
    assert trainer.callback_metrics["train/mse"] == pytest.approx(expected, rel=1e-5)


def test_a_series_is_trained_on_scaled_values_and_measured_in_its_own_units():
    window = {
        "seq_len": 5,
        "horizon": 2,
        "lead": 1,
        "season": None,
        "predict": "level",
        "calendar": [],
    }
    batches = {"batch_size": 8, "accumulate": 1, "steps_per_call": 4, "seed": 0}
    data = MackeyGlass(300, 17, 0.6, 0.8, **window, **batches)
    torch.manual_seed(0)
    net = LSTMNetwork(1, 2, 4, 2)
    copied = copy.deepcopy(net)
    learner = learner_of(copied, data, Steps(ADAM(copied.parameters())))
    trainer = fit(data, learner, epochs=1)

    optimizer, ends = ADAM(net.parameters()), []
    for x, y in batches_of(data, 0):
        assert (x.shape, y.shape) == ((8, 5, 1), (8, 2))
        optimizer.zero_grad()
        _, (stm, _) = net.rnn(x)
        prediction = net.head(stm[-1])
        mse_loss(prediction, y).backward()
        optimizer.step()
        ends.append((prediction.detach(), y))
    torch.testing.assert_close(weights(learner), weights(net), rtol=0, atol=1e-6)

    def mse(prediction, y):
        return mse_loss(data.unscale(prediction), data.unscale(y)).item()

    measured = trainer.callback_metrics
    assert measured["train/mse"] == pytest.approx(
        mse(*map(torch.cat, zip(*ends, strict=True))), rel=1e-5
    )
    x, y = data.splits["val"][:]
    with torch.no_grad():
        assert measured["val/mse"] == pytest.approx(mse(net(x)[0], y), rel=1e-4)


def test_the_check_of_a_network_leaves_it_as_it_was():
    class Normed(LSTMNetwork):
        def forward(self, x, hidden=None):
            return super().forward(self.norm(x.transpose(1, 2)).transpose(1, 2), hidden)

    net = Normed(1, 1, 4, 2, 0.3)
    net.norm = torch.nn.BatchNorm1d(1)
    before = copy.deepcopy(net.state_dict())
    check_network(net, torch.ones(8, 6, 1), parts()[0])
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("task", "returned", "said"),
    [
        (Sine(), lambda x: x[:, -1], r"\(8, 1\), hidden\), got .*Tensor"),
        (Sine(), lambda x: (x[:, -1], None, None), r"\(8, 1\), hidden\), got .*tuple"),
        (Sine(), lambda x: (x, None), r"\(8, 1\), hidden\), got a prediction \(8, 6, 1\)"),
        (Reber(), lambda x: (x[:, -1], None), r"\(8, 6, 7\), hidden\), got a prediction \(8, 7\)"),
    ],
)
def test_a_network_that_returns_something_else_is_refused_and_quoted(task, returned, said):
    class Wrong(torch.nn.Module):
        def forward(self, x, hidden=None):
            return returned(x)

    data = parts(task, seq_len=20)[0]
    x = torch.zeros(8, 6, data.n_inputs)
    with pytest.raises(UserError, match=rf"^model: forward\(x .* must return \(prediction {said}"):
        check_network(Wrong(), x, data)


@pytest.mark.parametrize(
    ("task", "reaches", "sizes"),
    [
        # a quarter of the variance of the mean
        (Random(n_inputs=5), 0.25 / (12 * 3 * 5), {"seq_len": 3, "n_train": 2000}),
        # persistence has 0.069, nothing is below 0.01
        (Sine(noise=0.1), 0.02, {"seq_len": 24, "n_train": 4000}),
    ],
    ids=["random", "sine"],
)
def test_learning_reaches_its_figure(task, reaches, sizes):
    more = {"n_hidden": 16, "n_val": 1000, "steps_per_call": 16, "batch_size": 16}
    trainer = fit(*parts(task, **(sizes | more)), epochs=4)
    assert trainer.callback_metrics["val/mse"] < reaches


def test_a_target_independent_of_the_input_is_not_learned():
    class Coin(Task):
        n_inputs, n_outputs = 1, 1

        def draw(self, n, seq_len, generator):
            x = torch.rand(n, seq_len, 1, generator=generator)
            return x, torch.rand(n, 1, generator=generator)

        def baselines(self, x):
            return {"always 1/2": x.new_full((len(x), 1), 0.5)}

    data, learner = parts(Coin(), n_train=2000, n_val=2000, n_hidden=16)
    trainer = fit(data, learner, epochs=3)
    assert trainer.callback_metrics["val/skill"] < 0.005


@pytest.mark.parametrize("task", [TemporalOrder(2), Reber()])
def test_training_on_different_lengths_equals_one_sequence_at_a_time(task):
    data, learner = parts(task, seq_len=20)
    net = copy.deepcopy(learner.network)
    trainer = fit(data, learner, epochs=1)
    optimizer = ADAM(net.parameters())
    total, count = 0.0, 0
    for x, y, lengths in batches_of(data, 0):
        losses = []
        for i, n in enumerate(lengths.tolist()):
            prediction, target = net(x[i : i + 1, :n])[0], y[i : i + 1]
            prediction, target = prediction.reshape(-1, data.n_outputs), target.flatten()
            losses.append(cross_entropy(prediction, target[:n], reduction="none"))
        losses = torch.cat(losses)
        total, count = total + losses.sum().item(), count + len(losses)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    torch.testing.assert_close(weights(learner), weights(net), rtol=0, atol=1e-5)
    assert trainer.callback_metrics["train/ce"] == pytest.approx(total / count, rel=1e-4)


def test_fresh_sequences_change_each_epoch_and_a_seed_gives_the_same_weights():
    trained = []
    for fresh, seed in ((True, 0), (True, 0), (False, 0)):
        data, learner = parts(fresh=fresh, seed=seed)
        fit(data, learner)
        trained.append(weights(learner))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_what_is_computed_for_a_batch_is_one_method_to_override():
    class Halved(Learner):
        def compute(self, batch):
            x, y = batch
            return super().compute((x, y / 2))

    data, learner = parts()
    learner.__class__ = Halved
    net = copy.deepcopy(learner.network)
    trainer = fit(data, learner, epochs=1)
    optimizer = ADAM(net.parameters())
    for x, y in batches_of(data, 0):
        optimizer.zero_grad()
        mse_loss(net(x)[0], y / 2).backward()
        optimizer.step()
    torch.testing.assert_close(weights(learner), weights(net), rtol=0, atol=1e-6)
    x, y = data.splits["val"][:]
    with torch.no_grad():
        expected = mse_loss(net(x)[0], y / 2).item()
    assert trainer.callback_metrics["val/mse"] == pytest.approx(expected, rel=1e-4)


def test_an_objective_of_ones_own_is_trained_and_measured():
    class Absolute(Values):
        loss_name = "absolute"

        def errors(self, prediction, y):
            return (prediction - y).abs()

    data, learner = parts(objective=Absolute())
    net = copy.deepcopy(learner.network)
    trainer = fit(data, learner, epochs=1)
    optimizer = ADAM(net.parameters())
    for x, y in batches_of(data, 0):
        optimizer.zero_grad()
        (net(x)[0] - y).abs().mean().backward()
        optimizer.step()
    torch.testing.assert_close(weights(learner), weights(net), rtol=0, atol=1e-6)
    metrics = trainer.callback_metrics
    assert learner.monitor == "val/absolute"
    assert metrics["val/absolute"] == pytest.approx(metrics["val/mae"].item(), rel=1e-5)
