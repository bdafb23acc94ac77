"""Toy sequence tasks: pure, vectorised functions of (sizes, generator).

Letters: N sequences, T time steps, F input features, O outputs.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Generator, Tensor

from seqlab.arguments import NonNegative, Size, checked


class Task(ABC):
    """What a task must offer: subclass this, name the class in a file under `conf/data/`.

    `n_inputs` (F) and `n_outputs` (O) may be class attributes or set in the constructor.
    """

    n_inputs: int
    n_outputs: int

    #: The MSE that no prediction can beat, where it is known (noise in the target).
    floor: float | None = None

    @abstractmethod
    def draw(self, n: int, seq_len: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draw `n` sequences: inputs `(N, T, F)` and targets `(N, O)`, float32, on the CPU.
        All randomness comes from `generator`."""

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        """Predictions `(N, O)` that need no learning, by name, for inputs `x` `(N, T, F)`.
        The first is the one that skill is measured against; none: no skill is reported."""
        return {}


class Random(Task):
    """Inputs uniform on [0, 1]; the target is the mean over all T*F of them.

    Its do-nothing baseline, predicting 1/2, has MSE 1/(12*T*F): the variance of a mean of T*F
    uniform numbers.
    """

    n_outputs = 1

    @checked
    def __init__(self, n_inputs: Size):
        self.n_inputs = n_inputs

    def draw(self, n: int, seq_len: int, generator: Generator) -> tuple[Tensor, Tensor]:
        x = torch.rand(n, seq_len, self.n_inputs, generator=generator)
        return x, x.mean(dim=(1, 2)).unsqueeze(1)

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        return {"always 1/2": x.new_full((len(x), 1), 0.5)}


class Sine(Task):
    """A sine of random period and phase under white noise; the target is the next noisy value.

    The period is uniform on [10, 40] steps, the phase on a full turn. Persistence (the last value
    again) has MSE E[1 - cos(2 pi / period)] + 2 noise**2 = 0.0486 + 2 noise**2; no prediction
    beats noise**2.
    """

    n_inputs = 1
    n_outputs = 1
    period = (10.0, 40.0)

    @checked
    def __init__(self, noise: NonNegative):
        self.noise = noise
        self.floor = noise**2

    def draw(self, n: int, seq_len: int, generator: Generator) -> tuple[Tensor, Tensor]:
        low, high = self.period
        period = low + (high - low) * torch.rand(n, 1, generator=generator)
        phase = 2 * math.pi * torch.rand(n, 1, generator=generator)
        wave = torch.sin(2 * math.pi * torch.arange(seq_len + 1) / period + phase)
        wave += self.noise * torch.randn(n, seq_len + 1, generator=generator)
        return wave[:, :-1, None], wave[:, -1:]

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        return {"persistence": x[:, -1]}
