"""The average of the weights that is validated and kept, beside the one that one would write."""

import math
from functools import partial

import pytest
import torch
from fitting import ADAM, fit, parts, weights

from seqlab.engine.steps import Average, Steps
from seqlab.objectives import Values

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True)


def averaged(decay=0.9, **changed):
    """The steps' average after two epochs, and the weights after each optimiser step."""
    data, learner = parts(**changed)
    learner.steps.average, seen = Average(decay), []
    learner.steps.optimizer.register_step_post_hook(
        lambda *_: seen.append([w.detach().clone() for w in learner.network.parameters()])
    )
    fit(data, learner)
    return learner, seen


def by_hand(seen, decay):
    """The average of lists of weights: after n steps those of step k count decay ** (n - k)."""
    average = [w.clone() for w in seen[0]]
    for n, found in enumerate(seen[1:], start=2):
        share = (1 - decay) / (1 - decay**n)
        average = [torch.lerp(a, w, share) for a, w in zip(average, found, strict=True)]
    return average


OPTIONS = {
    "plain": {},
    "accumulate": {"accumulate": 5},
    "clip": {"clip": 0.05},
    "sgd": {"optimizer": SGD},
    "dropout": {"dropout": 0.5},
}


@pytest.mark.parametrize("decay", [0.5, 0.999])
@pytest.mark.parametrize("option", OPTIONS)
def test_it_is_the_one_computed_by_hand_to_the_bit(option, decay):
    learner, seen = averaged(decay, **OPTIONS[option])
    average = learner.steps.average
    assert len(seen) == average.n_steps == (6 if option == "accumulate" else 24)
    for found, expected in zip(average.values, by_hand(seen, decay), strict=True):
        assert torch.equal(found, expected)
    # and what the sum says that the docstring has
    shares = torch.tensor([decay ** (len(seen) - k) for k in range(1, len(seen) + 1)]).double()
    flat = torch.stack([torch.cat([w.flatten() for w in each]) for each in seen]).double()
    expected = (shares / shares.sum()) @ flat
    found = torch.cat([w.flatten() for w in average.values]).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_how_many_steps_a_chunk_takes_changes_no_bit_of_it():
    found = [averaged(steps_per_call=n)[0].steps.average.values for n in (1, 4, 100)]
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_training_goes_on_without_it_to_the_bit():
    learner, _ = averaged(dropout=0.5)
    data, plain = parts(dropout=0.5)
    fit(data, plain)
    assert torch.equal(weights(learner), weights(plain))


def test_without_decay_it_is_the_weights():
    learner, _ = averaged(0.0)
    for value, weight in zip(learner.steps.average.values, learner.parameters(), strict=True):
        assert torch.equal(value, weight)


class Spoilt(Values):
    """The loss of the fifth training batch is no number."""

    n = 0

    def loss(self, prediction, y):
        self.n += prediction.requires_grad
        return super().loss(prediction, y) * (math.nan if self.n == 5 else 1)


def test_a_skipped_step_is_not_averaged():
    learner, seen = averaged(objective=Spoilt(), on_nonfinite="skip")
    assert learner.steps.average.n_steps == len(seen) == 23
    for found, expected in zip(learner.steps.average.values, by_hand(seen, 0.9), strict=True):
        assert torch.equal(found, expected)


def test_it_takes_the_place_of_the_weights_and_gives_it_back():
    learner, seen = averaged()
    average, network = learner.steps.average, learner.network
    average.begin(network)
    average.begin(network)
    assert all(map(torch.equal, network.parameters(), by_hand(seen, 0.9)))
    average.end(network)
    average.end(network)
    assert all(map(torch.equal, network.parameters(), seen[-1]))


def test_of_coarse_weights_it_is_taken_in_float32():
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    average = Average(0.99)
    for step in range(200):
        weight.data.fill_(1.0 if step < 100 else 1.0078125)  # the next number of bfloat16
        average.update([weight])
    assert average.values[0].dtype == torch.float32
    share = (1 - 0.99**100) / (1 - 0.99**200)
    assert average.values[0].item() == pytest.approx(1 + 0.0078125 * share, abs=1e-6)


@pytest.mark.parametrize("average", [1, 1.5, -0.1, math.nan])
def test_a_decay_out_of_range_is_refused_by_name(average):
    optimizer = ADAM([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match=f"^average={average}: at least 0 and below 1, or null$"):
        Steps(optimizer, average=average)
    assert Steps(optimizer).average is None
