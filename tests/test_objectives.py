import math
import re

import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

from seqlab.objectives import NO_TARGET, Classes, Objective, Values

LOGITS = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor(
    [[0, 1, 2, 0], [1, -100, -100, 2], [2, 0, -100, -100], [0, 0, 0, 0]] + [[-100] * 4]
)


def by_hand(logits, targets):
    """The cross-entropies and the hits of all targets that are there, one after the other."""
    losses, right = [], []
    for steps, symbols in zip(logits.tolist(), targets.tolist(), strict=True):
        for scores, symbol in zip(steps, symbols, strict=True):
            if symbol != NO_TARGET:
                losses.append(math.log(sum(map(math.exp, scores))) - scores[symbol])
                right.append(scores.index(max(scores)) == symbol)
    return losses, right


def measured(objective, *batches):
    metrics = objective.metrics("val")
    for prediction, y in batches:
        objective.measure(metrics, prediction, y)
    values = objective.values("val", metrics)
    return {name.removeprefix("val/"): value.item() for name, value in values.items()}


class Data:
    """What an objective takes from data: three splits of two batches, in units of its own."""

    every_step, n_outputs, mase_scale = False, 2, None

    def __init__(self, baselines=None, **changed):
        generator = torch.Generator().manual_seed(2)
        self.splits = {
            split: [tuple(torch.randn(2, n, 2, generator=generator)) for n in (4, 3)]
            for split in ("train", "val", "test")
        }
        self.baselines = baselines or (lambda x: {"the input": x, "zero": torch.zeros_like(x)})
        vars(self).update(changed)

    def whole(self, split):
        return self.splits[split]

    def unscale(self, y):
        return 10 * y.double() + 3


class Absolute(Values):
    loss_name = "absolute"

    def errors(self, prediction, y):
        return (prediction - y).abs()


def test_the_masked_loss_equals_a_hand_computation():
    losses, _ = by_hand(LOGITS, TARGETS)
    assert len(losses) == 12
    assert Classes().loss(LOGITS, TARGETS).item() == pytest.approx(sum(losses) / 12)
    errors = Classes().errors(LOGITS, TARGETS)[TARGETS.flatten() != NO_TARGET]
    assert errors.tolist() == pytest.approx(losses)


def test_steps_without_a_target_get_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    Classes().loss(logits, TARGETS).backward()
    assert torch.equal(logits.grad.any(-1), TARGETS != NO_TARGET)


def test_metrics_of_classes_at_every_step_over_batches_of_any_size():
    losses, right = by_hand(LOGITS, TARGETS)
    solved = (LOGITS.argmax(-1) == TARGETS) | (TARGETS == NO_TARGET)
    expected = {"ce": sum(losses) / 12, "accuracy": sum(right) / 12}
    expected["solved"] = solved.all(1).double().mean().item()
    whole = measured(Classes(), (LOGITS, TARGETS))
    parts = measured(Classes(), *zip(LOGITS.split(2), TARGETS.split(2), strict=True))
    assert whole == pytest.approx(expected)
    assert parts == pytest.approx(expected)


def test_metrics_of_one_class_a_sequence():
    logits, y = LOGITS[:, 0], torch.tensor([0, 1, 2, 0, 1])
    accuracy = (logits.argmax(1) == y).double().mean().item()
    expected = {"ce": cross_entropy(logits, y).item(), "accuracy": accuracy, "solved": accuracy}
    assert measured(Classes(), (logits, y)) == pytest.approx(expected)


def test_metrics_equal_in_the_first_batch_stay_apart():
    y = torch.zeros(2, 2, dtype=torch.int64)
    none_right = torch.tensor([[[0.0, 1.0]] * 2] * 2)
    one_of_two = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]] * 2)
    found = measured(Classes(), (none_right, y), (one_of_two, y))
    assert (found["accuracy"], found["solved"]) == (0.25, 0)
    # with one target in each sequence the sums and the counts are equal too
    found = measured(Classes(), (none_right, torch.tensor([[0, NO_TARGET]] * 2)), (one_of_two, y))
    assert (found["accuracy"], found["solved"]) == (pytest.approx(2 / 6), 0)


def test_values_at_every_step_are_measured_where_they_are():
    y = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1))
    prediction = (y + 0.5).requires_grad_()
    assert measured(Values(), (prediction.detach(), y))["mse"] == pytest.approx(0.25)
    y[0, 2:] = math.nan
    loss = Values().loss(prediction, y)
    loss.backward()
    assert loss.item() == pytest.approx(0.25)
    assert not prediction.grad[0, 2:].any()
    assert prediction.grad[0, :2].all()
    assert measured(Values(), (prediction.detach(), y))["mae"] == pytest.approx(0.5)


def test_a_tasks_own_metrics_stand_beside_the_others():
    y, prediction = torch.randn(10, 2), torch.randn(10, 2)
    objective = Values(close=lambda p, y: ((p - y).abs() < 1).all(1).double())
    found = measured(objective, (prediction[:4], y[:4]), (prediction[4:], y[4:]))
    assert found["close"] == pytest.approx(((prediction - y).abs() < 1).all(1).double().mean())
    assert found["mse"] == pytest.approx(mse_loss(prediction, y).item())
    assert set(found) == {"mse", "rmse", "mae", "r2", "close"}


def test_a_diverged_network_has_no_loss_to_speak_of():
    found = measured(Classes(), (LOGITS * math.nan, TARGETS), (LOGITS, TARGETS))
    assert math.isnan(found["ce"])


def test_metrics_are_in_the_units_of_the_data():
    data = Data()
    objective = Values().attach(data)
    prediction, y = data.splits["val"][0]
    found = measured(objective, (prediction, y))
    assert found["mse"] == pytest.approx(100 * mse_loss(prediction, y).item(), rel=1e-5)
    assert torch.equal(objective.answer(prediction), 10 * prediction.double() + 3)
    assert objective.loss(prediction, y).item() == pytest.approx(mse_loss(prediction, y).item())


def test_skill_is_measured_against_the_first_baseline_over_the_whole_split():
    data = Data()
    objective = Values().attach(data)
    for split, batches in data.splits.items():
        x, y = map(torch.cat, zip(*batches, strict=True))
        assert objective.references[split] == pytest.approx(100 * mse_loss(x, y).item(), rel=1e-5)
    found = measured(objective, *data.splits["val"])
    assert found["skill"] == pytest.approx(0, abs=1e-9)
    zero = measured(objective, *((torch.zeros_like(x), y) for x, y in data.splits["val"]))
    assert zero["skill"] == pytest.approx(1 - zero["mse"] / objective.references["val"])


@pytest.mark.parametrize("baselines", [lambda x: {}, lambda x: {"perfect": x * 0}])
def test_without_a_baseline_to_beat_there_is_no_skill(baselines):
    data = Data(baselines)
    for batches in data.splits.values():
        for _, y in batches:
            y.zero_()
    objective = Values().attach(data)
    assert objective.references == {}
    assert "skill" not in measured(objective, *data.splits["val"])
    assert "val/skill" not in objective.monitors()


def test_a_baseline_of_another_shape_is_refused_and_quoted():
    with pytest.raises(ValueError, match=re.escape("(4, 2), got (4, 1) for wrong")):
        Values().attach(Data(lambda x: {"wrong": x[:, :1]}))


def test_mase_is_the_mae_over_that_of_a_naive_forecast():
    data = Data(mase_scale=4.0)
    objective = Values().attach(data)
    found = measured(objective, *data.splits["val"])
    assert found["mase"] == pytest.approx(found["mae"] / 4)
    assert objective.monitors()["val/mase"] == "min"
    assert "mase" not in measured(Values().attach(Data()), *data.splits["val"])


def test_what_is_attached_is_of_one_objective_alone():
    Values().attach(Data(mase_scale=4.0))
    fresh = Values()
    assert (fresh.references, fresh.mase_scale) == ({}, None)
    assert torch.equal(fresh.unscale(torch.ones(2)), torch.ones(2).double())


def test_every_metric_has_a_direction_and_those_that_are_known_may_be_monitored():
    objective = Values(close=lambda p, y: (p - y).abs() < 1).attach(Data())
    better = objective.better()
    assert list(better) == ["mse", "rmse", "mae", "r2", "mase", "skill", "close"]
    assert [name for name, which in better.items() if which == "max"] == ["r2", "skill", "close"]
    assert objective.monitors() == {
        f"val/{name}": which for name, which in better.items() if name != "mase"
    }
    assert Classes().monitors() == {"val/ce": "min", "val/accuracy": "max", "val/solved": "max"}


@pytest.mark.parametrize("objective", [Values(), Classes(), Absolute()], ids=lambda o: o.loss_name)
def test_what_is_measured_is_what_the_contract_names(objective):
    data = Data(mase_scale=4.0)
    if not objective.numeric:
        data.splits = {s: [(x, y.argmax(1)) for x, y in b] for s, b in data.splits.items()}
    objective.attach(data)
    found = measured(objective, *data.splits["val"])
    assert [f"val/{name}" for name in objective.better() if name in found] == list(
        objective.monitors()
    )
    assert set(found) == {name.removeprefix("val/") for name in objective.monitors()}


def test_a_loss_of_ones_own_is_trained_and_measured():
    y = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1))
    prediction = (y + torch.tensor([0.5, 1.5])).requires_grad_()
    y[0, 2:] = math.nan
    objective = Absolute()
    assert objective.title == "absolute"
    loss = objective.loss(prediction, y)
    assert loss.item() == pytest.approx(1)
    loss.backward()
    assert not prediction.grad[0, 2:].any()
    found = measured(objective, (prediction.detach(), y))
    assert found["absolute"] == found["mae"] == pytest.approx(1)
    assert found["mse"] == pytest.approx(1.25)
    assert next(iter(objective.better())) == "absolute"
    data = Data()
    x, y = map(torch.cat, zip(*data.splits["val"], strict=True))
    reference = objective.attach(data).references["val"]
    assert reference == pytest.approx(10 * (x - y).abs().mean().item(), rel=1e-5)


def test_errors_of_ones_own_need_a_name_of_their_own():
    with pytest.raises(TypeError, match="Nameless has errors of its own: give it a loss_name"):
        type("Nameless", (Values,), {"errors": lambda self, prediction, y: prediction - y})


def test_the_losses_have_names_for_a_sentence():
    assert (Values.title, Classes.title) == ("MSE", "cross-entropy")
    assert type("Better", (Values,), {}).title == "MSE"


def test_an_objective_without_errors_or_metrics_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        Objective()


def test_answers_and_truths_of_classes():
    objective = Classes()
    assert torch.equal(objective.answer(LOGITS), LOGITS.argmax(-1))
    truth = objective.truth(TARGETS)
    assert truth.dtype == torch.float64
    assert torch.equal(truth.isnan(), TARGETS == NO_TARGET)
    assert torch.equal(truth.nan_to_num(NO_TARGET).long(), TARGETS)
    assert (objective.target_shape(3), Values().target_shape(3)) == ((), (3,))


@pytest.mark.parametrize("objective", [Values(), Classes()], ids=lambda o: o.loss_name)
def test_the_loss_is_the_mean_of_the_errors(objective):
    prediction, y = (LOGITS, TARGETS) if not objective.numeric else (LOGITS, LOGITS.roll(1, 0))
    errors = objective.errors(*objective.select(prediction, y))
    weights = objective.weights(y) if objective.weights else torch.ones_like(errors)
    mean = (errors * weights).sum() / weights.sum()
    assert objective.loss(prediction, y).item() == pytest.approx(mean.item())


def test_errors_of_ones_own_count_alike_unless_weights_are_given():
    class Wrong(Classes):
        loss_name = "wrong"

        def errors(self, prediction, y):
            known = y != NO_TARGET
            return 1 - prediction[known].softmax(-1).gather(1, y[known][:, None])[:, 0]

    expected = Wrong().errors(LOGITS.double(), TARGETS)
    assert measured(Wrong(), (LOGITS, TARGETS))["wrong"] == pytest.approx(expected.mean().item())
    assert Wrong().loss(LOGITS, TARGETS).item() == pytest.approx(expected.mean().item())

    class Last(Wrong):
        def weights(self, y):
            return torch.arange(12.0)

    found = measured(Last(), (LOGITS, TARGETS))["wrong"]
    assert found == pytest.approx((expected * torch.arange(12)).sum().item() / 66)


def test_metrics_are_summed_in_float64():
    y, objective = torch.zeros(1, 2), Values()
    metrics = objective.metrics("val")
    objective.measure(metrics, torch.full((1, 2), 1e4), y)
    for _ in range(100):
        objective.measure(metrics, torch.full((1, 2), 1e-2), y)
    found = objective.values("val", metrics)
    assert {value.dtype for value in found.values()} == {torch.float64}
    assert found["val/mse"].item() == pytest.approx((1e8 + 100 * 1e-4) / 101, rel=1e-14)
