"""Intervals around forecasts, by split conformal prediction (Vovk et al. 2005; Lei et al. 2018):
as wide as the errors on the validation part say. Letters: N sequences, O outputs."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from seqlab.data import SequenceData
from seqlab.engine.checkpoint import read, write
from seqlab.engine.errors import UserError
from seqlab.engine.forecaster import Forecaster, load
from seqlab.objectives import Objective


@torch.inference_mode()
def calibrate(
    predict: Callable[..., Tensor], data: SequenceData, objective: Objective
) -> Tensor | None:
    """The absolute errors of predictions for the validation part, `(N, O)` in the data's units,
    float64, each column in ascending order; of a large part of 1,000 sequences spread evenly over
    it. None where the answers are no numbers or there is one at each step."""
    if not objective.numeric or data.every_step:
        return None
    split = data.splits["val"]
    numbers = torch.linspace(0, len(split) - 1, min(len(split), 1000)).round().long()
    x, y, *lengths = split[numbers.to(split.x.device)]
    answer = objective.answer(predict(x, *lengths))
    return (answer - objective.truth(y)).abs().flatten(1).sort(dim=0).values.cpu()


def half_widths(errors: Tensor | None, level: float) -> Tensor:
    """How far an interval reaches to each side of a forecast, `(O,)` in the data's units: the
    smallest of the N validation errors that a new error, if it is like these, does not pass with
    the probability `level` in (0, 1).

    Raises:
        UserError: there are no errors, or too few of them.
    """
    if errors is None:
        raise UserError("no intervals: the checkpoint holds no validation errors of a finished run")
    rank = math.ceil((len(errors) + 1) * level)
    if rank > len(errors):
        said = f"{len(errors)} validation errors give at most {len(errors) / (len(errors) + 1):.3g}"
        raise UserError(f"--interval={level}: {said}")
    return errors[rank - 1]


@torch.inference_mode()
def coverage(
    forecaster: Forecaster, data: SequenceData, objective: Objective, level: float
) -> float | None:
    """The share of the test targets within the intervals around their forecasts; None where the
    checkpoint holds no errors, or too few for the level."""
    try:
        widths = half_widths(forecaster.errors, level)
    except UserError:
        return None
    within = []
    for x, y, *lengths in data.whole("test"):
        answer = objective.answer(forecaster.predict_scaled(x, *lengths))
        within.append((answer - objective.truth(y)).abs().flatten(1) <= widths)
    return torch.cat(within).double().mean().item()


def complete(path: str, data: SequenceData, objective: Objective) -> None:
    """Complete a run's best checkpoint, once, before it is tested: with the errors that `calibrate`
    gives, and with what `SequenceData.refit` has fitted since. The errors are of the network before
    that, which had not seen the validation part. They are written at once, so a run that is killed
    here leaves the file as it was, or complete."""
    contents = read(path)
    if "errors" in contents:
        return
    forecaster = load(path, None).to(data.splits["val"].x.device)
    contents["errors"] = calibrate(forecaster.predict_scaled, data, objective)
    if data.base:
        forecaster.network.take(data.weights)
        weights = forecaster.network.state_dict()
        contents["state_dict"] |= {f"network.{name}": v.cpu() for name, v in weights.items()}
    # Lightning keeps what data say of themselves under the name of their class
    names = ["data", type(data).__qualname__]
    write(Path(path), contents | dict.fromkeys(names, data.state_dict()))
