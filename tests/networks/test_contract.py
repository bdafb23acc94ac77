"""What minLSTM and the transformer share with the LSTM: the contract of a network."""

import json
import math
import re
import subprocess

import onnxruntime
import pytest
import torch
from program import BIN, SMALL, TINY, run, seqlab
from torch.testing import assert_close

from seqlab import load
from seqlab.networks.minlstm import MinLSTMNetwork
from seqlab.networks.transformer import TransformerNetwork
from seqlab.series.base import OnBase
from seqlab.watch.pictures import over_time

OWN = {
    MinLSTMNetwork: {"init": "default", "t_max": None},
    TransformerNetwork: {"n_heads": 2, "context": 5},
}
each = pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.__name__)
exact = {"rtol": 0, "atol": 1e-13}


def network(kind, **changed):
    torch.manual_seed(0)
    sizes = {"n_inputs": 5, "n_outputs": 2, "n_hidden": 4, "n_layers": 2, "dropout": 0.0}
    return kind(**(sizes | OWN[kind] | changed)).double()


def inputs(B=6, T=12, F=5):
    return torch.randn(B, T, F, dtype=torch.float64)


@each
def test_a_prediction_at_the_end_or_at_every_step(kind):
    at_the_end, always = network(kind), network(kind, every_step=True)
    x = inputs()
    assert at_the_end(x)[0].shape == (6, 2)
    assert always(x)[0].shape == (6, 12, 2)
    assert_close(always(x)[0][:, -1], at_the_end(x)[0], **exact)


@each
@pytest.mark.parametrize("cut", [1, 5, 11])
def test_pieces_with_carried_state_equal_the_whole_pass(kind, cut):
    net, x = network(kind, every_step=True), inputs()
    whole, hidden = net(x)
    first, carried = net(x[:, :cut])
    second, carried = net(x[:, cut:], carried)
    assert_close(torch.cat([first, second], 1), whole, **exact)
    assert_close(carried, hidden, **exact)
    assert carried.shape == hidden.shape


@each
def test_the_one_step_form_agrees_with_the_whole_sequence(kind):
    net, x, hidden = network(kind), inputs(), None
    for t in range(12):
        prediction, hidden = net.step(x[:, t], hidden)
        assert_close(prediction, net(x[:, : t + 1])[0], **exact)


@each
def test_a_state_of_zeros_is_none_at_all(kind):
    net, x = network(kind), inputs()
    prediction, hidden = net(x)
    again, after = net(x, torch.zeros_like(hidden))
    assert_close(again, prediction, **exact)
    assert_close(after, hidden, **exact)


@each
def test_the_future_changes_no_earlier_output(kind):
    net, x = network(kind, every_step=True), inputs()
    changed = x.clone()
    changed[:, 8:] += 1
    before, after = net(x)[0], net(changed)[0]
    assert torch.equal(before[:, :8], after[:, :8])
    assert (before[:, 8:] != after[:, 8:]).any(dim=-1).all()


@each
def test_the_samples_of_a_batch_do_not_mix(kind):
    net, x = network(kind), inputs()
    for i in range(6):
        assert_close(net(x[i : i + 1])[0], net(x)[0][i : i + 1], **exact)


@each
@pytest.mark.parametrize("every_step", [False, True])
def test_a_sequence_alone_gives_the_same_as_in_a_padded_batch(kind, every_step):
    net = network(kind, every_step=every_step)
    x, lengths = inputs(T=9), torch.tensor([4, 9, 1, 4, 7, 2])
    start = net(inputs(T=3))[1]
    for hidden in (None, start):
        prediction, after = net(x, hidden, lengths)
        for i, n in enumerate(lengths.tolist()):
            one = None if hidden is None else hidden.narrow(1, i, 1)
            alone, alone_after = net(x[i : i + 1, :n], one)
            got = prediction[i : i + 1, :n] if every_step else prediction[i : i + 1]
            assert_close(got, alone, **exact)
            assert_close(after.narrow(1, i, 1), alone_after, **exact)


@each
def test_padding_has_no_influence_on_values_or_gradients(kind):
    net, lengths = network(kind, every_step=True), torch.tensor([4, 9, 1, 4, 7, 2])
    padding, x, found = torch.arange(9) >= lengths[:, None], inputs(T=9), []
    for value in (0.0, 1e6, math.nan):
        padded = x.masked_fill(padding[:, :, None], value).requires_grad_()
        net.zero_grad()
        prediction, hidden = net(padded, None, lengths)
        (prediction[~padding].square().sum() + hidden.sum()).backward()
        assert not padded.grad[padding].any()
        grads = [p.grad.clone() for p in net.parameters()]
        found.append([prediction[~padding], hidden, padded.grad, *grads])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@each
def test_gradients_against_finite_differences(kind):
    net, x = network(kind, n_inputs=2), inputs(2, 7, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: net(x)[0], x)
    net(x)[0].square().sum().backward()
    assert all(p.grad.any() for p in net.parameters())


@each
def test_dropout_acts_while_training_and_not_else(kind):
    net, x = network(kind, dropout=0.5), inputs()
    assert not torch.equal(net(x)[0], net(x)[0])
    net.eval()
    assert torch.equal(net(x)[0], net(x)[0])
    assert torch.equal(net(x)[0], network(kind).eval()(x)[0])


@each
@pytest.mark.parametrize(
    ("argument", "value"), [("n_hidden", 0), ("n_layers", 1.5), ("dropout", 1.0), ("dropout", -1)]
)
def test_an_argument_out_of_range_is_refused_by_name(kind, argument, value):
    with pytest.raises((ValueError, TypeError), match=f"^{argument}={re.escape(str(value))}: "):
        network(kind, **{argument: value})


@each
def test_on_a_base_the_untrained_network_is_the_base(kind):
    inner = network(kind, n_inputs=6)
    net = OnBase(inner, "change", n_lagged=1, horizon=2, lead=1, rows=12).double()
    x = inputs()
    assert torch.equal(net(x)[0], x[:, -1:, 0].expand(-1, 2))
    torch.nn.init.normal_(inner.head.weight)
    whole = net(x)
    part, carried = net(x[:, :7])
    for t in range(7, 12):
        part, carried = net(x[:, t : t + 1], carried)
    assert_close(part, whole[0], **exact)


def test_states_are_drawn_of_a_minlstm_and_not_of_a_transformer():
    (states_TLH,) = over_time(network(MinLSTMNetwork), inputs(B=1))
    assert states_TLH.shape == (12, 2, 4)
    assert over_time(network(TransformerNetwork), inputs(B=1)) is None


SERIES = [
    "data=series",
    "data.path=a.csv",
    "data.target=y",
    "data.seq_len=6",
    "data.predict=change",
]
WORDS = {"sine": TINY[:-1], "reber": ["data=reber", *SMALL], "series": [*SERIES, *SMALL[:1]]}


@pytest.mark.parametrize("model", ["minlstm", "transformer"])
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_it_is_trained_drawn_evaluated_and_streamed_like_ours(model, words, tmp_path):
    rows = [f"{100 + t / 2 + (t * 7) % 5}" for t in range(120)]
    (tmp_path / "a.csv").write_text("\n".join(["y", *rows]))
    done = run(f"model={model}", *words, "model.n_hidden=4", cwd=tmp_path)
    assert done.code == 0, done.err
    best = str(done.folder / "checkpoints/best.ckpt")
    evaluated = seqlab("evaluate", best, "--json", cwd=tmp_path)
    loss = "ce" if "data=reber" in words else "mse"
    found = json.loads(evaluated.out)["network"][f"test/{loss}"]
    assert found == pytest.approx(done.results["metrics"][f"test/{loss}"], rel=1e-5)
    forecaster = load(best)
    x = torch.randn(1, 5, forecaster.sizes["n_inputs"], dtype=torch.float64)
    with torch.inference_mode():
        whole, hidden = forecaster(x)[0], None
        for t in range(5):
            prediction, hidden = forecaster.step(x[:, t], hidden)
    whole = whole[:, -1] if forecaster.sizes["every_step"] else whole
    assert_close(prediction, whole, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["minlstm", "transformer"])
def test_its_onnx_file_is_right_for_any_length(model, tmp_path):
    done = run(f"model={model}", *TINY, "model.n_hidden=4", cwd=tmp_path)
    words = ["export", done.folder / "checkpoints/best.ckpt", "--format", "onnx"]
    command = [BIN / "seqlab", *words, "--output", "a.onnx"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stderr
    assert "onnxruntime agrees with PyTorch" in said
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    x = torch.randn(3, 100, 1)
    (got,) = session.run(None, {"x": x.numpy()})
    with torch.inference_mode():
        expected = load(done.folder / "checkpoints/best.ckpt")(x)[0].float()
    assert_close(torch.from_numpy(got), expected, rtol=0, atol=1e-5)
