import copy
import logging
import math
import re
from functools import partial

import lightning as L
import pytest
import torch
from fitting import ADAM, batches_of, fit, parts, weights
from lightning.pytorch.loggers.logger import DummyLogger
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from seqlab.data import seed_of
from seqlab.engine.steps import HOOKS, NonFinite, Steps, Warmup
from seqlab.learner import Learner
from seqlab.objectives import Values
from seqlab.tasks import Sine, TaskData

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]


def test_global_step_counts_optimiser_steps():
    for steps_per_call in (1, 4, 100):
        assert fit(*parts(steps_per_call=steps_per_call)).global_step == 2 * 96 // 8
    assert fit(*parts(accumulate=5)).global_step == 2 * math.ceil(12 / 5)


def test_how_many_steps_a_chunk_takes_changes_no_bit():
    trained = []
    for steps_per_call in (1, 4, 100):
        data, learner = parts(dropout=0.5, clip=0.1, steps_per_call=steps_per_call)
        fit(data, learner)
        trained.append(weights(learner))
    assert torch.equal(trained[0], trained[1])
    assert torch.equal(trained[0], trained[2])


@pytest.mark.parametrize("clip", [None, 0.05])
def test_training_equals_the_loop_one_would_write(clip):
    data, learner = parts(clip=clip)
    net = copy.deepcopy(learner.network)
    fit(data, learner)
    optimizer = ADAM(net.parameters())
    for epoch in range(2):
        for x, y in batches_of(data, epoch):
            optimizer.zero_grad()
            mse_loss(net(x)[0], y).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
    torch.testing.assert_close(weights(learner), weights(net), rtol=0, atol=1e-6)


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

    fit(*parts(clip=0.01, optimizer=partial(Watch, lr=1e-2)))
    assert len(norms) == 24
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_callback_is_told_of_every_backward_pass_and_step_and_changes_no_bit(hook):
    seen = []
    watching = type("Watching", (L.Callback,), {hook: lambda self, *args: seen.append(args)})
    (data, watched), (others, alone) = parts(dropout=0.5, clip=0.1), parts(dropout=0.5, clip=0.1)
    steps = fit(data, watched, callbacks=[watching()]).global_step
    assert len(seen) == steps == fit(others, alone).global_step == 24
    assert watched.steps.use_lightning_step
    assert alone.steps.use_lightning_step is False
    assert torch.equal(weights(watched), weights(alone))


@pytest.mark.parametrize("hook", HOOKS)
def test_a_learner_of_ones_own_is_told_too(hook):
    seen = []
    watching = type("Watching", (Learner,), {hook: lambda self, *args: seen.append(args)})
    data, learner = parts()
    learner.__class__ = watching
    assert fit(data, learner).global_step == len(seen) == 24


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


def test_a_plateau_schedule_is_told_the_metric_of_the_epoch_that_ended():
    told, logged = [], []

    class Watch(ReduceLROnPlateau):
        def step(self, metrics, epoch=None):
            told.append(float(metrics))
            super().step(metrics)

    class Log(L.Callback):
        def on_validation_end(self, trainer, learner):
            logged.append(trainer.callback_metrics["val/mse"].item())

    fit(*parts(schedule=Watch), callbacks=[Log()])
    assert told == logged
    assert len(set(told)) == 2


@pytest.mark.parametrize("accumulate", [1, 3])
def test_each_step_has_random_numbers_of_its_own(accumulate):
    seen = []

    def note(network, _):
        if network.training:
            seen.append(torch.default_generator.initial_seed())

    data, learner = parts(accumulate=accumulate)
    learner.network.register_forward_pre_hook(note)
    steps = fit(data, learner).global_step
    expected = [seed_of(0, "dropout", step, 0) for step in range(steps)]
    assert seen == [seed for seed in expected for _ in range(accumulate)]


def test_the_batches_of_a_plain_dataloader_work_too():
    class Plain(TaskData):
        def train_dataloader(self):
            return DataLoader(TensorDataset(*self.splits["train"][:]), self.batch_size)

    data, learner = parts()
    data.__class__ = Plain
    net = copy.deepcopy(learner.network)
    trainer = fit(data, learner)
    assert trainer.global_step == 24
    optimizer = ADAM(net.parameters())
    for _ in range(2):
        for x, y in data.train_dataloader():
            optimizer.zero_grad()
            mse_loss(net(x)[0], y).backward()
            optimizer.step()
    torch.testing.assert_close(weights(learner), weights(net), rtol=0, atol=1e-6)


class Logger(DummyLogger):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.points = []

    def log_metrics(self, metrics, step=None):
        self.points.append((step, dict(metrics)))


def test_the_loss_is_logged_every_so_many_steps_whatever_the_chunks():
    found = []
    for steps_per_call in (1, 5):
        logger = Logger()
        data, learner = parts(steps_per_call=steps_per_call)
        fit(data, learner, logger=logger, log_every_n_steps=5)
        found.append([(s, m["train/loss"]) for s, m in logger.points if "train/loss" in m])
    assert [step for step, _ in found[0]] == [5, 10, 15, 20]
    assert found[0] == found[1]


@pytest.mark.parametrize("clip", [0, -1, math.inf, math.nan])
def test_a_clip_that_is_no_norm_is_refused_by_name(clip):
    optimizer = ADAM([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match=f"^clip={clip}: a finite number above 0, or null$"):
        Steps(optimizer, clip=clip)


def test_what_to_do_about_a_number_that_is_not_finite_is_one_of_two_things():
    optimizer = ADAM([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match=r"^on_nonfinite=ignore: stop or skip$"):
        Steps(optimizer, on_nonfinite="ignore")


# numbers that are not finite


class Spoilt(Values):
    """Spoils the loss of one training batch by its number: its value, or its gradient alone."""

    def __init__(self, batch, how):
        super().__init__()
        self.batches, self.batch, self.how = 0, batch, how

    def loss(self, prediction, y):
        loss = super().loss(prediction, y)
        self.batches += prediction.requires_grad
        if not prediction.requires_grad or self.batches != self.batch:
            return loss
        if self.how == "gradient":
            return loss + (0 * prediction.sum()).sqrt()  # infinitely steep at 0
        return loss + float(self.how)  # a constant: the gradient alone would be finite


SPOILT = ["nan", "inf", "-inf", "gradient"]


@pytest.mark.parametrize("how", SPOILT)
def test_a_number_that_is_not_finite_stops_the_run_before_the_step_is_taken(how):
    data, learner = parts(objective=Spoilt(17, how), dropout=0.5)
    with pytest.raises(NonFinite) as stop:
        fit(data, learner)
    loss = r"0\.\d+" if how == "gradient" else how
    said = f"epoch 2, batch 2, step 17: the loss is {loss}, the gradient's norm nan"
    assert re.fullmatch(said, str(stop.value)), stop.value
    others, alone = parts(dropout=0.5)
    assert fit(others, alone, max_steps=16).global_step == 16
    assert torch.equal(weights(learner), weights(alone))


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_its_step_is_skipped_if_so_wished(how, accumulate, caplog):
    """With all its batches: the optimiser, its schedule and the metrics do not see them."""
    schedule = partial(CosineAnnealingLR, T_max=24)
    data, learner = parts(
        objective=Spoilt(5, how), on_nonfinite="skip", accumulate=accumulate, schedule=schedule
    )
    net = copy.deepcopy(learner.network)
    with caplog.at_level(logging.WARNING, "seqlab"):
        trainer = fit(data, learner, epochs=1)
    step = math.ceil(5 / accumulate)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"step {step}: the loss is" in caplog.text
    assert caplog.text.rstrip().endswith("the step is skipped")
    assert trainer.global_step == 12 // accumulate - 1
    assert learner.lr_schedulers().last_epoch == trainer.global_step

    optimizer, measured = ADAM(net.parameters()), []
    cosine = schedule(optimizer)
    batches = list(batches_of(data, 0))
    for i in range(0, 12, accumulate):
        if i <= 4 < i + accumulate:
            continue
        optimizer.zero_grad()
        for x, y in batches[i : i + accumulate]:
            prediction = net(x)[0]
            (mse_loss(prediction, y) / accumulate).backward()
            measured.append((prediction.detach(), y))
        optimizer.step()
        cosine.step()
    torch.testing.assert_close(weights(learner), weights(net), rtol=0, atol=1e-6)
    expected = mse_loss(*map(torch.cat, zip(*measured, strict=True))).item()
    assert trainer.callback_metrics["train/mse"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_in_the_data_stops_the_run_at_its_step(value):
    class Broken(Sine):
        def draw(self, n, seq_len, generator):
            x, y = super().draw(n, seq_len, generator)
            if n == 96:
                y[17] = value
            return x, y

    data, learner = parts(Broken())
    numbers = [i for i, (_, y) in enumerate(batches_of(data, 0)) if not y.isfinite().all()]
    with pytest.raises(NonFinite, match=rf"^epoch 1, batch \d, step {numbers[0] + 1}: the loss is"):
        fit(data, learner)


def test_the_rate_warms_up_and_then_falls_to_zero():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.8)
    schedule, rates = Warmup(optimizer, 4, 12), []
    for _ in range(14):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    half = [0.4 * (1 + math.cos(math.pi * n / 8)) for n in range(1, 9)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, *half, 0, 0])


@pytest.mark.parametrize("warmup_steps", [0, 12, 13])
def test_a_warmup_is_shorter_than_the_run(warmup_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
    with pytest.raises(ValueError, match=f"warmup_steps={warmup_steps}: at least 1, below 12"):
        Warmup(optimizer, warmup_steps, 12)
