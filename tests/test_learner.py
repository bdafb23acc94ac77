import copy
import math
from functools import partial

import lightning as L
import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from seqlab.build import check_network
from seqlab.data import MackeyGlass, ToyData
from seqlab.learner import HOOKS, Learner
from seqlab.model import LSTMNetwork
from seqlab.tasks import Random, Reber, Sine, Task, TemporalOrder

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]


def parts(task=None, dropout=0.0, n_hidden=4, schedule=None, clip=None, lr=1e-2, seed=0, **changed):
    sizes = {"seq_len": 6, "n_train": 96, "n_val": 40, "n_test": 40, "batch_size": 8}
    rest = {"fresh": False, "accumulate": 1, "steps_per_call": 4, "seed": seed}
    data = ToyData(task or Sine(noise=0.1), **(sizes | rest | changed))
    torch.manual_seed(seed)
    net = LSTMNetwork(
        data.n_inputs,
        data.n_outputs,
        2,
        n_hidden,
        dropout,
        "default",
        data.seq_len,
        data.every_step,
    )
    optimizer = partial(torch.optim.Adam, lr=lr)
    return data, Learner(net, optimizer, schedule, clip, "stop", "val/mse", seed)


def fit(data, learner, epochs=2, callbacks=()):
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        num_sanity_val_steps=0,
    )
    trainer.fit(learner, data)
    return trainer


def calls_of(data, epoch):
    """The calls of an epoch that is over."""
    loop = data.trainer.fit_loop
    loop.epoch_progress.current.processed = loop.epoch_progress.current.completed = epoch
    loop.epoch_loop.batch_progress.current.ready = 0
    return data.train_dataloader()


def weights(learner):
    return torch.cat([p.detach().flatten() for p in learner.network.parameters()])


def test_global_step_counts_optimiser_steps():
    for steps_per_call in (1, 4, 100):
        assert fit(*parts(steps_per_call=steps_per_call)).global_step == 2 * 96 // 8
    assert fit(*parts(accumulate=5)).global_step == 2 * math.ceil(12 / 5)


def test_how_many_steps_a_call_takes_changes_no_bit():
    trained = []
    for steps_per_call in (1, 4, 100):
        data, learner = parts(dropout=0.5, clip=0.1, steps_per_call=steps_per_call)
        fit(data, learner)
        trained.append(weights(learner))
    assert torch.equal(trained[0], trained[1])
    assert torch.equal(trained[0], trained[2])


def test_one_seed_gives_the_same_weights_and_another_does_not():
    trained = []
    for seed in (0, 0, 1):
        data, learner = parts(dropout=0.5, seed=seed)
        fit(data, learner)
        trained.append(weights(learner))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


@pytest.mark.parametrize("clip", [None, 0.05])
def test_training_equals_the_loop_one_would_write(clip):
    data, learner = parts(clip=clip)
    net = copy.deepcopy(learner.network)
    fit(data, learner)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for epoch in range(2):
        for call in calls_of(data, epoch):
            for ((x, y),) in call:
                optimizer.zero_grad()
                mse_loss(net(x)[0], y).backward()
                if clip:
                    torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
                optimizer.step()
    expected = torch.cat([p.detach().flatten() for p in net.parameters()])
    torch.testing.assert_close(weights(learner), expected, rtol=0, atol=1e-6)


def test_accumulated_small_batches_equal_a_large_one():
    small, large = parts(batch_size=8, accumulate=4), parts(batch_size=32)
    for data, learner in (small, large):
        fit(data, learner)
    torch.testing.assert_close(weights(small[1]), weights(large[1]), rtol=0, atol=1e-5)


def test_clipping_bounds_the_gradient_that_the_optimiser_sees():
    norms = []

    class Watch(torch.optim.SGD):
        def step(self, closure=None):
            grads = [p.grad.flatten() for p in self.param_groups[0]["params"]]
            norms.append(torch.cat(grads).norm().item())
            return super().step(closure)

    data, learner = parts(clip=0.01)
    learner.make_optimizer = partial(Watch, lr=1e-2)
    fit(data, learner)
    assert len(norms) == 24
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_callback_is_told_of_every_backward_pass_and_step_and_changes_no_bit(hook):
    seen = []
    watching = type("Watching", (L.Callback,), {hook: lambda self, *args: seen.append(args)})
    (data, watched), (others, alone) = parts(dropout=0.5, clip=0.1), parts(dropout=0.5, clip=0.1)
    steps = fit(data, watched, callbacks=[watching()]).global_step
    assert len(seen) == steps == fit(others, alone).global_step == 24
    assert (watched.watched, alone.watched) == (True, False)
    assert torch.equal(weights(watched), weights(alone))


def test_a_schedule_counts_optimiser_steps():
    data, learner = parts(schedule=partial(CosineAnnealingLR, T_max=24))
    trainer = fit(data, learner)
    assert learner.lr_schedulers().last_epoch == 24
    assert trainer.callback_metrics["lr"] == pytest.approx(0, abs=1e-9)


def test_a_plateau_schedule_counts_epochs_on_the_monitored_metric():
    schedule = partial(ReduceLROnPlateau, patience=0, threshold=1e9, factor=0.1)
    data, learner = parts(schedule=schedule)
    trainer = fit(data, learner, epochs=3)
    # no value is good enough for that threshold: each of the three epochs cuts the rate
    assert trainer.callback_metrics["lr"] == pytest.approx(1e-2 * 0.1**2, rel=1e-5)
    assert learner.optimizers().param_groups[0]["lr"] == pytest.approx(1e-2 * 0.1**3, rel=1e-5)


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
    targets = [y for call in calls_of(data, 0) for step in call for _, y in step]
    expected = mse_loss(torch.cat(losses), torch.cat(targets)).item()
    assert trainer.callback_metrics["train/mse"] == pytest.approx(expected, rel=1e-5)


def test_a_series_can_train_on_every_step_of_a_window_and_is_measured_on_the_last():
    window = {"seq_len": 5, "horizon": 2, "lead": 1, "season": None, "every_step": "training"}
    batches = {"batch_size": 8, "accumulate": 1, "steps_per_call": 4, "seed": 0}
    data = MackeyGlass(300, 17, 0.6, 0.8, **window, **batches)
    torch.manual_seed(0)
    net = LSTMNetwork(1, 2, 2, 4, 0.0, "default", 5, data.every_step)
    adam = partial(torch.optim.Adam, lr=1e-2)
    learner = Learner(copy.deepcopy(net), adam, None, None, "stop", "val/mse", 0)
    trainer = fit(data, learner, epochs=1)

    optimizer, ends = adam(net.parameters()), []
    for call in calls_of(data, 0):
        for ((x, y),) in call:
            assert (x.shape, y.shape) == ((8, 5, 1), (8, 5, 2))
            optimizer.zero_grad()
            out, _ = net.rnn(x)
            prediction = net.head(out)
            mse_loss(prediction, y).backward()
            optimizer.step()
            ends.append((prediction[:, -1].detach(), y[:, -1]))
    expected = torch.cat([p.detach().flatten() for p in net.parameters()])
    torch.testing.assert_close(weights(learner), expected, rtol=0, atol=1e-6)

    def mse(prediction, y):
        return mse_loss(data.unscale(prediction), data.unscale(y)).item()

    measured = trainer.callback_metrics
    assert measured["train/mse"] == pytest.approx(
        mse(*map(torch.cat, zip(*ends, strict=True))), rel=1e-5
    )
    x, y = data.splits["val"][:]
    with torch.no_grad():
        out, (stm, _) = net.rnn(x)
        assert measured["val/mse"] == pytest.approx(mse(net.head(stm[-1]), y), rel=1e-4)


def test_the_check_of_a_network_leaves_it_as_it_was():
    class Normed(LSTMNetwork):
        def forward(self, x, hidden=None):
            return super().forward(self.norm(x.transpose(1, 2)).transpose(1, 2), hidden)

    net = Normed(1, 1, 2, 4, 0.3, "default", 24, "training")
    net.norm = torch.nn.BatchNorm1d(1)
    data, learner = parts()
    data.every_step, learner.network = "training", net
    learner.example_input_array = torch.ones(8, 6, 1)
    before = copy.deepcopy(net.state_dict())
    check_network(learner, data)
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


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
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    total, count = 0.0, 0
    for call in calls_of(data, 0):
        for ((x, y, lengths),) in call:
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
    expected = torch.cat([p.detach().flatten() for p in net.parameters()])
    torch.testing.assert_close(weights(learner), expected, rtol=0, atol=1e-5)
    assert trainer.callback_metrics["train/ce"] == pytest.approx(total / count, rel=1e-4)


def test_fresh_sequences_change_each_epoch_and_a_seed_gives_the_same_weights():
    trained = []
    for fresh, seed in ((True, 0), (True, 0), (False, 0)):
        data, learner = parts(fresh=fresh, seed=seed)
        fit(data, learner)
        trained.append(weights(learner))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_the_batches_of_a_plain_dataloader_work_too():
    class Plain(ToyData):
        def train_dataloader(self):
            return DataLoader(TensorDataset(*self.splits["train"][:]), self.batch_size)

    data, learner = parts()
    data.__class__ = Plain
    before = weights(learner)
    trainer = fit(data, learner)
    assert trainer.global_step == 24
    assert not torch.equal(before, weights(learner))
