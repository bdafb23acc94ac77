import math
import re
import warnings
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.testing import assert_close

from seqlab.engine.construct import KINDS, construct
from seqlab.model import GRU, LSTM, GRUNetwork, LSTMNetwork, initialise

CONF = str(Path(__file__).parents[1] / "conf")


def network(kind=LSTMNetwork, **changed):
    torch.manual_seed(0)
    return kind(**({"n_inputs": 5, "n_outputs": 1, "n_hidden": 4, "n_layers": 2} | changed))


@pytest.mark.parametrize(
    ("B", "T", "F", "L", "H", "O"), [(10, 3, 5, 2, 4, 1), (1, 1, 1, 1, 1, 1), (7, 24, 3, 3, 16, 2)]
)
def test_shapes_through_the_config(B, T, F, L, H, O):
    words = [f"model.n_layers={L}", f"model.n_hidden={H}", f"data.seq_len={T}"]
    with initialize_config_dir(CONF, version_base="1.3"):
        node = OmegaConf.to_container(compose("config", words).model, resolve=True)
    sizes = {"n_inputs": F, "n_outputs": O, "every_step": False}
    net = construct(node, KINDS["model"], "model", None, **sizes)
    x = torch.rand(B, T, F)
    out, (stm, ltm) = net.rnn(x)
    assert out.shape == (B, T, H)
    assert stm.shape == ltm.shape == (L, B, H)
    prediction, hidden = net(x)
    assert prediction.shape == (B, O)
    assert [state.shape for state in hidden] == [(L, B, H)] * 2
    assert [state.shape for state in net.init_hidden(B)] == [(L, B, H)] * 2


def test_parameter_count_at_the_reference_sizes():
    net = network()
    assert sum(p.numel() for p in net.rnn.parameters()) == 336
    assert sum(p.numel() for p in net.head.parameters()) == 5


def test_the_last_output_is_the_top_layers_stm_bit_for_bit():
    net = network()
    x = torch.rand(10, 3, 5)
    out, (stm, _) = net.rnn(x)
    assert torch.equal(out[:, -1], stm[-1])
    assert torch.equal(net(x)[0], net.head(stm[-1]))


def test_the_defaults_are_one_layer_without_dropout():
    for lstm in (LSTM(5, 4), LSTMNetwork(5, 1, 4).rnn):
        assert (lstm.cells.num_layers, lstm.cells.dropout) == (1, 0)
    assert LSTMNetwork(5, 1, 4)(torch.rand(10, 3, 5))[0].shape == (10, 1)


def test_no_hidden_state_means_zeros():
    net = network()
    x = torch.rand(10, 3, 5)
    for a, b in zip(net.rnn(x)[1], net.rnn(x, net.init_hidden(10))[1], strict=True):
        assert torch.equal(a, b)
    assert not any(state.any() for state in net.init_hidden(10))


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_chunks_with_carried_state_equal_the_whole_pass(cut):
    lstm = LSTM(5, 4, 2).double()
    x = torch.rand(6, 12, 5, dtype=torch.float64)
    out, hidden = lstm(x)
    first, carried = lstm(x[:, :cut])
    second, carried = lstm(x[:, cut:], carried)
    assert_close(torch.cat([first, second], 1), out, rtol=0, atol=1e-14)
    assert_close(carried, hidden, rtol=0, atol=1e-14)


def test_the_one_step_form_agrees_with_the_whole_sequence():
    net = network(n_outputs=2).double()
    x = torch.rand(6, 12, 5, dtype=torch.float64)
    hidden = None
    for t in range(12):
        prediction, hidden = net.step(x[:, t], hidden)
        assert_close(prediction, net(x[:, : t + 1])[0], rtol=0, atol=1e-14)


def test_gates_against_the_written_out_equations():
    torch.manual_seed(1)
    L, B, T, F, H = 2, 3, 7, 5, 4
    lstm = LSTM(F, H, L).double()
    x = torch.randn(B, T, F, dtype=torch.float64)
    stm, ltm = torch.randn(2, L, B, H, dtype=torch.float64)
    out, hidden = lstm(x, (stm, ltm))
    h, c = [*stm], [*ltm]
    for t in range(T):
        below = x[:, t]
        for layer in range(L):
            w_x, w_h, b_x, b_h = (
                getattr(lstm.cells, f"{name}_l{layer}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            i, f, g, o = (below @ w_x.T + h[layer] @ w_h.T + b_x + b_h).chunk(4, dim=1)
            c[layer] = f.sigmoid() * c[layer] + i.sigmoid() * g.tanh()
            h[layer] = below = o.sigmoid() * c[layer].tanh()
        assert_close(out[:, t], below, rtol=0, atol=1e-12)
    assert_close(hidden, (torch.stack(h), torch.stack(c)), rtol=0, atol=1e-12)


def test_gradients_against_finite_differences():
    net = network(n_inputs=2, n_hidden=3).double()
    x = torch.rand(2, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: net(x)[0], x)


def test_the_future_changes_no_earlier_output():
    lstm = LSTM(5, 4, 2)
    x = torch.rand(6, 12, 5)
    changed = x.clone()
    changed[:, 8:] += 1
    before, after = lstm(x)[0], lstm(changed)[0]
    assert torch.equal(before[:, :8], after[:, :8])
    assert (before[:, 8:] != after[:, 8:]).any(dim=-1).all()


def test_evaluation_is_deterministic_and_training_is_not():
    net = network(dropout=0.5)
    x = torch.rand(6, 12, 5)
    assert not torch.equal(net(x)[0], net(x)[0])
    net.eval()
    assert torch.equal(net(x)[0], net(x)[0])


def test_dropout_acts_between_the_layers_only():
    lstm = LSTM(5, 64, 2, 0.5)
    x = torch.rand(6, 12, 5)
    stm, ltm = lstm(x)[1]
    stm_eval, ltm_eval = lstm.eval()(x)[1]
    assert torch.equal(stm[0], stm_eval[0])
    assert torch.equal(ltm[0], ltm_eval[0])
    assert not torch.equal(stm[1], stm_eval[1])
    # nothing is dropped on the way out: half of the units would be zero
    assert (stm[1] != 0).all()


def test_dropout_has_no_place_in_one_layer_and_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lstm = LSTM(5, 4, 1, 0.5)
    x = torch.rand(6, 12, 5)
    assert torch.equal(lstm(x)[0], lstm.eval()(x)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_hidden_state_follows_dtype_and_device(dtype):
    net = network().to(dtype)
    assert {state.dtype for state in net.init_hidden(3)} == {dtype}
    assert net(torch.rand(3, 2, 5, dtype=dtype), net.init_hidden(3))[0].dtype == dtype
    assert {state.device.type for state in net.to("meta").init_hidden(3)} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_network_on_a_gpu_agrees_with_the_cpu():
    net, x = network(), torch.rand(10, 3, 5)
    expected = net(x)[0]
    net.to("cuda")
    assert {state.device.type for state in net.init_hidden(3)} == {"cuda"}
    assert_close(net(x.cuda())[0].cpu(), expected, rtol=1e-4, atol=1e-5)


def gates(net, layer):
    """The sums of the two biases of the input and the forget gate."""
    cells = net.rnn.cells
    total = getattr(cells, f"bias_ih_l{layer}") + getattr(cells, f"bias_hh_l{layer}")
    return total.detach().chunk(4)[:2]


def test_forget_initialisation_sets_the_forget_bias_to_one():
    net, plain = network(init="forget"), network()
    for layer in range(2):
        assert torch.equal(gates(net, layer)[1], torch.ones(4))
        assert torch.equal(gates(net, layer)[0], gates(plain, layer)[0])


def test_chrono_initialisation_spreads_the_memory_spans():
    net = network(n_hidden=2000, n_layers=1, init="chrono", t_max=101)
    input_gate, forget_gate = gates(net, 0)
    assert torch.equal(input_gate, -forget_gate)
    spans = forget_gate.exp()
    assert 1 <= spans.min() < 2
    assert 99 < spans.max() <= 100
    assert spans.mean() == pytest.approx(50.5, abs=2)


def test_chrono_initialisation_at_the_shortest_length_is_finite():
    net = network(init="chrono", t_max=1)
    initialise(net.rnn.cells, "chrono", 2)
    assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4), (5,)])
def test_an_input_of_another_shape_is_refused_and_quoted(shape):
    with pytest.raises(ValueError, match=re.escape(f"(B, T, 5), got {shape}")):
        network()(torch.rand(shape))


@pytest.mark.parametrize(
    ("argument", "value"),
    [("n_hidden", 0), ("n_hidden", -3), ("n_hidden", 4.5), ("n_hidden", "4"), ("n_layers", True)]
    + [("dropout", 1.5), ("dropout", -0.1), ("init", "xavier"), ("n_outputs", 0)],
)
def test_an_argument_out_of_range_is_refused_by_name(argument, value):
    with pytest.raises((ValueError, TypeError), match=f"^{argument}={re.escape(str(value))}: "):
        network(**{argument: value})


def test_chrono_initialisation_needs_a_length():
    with pytest.raises(TypeError, match=r"^t_max=None: "):
        network(init="chrono")


NETWORKS = [LSTMNetwork, GRUNetwork]


def states(hidden):
    return hidden if isinstance(hidden, tuple) else (hidden,)


@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_sequence_alone_gives_the_same_as_in_a_padded_batch(kind, every_step):
    net = network(kind, every_step=every_step, n_outputs=2).double()
    x, lengths = torch.rand(6, 9, 5, dtype=torch.float64), torch.tensor([4, 9, 1, 4, 7, 2])
    start = net.rnn(torch.rand(6, 3, 5, dtype=torch.float64))[1]
    for hidden in (None, start):
        prediction, after = net(x, hidden, lengths)
        for i, n in enumerate(lengths.tolist()):
            one = None
            if hidden is not None:
                one = tuple(s[:, i : i + 1].contiguous() for s in states(hidden))
                one = one if kind is LSTMNetwork else one[0]
            alone, alone_after = net(x[i : i + 1, :n], one)
            got = prediction[i : i + 1, :n] if every_step else prediction[i : i + 1]
            assert_close(got, alone, rtol=0, atol=1e-14)
            for state, expected in zip(states(after), states(alone_after), strict=True):
                assert_close(state[:, i : i + 1], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", NETWORKS)
def test_padding_has_no_influence_on_values_or_gradients(kind):
    net = network(kind, every_step=True)
    lengths = torch.tensor([4, 9, 1, 4, 7, 2])
    padding = torch.arange(9) >= lengths[:, None]
    x = torch.rand(6, 9, 5)
    found = []
    for value in (0.0, 1e6, math.nan):
        padded = x.masked_fill(padding[:, :, None], value).requires_grad_()
        net.zero_grad()
        prediction, hidden = net(padded, None, lengths)
        (prediction[~padding].square().sum() + states(hidden)[0].sum()).backward()
        grads = [p.grad.clone() for p in net.parameters()]
        found.append([prediction[~padding], *states(hidden), padded.grad, *grads])
        assert not padded.grad[padding].any()
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("kind", NETWORKS)
def test_lengths_give_what_packing_gives(kind):
    net = network(kind).double()
    x, lengths = torch.rand(6, 9, 5, dtype=torch.float64), torch.tensor([4, 9, 1, 4, 7, 2])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected, expected_hidden = net.rnn.cells(packed)
    out, hidden = net.rnn(x, None, lengths)
    assert_close(out, pad_packed_sequence(expected, batch_first=True)[0], rtol=0, atol=1e-14)
    assert_close(hidden, expected_hidden, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", NETWORKS)
def test_lengths_that_are_all_whole_change_nothing(kind):
    net, x = network(kind), torch.rand(6, 9, 5)
    assert_close(net(x, None, torch.full((6,), 9)), net(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("lengths", [[0, 3], [3, 10], [-1, 3], [3], [3, 3, 3]])
def test_lengths_out_of_range_are_refused_and_quoted(lengths):
    with pytest.raises(ValueError, match=re.escape(f"(2,) in [1, 9], got {lengths}")):
        network()(torch.rand(2, 9, 5), None, torch.tensor(lengths))


def test_a_head_at_every_step_reads_every_stm():
    net, x = network(every_step=True, n_outputs=3), torch.rand(10, 7, 5)
    prediction, _ = net(x)
    assert prediction.shape == (10, 7, 3)
    assert torch.equal(prediction, net.head(net.rnn(x)[0]))
    hidden = None
    for t in range(7):
        step, hidden = net.step(x[:, t], hidden)
        assert_close(step, prediction[:, t])


def test_the_gru_carries_one_state():
    net, x = network(GRUNetwork), torch.rand(10, 3, 5)
    out, stm = net.rnn(x)
    assert net.init_hidden(10).shape == stm.shape == (2, 10, 4)
    assert torch.equal(out[:, -1], stm[-1])
    assert torch.equal(net(x)[0], net.head(stm[-1]))
    assert torch.equal(net(x, net.init_hidden(10))[0], net(x)[0])
    hidden = None
    for t in range(3):
        prediction, hidden = net.step(x[:, t], hidden)
    assert_close(prediction, net(x)[0])


def test_gru_gates_against_the_written_out_equations():
    torch.manual_seed(1)
    gru = GRU(5, 4).double()
    x, h = torch.randn(3, 6, 5, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64)
    w_x, w_h, b_x, b_h = gru.cells.parameters()
    for t in range(6):
        (r, z, n), (r_h, z_h, n_h) = (
            (v @ w.T + b).chunk(3, 1) for v, w, b in ((x[:, t], w_x, b_x), (h, w_h, b_h))
        )
        r, z = (r + r_h).sigmoid(), (z + z_h).sigmoid()
        h = z * h + (1 - z) * (n + r * n_h).tanh()
        assert_close(gru(x)[0][:, t], h, rtol=0, atol=1e-12)


@pytest.mark.parametrize("init", ["forget", "chrono"])
def test_gru_initialisation_sets_the_update_gate_to_keep(init):
    net, plain = (
        network(GRUNetwork, n_hidden=500, n_layers=1, init=i, t_max=101) for i in (init, "default")
    )
    reset, update, new = (net.rnn.cells.bias_ih_l0 + net.rnn.cells.bias_hh_l0).detach().chunk(3)
    before = (plain.rnn.cells.bias_ih_l0 + plain.rnn.cells.bias_hh_l0).detach().chunk(3)
    assert torch.equal(reset, before[0])
    assert torch.equal(new, before[2])
    if init == "forget":
        assert torch.equal(update, torch.ones(500))
    else:
        assert 1 <= update.exp().min() < update.exp().max() <= 100.001
        assert update.exp().mean() == pytest.approx(50.5, abs=5)
