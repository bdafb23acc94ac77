"""A trained network in the formats of others: ONNX, torch.export, safetensors.

Letters: B batch, T time steps, F input features, O outputs.
"""

import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from seqlab.checkpoint import Forecaster
from seqlab.errors import UserError


def need(*packages: str) -> None:
    """Refuse when an optional package is not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise UserError(f'{package} is not installed: pip install "seqlab[export]" adds it')


def inputs(forecaster: Forecaster, B: int, T: int) -> Tensor:
    """Made-up inputs `(B, T, F)` of the data's size."""
    generator = torch.Generator().manual_seed(B * 1000 + T)
    F = forecaster.config["derived"]["n_inputs"]
    return torch.randn(B, T, F, generator=generator) * forecaster.std + forecaster.mean


class Whole(nn.Module):
    """Windows `(B, T, F)` to forecasts `(B, O)`, float32, without the hidden state."""

    def __init__(self, forecaster: Forecaster):
        super().__init__()
        self.forecaster = forecaster

    def forward(self, x: Tensor) -> Tensor:
        return self.forecaster(x)[0].float()


class Step(nn.Module):
    """One step: `(x_t (B, F) float64, *hidden)` to `(prediction (B, O) float64, *hidden)`."""

    def __init__(self, forecaster: Forecaster):
        super().__init__()
        self.forecaster = forecaster

    def forward(self, x_t: Tensor, *hidden: Tensor) -> tuple[Tensor, ...]:
        state = hidden if len(hidden) > 1 else hidden[0]
        prediction, state = self.forecaster.step(x_t, state)
        return prediction, *(state if isinstance(state, tuple) else (state,))


def to_onnx(forecaster: Forecaster, path: Path) -> str:
    """Write ONNX with dynamic batch and time, the scaler inside.

    The exporter is right only for the first export of a process: a second one freezes T, which
    the check below tells.

    Returns:
        What was checked.

    Raises:
        UserError: a package is missing, or onnxruntime does not agree with PyTorch on every size.
    """
    need("onnx", "onnxscript", "onnxruntime")
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    whole, beside = Whole(forecaster).eval(), path.with_name(f".{path.name}.part")
    x = inputs(forecaster, 2, forecaster.config["data"]["seq_len"]).float()
    dynamic = {"x": {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            whole,
            (x,),
            beside,
            input_names=["x"],
            output_names=["forecast"],
            dynamic_shapes=dynamic,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(beside, providers=["CPUExecutionProvider"])
    worst = 0.0
    for B, T in ((1, 1), (1, x.shape[1]), (3, 7), (16, 2 * x.shape[1])):
        x = inputs(forecaster, B, T).float()
        with torch.inference_mode():
            expected = whole(x)
        try:
            got = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
        except Exception:  # onnxruntime has no public name for what it raises
            beside.unlink()
            raise UserError(f"{path}: B or T is fixed in it; export in a new process") from None
        worst = max(worst, ((got - expected).abs() / forecaster.std[0]).max().item())
    if not worst < 1e-4:
        beside.unlink()
        raise UserError(f"{path}: onnxruntime differs from PyTorch by {worst:.1e} deviations")
    beside.replace(path)
    return f"onnxruntime agrees with PyTorch to {worst:.0e} standard deviations on 4 sizes"


def to_program(forecaster: Forecaster, path: Path) -> str:
    """Write a `torch.export` program of the one-step form; see `Step` for what goes in and out.

    Returns:
        What was checked.
    """
    x_t = inputs(forecaster, 2, 1)[:, 0]
    with torch.inference_mode():
        _, state = forecaster.step(x_t)
    if state is None:
        raise UserError(f"{path}: this network carries no state, and has no one-step form")
    state = state if isinstance(state, tuple) else (state,)
    step, example = Step(forecaster).eval(), (x_t, *(torch.zeros_like(s) for s in state))
    B = torch.export.Dim("B")
    shapes = {"x_t": {0: B}, "hidden": tuple({1: B} for _ in state)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nn.LSTM's own bookkeeping
        program = torch.export.export(step, example, dynamic_shapes=shapes)
    torch.export.save(program, path)
    again = torch.export.load(path).module()
    example = (
        inputs(forecaster, 5, 1)[:, 0],
        *(s.new_ones(s.shape[0], 5, s.shape[2]) for s in state),
    )
    with torch.inference_mode():
        for got, expected in zip(again(*example), step(*example), strict=True):
            torch.testing.assert_close(got, expected)
    return "read again, it agrees with PyTorch"


def to_safetensors(forecaster: Forecaster, path: Path) -> str:
    """Write the weights, with config and scaler as JSON metadata.

    Returns:
        What is in the file.
    """
    need("safetensors")
    from safetensors.torch import save

    weights = {name: value.contiguous() for name, value in forecaster.network.state_dict().items()}
    about = {"config": forecaster.config, "mean": forecaster.mean.tolist()}
    about["std"] = forecaster.std.tolist()
    path.write_bytes(save(weights, {key: json.dumps(value) for key, value in about.items()}))
    return f"{len(weights)} tensors; config, mean and std as metadata"
