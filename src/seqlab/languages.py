"""Tasks by which sequence models are judged today: those of Delétang et al. 2022 ("Neural Networks
and the Chomsky Hierarchy") and the flip-flop of Liu et al. 2023. Letters: N sequences, S symbols of
a string, T time steps, O classes."""

from functools import partial

import torch
from torch import Generator, Tensor
from torch.nn.functional import embedding
from torch.special import ndtr

from seqlab.objectives import NO_TARGET, Classes
from seqlab.tasks import Task


class Strings(Task):
    """Strings of random symbols, and an answer to each. `seq_len` is the number of symbols S. After
    them come empty tokens, one for each token of the longest answer, which is to be given there: T
    is S + 1 for one class, and more for an answer at every empty token. A step is one-hot, with an
    input for each symbol and the last one for the empty token. The do-nothing baseline, all classes
    alike, has cross-entropy ln O."""

    n_inputs, n_outputs, objective = 3, 2, Classes()

    def strings(self, n: int, seq_len: int, generator: Generator) -> Tensor:
        """`n` strings `(N, S)`, each symbol a number from 0 on."""
        return torch.randint(self.n_inputs - 1, (n, seq_len), generator=generator)

    def answers(self, symbols: Tensor) -> Tensor:
        """The classes for strings `(N, S)`: one `(N,)`, or with `every_step` as many as there are
        empty tokens, `NO_TARGET` where an answer ends before."""
        raise NotImplementedError

    def draw(self, n: int, seq_len: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        symbols = self.strings(n, seq_len, generator)
        y = self.answers(symbols)
        empty = torch.full((n, y.shape[1] if self.every_step else 1), self.n_inputs - 1)
        x = embedding(torch.cat([symbols, empty], 1), torch.eye(self.n_inputs))
        if self.every_step:
            y = torch.cat([torch.full_like(symbols, NO_TARGET), y], 1)
        return x, y, torch.full((n,), x.shape[1])

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        return {"all alike": x.new_zeros(*x.shape[: 1 + self.every_step], self.n_outputs)}


class Parity(Strings):
    """Is the number of b in a string of a and b even? Class 0: yes, 1: no."""

    def answers(self, symbols: Tensor) -> Tensor:
        return symbols.sum(1) % 2


class EvenPairs(Strings):
    """Is the number of ab and ba in a string of a and b even? Class 0: yes, 1: no. It is even
    exactly where the last symbol is the first one again."""

    def answers(self, symbols: Tensor) -> Tensor:
        return (symbols[:, 0] != symbols[:, -1]).long()


class CycleNavigation(Strings):
    """Where on a cycle of five places does a walk end? A symbol is a step: -1, 0 or +1. The class
    is the place, from 0, where the walk begins, to 4."""

    n_inputs, n_outputs = 4, 5

    def answers(self, symbols: Tensor) -> Tensor:
        return (symbols - 1).sum(1) % 5


class ModularArithmetic(Strings):
    """The value modulo 5 of a sum such as 1 + 2 * 3 - 4, in which * binds closer than + and -.
    Symbols 0 to 4 are numbers, 5 to 7 are +, - and *. Such a string has an odd number of symbols:
    for an even `seq_len` it has one more. (So it is in the paper; the authors' code takes one
    fewer.)"""

    n_inputs, n_outputs = 9, 5

    def strings(self, n: int, seq_len: int, generator: Generator) -> Tensor:
        symbols = torch.randint(5, (n, seq_len // 2 * 2 + 1), generator=generator)
        symbols[:, 1::2] = torch.randint(5, 8, (n, seq_len // 2), generator=generator)
        return symbols

    def answers(self, symbols: Tensor) -> Tensor:
        total, term = torch.zeros(len(symbols), dtype=torch.int64), symbols[:, 0]
        for sign, number in zip(symbols.T[1::2], symbols.T[2::2], strict=True):
            times = sign == 7
            total = torch.where(times, total, total + term)
            term = torch.where(times, term * number, torch.where(sign == 5, number, -number)) % 5
        return (total + term) % 5


class BucketSort(Strings):
    """The symbols of a string of five in ascending order. A second baseline, `by place`, knows how
    sorted strings look: the longer they are, the nearer is each fifth to one symbol. It takes the
    numbers of smaller symbols for normal, with their means and variances."""

    n_inputs, n_outputs, every_step = 6, 5, True

    def answers(self, symbols: Tensor) -> Tensor:
        return symbols.sort(1).values

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        empty = x[:, :, -1]  # as many as symbols, after them
        length = empty.sum(1)[:, None, None]
        place = (empty.cumsum(1) - 0.5)[:, :, None]
        share = torch.arange(1, 5, device=x.device) / 5
        least = ndtr((place - length * share) / (length * share * (1 - share)).sqrt())
        # how likely it is that the symbol at a place is at least 0, 1, .., 5
        least = torch.cat([torch.ones_like(place), least, torch.zeros_like(place)], 2)
        chances = (least[:, :, :-1] - least[:, :, 1:]).clamp(min=1e-6)
        return super().baselines(x) | {"by place": chances.log()}


class ReverseString(Strings):
    """A string of a and b from its end to its beginning."""

    every_step = True

    def answers(self, symbols: Tensor) -> Tensor:
        return symbols.flip(1)


class DuplicateString(Strings):
    """A string of a and b twice."""

    every_step = True

    def answers(self, symbols: Tensor) -> Tensor:
        return symbols.repeat(1, 2)


class OddsFirst(Strings):
    """The first, third, fifth .. symbol of a string of a and b, and then the second, fourth ..
    (So it is in the paper; the authors' code begins with the second.)"""

    every_step = True

    def answers(self, symbols: Tensor) -> Tensor:
        return torch.cat([symbols[:, ::2], symbols[:, 1::2]], 1)


class StackManipulation(Strings):
    """What lies on a stack in the end, from its top to its bottom, and then the mark of its end.
    Symbols 0 and 1 are a stack of a and b from its bottom to its top, 1 to S - 1 of them; then come
    actions: 2 takes the top away, 3 puts a on it, 4 puts b. Of an empty stack nothing is taken.
    Classes are a, b and the mark. There are S + 1 empty tokens; those after the mark have no
    target, as in the authors' accuracy. (Their loss counts them, as a.)"""

    n_inputs, n_outputs, every_step = 6, 3, True

    def strings(self, n: int, seq_len: int, generator: Generator) -> Tensor:
        size = torch.randint(1, max(seq_len, 2), (n, 1), generator=generator)
        bits = torch.randint(2, (n, seq_len), generator=generator)
        actions = torch.randint(2, 5, (n, seq_len), generator=generator)
        return torch.where(torch.arange(seq_len) < size, bits, actions)

    def answers(self, symbols: Tensor) -> Tensor:
        puts = symbols != 2
        free = torch.where(puts, 1, -1).cumsum(1)  # the depth, if it could be below 0
        depth = free - free.cummin(1).values.clamp(max=0)
        # what was put stays if the stack is never again less deep than with it on the top
        stays = puts & (depth == depth.flip(1).cummin(1).values.flip(1))
        final, S = depth[:, -1:], symbols.shape[1]
        place = torch.where(stays, final - depth, S + 1)  # those that do not stay go to the bin
        y = torch.full((len(symbols), S + 2), NO_TARGET)
        return y.scatter_(1, place, symbols % 3).scatter_(1, final, 2)[:, : S + 1]


class FlipFlop(Task):
    """The bit that was last written (Liu et al. 2023, "Exposing Attention Glitches with Flip-Flop
    Language Modeling"). A sequence of T tokens is T/2 pairs of an instruction and a bit. The
    instructions are write, ignore and read. The first is write and the last is read; each other is
    ignore with chance `p_ignore`, and else write or read with even chances. The bit after read is
    that of the last write; other bits are random. A step is one-hot: write, ignore, read, 0, 1.
    Each read has a target, the bit that follows; other steps have none. The metrics `sparse` and
    `dense` are the accuracy in sequences with at most one read in eight instructions and with more.
    The do-nothing baseline, both bits alike, has cross-entropy ln 2.

    Args:
        p_ignore: the chance of ignore, from 0 to 1; or several, which share the sequences such that
            as many reads are expected of each.
    """

    n_inputs, n_outputs, every_step, min_len = 5, 2, True, 4
    WRITE, IGNORE, READ, ZERO = range(4)

    def __init__(self, p_ignore: float | list[float] = 0.8):
        self.p_ignore = torch.tensor(p_ignore, dtype=torch.float64).flatten()
        if not (len(self.p_ignore) and ((self.p_ignore >= 0) & (self.p_ignore <= 1)).all()):
            raise ValueError(f"p_ignore={p_ignore}: one or several from 0 to 1")
        self.objective = Classes(sparse=partial(self.right, False), dense=partial(self.right, True))

    def draw(self, n: int, seq_len: int, generator: Generator) -> tuple[Tensor, Tensor]:
        pairs, odd = divmod(seq_len, 2)
        if odd:
            raise ValueError(f"seq_len={seq_len}: an even number for FlipFlop")
        p_ignore = self.p_ignore.to(generator.device)
        shares = 1 / (1 + (pairs - 2) * (1 - p_ignore) / 2)
        ends = (n * shares.cumsum(0) / shares.sum()).round()
        p_N1 = p_ignore[torch.searchsorted(ends, torch.arange(n) + 0.5)][:, None]
        chance = torch.rand(n, pairs, generator=generator)
        told = torch.where(chance < (1 + p_N1) / 2, self.WRITE, self.READ)
        told[chance < p_N1] = self.IGNORE
        told[:, 0], told[:, -1] = self.WRITE, self.READ
        bits = torch.randint(2, (n, pairs), generator=generator)
        written = torch.where(told == self.WRITE, torch.arange(pairs), 0).cummax(1).values
        bits = torch.where(told == self.READ, bits.gather(1, written), bits)
        y = torch.full((n, seq_len), NO_TARGET)
        y[:, ::2] = torch.where(told == self.READ, bits, NO_TARGET)
        tokens = torch.stack([told, self.ZERO + bits], 2).flatten(1)
        return torch.zeros(n, seq_len, 5).scatter_(2, tokens[:, :, None], 1.0), y

    def right(self, dense: bool, prediction: Tensor, y: Tensor) -> Tensor:
        """For each read of the sequences with many or with few reads whether it is right."""
        reads = y != NO_TARGET
        chosen = (reads.sum(1) > y.shape[1] // 16) == dense
        return (prediction.argmax(-1) == y)[reads & chosen[:, None]].double()

    def baselines(self, x: Tensor) -> dict[str, Tensor]:
        return {"all alike": x.new_zeros(*x.shape[:2], 2)}
