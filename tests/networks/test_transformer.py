import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from seqlab.networks.transformer import TransformerNetwork


def network(**changed):
    torch.manual_seed(0)
    sizes = {"n_inputs": 3, "n_outputs": 2, "n_hidden": 8, "n_layers": 2, "n_heads": 2}
    return TransformerNetwork(**(sizes | {"context": 5, "dropout": 0.0} | changed)).double()


def inputs(T):
    torch.manual_seed(1)
    return torch.randn(4, T, 3, dtype=torch.float64)


def test_within_its_context_and_without_positions_it_is_causal_attention():
    net, x = network(context=7, every_step=True), inputs(7)
    torch.nn.init.zeros_(net.distance)
    out = net.enter(x)
    for layer in net.layers:
        q, k, v = layer.enter(layer.norm(out)).chunk(3, dim=-1)
        heads = [
            scaled_dot_product_attention(q[..., part], k[..., part], v[..., part], is_causal=True)
            for part in (slice(0, 4), slice(4, 8))
        ]
        out = out + layer.leave(torch.cat(heads, dim=-1))
        out = out + layer.mlp(out)
    assert_close(net(x)[0], net.head(net.norm(out)), rtol=0, atol=1e-13)


def test_positions_are_a_score_for_each_head_and_distance():
    net, x = network(n_layers=1, n_heads=1), inputs(4)
    with torch.no_grad():
        net.layers[0].enter.weight[:16] = 0  # queries and keys: the distance alone decides
        net.layers[0].enter.bias[:16] = 0
        net.distance.copy_(torch.tensor([[0.0, 1, 2, 3, 4]]))
    layer, out = net.layers[0], net.enter(x)
    v = layer.enter(layer.norm(out))[..., 16:]
    share = torch.tensor([3.0, 2, 1, 0], dtype=torch.float64).softmax(0)  # of steps 0 to 3
    last = out[:, -1] + layer.leave((share[None, :, None] * v).sum(1))
    last = last + layer.mlp(last)
    assert_close(net(x)[0], net.head(net.norm(last)), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("n_layers", "context"), [(1, 1), (1, 4), (2, 4), (3, 2)])
def test_an_input_reaches_as_many_steps_as_layers_and_context_say(n_layers, context):
    net, reach = network(n_layers=n_layers, context=context), n_layers * (context - 1)
    x = inputs(12).requires_grad_()
    prediction, hidden = net(x)
    assert hidden.shape == (1, 4, reach, 4)
    prediction.sum().backward()
    steps = x.grad.abs().sum((0, 2)) > 0
    assert steps.tolist() == [t >= 11 - reach for t in range(12)]


def test_the_state_is_the_last_inputs_each_followed_by_one():
    net, x = network(), inputs(12)
    ones = torch.ones(4, 8, 1, dtype=torch.float64)
    assert torch.equal(net(x)[1][0], torch.cat([x[:, -8:], ones], dim=-1))
    short = net(x[:, :3])[1][0]
    assert torch.equal(short[:, -3:, :3], x[:, :3])
    assert not short[:, :5].any()
    padded = net(x, None, torch.tensor([12, 3, 1, 9]))[1][0]
    assert torch.equal(padded[1], short[1])


def test_heads_share_the_values_of_a_step():
    with pytest.raises(ValueError, match=r"^n_heads=3: a divisor of n_hidden=8$"):
        network(n_heads=3)


@pytest.mark.parametrize("argument", ["n_heads", "context"])
def test_a_size_of_zero_is_refused_by_name(argument):
    with pytest.raises(ValueError, match=f"^{argument}=0: at least 1$"):
        network(**{argument: 0})
