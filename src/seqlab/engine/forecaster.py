"""A trained network from its checkpoint alone, in the data's own units.

Letters: B batch, T time steps, F input features, O outputs.
"""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seqlab.data import SequenceData
from seqlab.engine.checkpoint import read
from seqlab.engine.construct import KINDS, construct, network_of, objective_of, prepare
from seqlab.engine.errors import UserError
from seqlab.objectives import Objective


class Forecaster(nn.Module):
    """A trained network in the data's own units, ready for inference.

    Attributes:
        network: as it was trained, on scaled values.
        config, metrics: of its run, at the time of the checkpoint.
        sizes: `n_inputs` (F), `n_outputs` (O) and `every_step` of the network.
        fitted: what was fitted on the training part: the scaler's `mean` and `std` of each column,
            `columns`, the autoregression's `weights`; empty for a toy task.
    """

    def __init__(self, network: nn.Module, contents: dict[str, Any]):
        super().__init__()
        self.network = network
        self.config, self.metrics = contents["config"], contents["metrics"]
        self.sizes, self.fitted = contents["sizes"], contents["data"]
        for name, default in (("mean", [0.0]), ("std", [1.0])):
            value = torch.tensor(self.fitted.get(name, default), dtype=torch.float64)
            self.register_buffer(name, value)

    def scale(self, x: Tensor) -> Tensor:
        """Inputs `(..., F)` in the data's units to the network's scale, float32."""
        return ((x.double() - self.mean) / self.std).float()

    def predict_scaled(self, x: Tensor, *lengths: Tensor, hidden: Any = None) -> tuple[Tensor, Any]:
        """What the network makes of scaled inputs, in the precision that it was trained in."""
        dtype = next((weight.dtype for weight in self.network.parameters()), x.dtype)
        return self.network(x.to(dtype), hidden, *lengths)

    def unscale(self, prediction: Tensor) -> Tensor:
        """Predictions `(..., O)` back to the data's units, float64."""
        return prediction.double() * self.std[0] + self.mean[0]

    def forward(self, x: Tensor, hidden: Any = None, *lengths: Tensor) -> tuple[Tensor, Any]:
        """`x` `(B, T, F)`, with the `lengths` `(B,)` where they differ, to the prediction, `(B, O)`
        or at every step `(B, T, O)`, both in the data's units, and the state to go on with."""
        F = self.sizes["n_inputs"]
        if x.dim() != 3 or x.shape[-1] != F:  # the scaler would stretch one column over all
            raise ValueError(f"x must be (B, T, {F}), got {tuple(x.shape)}")
        prediction, hidden = self.predict_scaled(self.scale(x), *lengths, hidden=hidden)
        return self.unscale(prediction), hidden

    def step(self, x_BF: Tensor, hidden: Any = None) -> tuple[Tensor, Any]:
        """One time step, for streaming: `x_BF` `(B, F)` to the prediction `(B, O)` after it."""
        prediction, hidden = self.forward(x_BF.unsqueeze(1), hidden)
        return prediction.flatten(1), hidden


def load(path: str | Path, trust: tuple[str, ...] = ()) -> Forecaster:
    """The trained network of a checkpoint, a .ckpt file of a run. `trust` are packages of your own
    whose classes it may name.

    Raises:
        UserError: the file is damaged, or names what is not trusted.
    """
    contents = read(path)
    make = partial(network_of, contents["config"]["model"], contents["sizes"], trust)
    trial = None
    # without memory, since sizes in a file may be of any size; a network that cannot be built so
    # is built at once
    with suppress(UserError), torch.device("meta"):
        trial = make()
    if trial is not None:
        load_weights(trial, contents, path)
    network = make()
    load_weights(network, contents, path)
    return Forecaster(network, contents).eval()


def load_weights(network: nn.Module, contents: dict[str, Any], path: str | Path) -> None:
    """Put a checkpoint's weights into a network, or say that they are another network's."""
    start = "network."
    weights = {
        name.removeprefix(start): value
        for name, value in contents["state_dict"].items()
        if name.startswith(start)
    }
    try:
        # the network takes the tensors themselves, in the precision of the run
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: its weights are not those of its config: {said}") from None


def load_data(
    forecaster: Forecaster, trust: tuple[str, ...], path: str | None = None
) -> tuple[SequenceData, Objective]:
    """The data that a checkpoint's run was tested on, prepared on the CPU, and what measures it.
    `path` is another file with the same columns, all of it the test split; None: the run's own."""
    node = forecaster.config["data"]
    if path is None:
        if "path" in node and not Path(node["path"]).exists():
            raise UserError(f"{node['path']}: no such file; --data FILE names another")
        data = construct(node, KINDS["data"], "data", trust)
        data.load_state_dict(forecaster.fitted)
    elif "path" not in node:
        raise UserError(f"--data={path}: {node.get('_target_')} reads no file")
    else:
        node = node | {"path": path, "fitted": forecaster.fitted}
        data = construct(node, KINDS["data"], "data", trust)
    objective = objective_of(forecaster.config.get("loss"), data, trust)
    prepare(data, objective, torch.device("cpu"))
    return data, objective
