import math

import pytest
import torch
from torch.testing import assert_close

from seqlab.networks.minlstm import MinLSTMNetwork, scan


def one_by_one(p, h):
    """The recurrence of the paper, a step at a time."""
    p_f, p_i, p_h = p.chunk(3, dim=-1)
    f, i = p_f.sigmoid(), p_i.sigmoid()
    g = torch.where(p_h >= 0, p_h + 0.5, p_h.sigmoid())
    out = []
    for t in range(p.shape[1]):
        h = f[:, t] / (f + i)[:, t] * h + i[:, t] / (f + i)[:, t] * g[:, t]
        out.append(h)
    return torch.stack(out, 1)


@pytest.mark.parametrize("T", [1, 2, 3, 7, 8, 9, 100, 1000])
def test_all_steps_at_once_give_what_one_after_the_other_gives(T):
    torch.manual_seed(T)
    p, h = 3 * torch.randn(4, T, 15, dtype=torch.float64), torch.rand(4, 5, dtype=torch.float64)
    assert_close(scan(p, h), one_by_one(p, h), rtol=0, atol=1e-10)
    assert_close(scan(p, None), one_by_one(p, 0 * h), rtol=0, atol=1e-10)
    assert scan(p, None).min() > 0


def test_a_long_sequence_in_single_precision_is_as_exact_as_a_short_one():
    torch.manual_seed(0)
    p = torch.randn(2, 5000, 12, dtype=torch.float64)
    expected = one_by_one(p, torch.zeros(2, 4, dtype=torch.float64))
    assert_close(scan(p.float(), None).double(), expected, rtol=0, atol=2e-6)


def test_the_gates_of_one_layer_are_those_of_the_paper():
    torch.manual_seed(0)
    sizes = {"n_inputs": 2, "n_outputs": 3, "n_hidden": 4, "n_layers": 2, "dropout": 0.0}
    net, x = MinLSTMNetwork(**sizes, init="default", t_max=None).double(), torch.randn(5, 9, 2)
    out = x = x.double()
    for layer in net.layers:
        out = one_by_one(layer(out), torch.zeros(5, 4, dtype=torch.float64))
    assert_close(net(x)[0], net.head(out[:, -1]), rtol=0, atol=1e-12)
    # 3H rows of weights and a bias for each layer: fewer than half of an LSTM's parameters
    assert sum(p.numel() for p in net.layers.parameters()) == 12 * (2 + 1) + 12 * (4 + 1)


@pytest.mark.parametrize(("p_f", "p_i"), [(-200, -200), (200, 200), (-200, 200), (200, -200)])
def test_gates_that_are_shut_or_open_leave_numbers_and_gradients(p_f, p_i):
    p = torch.tensor([p_f, p_i, 1.0]).repeat(1, 50, 1).requires_grad_()
    out = scan(p, torch.ones(1, 1))
    share = 0.5 if p_f == p_i else float(p_f > p_i)  # of the old state that is kept
    assert_close(out[0, 0, 0].item(), share + (1 - share) * 1.5)
    out.sum().backward()
    assert p.grad.isfinite().all()


def made(init, t_max=None):
    torch.manual_seed(0)
    sizes = {"n_inputs": 1, "n_outputs": 1, "n_hidden": 2000, "n_layers": 2, "dropout": 0.0}
    return MinLSTMNetwork(**sizes, init=init, t_max=t_max)


def test_forget_initialisation_sets_the_forget_bias_to_one():
    for layer, plain in zip(made("forget").layers, made("default").layers, strict=True):
        assert torch.equal(layer.bias[:2000], torch.ones(2000))
        assert torch.equal(layer.bias[2000:], plain.bias[2000:])
        assert torch.equal(layer.weight, plain.weight)


def test_chrono_initialisation_spreads_the_memory_spans():
    for layer in made("chrono", 101).layers:
        spans = layer.bias[:2000].detach().exp()
        assert 1 <= spans.min() < 2
        assert 99 < spans.max() <= 100.001
        assert spans.mean() == pytest.approx(50.5, abs=2)
        p = layer.bias.detach().double().reshape(1, 1, -1)
        kept = scan(p, torch.ones(1, 2000).double()) - scan(p, None)
        assert_close(kept[0, 0], spans.double() / (spans.double() + 1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("init", ["xavier", None])
def test_another_initialisation_is_refused(init):
    with pytest.raises(ValueError, match=f"^init={init}: default, forget or chrono$"):
        made(init)


def test_chrono_initialisation_needs_a_length():
    with pytest.raises(TypeError, match=r"^t_max=None: "):
        made("chrono")


@pytest.mark.slow
def test_exported_for_any_length_it_is_right_for_any():
    class Scan(torch.nn.Module):
        def forward(self, p):
            return scan(p, None)

    p = torch.randn(2, 12, 6)
    time = torch.export.Dim("T")
    program = torch.export.export(Scan(), (p,), dynamic_shapes={"p": {1: time}}).module()
    for T in (3, 40, 300):
        p = torch.randn(2, T, 6) / math.sqrt(T)
        assert_close(program(p), scan(p, None))
