"""The LSTM and the GRU, and the network that reads a prediction off their short-term memory.

Letters: B batch, T time steps, F input features, L layers, H hidden units a layer, O outputs.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from seqlab.arguments import EveryStep, Probability, Size, checked

Init = Literal["default", "forget", "chrono"]

#: What is carried from step to step: an LSTM's `(stm, ltm)`, a GRU's `stm`, each `(L, B, H)`.
Hidden = tuple[Tensor, Tensor] | Tensor


class Recurrent(nn.Module):
    """A stack of recurrent layers; what a layer is made of is for a subclass to say.

    Args:
        n_inputs: F, input features a step, at least 1.
        n_layers: L, layers, at least 1.
        n_hidden: H, units a layer, at least 1.
        dropout: probability in [0, 1) of zeroing a value on its way from one layer to the next
            while training. One layer has no such way: there it does nothing.
    """

    cell: type[nn.LSTM] | type[nn.GRU]

    @checked
    def __init__(self, n_inputs: Size, n_layers: Size, n_hidden: Size, dropout: Probability):
        super().__init__()
        # PyTorch warns of a dropout that has no place to act; a sweep over n_layers passes here
        between = dropout if n_layers > 1 else 0.0
        self.cells = self.cell(n_inputs, n_hidden, n_layers, batch_first=True, dropout=between)

    def init_hidden(self, batch_size: int) -> Hidden:
        """Zeros, each tensor `(L, B, H)`, on this module's own device and dtype."""
        weight = self.cells.weight_hh_l0
        zeros = weight.new_zeros(self.cells.num_layers, batch_size, self.cells.hidden_size)
        return (zeros, zeros.clone()) if self.cell is nn.LSTM else zeros

    def forward(
        self, x: Tensor, hidden: Hidden | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Hidden]:
        """Run over whole sequences, or over the next part of them.

        Args:
            x: inputs `(B, T, F)`.
            hidden: what an earlier call gave, to carry on from; None starts from zeros.
            lengths: `(B,)`, how many steps of each sequence there are, in [1, T]: the rest is
                padding, which has no influence. None: all T of all.

        Returns:
            `out` `(B, T, H)`, the top layer's STM at every step, zero in the padding, and the
            hidden state of every layer after each sequence's last step: `(stm, ltm)`, or of a GRU
            `stm` alone, each `(L, B, H)`. Without padding `out[:, -1]` equals `stm[-1]`.

        Raises:
            ValueError: `x` has another number of axes or of features, or a length is not in
                [1, T].
        """
        if x.dim() != 3 or x.shape[-1] != self.cells.input_size:
            raise ValueError(f"x must be (B, T, {self.cells.input_size}), got {tuple(x.shape)}")
        if lengths is None:
            return self.cells(x, hidden)
        B, T, _ = x.shape
        if lengths.shape != (B,) or not 1 <= lengths.min() <= lengths.max() <= T:
            raise ValueError(f"lengths must be ({B},) in [1, {T}], got {lengths.tolist()}")
        return self.padded(x, self.init_hidden(B) if hidden is None else hidden, lengths)

    def padded(self, x: Tensor, hidden: Hidden, lengths: Tensor) -> tuple[Tensor, Hidden]:
        """Run from one end of a sequence to the next, each time with those that go on. It gives
        what `pack_padded_sequence` gives, whose backward pass on a CPU takes T**2: at T = 1000 it
        is 170 times as slow."""
        (B, T, _), pair = x.shape, isinstance(hidden, tuple)
        lengths, order = lengths.sort(descending=True)
        x, states = x[order], [s[:, order] for s in (hidden if pair else (hidden,))]
        parts, ended, start = [], [], 0
        for stop in lengths.unique().tolist():
            going_on = int((lengths > stop).sum())
            out, after = self.cells(
                x[: states[0].shape[1], start:stop], tuple(states) if pair else states[0]
            )
            states = after if pair else (after,)
            parts.append(pad(out, (0, 0, 0, 0, 0, B - len(out))))
            ended.append([s[:, going_on:] for s in states])
            states, start = [s[:, :going_on].contiguous() for s in states], stop
        back = order.argsort()
        out = pad(torch.cat(parts, 1), (0, 0, 0, T - start))[back]
        ended = tuple(torch.cat(each, 1)[:, back] for each in zip(*ended[::-1], strict=True))
        return out, ended if pair else ended[0]


class LSTM(Recurrent):
    """Layers of LSTM cells (Hochreiter & Schmidhuber 1997; forget gates: Gers et al. 2000). The
    hidden state is `(stm, ltm)`."""

    cell = nn.LSTM


class GRU(Recurrent):
    """Layers of GRU cells (Cho et al. 2014). The hidden state is `stm`: there is no LTM."""

    cell = nn.GRU


@torch.no_grad()
def initialise(cells: nn.LSTM | nn.GRU, init: Init, t_max: int) -> None:
    """Set the gates' biases, which say how long a fresh network remembers.

    `default` leaves PyTorch's U(-1/sqrt(H), 1/sqrt(H)): a forget gate of about 1/2 halves the LTM
    at each step. `forget` sets the forget bias to 1 (Gers et al. 2000; Jozefowicz et al. 2015).
    `chrono` spreads the memory spans over the task's length: forget bias log U[1, t_max - 1],
    input bias its negative (Tallec & Ollivier 2018, eq. 16; `t_max` at least 3). A GRU's update
    gate, which in PyTorch says how much of the STM is kept, is set as the forget gate is; being
    its own input gate too, it needs no second bias.
    """
    if init == "default":
        return
    H = cells.hidden_size
    for name, bias in cells.named_parameters():
        if not name.startswith("bias"):
            continue
        # PyTorch's gates are input, forget, cell, output, and of a GRU reset, update, new; it adds
        # bias_ih and bias_hh, so one of the two carries the value and the other is zero
        first_gate, forget_gate = bias[:H], bias[H : 2 * H]
        carries = name.startswith("bias_ih")
        if init == "forget":
            forget_gate.fill_(1.0 if carries else 0.0)
        elif carries:
            forget_gate.uniform_(1, max(t_max - 1, 2)).log_()
        else:
            forget_gate.zero_()
        if init == "chrono" and isinstance(cells, nn.LSTM):
            first_gate.copy_(-forget_gate)


class RecurrentNetwork(nn.Module):
    """Recurrent layers and a linear head on their last short-term memory, or on that of every step.

    This is also what a network of your own must offer: a constructor that takes `n_inputs` (F)
    and `n_outputs` (O) beside its own keys, and `forward(x, hidden=None) -> (prediction, hidden)`
    with `x` `(B, T, F)` and `prediction` `(B, O)`. `hidden` is whatever the network carries from
    one part of a sequence to the next; a network that carries nothing returns None. For data with
    a target at every step the prediction is `(B, T, O)`; with `data.every_step=training`, while
    `self.training` is true. For sequences of different lengths `forward` takes a third argument,
    `lengths`, and heeds it.

    Args:
        n_inputs: F, input features a step, at least 1.
        n_outputs: O, values or classes to predict, at least 1.
        n_layers, n_hidden, dropout: as in `Recurrent`.
        init: how the biases start, as in `initialise`.
        t_max: the longest span, in steps, that `init: chrono` prepares for.
        every_step: when there is a prediction at every step: `never`, then there is one at the
            end; in `training` mode; `always`.
    """

    layers: type[Recurrent]

    @checked
    def __init__(
        self,
        n_inputs: Size,
        n_outputs: Size,
        n_layers: Size,
        n_hidden: Size,
        dropout: Probability,
        init: Init,
        t_max: Size,
        every_step: EveryStep,
    ):
        super().__init__()
        self.rnn = self.layers(n_inputs, n_layers, n_hidden, dropout)
        self.head = nn.Linear(n_hidden, n_outputs)
        self.every_step = every_step
        initialise(self.rnn.cells, init, t_max)

    def init_hidden(self, batch_size: int) -> Hidden:
        """Zero states, each `(L, B, H)`."""
        return self.rnn.init_hidden(batch_size)

    def forward(
        self, x: Tensor, hidden: Hidden | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Hidden]:
        """`x` `(B, T, F)` to the prediction, `(B, O)` or `(B, T, O)`, and the hidden state, each
        `(L, B, H)`; with `lengths` `(B,)`, those after each sequence's last step."""
        out, hidden = self.rnn(x, hidden, lengths)
        if self.every_step == "always" or (self.every_step == "training" and self.training):
            return self.head(out), hidden
        # stm[-1], not out[:, -1]: equal here, but only the state is right for padded sequences
        stm = hidden[0] if isinstance(hidden, tuple) else hidden
        return self.head(stm[-1]), hidden

    def step(self, x_t: Tensor, hidden: Hidden | None = None) -> tuple[Tensor, Hidden]:
        """One time step, for streaming: `x_t` `(B, F)` to the prediction `(B, O)` after it and
        the hidden state to pass with the next one. T steps agree with `forward` over `(B, T, F)`.
        """
        prediction, hidden = self.forward(x_t.unsqueeze(1), hidden)
        return prediction.flatten(1), hidden


class LSTMNetwork(RecurrentNetwork):
    """An LSTM and a head on its STM."""

    layers = LSTM


class GRUNetwork(RecurrentNetwork):
    """A GRU and a head on its STM."""

    layers = GRU


@torch.no_grad()
def layers(network: nn.Module, x: Tensor) -> list[list]:
    """Name, type, output shapes and number of parameters of each part of a network that has
    parameters of its own, in the order in which `x` `(B, T, F)` passes through them."""
    rows = []

    def note(name: str, module: nn.Module):
        def hook(_, args, output):
            count = sum(p.numel() for p in module.parameters())
            rows.append([name, type(module).__name__, shapes(output), count])

        return hook

    hooks = [
        module.register_forward_hook(note(name, module))
        for name, module in network.named_modules()
        if module._parameters
    ]
    training = network.training
    network.eval()(x)
    network.train(training)
    for hook in hooks:
        hook.remove()
    return rows


def shapes(value: Tensor | tuple | None) -> str:
    """The shapes of tensors in nested tuples, as in `(B, T, H), ((L, B, H), (L, B, H))`."""
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    if isinstance(value, tuple):
        return ", ".join(f"({shapes(v)})" if isinstance(v, tuple) else shapes(v) for v in value)
    return str(value)


def over_time(network: nn.Module, x: Tensor) -> tuple[Tensor, ...] | None:
    """STM and, of an LSTM, LTM, each `(T, L, H)`, after every step of one sequence `x` `(1, T, F)`;
    None for a network whose hidden state is none of these."""
    hidden, steps = None, []
    for t in range(x.shape[1]):
        _, hidden = network(x[:, t : t + 1], hidden)
        states = (hidden,) if isinstance(hidden, Tensor) else hidden
        if not (
            isinstance(states, tuple) and len(states) <= 2 and all(s.dim() == 3 for s in states)
        ):
            return None
        steps.append([state[:, 0] for state in states])
    return tuple(map(torch.stack, zip(*steps, strict=True)))
