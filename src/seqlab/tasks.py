"""Toy sequence tasks: pure, vectorised functions of (sizes, generator).

Letters: N sequences, T time steps, F input features, O outputs.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from seqlab.arguments import NonNegative, Size, checked
from seqlab.objectives import NO_TARGET, Classes, Objective, Values


class Task(ABC):
    """What a task must offer: subclass this, name the class in a file under `conf/data/`.

    `n_inputs` (F) and `n_outputs` (O) may be class attributes or set in the constructor.
    """

    n_inputs: int
    n_outputs: int

    #: What the outputs are: numbers, or the logits of classes.
    objective: Objective = Values()
    #: Whether there is a target at every step, or one at the end.
    every_step: bool = False
    #: The shortest `data.seq_len` that the task makes sense for.
    min_len: int = 1

    #: The MSE that no prediction can beat, where it is known (noise in the target).
    floor: float | None = None

    @abstractmethod
    def draw(self, n: int, seq_len: int, generator: Generator) -> tuple[Tensor, ...]:
        """Draw `n` sequences: inputs `(N, T, F)`, float32, and targets as `objective` has them:
        of values `(N, O)`, of classes `(N,)`, at every step `(N, T, O)` and `(N, T)`; on the CPU.

        Sequences of different lengths are padded at their ends to a common T, and a third tensor
        gives the lengths, `(N,)`, integers in [1, T]. All randomness comes from `generator`."""

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        """Predictions `(N, O)`, or `(N, T, O)` at every step, that need no learning, by name, for
        inputs `x` `(N, T, F)`. The first is the one that skill is measured against; none: no skill
        is reported."""
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


class Adding(Task):
    """Two of T values are marked, one in each half; the target is their sum.

    Step: (value uniform on [0, 1], marker 1 or 0). The do-nothing baseline, always 1, has MSE 1/6,
    the variance of a sum of two uniform numbers (Arjovsky, Shah & Bengio 2016).
    """

    n_inputs, n_outputs, min_len = 2, 1, 2

    def draw(self, n: int, seq_len: int, generator: Generator) -> tuple[Tensor, Tensor]:
        values = torch.rand(n, seq_len, generator=generator)
        places_N2 = self.places(n, seq_len, generator)
        markers = torch.zeros(n, seq_len).scatter_(1, places_N2, 1.0)
        return torch.stack([values, markers], 2), values.gather(1, places_N2).sum(1, keepdim=True)

    def places(self, n: int, seq_len: int, generator: Generator) -> Tensor:
        """Which two steps are marked, `(N, 2)`."""
        half = seq_len // 2
        first = integers(0, half - 1, n, generator)
        return torch.stack([first, integers(half, seq_len - 1, n, generator)], 1)

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        return {"always 1": x.new_ones(len(x), 1)}


class AddingUniform(Adding):
    """Adding with any two steps marked (Bai, Kolter & Koltun 2018); the same baseline."""

    def places(self, n: int, seq_len: int, generator: Generator) -> Tensor:
        first = integers(0, seq_len - 1, n, generator)
        further = integers(1, seq_len - 1, n, generator)
        return torch.stack([first, (first + further) % seq_len], 1)


class AddingHS97(Task):
    """Adding as it was first published (Hochreiter & Schmidhuber 1997, experiment 4).

    Lengths are uniform on T to 1.1 T. Step: (value uniform on [-1, 1], marker). Marked by 1: one
    of the first ten steps, and one of the first T/2 - 1 others. The first and the last step are
    marked by -1; should the first be chosen too, its value is 0. The target is 1/2 + (X1 + X2)/4,
    and `within` the share of sequences whose error is below 0.04. The do-nothing baseline, always
    1/2, has MSE (2 - q)/48 with q = 0.1 + 0.9/(T/2 - 1), the chance that the first step is
    chosen; without that rule it would be 1/24.
    """

    n_inputs, n_outputs, min_len = 2, 1, 20
    low, neutral, guess = -1.0, 0.0, 0.5

    def __init__(self):
        self.objective = Values(within=within)

    def draw(self, n: int, seq_len: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        longest = seq_len + seq_len // 10
        lengths = integers(seq_len, longest, n, generator)
        values = self.low + (1 - self.low) * torch.rand(n, longest, generator=generator)
        first = integers(0, 9, n, generator)
        second = integers(0, seq_len // 2 - 2, n, generator)
        places_N2 = torch.stack([first, second + (second >= first)], 1)
        values[(places_N2 == 0).any(1), 0] = self.neutral
        markers = torch.zeros(n, longest).scatter_(1, places_N2, 1.0)
        markers[:, 0] = -1.0
        markers.scatter_(1, lengths[:, None] - 1, -1.0)
        x = torch.stack([values, markers], 2)
        x[torch.arange(longest) >= lengths[:, None]] = 0.0
        return x, self.target(values.gather(1, places_N2)), lengths

    def target(self, marked_N2: Tensor) -> Tensor:
        """The target `(N, 1)` of the two marked values."""
        return 0.5 + marked_N2.sum(1, keepdim=True) / 4

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        return {f"always {self.guess}": x.new_full((len(x), 1), self.guess)}


class Multiplication(AddingHS97):
    """The product of two marked values (Hochreiter & Schmidhuber 1997, experiment 5).

    Lengths and markers are those of `AddingHS97`; values are uniform on [0, 1], and that of a
    chosen first step is 1. The do-nothing baseline, always 1/4, has MSE 7/144 + 7 q / 72; without
    the rule of the first step it would be 7/144.
    """

    low, neutral, guess = 0.0, 1.0, 0.25

    def target(self, marked_N2: Tensor) -> Tensor:
        return marked_N2.prod(1, keepdim=True)


class TemporalOrder(Task):
    """In which order did X and Y occur (Hochreiter & Schmidhuber 1997, experiments 6a and 6b)?

    A sequence of T to 1.1 T symbols begins with E, ends with B and is drawn from a, b, c, d, but
    for two or three steps that are X or Y with even chance: at 10 to 20 and 50 to 60 per cent of
    T, or at 10 to 20, 33 to 43 and 66 to 76. The class is which of the 4 or 8 orders it was. The
    do-nothing baseline, all classes alike, has cross-entropy ln 4 or ln 8.

    Args:
        n_markers: 2 (6a) or 3 (6b).
    """

    n_inputs, min_len, objective = 8, 10, Classes()
    spans: ClassVar = {2: ((10, 20), (50, 60)), 3: ((10, 20), (33, 43), (66, 76))}

    @checked
    def __init__(self, n_markers: Literal[2, 3]):
        self.n_markers, self.n_outputs = n_markers, 2**n_markers

    def draw(self, n: int, seq_len: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        longest = seq_len + seq_len // 10
        lengths = integers(seq_len, longest, n, generator)
        # E B a b c d X Y are 0 to 7
        symbols = torch.randint(2, 6, (n, longest), generator=generator)
        symbols[:, 0] = 0
        symbols.scatter_(1, lengths[:, None] - 1, 1)
        y = torch.zeros(n, dtype=torch.int64)
        for low, high in self.spans[self.n_markers]:
            place = integers(low * seq_len // 100, high * seq_len // 100, n, generator)
            is_y = integers(0, 1, n, generator)
            symbols.scatter_(1, place[:, None], 6 + is_y[:, None])
            y = 2 * y + is_y
        x = one_hot(symbols, 8).float()
        x[torch.arange(longest) >= lengths[:, None]] = 0.0
        return x, y, lengths

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        return {"all alike": x.new_zeros(len(x), self.n_outputs)}


class Reber(Task):
    """The next symbol of strings of the embedded Reber grammar (Hochreiter & Schmidhuber 1997,
    experiment 1; Cleeremans et al. 1989).

    A string is B, then T or P with even chance, a string of the Reber grammar, the same T or P
    again, and E; the graph of the inner one is `INNER`, every arc of a node as likely. The network
    sees all symbols but the last, and at each step the target is the next one. At a node with two
    arcs none can know which: the least cross-entropy is above 0, `accuracy` below 1. So what
    counts is `legal`: the share of strings where at every step the symbols that may follow all get
    more than those that may not. Strings of more than T + 1 symbols are drawn again.
    """

    n_inputs, n_outputs, every_step, min_len = 7, 7, True, 20
    SYMBOLS, END = "BTPSXVE", 19
    #: node: its arcs, each a symbol and the node it leads to; 7 is its end
    INNER: ClassVar = ("B1", "T2 P3", "S2 X4", "T3 V5", "X3 S6", "P4 V6", "E7")

    def __init__(self):
        self.objective = Classes(legal=self.legal)
        arcs = [["B1"], ["T2", "P10"]]
        for start, mark in ((2, "T"), (10, "P")):  # the inner graph, once for each mark
            inner = [[f"{arc[0]}{start + int(arc[1])}" for arc in a.split()] for a in self.INNER]
            arcs += [*inner, [f"{mark}18"]]
        arcs += [["E19"], ["E19"]]
        #: by node, the symbol and the next node of each of two arcs, which may be one twice
        self.symbol_S2, self.next_S2 = (
            torch.tensor([[of(node[0]), of(node[-1])] for node in arcs])
            for of in (lambda arc: self.SYMBOLS.index(arc[0]), lambda arc: int(arc[1:]))
        )

    def draw(self, n: int, seq_len: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        strings, node = torch.full((n, seq_len + 1), NO_TARGET), torch.zeros(n, dtype=torch.int64)
        again = torch.arange(n)  # those whose string is not yet drawn
        while len(again):
            node, symbols = node.new_zeros(len(again)), []
            for _ in range(seq_len + 1):
                arc = integers(0, 1, len(again), generator)
                symbols.append(torch.where(node == self.END, NO_TARGET, self.symbol_S2[node, arc]))
                node = self.next_S2[node, arc]
            strings[again] = torch.stack(symbols, 1)
            again = again[node != self.END]
        y = strings[:, 1:].clone()
        x = one_hot(strings[:, :-1].clamp(min=0), 7).float()
        lengths = (y != NO_TARGET).sum(1)
        x[torch.arange(seq_len) >= lengths[:, None]] = 0.0
        return x, y, lengths

    def legal(self, prediction: Tensor, y: Tensor) -> Tensor:
        """For each string whether each step ranks all legal symbols above all others."""
        symbol_S2, next_S2 = self.symbol_S2.to(y.device), self.next_S2.to(y.device)
        nodes, node = [], next_S2[0, 0].expand(len(y))  # after the B that each string begins with
        for symbol in y.T:
            nodes.append(node)
            node = torch.where(symbol == symbol_S2[node, 0], next_S2[node, 0], next_S2[node, 1])
        legal = one_hot(symbol_S2[torch.stack(nodes, 1)], 7).amax(2).bool()
        least = prediction.masked_fill(~legal, math.inf).amin(2)
        most = prediction.masked_fill(legal, -math.inf).amax(2)
        return ((least > most) | (y == NO_TARGET)).all(1).double()


class Copy(Task):
    """Say ten symbols again after a pause (Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016).

    Ten of eight symbols, T - 21 blanks, a delimiter, ten blanks; the target is a blank at all steps
    but the last ten, which are the ten symbols. In the literature's terms, where the length is
    T' + 20, T' is T - 20. The do-nothing baseline, blanks and then any symbol, has cross-entropy
    10 ln 8 / T a step. `recalled` is the share of the ten symbols that is right.
    """

    n_inputs, n_outputs, every_step, min_len = 10, 9, True, 21
    K, BLANK, DELIMITER = 10, 8, 9

    def __init__(self):
        self.objective = Classes(recalled=self.recalled)

    def draw(self, n: int, seq_len: int, generator: Generator) -> tuple[Tensor, Tensor]:
        symbols_NK = torch.randint(0, 8, (n, self.K), generator=generator)
        x = torch.full((n, seq_len), self.BLANK)
        x[:, : self.K], x[:, -self.K - 1] = symbols_NK, self.DELIMITER
        y = torch.full((n, seq_len), self.BLANK)
        y[:, -self.K :] = symbols_NK
        return one_hot(x, 10).float(), y

    def recalled(self, prediction: Tensor, y: Tensor) -> Tensor:
        """For each of the last ten steps whether it is right."""
        return (prediction.argmax(-1) == y)[:, -self.K :].double()

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        logits = x.new_zeros(*x.shape[:2], 9)
        logits[:, : -self.K, : self.BLANK] = -math.inf
        logits[:, -self.K :, self.BLANK] = -math.inf
        return {"any symbol": logits}


def within(prediction: Tensor, y: Tensor) -> Tensor:
    """For each sequence whether its error is below 0.04, the success of 1997."""
    return ((prediction - y).abs() < 0.04).all(1).double()


def integers(low: int, high: int, n: int, generator: Generator) -> Tensor:
    """`n` integers from low to high, both included."""
    return torch.randint(low, high + 1, (n,), generator=generator)
