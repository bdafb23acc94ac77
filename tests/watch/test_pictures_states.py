import pytest
import torch
from torch import nn
from torch.testing import assert_close

from seqlab.model import GRUNetwork, LSTMNetwork
from seqlab.watch.pictures import over_time


@pytest.mark.parametrize("kind", [LSTMNetwork, GRUNetwork])
def test_states_over_time_are_those_of_ever_longer_sequences(kind):
    net, x = kind(5, 1, 4, 2), torch.rand(1, 7, 5)
    states = over_time(net, x)
    assert len(states) == (2 if kind is LSTMNetwork else 1)
    assert {state_TLH.shape for state_TLH in states} == {(7, 2, 4)}
    for t in range(7):
        hidden = net(x[:, : t + 1])[1]
        hidden = hidden if isinstance(hidden, tuple) else (hidden,)
        for state_TLH, state in zip(states, hidden, strict=True):
            assert_close(state_TLH[t], state[:, 0])


@pytest.mark.parametrize(
    "hidden", [None, torch.zeros(4), (torch.zeros(1, 1, 4),) * 3, [torch.zeros(1, 1, 4)]]
)
def test_a_state_of_another_kind_is_not_drawn(hidden):
    class Other(nn.Module):
        def forward(self, x, state=None):
            return x[:, -1], hidden

    assert over_time(Other(), torch.rand(1, 3, 5)) is None
