"""Reads what a run left in its folder."""

import hashlib
import json
import math
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def strict_json(path: Path) -> dict:
    def refuse(constant):
        raise ValueError(f"{path.name} holds {constant}, which is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def plain(value) -> bool:
    """Whether a value is what YAML and JSON know, and nothing derived from it."""
    if type(value) is dict:
        return all(type(key) is str and plain(item) for key, item in value.items())
    if type(value) is list:
        return all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str)


def events(folder: Path) -> EventAccumulator:
    """What TensorBoard reads from a run, nothing thinned out."""
    kinds = ("scalars", "images", "tensors", "histograms")
    return EventAccumulator(str(folder), dict.fromkeys(kinds, 0)).Reload()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points `(step, value)` of each scalar in the order written, less the NaN at step 0 that
    opens a column of the HParams page."""
    found = events(folder)
    return {
        tag: [(e.step, e.value) for e in found.Scalars(tag) if e.step or not math.isnan(e.value)]
        for tag in found.Tags()["scalars"]
    }


def left(folder: Path) -> dict:
    """What a run left: all that must be the same, whatever happened on the way."""
    results = strict_json(folder / "results.json")
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    best = torch.load(folder / results["best_checkpoint"], weights_only=True)
    names = ("status", "metrics", "baselines", "epochs", "steps", "best_checkpoint")
    for state in last["callbacks"].values():
        state.pop("current_score", None)  # Lightning does not restore what is of the last epoch
    found = events(folder)
    return {
        **{name: results[name] for name in names},
        "last": sha(last["state_dict"], last["optimizer_states"], last["lr_schedulers"]),
        "best": sha(best["state_dict"]),
        "loops": last["loops"],
        "callbacks": str(last["callbacks"]).replace(str(folder.absolute()), ""),
        "points": {
            # sorted: TensorBoard reads files begun within one second by their process ids
            tag: sorted((e.step, repr(e.value)) for e in found.Scalars(tag))
            for tag in found.Tags()["scalars"]
        },
        "texts": {tag: len(found.Tensors(tag)) for tag in found.Tags()["tensors"]},
        "files": sorted(path.name for path in (folder / "checkpoints").iterdir()),
    }


def sha(*values) -> str:
    """Of nested values with tensors in them, every bit."""
    digest = hashlib.sha256()

    def take(value) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key, each in value.items():
                digest.update(str(key).encode())
                take(each)
        elif isinstance(value, (list, tuple)):
            for each in value:
                take(each)
        else:
            digest.update(repr(value).encode())

    take(values)
    return digest.hexdigest()


class Call:
    """Pickled, it is a call."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called
