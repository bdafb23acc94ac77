"""minLSTM: all steps of a sequence at once (Feng et al. 2024, "Were RNNs All We Needed?").

A layer's gates read its input x alone, not its state h. With `p_f, p_i, p_h = W x + b`:

    f = sigmoid(p_f)    i = sigmoid(p_i)    f' = f / (f + i)    i' = i / (f + i)
    h_t = f'_t h_(t-1) + i'_t g(p_h)    g(p) = p + 1/2 where p >= 0, sigmoid(p) elsewhere

So h is above 0, and has a logarithm. Letters: B batch, T time steps, F input features, L layers,
H hidden units per layer, O outputs.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, pad, softplus

from seqlab.model import Init, check_sizes


def scan(p: Tensor, h: Tensor | None) -> Tensor:
    """The states `(B, T, H)` after every step, from `p` `(B, T, 3H)` and the state `h` `(B, H)`
    before the first; None: zeros. Each round joins what two spans of 1, 2, 4, ... steps keep and
    take in (Hillis & Steele 1986)."""
    p_f, p_i, p_h = p.chunk(3, dim=-1)
    ratio = softplus(-p_i) - softplus(-p_f)  # log(f / i): f and i alone may both be 0
    keep = ratio.sigmoid()
    take = (-ratio).sigmoid() * torch.where(p_h >= 0, p_h + 0.5, p_h.sigmoid())
    span, T = 1, p.shape[1]
    while span < (T if isinstance(T, int) else 2**16):  # of a file exported for any T, 65,536
        before = (0, 0, span, 0)
        take = take + keep * pad(take, before)[:, :T]
        keep = keep * pad(keep, before, value=1.0)[:, :T]
        span *= 2
    return take if h is None else take + keep * h.unsqueeze(1)


class MinLSTMNetwork(nn.Module):
    """Layers of minLSTM and a linear head on the top layer's last state, or on all of its states.
    The arguments are those of `RecurrentNetwork`; `forget` and `chrono` set b as they do there."""

    def __init__(self, n_inputs: int, n_outputs: int, n_hidden: int, n_layers: int, dropout: float,
                 init: Init, t_max: int | None, every_step: bool = False):  # fmt: skip
        super().__init__()
        check_sizes(n_inputs=n_inputs, n_outputs=n_outputs, n_hidden=n_hidden, n_layers=n_layers)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: at least 0 and below 1")
        sizes = [n_inputs] + [n_hidden] * (n_layers - 1)
        self.layers = nn.ModuleList(nn.Linear(size, 3 * n_hidden) for size in sizes)
        self.head = nn.Linear(n_hidden, n_outputs)
        self.dropout, self.every_step = dropout, every_step
        for layer in self.layers:
            forget, enter, _ = layer.bias.detach().chunk(3)
            if init == "chrono":
                check_sizes(t_max=t_max)
                enter.copy_(-forget.uniform_(1, max(t_max - 1, 2)).log_())
            elif init == "forget":
                forget.fill_(1)
            elif init != "default":
                raise ValueError(f"init={init}: default, forget or chrono")

    def forward(
        self, x: Tensor, hidden: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`x` `(B, T, F)` to the prediction, `(B, O)` or `(B, T, O)`, and the state of every layer
        `(L, B, H)`; with `lengths` `(B,)` in [1, T] after each sequence's last step."""
        if lengths is not None:
            steps = torch.arange(x.shape[1], device=x.device)
            x = x.masked_fill((steps >= lengths[:, None]).unsqueeze(-1), 0)
        states = []
        for number, layer in enumerate(self.layers):
            x = dropout(x, self.dropout, self.training and number > 0)
            x = scan(layer(x), None if hidden is None else hidden[number])
            states.append(x[:, -1] if lengths is None else x[torch.arange(len(x)), lengths - 1])
        return self.head(x if self.every_step else states[-1]), torch.stack(states)

    def step(self, x_BF: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One time step, for streaming: `x_BF` `(B, F)` to the prediction `(B, O)` after it."""
        prediction, hidden = self.forward(x_BF.unsqueeze(1), hidden)
        return prediction.flatten(1), hidden
