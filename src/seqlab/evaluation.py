"""How good a prediction is: the metrics, and the network beside the baselines.

Letters: B batch, T time steps, F input features, O outputs.
"""

from collections.abc import Callable, Iterable

from torch import Tensor
from torchmetrics import MetricCollection

from seqlab.data import Batch, SequenceData

#: The metrics that all tasks have, in the order of the tables; a task's own follow them.
NAMES = ("mse", "ce", "rmse", "mae", "r2", "mase", "accuracy", "solved", "skill")


def derived_metrics(split: str, values: dict[str, Tensor], data: SequenceData) -> dict[str, Tensor]:
    """What the data make of a split's metrics: the skill against the first baseline, 1 - loss /
    its loss, which is 1 for a perfect prediction and 0 for no gain; and the MAE over that of a
    naive forecast on the training part (MASE)."""
    found = {}
    if split in data.reference_loss:
        loss = values[f"{split}/{data.objective.loss_name}"]
        found[f"{split}/skill"] = 1 - loss / data.reference_loss[split]
    if data.mase_scale:
        found[f"{split}/mase"] = values[f"{split}/mae"] / data.mase_scale
    return found


def compare(
    data: SequenceData,
    batches: Iterable[Batch],
    network: Callable[..., Tensor] | None = None,
) -> dict[str, dict[str, float]]:
    """The test metrics of each baseline, in the data's units, and the MSE of a perfect prediction
    where it is known.

    Args:
        data: says what the baselines are, and the units.
        batches: inputs `(B, T, F)` and targets, with the lengths where they differ.
        network: from inputs (and lengths) to predictions; given, it is the row "network".
    """
    scores: dict[str, MetricCollection] = {}
    for x, y, *lengths in batches:
        predictions = {"network": network(x, *lengths)} if network else {}
        for name, prediction in (predictions | data.baselines(x)).items():
            if name not in scores:
                scores[name] = data.objective.metrics("test").to(y.device)
            pair = data.objective.rows(data.unscale(prediction), data.unscale(y))
            scores[name].update(*pair)
    rows = {}
    for name, score in scores.items():
        values = score.compute()
        values |= derived_metrics("test", values, data)
        rows[name] = {key: float(value) for key, value in values.items()}
    if data.floor:
        rows["noise floor"] = {"test/mse": data.floor}
    return rows


def as_table(rows: dict[str, dict[str, float]]) -> tuple[list[str], list[list]]:
    """What `compare` gave as column names and rows of cells."""
    found = [name.removeprefix("test/") for name in rows["network"] if name.startswith("test/")]
    names = [name for name in NAMES if name in found] + [n for n in found if n not in NAMES]
    columns = [f"test/{name}" for name in names]
    cells = [[name, *(row.get(column) for column in columns)] for name, row in rows.items()]
    return ["", *columns], cells


def verdict(rows: dict[str, dict[str, float]]) -> str:
    """One sentence: whether the network is worth it beside the best of the baselines."""
    loss = "mse" if "test/mse" in rows["network"] else "ce"
    losses = {name: row[f"test/{loss}"] for name, row in rows.items() if f"test/{loss}" in row}
    losses.pop("noise floor", None)
    network = losses.pop("network")
    if not losses:
        return "There is no baseline to compare with."
    best = min(losses, key=losses.get)
    word = "beats" if network < losses[best] else "LOSES TO"
    said = {"mse": "MSE", "ce": "cross-entropy"}[loss]
    return f"The network {word} {best}: {said} {network:.4g} against {losses[best]:.4g}."
