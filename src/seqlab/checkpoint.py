"""What a checkpoint holds; writing it so that no kill tears it; reading it so that it runs nothing.

A checkpoint is what Lightning saves (weights, optimiser, loop state) with `config` (the resolved
config), `data` (the scaler and what else was fitted), `metrics`, `versions` and `format`: plain
values and tensors only, so that `torch.load(path, weights_only=True)` reads the file. After it
stands a digest of every byte, as the comment that a zip file may end with.
"""

import errno
import io
import os
import shutil
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import CheckpointIO
from pydantic import ValidationError
from torch import Tensor, distributed, nn

from seqlab.data import SequenceData, WindowData
from seqlab.errors import UserError, explain_argument, first_line
from seqlab.series import Scaler
from seqlab.tasks import Task

FORMAT = 2
DIGEST = 32

#: Where a class that a checkpoint names may come from, unless the user trusts more.
TRUSTED = ("seqlab", "torch.nn")


class DurableIO(CheckpointIO):
    """Lightning's door to the disk: whole files only, verified when read, by the first process for
    all of a run's, whose hosts may share no disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options=None) -> None:
        write(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location=None, weights_only=None) -> dict[str, Any]:
        if not distributed.is_initialized():
            return read(path)
        box = [None if distributed.get_rank() else read(path)]
        distributed.broadcast_object_list(box)
        return box[0]

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def write(path: Path, contents: dict[str, Any]) -> None:
    """Write a checkpoint beside its target, flush it to the disk and rename it into place: at
    every moment the target is the old file or the new one.

    Raises:
        UserError: the disk is full; the old file is as it was.
    """
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    # a zip file ends with the length of its comment, 0 as torch writes it
    body = buffer.getvalue()[:-2] + DIGEST.to_bytes(2, "little")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("wb") as file:
            file.write(body)
            file.write(blake2b(body, digest_size=DIGEST).digest())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free
        raise UserError(
            f"{path}: the disk is full: {len(body) / 1e6:.1f} MB to write, {free / 1e6:.1f} free"
        ) from None
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def read(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint, tensors on the CPU, after every byte was verified.

    Raises:
        UserError: the file is missing, damaged, or no checkpoint of this project.
    """
    if "://" in str(path):
        raise UserError(f"{path}: a checkpoint is a local file")
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0") != "0":
        raise UserError("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: unset it, it runs code in files")
    try:
        whole = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    body, digest = whole[:-DIGEST], whole[-DIGEST:]
    if not whole:
        raise UserError(f"{path}: the file is empty")
    if not whole.startswith(b"PK\x03\x04"):
        raise UserError(f"{path}: no checkpoint (it does not begin like one)")
    if blake2b(body, digest_size=DIGEST).digest() != digest:
        raise UserError(f"{path}: damaged, cut off, or not written by seqlab")
    try:
        contents = torch.load(io.BytesIO(body + digest), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a hostile file makes of it
        raise UserError(f"{path}: not plain weights and values: {type(error).__name__}") from None
    parts = ("config", "data", "metrics", "state_dict")
    if not (isinstance(contents, dict) and all(isinstance(contents.get(p), dict) for p in parts)):
        raise UserError(f"{path}: no checkpoint of seqlab: one holds {', '.join(parts)}")
    if not all(isinstance(contents["config"].get(part), dict) for part in ("data", "model")):
        raise UserError(f"{path}: its config names no data and no model")
    if contents.get("format") != FORMAT:
        raise UserError(f"{path}: of format {contents.get('format')}, this version reads {FORMAT}")
    return contents


def construct(
    node: dict[str, Any], kind: type | tuple[type, ...], trust: tuple[str, ...], **changed: Any
) -> Any:
    """Call the class that a checkpoint's config names, if it may be.

    Args:
        node: a part of the config, with `_target_`; parts inside it are constructed first.
        kind: what the class must be a subclass of; of several, any.
        trust: packages whose classes may be imported beside this project's and torch.nn's.
        changed: arguments in place of the node's.

    Raises:
        UserError: the class is of another package, and not imported; or of another kind, and not
            called; or it refuses its arguments.
    """
    target = str(node.get("_target_"))
    if not any(target.startswith(f"{package}.") for package in (*TRUSTED, *trust)):
        package = target.partition(".")[0]
        raise UserError(f"{target}: not trusted; --trust {package} says that its code may run")
    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{target}: cannot be imported: {error}") from None
    if not (isinstance(found, type) and issubclass(found, kind)):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise UserError(f"{target}: no {names}, and not called")
    arguments = {
        key: construct(value, (Task, nn.Module), trust)
        if isinstance(value, dict) and "_target_" in value
        else value
        for key, value in node.items()
        if not key.startswith("_")
    }
    try:
        return found(**(arguments | changed))
    except ValidationError as error:
        raise UserError(explain_argument(error, target)) from None
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: no memory of that size
        raise UserError(f"{target}: {first_line(error)}") from None


class Forecaster(nn.Module):
    """A trained network in the data's own units, ready for inference.

    Attributes:
        network: the network as it was trained, on scaled values.
        config: the resolved config of its run.
        fitted: what was fitted on the training part: the scaler's `mean` and `std` a column,
            `columns`, the autoregression's `weights`; empty for a toy task.
        metrics: the validation metrics at the time of the checkpoint.
    """

    def __init__(self, network: nn.Module, contents: dict[str, Any]):
        super().__init__()
        self.network = network
        self.config, self.metrics = contents["config"], contents["metrics"]
        self.fitted = contents["data"]
        scaler = Scaler(self.fitted.get("mean", [0.0]), self.fitted.get("std", [1.0]))
        self.register_buffer("mean", torch.tensor(scaler.mean, dtype=torch.float64))
        self.register_buffer("std", torch.tensor(scaler.std, dtype=torch.float64))

    def scale(self, x: Tensor) -> Tensor:
        """Inputs `(..., F)` in the data's units to what the network was trained on."""
        return ((x.double() - self.mean) / self.std).float()

    def unscale(self, prediction: Tensor) -> Tensor:
        """Predictions `(..., O)` back to the data's units, float64."""
        return prediction.double() * self.std[0] + self.mean[0]

    def forward(self, x: Tensor, hidden: Any = None, *lengths: Tensor) -> tuple[Tensor, Any]:
        """`x` `(B, T, F)`, with the `lengths` `(B,)` if they differ, to the prediction, `(B, O)` or
        at every step `(B, T, O)`, both in the data's units, and the hidden state to carry on with.
        """
        prediction, hidden = self.network(self.scale(x), hidden, *lengths)
        return self.unscale(prediction), hidden

    def step(self, x_t: Tensor, hidden: Any = None) -> tuple[Tensor, Any]:
        """One time step, for streaming: `x_t` `(B, F)` to the prediction `(B, O)` after it."""
        prediction, hidden = self.forward(x_t.unsqueeze(1), hidden)
        return prediction.flatten(1), hidden


def load(path: str | Path, trust: tuple[str, ...] = ()) -> Forecaster:
    """The trained network of a checkpoint, from that file alone.

    Args:
        path: a .ckpt file of a run.
        trust: packages of your own whose classes the checkpoint may name.

    Raises:
        UserError: the file is damaged, or names what is not trusted.
    """
    contents = read(path)
    network = construct(contents["config"]["model"], nn.Module, trust)
    weights = {
        key.removeprefix("network."): value
        for key, value in contents["state_dict"].items()
        if key.startswith("network.")
    }
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: its weights are not those of its config: {said}") from None
    return Forecaster(network, contents).eval()


def load_data(
    forecaster: Forecaster, trust: tuple[str, ...], path: str | None = None
) -> SequenceData:
    """The data that a checkpoint's run was tested on, as its config describes them.

    Args:
        forecaster: what `load` gave.
        trust: packages of your own whose classes the config may name.
        path: another file with the same columns, all of it the test split; None: the run's own.

    Raises:
        UserError: the data are not there, or are no series and another file was given.
    """
    node = forecaster.config["data"]
    if path is None:
        if "path" in node and not Path(node["path"]).exists():
            raise UserError(f"{node['path']}: no such file; --data FILE names another")
        data = construct(node, SequenceData, trust)
        data.load_state_dict(forecaster.fitted)
        return data
    if "path" not in node:
        raise UserError(f"--data={path}: {node['_target_']} reads no file")
    return construct(node, WindowData, trust, path=path, fitted=forecaster.fitted)
