"""The published tasks, and the Mackey-Glass series. Letters: N sequences, T time steps."""

import math
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
import torch
from torch import Generator, Tensor
from torch.nn.functional import embedding, mse_loss, one_hot

from seqlab.model import check_sizes
from seqlab.objectives import NO_TARGET, Classes, Figure, Values
from seqlab.series.reading import Piece, Series
from seqlab.series.windows import WindowData
from seqlab.sources import ArrayData
from seqlab.tasks import Task


def integers(low: int, high: int, n: int, generator: Generator) -> Tensor:
    """`n` integers from low to high, both included."""
    return torch.randint(low, high + 1, (n,), generator=generator)


def padded(x: Tensor, lengths: Tensor) -> Tensor:
    """Sequences `(N, T, F)`, set to zero in place from the end of each on."""
    return x.masked_fill_((torch.arange(x.shape[1]) >= lengths[:, None])[:, :, None], 0.0)


def ends(known_NT: Tensor) -> Tensor:
    """Which step of each sequence is its last known one."""
    return known_NT & (known_NT.cumsum(1) == known_NT.sum(1, keepdim=True))


class Adding(Task):
    """The sum of two marked values, one in each half (Arjovsky, Shah & Bengio 2016). A step is a
    value, uniform on [0, 1], and a marker, 1 or 0. The do-nothing baseline, always 1, has MSE 1/6,
    the variance of a sum of two uniform numbers."""

    n_inputs, n_outputs, min_len, guess = 2, 1, 2, 1

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
        return {f"always {self.guess}": x.new_full((len(x), 1), self.guess)}


class AddingUniform(Adding):
    """Adding with any two steps marked (Bai, Kolter & Koltun 2018); the same baseline."""

    def places(self, n: int, seq_len: int, generator: Generator) -> Tensor:
        first = integers(0, seq_len - 1, n, generator)
        further = integers(1, seq_len - 1, n, generator)
        return torch.stack([first, (first + further) % seq_len], 1)


class LongLag(Task):
    """The first symbol again after a long lag (Hochreiter & Schmidhuber 1997, experiment 2).

    2a: x, a1, a2, ..., a(p-1), x or the same with y; the next symbol is to be predicted at every
    step. T is p; if it is longer, the a begin anew. 2b: T - 1 random ones of the a between x and x
    or y and y. The do-nothing baseline knows all but whether it is x or y: its cross-entropy per
    step is ln 2 / T, in 2b ((T - 1) ln(p - 1) + ln 2) / T. 2c: b, then x or y, then q + k random
    ones of a1 to ap (where the paper has i <= q for i <= p), then e; q is `seq_len`, and k from 0
    on has the chance 0.1 * 0.9^k. After e the second symbol comes again: it is the class, 0 for x
    and 1 for y, and nothing else is predicted. The do-nothing baseline has cross-entropy ln 2.

    The metric `within` is the share of sequences where every output is less than 0.25 from its
    target, 1 for the right symbol and 0 for others: at all steps in 2a, at the end in 2b; in 2c
    less than 0.2. Success in 1997 was that 10,000 sequences in a row were so. The outputs were
    sigmoids; here they sum to 1. `p` is at least 2, `end_weight` as in `EndClasses`."""

    def __init__(self, variant: Literal["2a", "2b", "2c"], p: int, end_weight: float = 0.0):
        if variant not in ("2a", "2b", "2c"):
            raise ValueError(f"variant={variant}: 2a, 2b or 2c")
        if p < 2:
            raise ValueError(f"p={p}: at least 2")
        self.variant, self.p, self.every_step = variant, p, variant != "2c"
        self.n_inputs, self.n_outputs = (p + 1, p + 1) if self.every_step else (p + 4, 2)
        self.objective = Classes(within=self.within)
        if self.every_step:
            self.objective = EndClasses(end_weight, within=self.within)

    def draw(self, n: int, seq_len: int, generator: Generator) -> tuple[Tensor, ...]:
        p, is_y = self.p, integers(0, 1, n, generator)
        vectors = torch.eye(self.n_inputs)  # of a1, a2, ..., then x, y, or e, b, x, y
        if self.variant == "2c":
            k = torch.empty(n, dtype=torch.int64).geometric_(0.1, generator=generator) - 1
            lengths = seq_len + k + 3
            symbols = torch.randint(0, p, (n, int(lengths.max())), generator=generator)
            symbols[:, 0], symbols[:, 1] = p + 1, p + 2 + is_y
            symbols.scatter_(1, lengths[:, None] - 1, p)
            return padded(vectors[symbols], lengths), is_y, lengths
        between = (torch.arange(seq_len - 1) % (p - 1)).expand(n, -1)
        if self.variant == "2b":
            between = torch.randint(0, p - 1, (n, seq_len - 1), generator=generator)
        ends = p - 1 + is_y[:, None]
        symbols = torch.cat([ends, between, ends], 1)
        return vectors[symbols[:, :-1]], symbols[:, 1:]

    def within(self, prediction: Tensor, y: Tensor) -> Tensor:
        """For each sequence whether each output is near its target."""
        right = prediction.softmax(-1).gather(-1, y.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        if self.variant == "2c":
            return (right > 0.8).double()
        counts = ends(y != NO_TARGET) if self.variant == "2b" else y != NO_TARGET
        # no other output can be further from 0 than that of the right symbol is from 1
        return ((right > 0.75) | ~counts).all(1).double()

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        if self.variant == "2c":
            return {"both alike": x.new_zeros(len(x), 2)}
        may_follow = x.roll(-1, 1) if self.variant == "2a" else torch.ones_like(x)
        last = ends(x.any(2)).unsqueeze(2)
        between = may_follow[..., : self.p - 1].masked_fill(last, 0.0)
        return {"x or y": torch.cat([between, last.expand(-1, -1, 2).float()], 2).log()}


class EndClasses(Classes):
    """Classes at every step. The loss is the mean over the steps, as published, and `end_weight`
    times that of the last step."""

    def __init__(self, end_weight: float, **figures: Figure):
        super().__init__(**figures)
        self.end_weight = end_weight

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        end = super().loss(prediction[:, -1], y[:, -1])
        return super().loss(prediction, y) + self.end_weight * end


class TwoSequence(Task):
    """Which of two classes, said by the first values (Hochreiter & Schmidhuber 1997, experiment 3;
    Bengio et al. 1994). Lengths are uniform on T to 1.1 T. The first `n_first` values are all 1 or
    all -1, with even chance; the others are Gaussian with mean 0 and variance 0.2. The target is 1
    or 0. 3b: such noise is on the first values too. 3c: the target is 0.2 or 0.8; what is trained
    has Gaussian noise of variance 0.1 on it, and metrics measure the error without. `within` is the
    share of errors below 0.2, in 3c 0.1. The do-nothing baseline, always 1/2, has MSE 1/4, in 3c
    0.09. Outputs were sigmoids in 1997; here they are linear."""

    n_inputs, n_outputs = 1, 1

    def __init__(self, variant: Literal["3a", "3b", "3c"], n_first: int = 3):
        if variant not in ("3a", "3b", "3c"):
            raise ValueError(f"variant={variant}: 3a, 3b or 3c")
        check_sizes(n_first=n_first)
        self.variant, self.n_first, self.min_len = variant, n_first, n_first
        self.objective = (CleanValues if variant == "3c" else Values)(within=self.within)

    def draw(self, n: int, seq_len: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        longest = seq_len + seq_len // 10
        lengths = integers(seq_len, longest, n, generator)
        x = math.sqrt(0.2) * torch.randn(n, longest, 1, generator=generator)
        y = integers(0, 1, n, generator)[:, None].float()
        if self.variant != "3b":
            x[:, : self.n_first] = 0.0
        x[:, : self.n_first, 0] += 2 * y - 1
        if self.variant == "3c":
            y = 0.8 - 0.6 * y
            y = torch.cat([y + math.sqrt(0.1) * torch.randn(n, 1, generator=generator), y], 1)
        return padded(x, lengths), y, lengths

    def within(self, prediction: Tensor, y: Tensor) -> Tensor:
        """For each sequence whether its error is small enough."""
        return ((prediction - y).abs() < (0.1 if self.variant == "3c" else 0.2)).all(1).double()

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        return {"always 1/2": x.new_full((len(x), 1), 0.5)}


class CleanValues(Values):
    """Targets `(N, 2)`, with noise and without it: the first are trained, the second measured."""

    def target_shape(self, n_outputs: int) -> tuple[int, ...]:
        return (2,)

    def select(self, prediction: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return prediction, y[:, 1:]

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        return mse_loss(prediction, y[:, :1])

    def truth(self, y: Tensor) -> Tensor:
        return self.unscale(y[:, 1:])


class AddingHS97(Adding):
    """Adding as it was first published (Hochreiter & Schmidhuber 1997, experiment 4). Lengths are
    uniform on T to 1.1 T. A step is a value, uniform on [-1, 1], and a marker. Two steps are chosen
    and marked by 1: one of the first ten, and one of the first T/2 - 1 others. The first and the
    last step are marked by -1; if the first is chosen too, its value is 0. The target is
    1/2 + (X1 + X2)/4, X1 and X2 the chosen values. The metric `within` is the share of sequences
    with an error below 0.04. The do-nothing baseline, always 1/2, has MSE (2 - q)/48 with
    q = 0.1 + 0.9/(T/2 - 1), the chance that the first step is chosen."""

    low, neutral, guess, min_len = -1.0, 0.0, 0.5, 20

    def __init__(self):
        self.objective = Values(within=self.within)

    def draw(self, n: int, seq_len: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        longest = seq_len + seq_len // 10
        lengths = integers(seq_len, longest, n, generator)
        values = self.low + (1 - self.low) * torch.rand(n, longest, generator=generator)
        places_N2 = self.places(n, seq_len, generator)
        values[(places_N2 == 0).any(1), 0] = self.neutral
        markers = torch.zeros(n, longest).scatter_(1, places_N2, 1.0)
        markers[:, 0] = markers[torch.arange(n), lengths - 1] = -1.0
        x = padded(torch.stack([values, markers], 2), lengths)
        return x, self.target(values.gather(1, places_N2)), lengths

    def places(self, n: int, seq_len: int, generator: Generator) -> Tensor:
        first = integers(0, 9, n, generator)
        second = integers(0, seq_len // 2 - 2, n, generator)
        return torch.stack([first, second + (second >= first)], 1)

    def target(self, marked_N2: Tensor) -> Tensor:
        """The target `(N, 1)` of the two marked values."""
        return 0.5 + marked_N2.sum(1, keepdim=True) / 4

    def within(self, prediction: Tensor, y: Tensor) -> Tensor:
        """For each sequence whether its error is below 0.04, which was success in 1997."""
        return ((prediction - y).abs() < 0.04).all(1).double()


class Multiplication(AddingHS97):
    """The product of two marked values (Hochreiter & Schmidhuber 1997, experiment 5). Lengths,
    markers and q are those of `AddingHS97`. Values are uniform on [0, 1], and the value of a chosen
    first step is 1. The do-nothing baseline, always 1/4, has MSE 7/144 + 7 q / 72."""

    low, neutral, guess = 0.0, 1.0, 0.25

    def target(self, marked_N2: Tensor) -> Tensor:
        return marked_N2.prod(1, keepdim=True)


class TemporalOrder(Task):
    """In which order did X and Y occur (Hochreiter & Schmidhuber 1997, experiments 6a and 6b)? A
    sequence has T to 1.1 T symbols. It begins with E and ends with B; between them are a, b, c and
    d, and `n_markers` symbols that are X or Y with even chance: 2 (6a) at 10 to 20 and 50 to 60 per
    cent of T, or 3 (6b) at 10 to 20, 33 to 43 and 66 to 76. The class is the order, one of 4 or 8.
    The do-nothing baseline, all classes alike, has cross-entropy ln 4 or ln 8."""

    n_inputs, min_len, objective = 8, 10, Classes()
    spans: ClassVar = {2: ((10, 20), (50, 60)), 3: ((10, 20), (33, 43), (66, 76))}

    def __init__(self, n_markers: Literal[2, 3] = 2):
        if n_markers not in self.spans:
            raise ValueError(f"n_markers={n_markers}: 2 or 3")
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
        return padded(embedding(symbols, torch.eye(8)), lengths), y, lengths

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        return {"all alike": x.new_zeros(len(x), self.n_outputs)}


class Reber(Task):
    """The next symbol, at every step, of strings of the embedded Reber grammar (Hochreiter &
    Schmidhuber 1997, experiment 1; Cleeremans et al. 1989). A string is B, then T or P, a string of
    the Reber grammar, the same T or P again, and E; one of more than T + 1 symbols is drawn again.
    Where two symbols may follow, each has an even chance, so the least cross-entropy is above 0 and
    the best `accuracy` below 1. What counts is `legal`: the share of strings where at every step
    all symbols that may follow rank above all others."""

    n_inputs, n_outputs, every_step, min_len = 7, 7, True, 20
    SYMBOLS, END = "BTPSXVE", 19
    #: The grammar's graph: for each node its arcs, a symbol and the node that it leads to.
    NODES = "B1 T2,P10 B3 T4,P5 S4,X6 T5,V7 X5,S8 P6,V8 E9 T18 B11 T12,P13 S12,X14 T13,V15 X13,S16"
    NODES += " P14,V16 E17 P18 E19 E19"

    def __init__(self):
        self.objective = Classes(legal=self.legal)
        arcs = [(node.split(",") * 2)[:2] for node in self.NODES.split()]  # one arc stands twice
        pairs = [[(self.SYMBOLS.index(arc[0]), int(arc[1:])) for arc in node] for node in arcs]
        self.symbols_and_nodes = torch.tensor(pairs).movedim(2, 0)  # of the arcs, each (S, 2)

    def draw(self, n: int, seq_len: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        strings, again = torch.full((n, seq_len + 1), NO_TARGET), torch.arange(n)
        symbol_S2, next_S2 = self.symbols_and_nodes.to(again.device)
        while len(again):  # the strings that are still to be drawn
            node, symbols = torch.zeros_like(again), []
            for _ in range(seq_len + 1):
                arc = integers(0, 1, len(again), generator)
                symbols.append(torch.where(node == self.END, NO_TARGET, symbol_S2[node, arc]))
                node = next_S2[node, arc]
            strings[again] = torch.stack(symbols, 1)
            again = again[node != self.END]
        y = strings[:, 1:].clone()
        lengths = (y != NO_TARGET).sum(1)
        return padded(embedding(strings[:, :-1].clamp(min=0), torch.eye(7)), lengths), y, lengths

    def legal(self, prediction: Tensor, y: Tensor) -> Tensor:
        """For each string whether each step ranks all legal symbols above all others."""
        symbol_S2, next_S2 = self.symbols_and_nodes.to(y.device)
        nodes, node = [], next_S2[0, 0].expand(len(y))  # after the B that each string begins with
        for symbol in y.T:
            nodes.append(node)
            node = torch.where(symbol == symbol_S2[node, 0], next_S2[node, 0], next_S2[node, 1])
        legal = one_hot(symbol_S2[torch.stack(nodes, 1)], 7).amax(2).bool()
        least = prediction.masked_fill(~legal, math.inf).amin(2)
        most = prediction.masked_fill(legal, -math.inf).amax(2)
        return ((least > most) | (y == NO_TARGET)).all(1).double()


class Copy(Task):
    """Repeat ten symbols after a pause (Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016). The
    input is ten symbols of eight, T - 21 blanks, a delimiter and ten blanks; the target is a blank
    at all steps but the last ten, which are the symbols. The T of the literature is T - 20 here.
    The do-nothing baseline, blanks and then any symbol, has cross-entropy 10 ln 8 / T per step. The
    metric `recalled` is the share of the ten symbols that is right."""

    n_inputs, n_outputs, every_step, min_len = 10, 9, True, 21
    K, BLANK, DELIMITER = 10, 8, 9

    def __init__(self):
        self.objective = Classes(recalled=self.recalled)

    def draw(self, n: int, seq_len: int, generator: Generator) -> tuple[Tensor, Tensor]:
        symbols_NK = torch.randint(0, 8, (n, self.K), generator=generator)
        x, y = torch.full((2, n, seq_len), self.BLANK)
        x[:, : self.K], x[:, -self.K - 1] = symbols_NK, self.DELIMITER
        y[:, -self.K :] = symbols_NK
        return embedding(x, torch.eye(10)), y

    def recalled(self, prediction: Tensor, y: Tensor) -> Tensor:
        """For each sequence the share of its ten symbols that is right."""
        right = (prediction.argmax(-1) == y) & (y >= 0) & (y < self.BLANK)
        return right.sum(1).double() / self.K

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        logits = x.new_zeros(*x.shape[:2], 9)
        logits[:, : -self.K, : self.BLANK] = logits[:, -self.K :, self.BLANK] = -math.inf
        return {"any symbol": logits}


class MNIST1D(ArrayData):
    """Ten digits as lines of 40 values (Greydanus 2020, arXiv 2011.14439): the 4,000 sequences of
    the paper, the last `n_val` of them to choose the epoch by, and its 1,000 to test. The package
    `mnist1d` makes them. `shuffled`: the 40 steps are in one other order. Else as in `OwnData`."""

    def __init__(self, shuffled: bool, n_val: int, **rest: Any):
        super().__init__(**rest)
        if not 2 <= n_val < 4000:
            raise ValueError(f"n_val={n_val}: from 2 to 3999")
        self.shuffled, self.n_val = shuffled, n_val

    def arrays(self) -> dict[str, tuple]:
        try:
            from mnist1d.data import get_dataset_args, make_dataset  # they bring SciPy
        except ImportError as error:
            raise ValueError("mnist1d is not installed: pip install mnist1d") from error
        given = get_dataset_args()
        given.shuffle_seq = self.shuffled
        made = make_dataset(given)
        x, y, n = made["x"][..., None], made["y"], len(made["y"]) - self.n_val
        test = made["x_test"][..., None], made["y_test"]
        return {"train": (x[:n], y[:n]), "val": (x[n:], y[n:]), "test": test}


class MackeyGlass(WindowData):
    """The Mackey-Glass series (Mackey & Glass 1977), noise-free and not linear: `n` values, one
    time unit apart. It is chaotic from a delay `tau` of 17 time units on. `val_from` and
    `test_from` are fractions in (0, 1), where validation and test begin; the rest is as in
    `WindowData`."""

    def __init__(self, n: int, tau: int, val_from: float, test_from: float, **rest: Any):
        check_sizes(n=n, tau=tau)
        if max(n, tau) > 10**6:
            raise ValueError(f"n={n}, tau={tau}: at most 1000000")
        for name, share in (("val_from", val_from), ("test_from", test_from)):
            if not 0 < share < 1:
                raise ValueError(f"{name}={share}: a fraction in (0, 1)")
        pieces = [Piece("", 0, n, (round(val_from * n), round(test_from * n)))]
        values, times = mackey_glass(n, tau)[:, None], pl.Series(range(n))
        super().__init__(Series(values, ["x"], times, pieces, []), **rest)


def mackey_glass(n: int, tau: int) -> np.ndarray:
    """`n` values, one time unit apart, of dx/dt = 0.2 x(t-tau) / (1 + x(t-tau)^10) - 0.1 x(t), from
    1000 units after x = 1.2 on, by fourth-order Runge-Kutta steps of 0.1."""
    per_unit, forget = 10, 1000
    h, delay = 1 / per_unit, tau * per_unit
    x = [1.2] * (delay + 1)

    def slope(now: float, then: float) -> float:
        return 0.2 * then / (1 + then**10) - 0.1 * now

    for _ in range((forget + n) * per_unit):
        now, then, later = x[-1], x[-1 - delay], x[-delay]
        between = (then + later) / 2
        k1 = slope(now, then)
        k2 = slope(now + h / 2 * k1, between)
        k3 = slope(now + h / 2 * k2, between)
        k4 = slope(now + h * k3, later)
        x.append(now + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
    return np.array(x[delay + forget * per_unit :: per_unit][:n])
