"""A trained network in the formats of others: ONNX, torch.export, safetensors. What writes a file
returns a sentence on what was checked, or on what is in it.

Letters: B batch, T time steps, F input features, O outputs, all values of each one after another
where the network predicts several, as quantiles."""

import io
import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from seqlab.engine.errors import UserError, first_line
from seqlab.engine.forecaster import Forecaster
from seqlab.engine.runs import write_whole


def need(*packages: str) -> None:
    """Refuse when an optional package is not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise UserError(f"{package} is not installed: pip install -e '.[export]' adds it")


def inputs(forecaster: Forecaster, B: int, T: int) -> Tensor:
    """Made-up inputs `(B, T, F)` of the data's size."""
    generator = torch.Generator().manual_seed(B * 1000 + T)
    x = torch.randn(B, T, forecaster.sizes["n_inputs"], generator=generator)
    return x * forecaster.std + forecaster.mean


class Whole(nn.Module):
    """Windows `(B, T, F)` to forecasts `(B, O)`, float32, without the hidden state."""

    def __init__(self, forecaster: Forecaster):
        super().__init__()
        self.forecaster = forecaster

    def forward(self, x: Tensor) -> Tensor:
        return self.forecaster(x)[0].float()


class Step(Whole):
    """One step: `(x_t (B, F) float64, *hidden)` to `(prediction (B, O) float64, *hidden)`. Where a
    series has a base, the last of the hidden state are the last rows, scaled, `(T, B, F)`: at
    first T times the first row. The rest is zeros at first."""

    def forward(self, x_t: Tensor, *hidden: Tensor) -> tuple[Tensor, ...]:
        prediction, state = self.forecaster.step(x_t, hidden if len(hidden) > 1 else hidden[0])
        return prediction, *(state if isinstance(state, tuple) else (state,))


def to_onnx(forecaster: Forecaster, path: Path) -> str:
    """Write ONNX with dynamic batch and time, the scaler inside.

    The exporter is right only for the first export of a process: a second one freezes T, which
    the check finds.

    Raises:
        UserError: a package is missing, or onnxruntime does not agree with PyTorch on every size.
    """
    need("onnx", "onnxscript", "onnxruntime")
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    whole, T = Whole(forecaster).eval(), min(forecaster.config["data"].get("seq_len") or 24, 1000)
    names = {"input_names": ["x"], "output_names": ["forecast"]}
    how = {"dynamic_shapes": {"x": {0: Dim("B"), 1: Dim("T")}}, "dynamo": True, "verbose": False}
    try:
        with warnings.catch_warnings(action="ignore"):
            program = torch.onnx.export(whole, (inputs(forecaster, 2, T).float(),), **names, **how)
        body = program.model_proto.SerializeToString()
        session = onnxruntime.InferenceSession(body, providers=["CPUExecutionProvider"])
    except Exception as error:  # neither package has one name for what it raises
        raise UserError(f"{path}: ONNX has no form of this network: {first_line(error)}") from error
    worst = torch.zeros(())
    for size in ((1, 1), (1, T), (3, 7), (16, 2 * T)):
        x = inputs(forecaster, *size).float()
        with torch.inference_mode():
            expected = whole(x)
        try:
            got = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
        except Exception:
            raise UserError(f"{path}: B or T is fixed in it; export in a new process") from None
        worst = torch.maximum(worst, ((got - expected).abs() / forecaster.std[0]).max())
    if not worst < 1e-4:
        raise UserError(f"{path}: onnxruntime differs from PyTorch by {worst:.1e} deviations")
    write_whole(path, body)
    return f"onnxruntime agrees with PyTorch to {worst:.0e} standard deviations on 4 sizes"


def to_torch(forecaster: Forecaster, path: Path) -> str:
    """Write a `torch.export` program of the one-step form; see `Step` for what goes in and out.

    Raises:
        UserError: the network carries no state.
    """
    x_t = inputs(forecaster, 2, 1)[:, 0]
    with torch.inference_mode():
        _, state = forecaster.step(x_t)
    if state is None:
        raise UserError(f"{path}: this network carries no state, and has no one-step form")
    state = state if isinstance(state, tuple) else (state,)
    step, example = Step(forecaster).eval(), (x_t, *map(torch.zeros_like, state))
    shapes = {"x_t": {0: Dim("B")}, "hidden": tuple({1: Dim("B")} for _ in state)}
    try:
        with warnings.catch_warnings(action="ignore"):  # of nn.LSTM's own bookkeeping
            program = torch.export.export(step, example, dynamic_shapes=shapes)
    except Exception as error:  # its tracer's own, and the network's
        said = f"torch.export takes no such network: {first_line(error)}"
        raise UserError(f"{path}: {said}") from error
    torch.export.save(program, file := io.BytesIO())
    again = torch.export.load(io.BytesIO(file.getvalue())).module()
    ones = [s.new_ones(s.shape[0], 5, *s.shape[2:]) for s in state]
    example = (inputs(forecaster, 5, 1)[:, 0], *ones)
    with torch.inference_mode():
        torch.testing.assert_close(again(*example), step(*example))
    write_whole(path, file.getvalue())
    return "read again, it agrees with PyTorch"


def to_safetensors(forecaster: Forecaster, path: Path) -> str:
    """Write the weights, with config, mean and std as JSON metadata."""
    need("safetensors")
    from safetensors.torch import save

    weights = {name: value.contiguous() for name, value in forecaster.network.state_dict().items()}
    about = {"mean": forecaster.mean.tolist(), "std": forecaster.std.tolist()}
    about = {k: json.dumps(v) for k, v in (about | {"config": forecaster.config}).items()}
    write_whole(path, save(weights, about))
    return f"{len(weights)} tensors; config, mean and std as metadata"
