"""The two-layer LSTM, and the network that reads a prediction off its short-term memory.

Letters: B batch, T time steps, F input features, L layers, H hidden units a layer, O outputs.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from seqlab.arguments import Probability, Size, checked

Init = Literal["default", "forget", "chrono"]

Hidden = tuple[Tensor, Tensor]


class LSTM(nn.Module):
    """A stack of LSTM layers (Hochreiter & Schmidhuber 1997; forget gates: Gers et al. 2000).

    Args:
        n_inputs: F, input features a step, at least 1.
        n_layers: L, layers, at least 1.
        n_hidden: H, units a layer, at least 1.
        dropout: probability in [0, 1) of zeroing a value on its way from one layer to the next
            while training. One layer has no such way: there it does nothing.
    """

    @checked
    def __init__(self, n_inputs: Size, n_layers: Size, n_hidden: Size, dropout: Probability):
        super().__init__()
        # nn.LSTM warns of a dropout that has no place to act; a sweep over n_layers passes here
        between = dropout if n_layers > 1 else 0.0
        self.lstm = nn.LSTM(n_inputs, n_hidden, n_layers, batch_first=True, dropout=between)

    def init_hidden(self, batch_size: int) -> Hidden:
        """Zero `(stm, ltm)`, each `(L, B, H)`, on this module's own device and dtype."""
        zeros = self.lstm.weight_hh_l0.new_zeros(
            self.lstm.num_layers, batch_size, self.lstm.hidden_size
        )
        return zeros, zeros.clone()

    def forward(self, x: Tensor, hidden: Hidden | None = None) -> tuple[Tensor, Hidden]:
        """Run over whole sequences, or over the next part of them.

        Args:
            x: inputs `(B, T, F)`.
            hidden: `(stm, ltm)`, each `(L, B, H)`, to carry on from; None starts from zeros.

        Returns:
            `out` `(B, T, H)`, the top layer's STM at every step, and `(stm, ltm)`, each
            `(L, B, H)`, of every layer after the last step: `out[:, -1]` equals `stm[-1]`.

        Raises:
            ValueError: `x` has another number of axes or of features.
        """
        if x.dim() != 3 or x.shape[-1] != self.lstm.input_size:
            raise ValueError(f"x must be (B, T, {self.lstm.input_size}), got {tuple(x.shape)}")
        return self.lstm(x, hidden)


@torch.no_grad()
def initialise(lstm: nn.LSTM, init: Init, t_max: int) -> None:
    """Set the gates' biases, which say how long a fresh LSTM remembers.

    `default` leaves PyTorch's U(-1/sqrt(H), 1/sqrt(H)): a forget gate of about 1/2 halves the LTM
    at each step. `forget` sets the forget bias to 1 (Gers et al. 2000; Jozefowicz et al. 2015).
    `chrono` spreads the memory spans over the task's length: forget bias log U[1, t_max - 1],
    input bias its negative (Tallec & Ollivier 2018, eq. 16; `t_max` at least 3).
    """
    if init == "default":
        return
    H = lstm.hidden_size
    for name, bias in lstm.named_parameters():
        if not name.startswith("bias"):
            continue
        # PyTorch's gate order is input, forget, cell, output; it adds bias_ih and bias_hh, so one
        # of the two carries the value and the other is zero
        input_gate, forget_gate = bias[:H], bias[H : 2 * H]
        if init == "forget":
            forget_gate.fill_(1.0 if name.startswith("bias_ih") else 0.0)
        elif name.startswith("bias_ih"):
            forget_gate.uniform_(1, max(t_max - 1, 2)).log_()
            input_gate.copy_(-forget_gate)
        else:
            forget_gate.zero_()
            input_gate.zero_()


class LSTMNetwork(nn.Module):
    """An LSTM and a linear head on its last short-term memory.

    This is also what a network of your own must offer: a constructor that takes `n_inputs` (F)
    and `n_outputs` (O) beside its own keys, and `forward(x, hidden=None) -> (prediction, hidden)`
    with `x` `(B, T, F)` and `prediction` `(B, O)`. `hidden` is whatever the network carries from
    one part of a sequence to the next; a network that carries nothing returns None.

    Args:
        n_inputs: F, input features a step, at least 1.
        n_outputs: O, values to predict, at least 1.
        n_layers, n_hidden, dropout: as in `LSTM`.
        init: how the biases start, as in `initialise`.
        t_max: the longest span, in steps, that `init: chrono` prepares for.
    """

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
    ):
        super().__init__()
        self.lstm = LSTM(n_inputs, n_layers, n_hidden, dropout)
        self.head = nn.Linear(n_hidden, n_outputs)
        initialise(self.lstm.lstm, init, t_max)

    def init_hidden(self, batch_size: int) -> Hidden:
        """Zero `(stm, ltm)`, each `(L, B, H)`."""
        return self.lstm.init_hidden(batch_size)

    def forward(self, x: Tensor, hidden: Hidden | None = None) -> tuple[Tensor, Hidden]:
        """`x` `(B, T, F)` to `prediction` `(B, O)` and `(stm, ltm)`, each `(L, B, H)`."""
        _, hidden = self.lstm(x, hidden)
        # stm[-1], not out[:, -1]: equal here, but only the state is right for padded sequences
        last_BH = hidden[0][-1]
        return self.head(last_BH), hidden

    def step(self, x_t: Tensor, hidden: Hidden | None = None) -> tuple[Tensor, Hidden]:
        """One time step, for streaming: `x_t` `(B, F)` to the prediction `(B, O)` after it and
        the hidden state to pass with the next one. T steps agree with `forward` over `(B, T, F)`.
        """
        return self.forward(x_t.unsqueeze(1), hidden)


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


def over_time(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """STM and LTM, each `(T, L, H)`, after every step of one sequence `x` `(1, T, F)`; None for a
    network whose hidden state is not that pair."""
    hidden, states = None, []
    for t in range(x.shape[1]):
        _, hidden = network(x[:, t : t + 1], hidden)
        if not (isinstance(hidden, tuple) and len(hidden) == 2):
            return None
        states.append([state[:, 0] for state in hidden])
    stm, ltm = zip(*states, strict=True)
    return torch.stack(stm), torch.stack(ltm)
