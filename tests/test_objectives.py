import math

import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

from seqlab.objectives import NO_TARGET, Classes, Values

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
        metrics.update(*objective.rows(prediction, y))
    return {name.removeprefix("val/"): value.item() for name, value in metrics.compute().items()}


def test_the_masked_loss_equals_a_hand_computation():
    losses, _ = by_hand(LOGITS, TARGETS)
    assert len(losses) == 12
    assert Classes().loss(LOGITS, TARGETS).item() == pytest.approx(sum(losses) / 12)
    assert Classes().errors(LOGITS, TARGETS).tolist() == pytest.approx(losses)


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
