"""The networks: an LSTM or a GRU, and a linear head on its last short-term memory.

Letters: B batch, T time steps, F input features, L layers, H hidden units per layer, O outputs.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

Init = Literal["default", "forget", "chrono"]

#: What is carried from step to step: an LSTM's `(stm, ltm)` or a GRU's `stm`, each `(L, B, H)`.
Hidden = tuple[Tensor, Tensor] | Tensor


class Recurrent(nn.Module):
    """A stack of recurrent layers. `LSTM` and `GRU` say what a layer is made of.

    Args:
        n_inputs, n_hidden, n_layers: F, H and L, each at least 1.
        dropout: probability in [0, 1) of zeroing a value between two layers while training. With
            one layer it has no effect.

    Raises:
        ValueError, TypeError: an argument is out of its range, or no integer.
    """

    cell: type[nn.LSTM] | type[nn.GRU]

    def __init__(self, n_inputs: int, n_hidden: int, n_layers: int = 1, dropout: float = 0.0):
        super().__init__()
        check_sizes(n_inputs=n_inputs, n_hidden=n_hidden, n_layers=n_layers)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: at least 0 and below 1")
        # PyTorch warns about a dropout that has no effect; a sweep over n_layers should not
        between = dropout if n_layers > 1 else 0.0
        self.cells = self.cell(n_inputs, n_hidden, n_layers, batch_first=True, dropout=between)

    def init_hidden(self, batch_size: int) -> Hidden:
        """The initial state: zeros, each tensor `(L, B, H)`, on the module's device and dtype."""
        weight = self.cells.weight_hh_l0
        zeros = weight.new_zeros(self.cells.num_layers, batch_size, self.cells.hidden_size)
        return (zeros, zeros.clone()) if self.cell is nn.LSTM else zeros

    def forward(
        self, x: Tensor, hidden: Hidden | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Hidden]:
        """Run over whole sequences, or over the next part of them.

        Args:
            x: inputs `(B, T, F)`.
            hidden: the state that an earlier call returned; None starts from zeros.
            lengths: `(B,)` integers in [1, T], how many steps each sequence has. What follows is
                padding and has no influence. None: every sequence has T steps.

        Returns:
            `out` `(B, T, H)`, the top layer's STM at every step, zero in the padding; and the
            state of every layer after each sequence's last step: `(stm, ltm)` of an LSTM, `stm`
            of a GRU, each `(L, B, H)`. Without padding `out[:, -1]` equals `stm[-1]`.

        Raises:
            ValueError: `x` has another shape, or a length is not in [1, T].
        """
        if x.dim() != 3 or x.shape[-1] != self.cells.input_size:
            raise ValueError(f"x must be (B, T, {self.cells.input_size}), got {tuple(x.shape)}")
        if lengths is None:
            return self.cells(x, hidden)
        B, T, _ = x.shape
        if lengths.shape != (B,) or not 1 <= lengths.min() <= lengths.max() <= T:
            raise ValueError(f"lengths must be ({B},) in [1, {T}], got {lengths.tolist()}")
        return self.run_padded(x, self.init_hidden(B) if hidden is None else hidden, lengths)

    def run_padded(self, x: Tensor, hidden: Hidden, lengths: Tensor) -> tuple[Tensor, Hidden]:
        """Run up to the end of the shortest sequence, then on with the others, and so forth. The
        result is that of `pack_padded_sequence`, whose backward pass on a CPU needs time in T**2:
        at T = 1000 it is 170 times as slow."""
        (B, T, _), is_lstm = x.shape, isinstance(hidden, tuple)
        lengths, order = lengths.sort(descending=True)
        x, states = x[order], [s[:, order] for s in (hidden if is_lstm else (hidden,))]
        outs, ended, start = [], [], 0
        for stop in lengths.unique().tolist():
            n_longer = int((lengths > stop).sum())
            part = x[: states[0].shape[1], start:stop]
            out, after = self.cells(part, tuple(states) if is_lstm else states[0])
            states = after if is_lstm else (after,)
            outs.append(pad(out, (0, 0, 0, 0, 0, B - len(out))))
            ended.append([s[:, n_longer:] for s in states])
            states, start = [s[:, :n_longer].contiguous() for s in states], stop
        back = order.argsort()
        out = pad(torch.cat(outs, 1), (0, 0, 0, T - start))[back]
        final = tuple(torch.cat(each, 1)[:, back] for each in zip(*ended[::-1], strict=True))
        return out, final if is_lstm else final[0]


class LSTM(Recurrent):
    """Layers of LSTM cells (Hochreiter & Schmidhuber 1997; forget gates: Gers et al. 2000). The
    state is `(stm, ltm)`: `stm` is `h` of the papers, `ltm` is `c`."""

    cell = nn.LSTM


class GRU(Recurrent):
    """Layers of GRU cells (Cho et al. 2014). The state is `stm` alone: there is no LTM."""

    cell = nn.GRU


@torch.no_grad()
def initialise(cells: nn.LSTM | nn.GRU, init: Init, t_max: int | None) -> None:
    """Set the gates' biases, which decide how long a fresh network remembers.

    - `default` keeps PyTorch's U(-1/sqrt(H), 1/sqrt(H)): a forget gate near 1/2 halves the LTM at
      every step.
    - `forget` sets the forget bias to 1 (Gers et al. 2000; Jozefowicz et al. 2015).
    - `chrono` spreads the memory over the task's length: forget bias log U[1, t_max - 1], input
      bias its negative (Tallec & Ollivier 2018, eq. 16; `t_max` at least 3).

    A GRU's update gate is treated as the forget gate: in PyTorch it decides how much of the STM is
    kept. It is its own input gate too and needs no second bias.
    """
    if init not in ("default", "forget", "chrono"):
        raise ValueError(f"init={init}: default, forget or chrono")
    if init == "default":
        return
    if init == "chrono":
        check_sizes(t_max=t_max)
    H = cells.hidden_size
    for name, bias in cells.named_parameters():
        if not name.startswith("bias"):
            continue
        # PyTorch's gates are input, forget, cell, output, and a GRU's are reset, update, new. It
        # adds bias_ih and bias_hh, so one of them carries the value and the other is zero.
        first_gate, forget_gate = bias[:H], bias[H : 2 * H]
        if not name.startswith("bias_ih"):
            forget_gate.zero_()
        elif init == "forget":
            forget_gate.fill_(1.0)
        else:
            forget_gate.uniform_(1, max(t_max - 1, 2)).log_()
        if init == "chrono" and isinstance(cells, nn.LSTM):
            first_gate.copy_(-forget_gate)


class RecurrentNetwork(nn.Module):
    """Recurrent layers and a linear head on the last STM, or on the STM at every step.

    A network of your own offers the same: a constructor that takes `n_inputs` (F) and `n_outputs`
    (O) beside its own arguments, and `forward(x, hidden=None) -> (prediction, hidden)` with `x`
    `(B, T, F)` and `prediction` `(B, O)`. `hidden` is whatever it carries from one part of a
    sequence to the next; without any, return None. For a task with a target at every step the
    prediction is `(B, T, O)`; a constructor that takes `every_step` is told so. For sequences of
    different lengths `forward` takes a third argument, `lengths`.

    Args:
        n_inputs, n_hidden, n_layers, dropout: as in `Recurrent`.
        n_outputs: O, values or classes to predict, at least 1.
        init: how the biases start, see `initialise`.
        t_max: the longest span in steps that `init="chrono"` prepares for.
        every_step: whether there is a prediction at every step, or one at the end.
    """

    layers: type[Recurrent]

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        n_hidden: int,
        n_layers: int = 1,
        dropout: float = 0.0,
        init: Init = "default",
        t_max: int | None = None,
        every_step: bool = False,
    ):
        super().__init__()
        check_sizes(n_outputs=n_outputs)
        self.rnn = self.layers(n_inputs, n_hidden, n_layers, dropout)
        self.head = nn.Linear(n_hidden, n_outputs)
        self.every_step = every_step
        initialise(self.rnn.cells, init, t_max)

    def init_hidden(self, batch_size: int) -> Hidden:
        """The initial state: zeros, each tensor `(L, B, H)`."""
        return self.rnn.init_hidden(batch_size)

    def forward(
        self, x: Tensor, hidden: Hidden | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Hidden]:
        """`x` `(B, T, F)` to the prediction, `(B, O)` or `(B, T, O)`, and the state, each
        `(L, B, H)`; with `lengths` `(B,)` the prediction after each sequence's last step."""
        out_BTH, hidden = self.rnn(x, hidden, lengths)
        if self.every_step:
            return self.head(out_BTH), hidden
        # stm[-1], not out[:, -1]: they are equal, but with padding only the state is right
        stm_LBH = hidden[0] if isinstance(hidden, tuple) else hidden
        return self.head(stm_LBH[-1]), hidden

    def step(self, x_BF: Tensor, hidden: Hidden | None = None) -> tuple[Tensor, Hidden]:
        """One time step, for streaming: `x_BF` `(B, F)` to the prediction `(B, O)` after it and
        the state to pass with the next one. T steps give what `forward` gives for `(B, T, F)`."""
        prediction, hidden = self.forward(x_BF.unsqueeze(1), hidden)
        return prediction.flatten(1), hidden


class LSTMNetwork(RecurrentNetwork):
    """An LSTM and a linear head on its STM."""

    layers = LSTM


class GRUNetwork(RecurrentNetwork):
    """A GRU and a linear head on its STM."""

    layers = GRU


def check_sizes(**sizes: int) -> None:
    """Refuse arguments that are not integers of at least 1."""
    for name, value in sizes.items():
        if type(value) is not int:
            raise TypeError(f"{name}={value}: an integer of at least 1")
        if value < 1:
            raise ValueError(f"{name}={value}: at least 1")
