import time

import pytest
import torch
from torch.overrides import TorchFunctionMode

from seqlab import languages
from seqlab.literature import (
    Adding,
    AddingHS97,
    AddingUniform,
    Copy,
    LongLag,
    Multiplication,
    Reber,
    TemporalOrder,
    TwoSequence,
)
from seqlab.tasks import Random, Sine


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


TASKS = [Random(n_inputs=5), Sine(noise=0.1), Adding(), AddingUniform(), AddingHS97()]
TASKS += [Multiplication(), TemporalOrder(2), TemporalOrder(3), Reber(), Copy()]
OTHERS = [*(LongLag(variant, 9) for variant in ("2a", "2b", "2c")), TwoSequence("3b")]
OTHERS += [TwoSequence("3c"), *(kind() for kind in languages.Strings.__subclasses__())]
OTHERS += [languages.FlipFlop(), languages.FlipFlop([0.1, 0.98])]


@pytest.mark.parametrize("task", TASKS)
def test_shapes_and_dtype(task):
    x, y, *lengths = task.draw(100, 24, generator())
    T = max(24, *lengths[0].tolist()) if lengths else 24
    steps = (100, T) if task.every_step else (100,)
    assert x.shape == (100, T, task.n_inputs)
    assert x.dtype == torch.float32
    assert y.shape == (*steps, *task.objective.target_shape(task.n_outputs))
    assert y.dtype == task.objective.dtype
    for found in lengths:
        assert found.shape == (100,)
        assert 1 <= found.min() <= found.max() <= T
        assert not x[torch.arange(T) >= found[:, None]].any()  # padding is zero


@pytest.mark.parametrize("task", TASKS)
def test_the_generator_decides_everything(task):
    first, again, other = (task.draw(100, 24, generator(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


class Elsewhere(TorchFunctionMode):
    """Stands for a device that is not the CPU: only tensors that were made there, or moved there,
    may be computed with."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        flat = [each for arg in args for each in (arg if isinstance(arg, list | tuple) else [arg])]
        tensors = [each for each in flat if isinstance(each, torch.Tensor) and each.dim()]
        if function is not torch.Tensor.to:
            foreign = [each for each in tensors if not any(each is made for made in self.made)]
            assert not foreign, f"{function.__name__}: a tensor of the CPU"
        assert not {"device"} & {*(kwargs or {})}, f"{function.__name__}: names a device"
        out = function(*args, **(kwargs or {}))
        self.made += out if isinstance(out, list | tuple) else [out]
        return out


@pytest.mark.parametrize("task", TASKS + OTHERS)
def test_every_task_can_be_drawn_on_another_device(task):
    expected = task.draw(50, 24, generator())
    with Elsewhere() as elsewhere:
        drawn = task.draw(50, 24, generator())
    assert all(any(part is made for made in elsewhere.made) for part in drawn)
    assert all(torch.equal(a, b) for a, b in zip(drawn, expected, strict=True))


def test_a_task_that_computes_with_a_tensor_of_the_cpu_is_found():
    class Mine(Sine):
        weights = torch.ones(24, 1)

        def draw(self, n, seq_len, generator):
            x, y = super().draw(n, seq_len, generator)
            return x * self.weights, y

    with pytest.raises(AssertionError, match="mul: a tensor of the CPU"), Elsewhere():
        Mine().draw(50, 24, generator())


@pytest.mark.parametrize("task", TASKS)
def test_twenty_thousand_sequences_take_well_under_a_second(task):
    start = time.process_time()
    task.draw(20_000, 24, generator())
    assert time.process_time() - start < 1


def test_random_is_uniform_and_its_target_the_mean():
    x, y = Random(n_inputs=5).draw(20_000, 3, generator())
    assert x.min() >= 0
    assert x.max() < 1
    assert x.mean() == pytest.approx(0.5, abs=2e-3)
    assert x.var() == pytest.approx(1 / 12, rel=0.01)
    torch.testing.assert_close(y[:, 0], x.reshape(-1, 15).mean(1))


@pytest.mark.parametrize(("T", "F"), [(3, 5), (24, 1)])
def test_randoms_baseline_has_the_stated_error(T, F):
    task = Random(n_inputs=F)
    x, y = task.draw(20_000, T, generator())
    mse = (task.baselines(x)["always 1/2"] - y).square().mean()
    assert mse == pytest.approx(1 / (12 * T * F), rel=0.03)


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
def test_sines_persistence_and_floor_have_the_stated_errors(noise):
    task = Sine(noise=noise)
    x, y = task.draw(50_000, 24, generator())
    persistence = (task.baselines(x)["persistence"] - y).square().mean()
    assert persistence == pytest.approx(0.0486 + 2 * noise**2, rel=0.03)
    # the same draws without noise are the best prediction there is
    best = Sine(noise=0.0).draw(50_000, 24, generator())[1]
    assert (best - y).square().mean() == pytest.approx(task.floor, rel=0.03)


def test_sine_periods_are_between_10_and_40_steps():
    x, _ = Sine(noise=0.0).draw(2_000, 400, generator())
    spectrum = torch.fft.rfft(x[:, :, 0] * torch.hann_window(400)).abs()
    periods = 400 / spectrum[:, 1:].argmax(1).add(1)
    assert 9.5 < periods.min() < 11
    assert 36 < periods.max() < 45


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Sine(noise=-1.0), "noise=-1.0: a finite number of at least 0"),
        (lambda: Sine(noise=float("nan")), "noise=nan: a finite number of at least 0"),
        (lambda: Random(n_inputs=0), "n_inputs=0: at least 1"),
        (lambda: TemporalOrder(4), "n_markers=4: 2 or 3"),
    ],
)
def test_arguments_out_of_range_are_refused(make, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        make()
