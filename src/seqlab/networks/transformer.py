"""A causal transformer (Vaswani et al. 2017), norms first (Xiong et al. 2020). Positions are
learned: what a head adds to its scores for each distance between two steps (Raffel et al. 2020).
So a sequence may have any length, and a stream no end.

Letters: B batch, T time steps, F input features, L layers, H hidden units, O outputs, W steps that
a layer attends to, C = L (W - 1) inputs before a step that may reach it, S steps in all.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from seqlab.model import check_sizes


class Layer(nn.Module):
    """Attention, then an MLP for each step alone; each adds to its input `(B, S, H)`."""

    def __init__(self, H: int, n_heads: int, dropout: float):
        super().__init__()
        self.n_heads, self.drop, self.norm = n_heads, nn.Dropout(dropout), nn.LayerNorm(H)
        self.enter, self.leave = nn.Linear(H, 3 * H), nn.Linear(H, H)
        mlp = nn.LayerNorm(H), nn.Linear(H, 4 * H), nn.GELU(), nn.Linear(4 * H, H)
        self.mlp = nn.Sequential(*mlp)

    def forward(self, x: Tensor, scores: Tensor) -> Tensor:
        heads = self.enter(self.norm(x)).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(*heads, attn_mask=scores).transpose(1, 2).flatten(2)
        x = x + self.drop(self.leave(mixed))
        return x + self.drop(self.mlp(x))


class TransformerNetwork(nn.Module):
    """Layers of attention and a linear head on the last step, or on every step. `n_heads` divides
    `n_hidden`, `context` is W, and the other arguments are those of `RecurrentNetwork`."""

    def __init__(self, n_inputs: int, n_outputs: int, n_hidden: int, n_layers: int, n_heads: int,
                 context: int, dropout: float, every_step: bool = False):  # fmt: skip
        super().__init__()
        check_sizes(n_hidden=n_hidden, n_layers=n_layers, n_heads=n_heads, context=context)
        if n_hidden % n_heads:
            raise ValueError(f"n_heads={n_heads}: a divisor of n_hidden={n_hidden}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: at least 0 and below 1")
        self.context, self.reach, self.every_step = context, n_layers * (context - 1), every_step
        self.enter = nn.Linear(n_inputs, n_hidden)
        self.distance = nn.Parameter(torch.randn(n_heads, context))
        self.layers = nn.ModuleList(Layer(n_hidden, n_heads, dropout) for _ in range(n_layers))
        self.norm, self.head = nn.LayerNorm(n_hidden), nn.Linear(n_hidden, n_outputs)

    def forward(
        self, x: Tensor, hidden: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`x` `(B, T, F)` to the prediction, `(B, O)` or `(B, T, O)`, and the state `(1, B, C, F +
        1)`: the last C inputs, each followed by 1, and zeros where there was none. With `lengths`
        `(B,)` in [1, T] they are those after each sequence's last step."""
        B, T, _ = x.shape
        numbers, steps = (torch.arange(n, device=x.device) for n in (B, T + self.reach))
        ends = torch.full((B,), T, device=x.device) if lengths is None else lengths
        inputs = pad(x, (0, 1), value=1.0).masked_fill((steps[:T] >= ends[:, None])[..., None], 0)
        past = inputs.new_zeros(B, self.reach, inputs.shape[-1]) if hidden is None else hidden[0]
        rows = torch.cat([past, inputs], dim=1)
        after = rows[numbers[:, None], ends[:, None] + steps[: self.reach]].unsqueeze(0)
        rows = inputs if hidden is None else rows
        back = steps[: rows.shape[1], None] - steps[: rows.shape[1]]  # (S, S), query to key
        seen = (back >= 0) & (back < self.context)
        if hidden is not None:  # an unknown row sees itself, since a softmax needs something
            seen = (seen & (rows[:, None, :, -1] > 0) | (back == 0)).unsqueeze(1)
        scores = self.distance[:, back.clamp(0, self.context - 1)].masked_fill(~seen, -torch.inf)
        out = self.enter(rows[..., :-1])
        for layer in self.layers:
            out = layer(out, scores)
        out = self.norm(out[:, -T:])
        return self.head(out if self.every_step else out[numbers, ends - 1]), after

    def step(self, x_BF: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One time step, for streaming: `x_BF` `(B, F)` to the prediction `(B, O)` after it."""
        prediction, hidden = self.forward(x_BF.unsqueeze(1), hidden)
        return prediction.flatten(1), hidden
