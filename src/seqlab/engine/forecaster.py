"""A trained network from its checkpoint alone, in the data's own units.

Letters: B batch, T time steps, F input features, O outputs.
"""

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from seqlab.data import SequenceData
from seqlab.engine.checkpoint import read
from seqlab.engine.construct import network_of, parts_of, prepare, untrusted
from seqlab.engine.errors import UserError, first_line
from seqlab.engine.settings import Threads, validate
from seqlab.objectives import Objective


class Sizes(BaseModel):
    """The `sizes` in a checkpoint."""

    model_config = ConfigDict(strict=True, extra="forbid")
    n_inputs: int = Field(ge=1)
    n_outputs: int = Field(ge=1)
    every_step: bool
    base: dict[str, Any] | None
    n_values: int = Field(1, ge=1)


class Forecaster(nn.Module):
    """A trained network in the data's own units, ready for inference.

    Attributes:
        network: as it was trained, on scaled values.
        config, metrics: of its run, at the time of the checkpoint.
        sizes: `n_inputs` (F), `n_outputs` (O) and `every_step` of the network, and `n_values`, how
            many values it predicts for each output: a prediction has O times as many.
        errors: the absolute errors on the validation part that intervals are made of, `(N, O)`,
            each column in ascending order; None: there are none.
        fitted: what was fitted on the training part: the scaler's `mean` and `std` of each column,
            `columns`, the autoregression's `weights`; empty for a toy task.
    """

    def __init__(self, network: nn.Module, contents: dict[str, Any]):
        super().__init__()
        self.network = network
        self.config, self.metrics = contents["config"], contents["metrics"]
        self.sizes, self.fitted = contents["sizes"], contents["data"]
        scaler = {"mean": [0.0], "std": [1.0]}
        if scaler.keys() & self.fitted.keys():
            scaler = {name: self.fitted.get(name) for name in scaler}
        for name, given in scaler.items():
            try:
                value = torch.tensor(given, dtype=torch.float64)
            except (TypeError, ValueError, RuntimeError):  # no numbers
                value = torch.full((1,), torch.nan)
            fits = value.shape in ((1,), (self.sizes["n_inputs"],)) and value.isfinite().all()
            if not fits or (name == "std" and value.min() <= 0):
                above = " above 0" if name == "std" else ""
                raise UserError(f"data.{name}={given}: a finite number{above} for each column")
            self.register_buffer(name, value)
        self.errors = errors = contents.get("errors")
        fits = torch.is_tensor(errors) and errors.shape[1:] == (self.sizes["n_outputs"],)
        fits = fits and (errors[:1] >= 0).all() and (errors.diff(dim=0) >= 0).all()
        if not (fits or errors is None):
            raise UserError("errors: ascending numbers of at least 0 for each output")

    def scale(self, x: Tensor) -> Tensor:
        """Inputs `(..., F)` in the data's units to the network's scale, float32."""
        return ((x.double() - self.mean) / self.std).float()

    def run(self, x: Tensor, hidden: Any, *lengths: Tensor) -> tuple[Tensor, Any]:
        """What the network makes of scaled inputs, in the precision that it was trained in."""
        dtype = next((weight.dtype for weight in self.network.parameters()), x.dtype)
        return self.network(x.to(dtype), hidden, *lengths)

    def predict_scaled(self, x: Tensor, *lengths: Tensor) -> Tensor:
        """The predictions for whole sequences, as the learner gives them: on the scaled side."""
        return self.run(x, None, *lengths)[0]

    def unscale(self, prediction: Tensor) -> Tensor:
        """Predictions `(..., O)` back to the data's units, float64."""
        return prediction.double() * self.std[0] + self.mean[0]

    def forward(self, x: Tensor, hidden: Any = None, *lengths: Tensor) -> tuple[Tensor, Any]:
        """`x` `(B, T, F)`, with the `lengths` `(B,)` where they differ, to the prediction, `(B, O)`
        or at every step `(B, T, O)`, both in the data's units, and the state to go on with."""
        F = self.sizes["n_inputs"]
        if x.dim() != 3 or x.shape[-1] != F:  # the scaler would stretch one column over all
            raise ValueError(f"x must be (B, T, {F}), got {tuple(x.shape)}")
        prediction, hidden = self.run(self.scale(x), hidden, *lengths)
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
    validate(Threads, contents["config"])
    check_network(contents, trust, path)
    network = network_of(contents["config"]["model"], contents["sizes"], trust)
    load_weights(network, contents, path)
    return Forecaster(network, contents).eval()


def check_network(contents: dict[str, Any], trust: tuple[str, ...], path: str | Path) -> None:
    """Refuse weights of another network than the config's. It is built without memory and with
    about as many weights as the file has, since numbers in a file may be of any size."""
    sizes = contents.get("sizes")
    validate(Sizes, sizes if isinstance(sizes, dict) else {}, "sizes.")
    for name, value in (sizes["base"] or {}).items():
        if isinstance(value, int) and value > 10**6:  # rows that no weights tell of
            raise UserError(f"sizes.base.{name}={value}: at most 1000000")
    most, names = 1000 + len(contents["state_dict"]), []

    def count(module: nn.Module, name: str, weight: Any) -> None:
        names.append(name)
        if len(names) > most:
            said = "its weights are not those of its config, whose network has many more"
            raise UserError(f"{path}: {said}")

    try:
        with torch.device("meta"), register_module_parameter_registration_hook(count):
            network = network_of(contents["config"]["model"], sizes, trust)
    except UserError:
        # a network of one's own may need memory
        if len(names) <= most and untrusted(contents["config"]["model"]):
            return
        raise
    load_weights(network, contents, path)


def load_weights(network: nn.Module, contents: dict[str, Any], path: str | Path) -> None:
    """Put a checkpoint's weights into a network, in the precision of the run, or say that they are
    another network's."""
    start, saved = "network.", contents["state_dict"].items()
    weights = {k.removeprefix(start): v for k, v in saved if k.startswith(start)}
    try:
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
    if path is None and "path" in node and not Path(str(node["path"])).exists():
        raise UserError(f"{node['path']}: no such file; --data FILE names another")
    if path is not None and "path" not in node:
        raise UserError(f"--data={path}: {node.get('_target_')} reads no file")
    other = {} if path is None else {"path": path, "fitted": forecaster.fitted}
    try:
        data, objective, have = parts_of(forecaster.config | {"data": node | other}, trust)
        data.load_state_dict(forecaster.fitted)
        for name, size in forecaster.sizes.items():
            if have[name] != size:
                raise UserError(f"sizes.{name}={size}: the data have {have[name]}")
        if not isinstance(data.mase_scale, float | int | None):
            raise UserError(f"data.mase_scale={data.mase_scale}: a number")
        prepare(data, objective, torch.device("cpu"))
    except (KeyError, TypeError, AttributeError) as error:
        said = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"data: what the checkpoint has of them does not fit: {said}") from error
    return data, objective
