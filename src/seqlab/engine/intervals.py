"""Intervals around forecasts, by split conformal prediction (Vovk et al. 2005; Lei et al. 2018):
as wide as the errors on the validation part say. Letters: N sequences, O outputs."""

import math

import torch
from torch import Tensor

from seqlab.data import SequenceData
from seqlab.engine.forecaster import Forecaster
from seqlab.objectives import Objective


@torch.inference_mode()
def calibrate(forecaster: Forecaster, data: SequenceData, objective: Objective) -> Tensor | None:
    """The absolute errors on the validation part, `(N, O)` in the data's units, float64, each
    column in ascending order; of a large part of 1,000 sequences spread evenly over it. None where
    the answers are no numbers or there is one at each step."""
    if not objective.numeric or data.every_step:
        return None
    split = data.splits["val"]
    numbers = torch.linspace(0, len(split) - 1, min(len(split), 1000)).round().long()
    x, y, *lengths = split[numbers.to(split.x.device)]
    answer = objective.answer(forecaster.predict_scaled(x, *lengths)[0])
    return (answer - objective.truth(y)).abs().flatten(1).sort(dim=0).values.cpu()


def half_widths(errors: Tensor, level: float) -> Tensor:
    """How far an interval reaches to each side of a forecast, `(O,)`: the smallest of the sorted
    errors `(N, O)` that a new error, if it is like these, does not pass with the probability
    `level` in (0, 1). Infinite where N is too small to say."""
    rank = math.ceil((len(errors) + 1) * level)
    return errors[rank - 1] if rank <= len(errors) else torch.full_like(errors[0], torch.inf)


def coverage(answers: Tensor, truths: Tensor, widths: Tensor) -> Tensor:
    """The share of truths `(N, O)` within the half widths `(O,)` around the answers, `(O,)`."""
    return ((answers - truths).abs() <= widths).double().mean(dim=0)
