"""How good a prediction is: the metrics, and the network beside the baselines.

Letters: B batch, T time steps, F input features, O outputs.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, R2Score

from seqlab.data import Batch, SequenceData

#: The metrics by name, in the order of the tables.
NAMES = ("mse", "rmse", "mae", "r2", "mase", "skill")


def metrics(split: str) -> MetricCollection:
    """MSE, its root, MAE and R2, named `split/name`, summed in float64."""
    found = {
        "mse": MeanSquaredError(),
        "rmse": MeanSquaredError(squared=False),
        "mae": MeanAbsoluteError(),
        "r2": R2Score(),
    }
    return MetricCollection(found, prefix=f"{split}/").set_dtype(torch.float64)


def derived_metrics(split: str, values: dict[str, Tensor], data: SequenceData) -> dict[str, Tensor]:
    """What the data make of a split's metrics: the skill against the first baseline, 1 - MSE /
    its MSE, which is 1 for a perfect prediction and 0 for no gain; and the MAE over that of a
    naive forecast on the training part (MASE)."""
    found = {}
    if split in data.reference_mse:
        found[f"{split}/skill"] = 1 - values[f"{split}/mse"] / data.reference_mse[split]
    if data.mase_scale:
        found[f"{split}/mase"] = values[f"{split}/mae"] / data.mase_scale
    return found


def compare(
    data: SequenceData,
    batches: Iterable[Batch],
    network: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, dict[str, float]]:
    """The test metrics of each baseline, in the data's units, and the MSE of a perfect prediction
    where it is known.

    Args:
        data: says what the baselines are, and the units.
        batches: inputs `(B, T, F)` and targets `(B, O)`.
        network: from inputs to predictions `(B, O)`; given, it is the row "network".
    """
    scores: dict[str, MetricCollection] = {}
    for x, y in batches:
        predictions = {"network": network(x)} if network else {}
        for name, prediction in (predictions | data.baselines(x)).items():
            if name not in scores:
                scores[name] = metrics("test").to(y.device)
            scores[name].update(data.unscale(prediction), data.unscale(y))
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
    columns = [f"test/{name}" for name in NAMES if f"test/{name}" in rows["network"]]
    cells = [[name, *(row.get(column) for column in columns)] for name, row in rows.items()]
    return ["", *columns], cells


def verdict(rows: dict[str, dict[str, float]]) -> str:
    """One sentence: whether the network is worth it beside the best of the baselines."""
    mse = {name: row["test/mse"] for name, row in rows.items() if "test/r2" in row}
    network = mse.pop("network")
    if not mse:
        return "There is no baseline to compare with."
    best = min(mse, key=mse.get)
    word = "beats" if network < mse[best] else "LOSES TO"
    return f"The network {word} {best}: MSE {network:.4g} against {mse[best]:.4g}."
