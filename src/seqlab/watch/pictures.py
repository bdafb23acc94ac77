"""Pictures of what the network does, for the loggers: TensorBoard's image page, say.

Letters: B batch, T time steps, F input features, L layers, H hidden units per layer.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from seqlab.data import SequenceData
from seqlab.engine.checkpoint import read
from seqlab.engine.intervals import half_widths
from seqlab.engine.loggers import add_figure
from seqlab.objectives import Objective
from seqlab.series.base import OnBase
from seqlab.series.future import forecast_after
from seqlab.series.windows import WindowData
from seqlab.watch import figures

MOST_ROWS = 150  # of a series, forecast in one picture


class Pictures(Callback):
    """Draws the predictions and the states on the validation set as the network learns, and in
    the end its predictions on the test set; of a series these also into `forecast.png`.

    Args:
        every_n_epochs: epochs between two drawings, at least 1; the first epoch is drawn too.
    """

    def __init__(self, every_n_epochs: int):
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs={every_n_epochs}: at least 1")
        self.every_n_epochs = every_n_epochs

    def on_validation_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        if trainer.current_epoch % self.every_n_epochs == 0 and not trainer.sanity_checking:
            self.add("val", trainer, learner)

    def on_test_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        self.add("test", trainer, learner)

    def add(self, split: str, trainer: L.Trainer, learner: L.LightningModule) -> None:
        """Draw one split's first sequences for the loggers."""
        if not trainer.is_global_zero:
            return
        learner.eval()
        data = trainer.datamodule
        with torch.inference_mode():
            drawn = predictions(data, split, learner)
            if isinstance(data, WindowData) and "prediction" in drawn:
                objective, end = learner.objective, ()
                if split == "test":
                    end = read(trainer.ckpt_path).get("errors"), data.horizon
                drawn["forecast"] = last_forecasts(data, split, objective, learner, *end)
            if split == "val":  # each figure is a tenth of a second, in a sweep for every job
                drawn |= states(data, split, learner)
            elif "forecast" in drawn:
                drawn["forecast"].savefig(Path(trainer.default_root_dir, "forecast.png"), dpi=120)
        for name, figure in drawn.items():
            # `view`, since TensorBoard opens with the first two groups, which are train and val
            tag = f"view/{split}/{name}"
            for logger in trainer.loggers:
                add_figure(logger, tag, figure, trainer.global_step)


def predictions(data: SequenceData, split: str, learner: L.LightningModule) -> dict[str, Any]:
    """Figures of the predictions for a split, by name."""
    x, y, *lengths = data.splits[split][:1000]
    objective, drawn = learner.objective, {}
    # in the data's units: the targets, the predictions, and what the baseline says
    answer = to_numpy(objective.answer(learner(x, *lengths)))
    target = to_numpy(objective.truth(y))
    if not objective.numeric:
        drawn["confusion"] = figures.confusion(target.ravel(), answer.ravel(), data.n_outputs)
    if data.every_step:  # of the first sequence, and where there are several outputs the first
        first = (part[0].reshape(len(part[0]), -1)[:, 0] for part in (target, answer))
        drawn["answers"] = figures.answers_over_time(*first, objective.numeric)
    if drawn:
        return drawn
    name, baseline = next(iter(data.baselines(x).items()), ("", None))
    baseline = None if baseline is None else to_numpy(objective.answer(baseline))
    drawn["prediction"] = figures.prediction_against_target(target, answer, baseline, name)
    return drawn


@torch.inference_mode()
def last_forecasts(
    data: WindowData,
    split: str,
    objective: Objective,
    predict: Callable[..., Tensor],
    errors: Tensor | None = None,
    steps: int = 0,
    level: float = 0.9,
) -> Any:
    """A figure of the last forecasts of a split, beside the truth and the best baseline. Of a
    file with many groups: of those with the least, with middling and with the most skill.

    Args:
        data, split, objective: what was forecast and how it is measured.
        predict: maps scaled inputs to the network's predictions.
        errors: those of `calibrate`. With them, if they are enough, the forecasts have intervals
            of the probability `level`. Where the network predicts several quantiles, the intervals
            are between the outermost two, whatever the errors and the level.
        steps: N, rows to forecast after the end.
    """
    found: dict[str, list[Any]] = {}
    device = data.splits[split].x.device
    predicted = [torch.empty(0, data.n_outputs * objective.n_values, device=device)]
    for x, y, *lengths in data.whole(split):
        predicted.append(predict(x, *lengths))
        guesses = data.baselines(x) | {"network": predicted[-1]}
        answers = {name: objective.answer(guess) for name, guess in guesses.items()}
        for name, values in ({"truth": objective.truth(y)} | answers).items():
            found.setdefault(name, []).append(to_numpy(values))
    guesses = {name: np.concatenate(parts) for name, parts in found.items()}
    truth_WO, numbers = guesses.pop("truth", None), data.window_numbers[split]
    ends = np.cumsum([0, *map(len, numbers)])  # where each group's windows begin among all
    groups = [slice(*edges) for edges in pairwise(ends)]
    ranked = [i for i, windows in enumerate(numbers) if len(windows)]
    mse = {  # of each name for each ranked group
        name: np.array([np.mean((guess_WO[groups[i]] - truth_WO[groups[i]]) ** 2) for i in ranked])
        for name, guess_WO in guesses.items()
    }
    naive, *_ = baselines = [*guesses][:-1] or [""]
    if ranked:
        counts = np.diff(ends)[ranked]
        best = min(baselines, key=lambda name: mse[name] @ counts)
        skill = 1 - mse["network"] / mse[naive].clip(1e-300)
        order = np.argsort(skill)
        chosen = {order[0]: "worst", order[len(order) // 2]: "median", order[-1]: "best"}
        chosen = {int(place): word for place, word in chosen.items()}
    else:  # a file that ends before its first target
        chosen = dict.fromkeys(range(min(3, len(numbers))))

    def answer(window_TF: np.ndarray) -> np.ndarray:
        at_the_end.append(predict(data.scaler.scale(window_TF)[None].to(device)))
        return to_numpy(objective.answer(at_the_end[-1]))[0]

    levels = [*objective.quantiles(predicted[0])]
    enough = errors is not None and len(errors) >= level * (len(errors) + 1)
    half_O = to_numpy(half_widths(errors, level)) if enough else None
    if len(levels) > 1:
        level = levels[-1] - levels[0]

    def ends_of(prediction: Tensor) -> np.ndarray | None:
        """The low and the high ends of its intervals `(2, K, O)`; None: there are none."""
        if len(levels) > 1:
            low, *_, high = objective.quantiles(prediction).values()
            return np.stack([to_numpy(low), to_numpy(high)])
        middle = to_numpy(objective.answer(prediction))
        return None if half_O is None else np.stack([middle - half_O, middle + half_O])

    series, lead, O, panels = data.series, data.lead, data.horizon, []
    predicted_W = torch.cat(predicted)
    last = f" to {lead + O - 1}" if O > 1 else ""
    ahead = f"forecast {lead}{last} step{'s' * (lead + O > 2)} ahead"
    for place, word in chosen.items():
        group = ranked[place] if ranked else place
        piece = series.pieces[group]
        # windows that follow one another without overlap, the last one the last of all
        windows = np.arange(len(numbers[group]))[::-O][: max(2, MOST_ROWS // O)][::-1]
        rows_KO = numbers[group][windows][:, None] + data.seq_len + lead - 1 + np.arange(O)
        begin = rows_KO.min(initial=piece.stop)
        end = rows_KO[-1, -1] + 1 if len(rows_KO) else piece.stop
        history = max((end - begin) // 2, data.seq_len)
        begin = max(piece.start, begin - history)
        shown = {}
        for name in (best, "network") if ranked else ():
            label = f"{name}, {split} RMSE {mse[name][place] ** 0.5:.4g}"
            shown[label] = guesses[name][groups[group]][windows]
        rank = f", {word} of {len(ranked)}, skill {skill[place]:.3g}" if word else ""
        title = f"{piece.name}{rank}: {ahead}" if len(numbers) > 1 else ahead
        times = series.times[int(begin) : int(end)].to_numpy()
        values = np.where(series.own[begin:end], series.values[begin:end, 0], np.nan)
        at_the_end: list[Tensor] = []
        after = forecast_after(data, group, steps, answer) if steps else None
        after = (after[0].to_numpy(), after[1]) if after else None
        reach = ends_of(predicted_W[groups[group]][windows])
        if reach is not None:
            reach = reach, ends_of(at_the_end[0])[:, 0] if after else None
        panels.append((title, times, values, rows_KO - begin, shown, reach, after))
    # rows of a file without times are numbered in a column named `__row__`
    names = series.columns[0], series.times.name.strip("_")
    return figures.last_forecasts(panels, *names, f"{100 * level:.3g} %")


def states(data: SequenceData, split: str, learner: L.LightningModule) -> dict[str, Any]:
    """Figures of what the hidden units hold over a split's first sequence, by name; none where the
    network's state is not that of an LSTM or a GRU."""
    x, y, *lengths = data.splits[split][:1]
    x = x[:, : lengths[0][0]] if lengths else x
    last = learner(x)[:, -1] if data.every_step else learner(x)
    network, x = learner.network, x.to(learner.dtype)
    if isinstance(network, OnBase):
        network, x = network.network, network.seen(x)
    found = over_time(network, x)
    if not found:
        return {}
    x_TF, stm_TLH, *ltm_TLH = to_numpy(x[0]), *map(to_numpy, found)
    objective = learner.objective
    comparable = objective.numeric and objective.n_values == 1 and not data.every_step
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
