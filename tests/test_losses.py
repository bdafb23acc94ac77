"""The losses to choose: by hand, beside PyTorch's, and what a network learns from them."""

import math
import re

import pytest
import torch
from test_objectives import LOGITS, TARGETS, Data, measured
from torch.nn.functional import cross_entropy

from seqlab.losses import MAE, CrossEntropy, Huber, Quantile
from seqlab.objectives import Classes, Values

LEVELS = [0.1, 0.5, 0.9]


def learned(objective, y, n):
    """The n numbers that a network without inputs learns to say about all targets `(N, 1)`."""
    says = torch.zeros(1, n, requires_grad=True)
    optimizer = torch.optim.LBFGS([says], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = objective.loss(says.expand(len(y), -1), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    return says.detach()[0]


@pytest.fixture(scope="module")
def skewed():
    """Exponential numbers: their mean is 1, their quantiles are -ln(1 - level)."""
    return torch.empty(20_000, 1).exponential_(generator=torch.Generator().manual_seed(0))


def test_the_absolute_error_is_learned_to_the_median_the_squared_to_the_mean(skewed):
    (mean,), (median,) = learned(Values(), skewed, 1), learned(MAE(), skewed, 1)
    assert mean.item() == pytest.approx(skewed.mean().item(), abs=1e-3)
    assert mean.item() == pytest.approx(1, abs=0.02)
    assert median.item() == pytest.approx(skewed.median().item(), abs=5e-3)
    assert median.item() == pytest.approx(math.log(2), abs=0.02)


def test_the_huber_loss_stands_between_them(skewed):
    near = [learned(Huber(delta), skewed, 1).item() for delta in (0.01, 0.5, 1, 50.0)]
    assert near == sorted(near)
    assert near[0] == pytest.approx(math.log(2), abs=0.02)
    assert near[-1] == pytest.approx(1, abs=0.02)


def test_quantiles_are_learned_to_the_quantiles(skewed):
    found = learned(Quantile(LEVELS, 1), skewed, 3)
    want = torch.quantile(skewed, torch.tensor(LEVELS))
    torch.testing.assert_close(found, want, atol=0.01, rtol=0)
    for value, level in zip(found.tolist(), LEVELS, strict=True):
        assert value == pytest.approx(-math.log(1 - level), abs=0.05)


def test_the_huber_loss_and_its_gradient_by_hand():
    error, delta = torch.tensor([[-3.0, -0.25, 0.0, 0.25, 3.0]], requires_grad=True), 0.5
    losses = Huber(delta).errors(error, torch.zeros(1, 5))
    # half the square up to delta, and delta * (error - delta / 2) beyond
    assert losses.tolist() == [[1.375, 0.03125, 0, 0.03125, 1.375]]
    losses.sum().backward()
    assert error.grad.tolist() == [[-0.5, -0.25, 0, 0.25, 0.5]]


def test_the_pinball_loss_by_hand():
    objective = Quantile([0.25, 0.75], n_outputs=2)
    # the quantiles of the first output, then those of the second
    prediction = torch.tensor([[1.0, 3.0, -1.0, 5.0]])
    y = torch.tensor([[2.0, 6.0]])
    # above a quantile by d: level * d; below it by d: (1 - level) * d
    by_hand = [[[0.25 * 1, 0.25 * 1], [0.25 * 7, 0.75 * 1]]]
    assert objective.errors(prediction, y).tolist() == by_hand
    assert objective.loss(prediction, y).item() == (0.25 + 0.25 + 1.75 + 0.75) / 4
    assert (objective.n_values, objective.loss_name) == (2, "pinball")


def test_the_median_alone_is_half_the_absolute_error():
    x, y = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    alone = Quantile([0.5], 3)
    assert alone.loss(x, y).item() == pytest.approx(MAE().loss(x, y).item() / 2)
    assert "coverage" not in measured(alone, (x, y))
    assert torch.equal(alone.answer(x), x.double())


def test_quantiles_that_cross_are_trained_as_they_are_and_measured_sorted():
    objective = Quantile(LEVELS, 1)
    prediction, y = torch.tensor([[2.0, 1.0, 0.0]] * 2), torch.full((2, 1), 0.5)
    raw = objective.loss(prediction, y).item()
    assert raw == pytest.approx((0.9 * 1.5 + 0.5 * 0.5 + 0.9 * 0.5) / 3)
    found = measured(objective, (prediction, y))
    assert found["pinball"] == pytest.approx((0.1 * 0.5 + 0.5 * 0.5 + 0.1 * 1.5) / 3)
    assert found["pinball"] < raw
    assert found["coverage"] == 1
    assert {k: v[0].item() for k, v in objective.quantiles(prediction).items()} == {
        0.1: 0, 0.5: 1, 0.9: 2
    }  # fmt: skip
    assert objective.answer(prediction).tolist() == [[1], [1]]


def test_sorting_makes_the_pinball_loss_no_larger():
    objective, generator = Quantile([0.05, 0.3, 0.6, 0.8], 2), torch.Generator().manual_seed(0)
    prediction, y = (torch.randn(500, n, generator=generator) for n in (8, 2))
    flat, _ = objective.in_units(prediction, y)
    raw, after = (objective.errors(each, y).sum(-1) for each in (prediction, flat))
    assert (after <= raw + 1e-6).all()
    assert (after < raw - 1e-3).any()


def test_a_forecast_of_one_number_stands_for_every_level():
    data, objective = Data(), Quantile(LEVELS, 2)
    objective.attach(data)
    x, y = map(torch.cat, zip(*data.splits["val"], strict=True))
    d = 10 * (y - x).double()  # in the units of the data
    by_hand = torch.stack([torch.maximum(q * d, (q - 1) * d) for q in LEVELS]).mean()
    assert objective.references["val"] == pytest.approx(by_hand.item())
    found = measured(objective, *data.splits["val"])
    assert found["pinball"] == pytest.approx(by_hand.item())
    assert found["skill"] == pytest.approx(0, abs=1e-9)
    assert found["mae"] == pytest.approx(d.abs().mean().item())
    assert torch.equal(objective.answer(x), data.unscale(x))


def test_the_metrics_are_those_of_the_answer_and_those_of_all_levels():
    data, levels = Data(mase_scale=4.0), [0.05, 0.4, 0.7, 0.95]
    objective = Quantile(levels, 2).attach(data)
    objective.figures = {"near": lambda p, y: ((p - y).abs() < 5).all(1).double()}
    generator, batches = torch.Generator().manual_seed(1), []
    for _, y in data.splits["val"]:
        batches.append((torch.randn(len(y), 8, generator=generator), y))
    prediction, y = (data.unscale(torch.cat(part)) for part in zip(*batches, strict=True))
    values = prediction.reshape(-1, 2, 4).sort(dim=2).values
    low, answer, high = values[..., 0], values[..., 1], values[..., 3]
    error = answer - y
    expected = {
        "coverage": ((low <= y) & (y <= high)).double().mean(),
        "mse": error.square().mean(),
        "rmse": error.square().mean().sqrt(),
        "mae": error.abs().mean(),
        "mase": error.abs().mean() / 4,
        "near": (error.abs() < 5).all(1).double().mean(),
    }
    found = measured(objective, *batches)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value.item()), name
    assert 0 < found["coverage"] < 1
    order = ["pinball", "coverage", "mse", "rmse", "mae", "r2", "mase", "skill", "near"]
    assert list(objective.better()) == order
    assert set(found) == set(order)
    # a coverage is neither best where it is low nor where it is high
    assert list(objective.monitors()) == [f"val/{n}" for n in order if n != "coverage"]


@pytest.mark.parametrize(
    "objective", [MAE(), Huber(0.5), Quantile(LEVELS, 2)], ids=lambda o: o.title
)
def test_at_every_step_only_what_has_a_target_counts(objective):
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(3, 4, 2, generator=generator)
    prediction = torch.randn(3, 4, 2 * objective.n_values, generator=generator).requires_grad_()
    y[0, 2:] = math.nan
    known = ~y.isnan().any(-1)
    loss = objective.loss(prediction, y)
    assert loss.item() == pytest.approx(objective.errors(prediction[known], y[known]).mean().item())
    loss.backward()
    assert torch.equal(prediction.grad.any(-1), known)
    prediction = prediction.detach()
    whole = measured(objective, (prediction, y))
    assert whole == pytest.approx(measured(objective, (prediction[known], y[known])))
    assert objective.answer(prediction).shape == y.shape
    assert math.isfinite(whole["mae"])


def test_the_absolute_error_is_one_metric_and_the_first():
    data = Data(mase_scale=4.0)
    objective = MAE().attach(data)
    assert list(objective.better()) == ["mae", "mse", "rmse", "r2", "mase", "skill"]
    found = measured(objective, *data.splits["val"])
    assert set(found) == set(objective.better())
    x, y = map(torch.cat, zip(*data.splits["val"], strict=True))
    assert found["mae"] == pytest.approx(10 * (x - y).abs().mean().item())
    # the skill follows the loss
    assert objective.references["val"] == pytest.approx(found["mae"])
    assert objective.title == "MAE"


WEIGHTS = [1.0, 2.0, 5.0]


def test_weighted_classes_are_pytorchs_in_training_and_over_a_whole_split():
    objective, plain = CrossEntropy(WEIGHTS, 3), CrossEntropy(None, 3)
    flat, y = LOGITS.flatten(0, 1), TARGETS.flatten()
    want = cross_entropy(flat, y, weight=torch.tensor(WEIGHTS), ignore_index=-100).item()
    unweighted = Classes().loss(LOGITS, TARGETS).item()
    assert objective.loss(LOGITS, TARGETS).item() == pytest.approx(want)
    assert plain.loss(LOGITS, TARGETS).item() == unweighted
    # whatever the batches, whose weights differ
    found = measured(objective, *zip(LOGITS.split(1), TARGETS.split(1), strict=True))
    assert found["weighted_ce"] == pytest.approx(want)
    assert found["ce"] == pytest.approx(unweighted)
    assert abs(want - unweighted) > 0.05
    assert list(objective.better())[:2] == ["weighted_ce", "ce"]
    assert objective.title == "weighted cross-entropy"
    assert measured(plain, (LOGITS, TARGETS)) == measured(Classes(), (LOGITS, TARGETS))
    assert plain.better() == Classes().better()


def test_the_skill_of_weighted_classes_is_against_weighted_baselines():
    data = Data(lambda x: {"the input": x})
    data.splits = {s: [(x, y.argmax(1)) for x, y in batches] for s, batches in data.splits.items()}
    objective = CrossEntropy([1.0, 9.0], 2).attach(data)
    x, y = map(torch.cat, zip(*data.splits["val"], strict=True))
    want = cross_entropy(x, y, weight=torch.tensor([1.0, 9.0])).item()
    assert objective.references["val"] == pytest.approx(want)
    assert measured(objective, *data.splits["val"])["skill"] == pytest.approx(0, abs=1e-9)


def test_weights_shift_the_answer_to_the_class_that_counts_more():
    # 90, 8 and 2 of a hundred: the best constant says n_k w_k / sum of n w
    y = torch.tensor([0] * 90 + [1] * 8 + [2] * 2)
    for weights, answer in ((None, 0), ([1.0, 20.0, 1.0], 1), ([1.0, 1.0, 90.0], 2)):
        objective = CrossEntropy(weights, 3)
        logits = learned(objective, y, 3)
        share = torch.tensor([90.0, 8, 2]) * torch.tensor(weights or [1.0] * 3)
        torch.testing.assert_close(logits.softmax(0), share / share.sum(), atol=2e-3, rtol=0)
        assert objective.answer(logits).item() == answer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_losses_take_the_precision_of_the_network(dtype):
    x, y = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    for objective in (MAE(), Huber(1.0), Quantile(LEVELS, 2)):
        loss = objective.loss(x, y[:, : 6 // objective.n_values])
        assert loss.dtype == dtype
        assert loss.isfinite()
    assert CrossEntropy([1.0, 2.0, 3.0], 3).loss(x[:, :3], TARGETS[0].repeat(2)).dtype == dtype


@pytest.mark.parametrize(
    ("kind", "argument", "said"),
    [
        *((Huber, delta, "delta=.*: a finite number above 0") for delta in (0, -1.0, math.inf)),
        *(
            (Quantile, levels, re.escape(f"levels={levels}: probabilities in (0, 1), in ascending"))
            for levels in ([], [0.0, 0.5], [0.5, 1.0], [0.9, 0.1], [0.5, 0.5], [math.nan])
        ),
        *(
            (CrossEntropy, weights, re.escape(f"weights={weights}: 3 finite numbers above 0"))
            for weights in ([1.0, 2.0], [1.0] * 4, [1.0, 0.0, 1.0], [1.0, -1.0, 1.0])
        ),
    ],
)
def test_what_no_loss_can_take_is_refused(kind, argument, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        kind(argument) if kind is Huber else kind(argument, n_outputs=3)


def test_a_loss_whose_errors_have_weights_is_their_weighted_mean_in_every_metric():
    """Of one's own: errors of a large target count more."""
    objective = MAE()
    objective.weights = lambda y: y.abs()
    x, y = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0)).double()
    objective.own_metrics = dict
    found = measured(objective, (x[:2], y[:2]), (x[2:], y[2:]))
    want = ((x - y).abs() * y.abs()).sum() / y.abs().sum()
    assert found == {"mae": pytest.approx(want.item())}
