import pytest
import torch

from seqlab.model import GRUNetwork, LSTMNetwork
from seqlab.series.base import OnBase, affine, season_ago

T, F, O = 12, 2, 3


def made(predict, network=LSTMNetwork, lead=2, trained=True):
    torch.manual_seed(0)
    based = OnBase(network(F + 1, O, 5), predict, F, O, lead, T, 4)
    based.take(torch.randn(T * F + 1, O, dtype=torch.float64))
    if trained:
        torch.nn.init.normal_(based.network.head.weight)
    return based, torch.randn(7, T, F)


def bases(based, x):
    return {
        "change": x[:, -1:, 0].expand(-1, O),
        "season": season_ago(x, 4, 2, O),
        "residual": (affine(x) @ based.weights).float() if based.predict == "residual" else None,
    }[based.predict]


@pytest.mark.parametrize("predict", ["change", "season", "residual"])
def test_untrained_it_is_its_base_and_trained_the_network_is_added(predict):
    based, x = made(predict, trained=False)
    assert torch.equal(based(x)[0], bases(based, x))
    based, x = made(predict)
    change = torch.cat([torch.zeros(7, 1, 1), x[:, :, :1].diff(dim=1)], dim=1)
    distance = x[:, :, :1] - x[:, :1, :1]
    added = based.network(torch.cat([change, distance, x[:, :, 1:]], dim=2))[0]
    assert torch.equal(based(x)[0], bases(based, x) + added)


@pytest.mark.parametrize("predict", ["change", "season", "residual"])
def test_of_several_values_for_each_output_the_base_is_added_to_each(predict):
    based, x = made(predict)
    based.network, Q = LSTMNetwork(F + 1, O * 4, 5), 4
    prediction, hidden = based(x)
    added = based.network(based.seen(x))[0]
    for o in range(O):  # the values of the first output, then those of the second
        for q in range(Q):
            value = prediction[:, o * Q + q] - added[:, o * Q + q]
            torch.testing.assert_close(value, bases(based, x)[:, o], atol=1e-5, rtol=1e-5)
    stepwise, state = None, None
    for t in range(T):
        stepwise, state = based(x[:, t : t + 1], state)
    torch.testing.assert_close(stepwise, prediction)
    assert len(state) == len(hidden)


def test_a_season_ago_counts_from_the_row_to_forecast():
    x = torch.arange(12.0).reshape(1, 12, 1)  # the row's number is its value
    assert season_ago(x, 4, 1, 6).tolist() == [[8, 9, 10, 11, 8, 9]]
    assert season_ago(x, 4, 3, 2).tolist() == [[10, 11]]
    assert season_ago(x[:, -4:], 4, 1, 2).tolist() == [[8, 9]]


@pytest.mark.parametrize("network", [LSTMNetwork, GRUNetwork])
@pytest.mark.parametrize("predict", ["change", "season", "residual"])
def test_step_by_step_it_gives_what_it_gives_for_the_whole(predict, network):
    based, x = made(predict, network)
    whole, hidden = based(x)[0], None
    for t in range(T):
        stepwise, hidden = based(x[:, t : t + 1], hidden)
    torch.testing.assert_close(stepwise, whole)
    halves = based(x[:, 5:], based(x[:, :5])[1])[0]
    torch.testing.assert_close(halves, whole)


@pytest.mark.parametrize("predict", ["change", "season", "residual"])
def test_before_the_first_row_stands_the_first_row(predict):
    based, x = made(predict, trained=False)
    longer = torch.cat([x[:, :1].expand(-1, T, -1), x[:, :3]], dim=1)
    assert torch.equal(based(x[:, :3])[0], based(longer)[0])


@pytest.mark.parametrize("predict", ["change", "residual"])
def test_a_shift_of_the_target_shifts_the_forecast_of_the_change_alone(predict):
    based, x = made(predict)
    shift = torch.tensor([100.0, 0.0])
    found = based(x + shift)[0] - based(x)[0]
    assert torch.allclose(found, torch.full((7, O), 100.0), atol=1e-4) == (predict == "change")


def test_what_is_no_base_is_refused():
    with pytest.raises(ValueError, match="predict=level: one of change, season, residual"):
        OnBase(LSTMNetwork(F + 1, O, 5), "level", F, O, 1, 1)
    with pytest.raises(ValueError, match="rows=0: at least 1"):
        OnBase(LSTMNetwork(F + 1, O, 5), "change", F, O, 1, 0)
    with pytest.raises(ValueError, match="season=13: 1 to 12, for predict=season"):
        OnBase(LSTMNetwork(F + 1, O, 5), "season", F, O, 1, 12, 13)


def test_a_network_without_a_head_or_a_state_is_taken_as_it_is():
    class Own(torch.nn.Module):
        def forward(self, x, hidden=None):
            assert hidden is None
            return x.sum((1, 2))[:, None], None

    based, x = OnBase(Own(), "change", F, 1, 1, 1), torch.randn(7, T, F)
    prediction, hidden = based(x)
    first = based.inputs(torch.cat([x[:, :1], x], dim=1)).sum((1, 2))[:, None]
    assert torch.equal(prediction, x[:, -1:, 0] + first)
    assert based(x, hidden)[0].shape == (7, 1)
