import pytest
import torch

from seqlab.engine.report import layers, shapes
from seqlab.model import GRUNetwork, LSTMNetwork


def test_layers_lists_parts_shapes_and_parameters():
    net = LSTMNetwork(5, 1, 4, 2)
    rows = layers(net, torch.rand(10, 3, 5))
    assert rows == [
        ["rnn.cells", "LSTM", "(10, 3, 4), ((2, 10, 4), (2, 10, 4))", 336],
        ["head", "Linear", "(10, 1)", 5],
    ]
    assert net.training


def test_layers_leaves_no_hook_and_no_mode_behind():
    net = GRUNetwork(5, 1, 4).eval()
    rows = layers(net, torch.rand(10, 3, 5))
    assert [row[2] for row in rows] == ["(10, 3, 4), (1, 10, 4)", "(10, 1)"]
    assert not net.training
    net(torch.rand(10, 3, 5))
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(2, 3), "(2, 3)"),
        ((torch.zeros(2), torch.zeros(3)), "(2,), (3,)"),
        ((torch.zeros(2), (torch.zeros(3), torch.zeros(4))), "(2,), ((3,), (4,))"),
        ((torch.zeros(2), None), "(2,), None"),
        (None, "None"),
    ],
)
def test_shapes_are_quoted_as_they_are_nested(value, said):
    assert shapes(value) == said
