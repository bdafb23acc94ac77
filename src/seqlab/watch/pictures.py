"""Pictures of what the network does, for TensorBoard's image page.

Letters: B batch, T time steps, F input features, L layers, H hidden units per layer.
"""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from seqlab.data import SequenceData
from seqlab.series.windows import WindowData
from seqlab.watch import figures


class Pictures(Callback):
    """Draws the predictions and the states on the validation set as the network learns, and in
    the end its predictions on the test set.

    Args:
        every_n_epochs: epochs between two drawings, at least 1; the first epoch is drawn too.
    """

    def __init__(self, every_n_epochs: int):
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs={every_n_epochs}: at least 1")
        self.every_n_epochs = every_n_epochs

    def on_validation_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        if trainer.current_epoch % self.every_n_epochs == 0 and not trainer.sanity_checking:
            self.add("", "val", trainer, learner)

    def on_test_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        self.add("test/", "test", trainer, learner)

    def add(self, prefix: str, split: str, trainer: L.Trainer, learner: L.LightningModule) -> None:
        """Draw one split's first sequences into TensorBoard's images."""
        if not trainer.is_global_zero:
            return
        learner.eval()
        with torch.inference_mode():
            drawn = predictions(trainer.datamodule, split, learner)
            if split == "val":  # each figure is a tenth of a second, in a sweep for every job
                drawn |= states(trainer.datamodule, split, learner)
        for name, figure in drawn.items():
            trainer.logger.experiment.add_figure(prefix + name, figure, trainer.global_step)


def predictions(data: SequenceData, split: str, learner: L.LightningModule) -> dict[str, Any]:
    """Figures of the predictions for a split, by name; none where the answers are no numbers or
    there is a target at every step."""
    x, y, *lengths = data.splits[split][:1000]
    objective = learner.objective
    if data.every_step or not objective.numeric:
        return {}
    name, baseline = next(iter(data.baselines(x).items()), ("", None))
    # in the data's units: the targets, the predictions, and what the baseline says
    answer = to_numpy(objective.answer(learner(x, *lengths)))
    target = to_numpy(objective.truth(y))
    baseline = None if baseline is None else to_numpy(objective.answer(baseline))
    drawn = {"prediction": figures.prediction_against_target(target, answer, baseline, name)}
    if isinstance(data, WindowData):
        times = data.target_times(split).to_numpy()[: len(x)]  # of the first group alone
        parts = (part[: len(times)] for part in (target, answer, baseline))
        drawn["forecast"] = figures.forecast(times, *parts, name, data.lead)
    return drawn


def states(data: SequenceData, split: str, learner: L.LightningModule) -> dict[str, Any]:
    """Figures of what the hidden units hold over a split's first sequence, by name; none where the
    network's state is not that of an LSTM or a GRU."""
    x, y, *lengths = data.splits[split][:1]
    x = x[:, : lengths[0][0]] if lengths else x
    found = over_time(learner.network, x.to(learner.dtype))
    if not found:
        return {}
    x_TF, stm_TLH, *ltm_TLH = to_numpy(x[0]), *map(to_numpy, found)
    last = learner(x)[:, -1] if data.every_step else learner(x)
    comparable = learner.objective.numeric and not data.every_step
    outcomes = to_numpy(last[0]), to_numpy(y[0]) if comparable else None
    carried = "(STM, LTM)" if ltm_TLH else "STM"
    return {
        "states": figures.states_over_time(x_TF, stm_TLH, *ltm_TLH),
        "unrolled": figures.unrolled(x_TF, stm_TLH, *outcomes, carried),
    }


def over_time(network: nn.Module, x: Tensor) -> tuple[Tensor, ...] | None:
    """STM and, of an LSTM, LTM, each `(T, L, H)`, after every step of one sequence `x` `(1, T, F)`;
    None for a network whose state is not that of an LSTM or a GRU."""
    hidden, steps = None, []
    for t in range(x.shape[1]):
        _, hidden = network(x[:, t : t + 1], hidden)
        parts = (hidden,) if isinstance(hidden, Tensor) else hidden
        if not (isinstance(parts, tuple) and len(parts) <= 2 and all(p.dim() == 3 for p in parts)):
            return None
        steps.append([part[:, 0] for part in parts])
    return tuple(map(torch.stack, zip(*steps, strict=True)))


def to_numpy(value: Tensor) -> Any:
    """A float array for the figures."""
    return value.double().cpu().numpy()
