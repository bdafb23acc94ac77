"""What a checkpoint holds; writing it so that no kill tears it; reading it so that it runs nothing.

A checkpoint is what Lightning saves (weights, optimiser, loop state) with `config` (the resolved
config), `sizes` (of the network), `data` (the scaler and what else was fitted), `metrics`,
`versions` and `format`: plain values and tensors only, so that `torch.load(path,
weights_only=True)` reads the file. A digest of every byte follows, as the comment that a zip file
may end with.
"""

import io
import os
import zipfile
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import CheckpointIO
from torch import distributed

from seqlab.engine.errors import UserError
from seqlab.engine.runs import write_whole

FORMAT = 4
DIGEST = 32
PARTS = ("config", "data", "metrics", "state_dict")


class DurableIO(CheckpointIO):
    """How Lightning writes and reads checkpoints: whole files only, verified when read. The first
    process reads for all of a run's, whose hosts may share no disk."""

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
    """Write a checkpoint whole or not at all."""
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    # a zip file ends with the length of its comment, 0 as torch writes it
    body = buffer.getvalue()[:-2] + DIGEST.to_bytes(2, "little")
    write_whole(path, body + blake2b(body, digest_size=DIGEST).digest())


def read(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint, tensors on the CPU, after every byte was verified.

    Raises:
        UserError: the file is missing, damaged, of another format, or no checkpoint of seqlab.
    """
    if "://" in str(path):
        raise UserError(f"{path}: a checkpoint is a local file")
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0") != "0":
        raise UserError("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: unset it, it runs code in files")
    if Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):
        raise UserError(f"{path}: not a regular file")  # a pipe may never end
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
        with zipfile.ZipFile(io.BytesIO(whole)) as parts:
            fits = sum(part.file_size for part in parts.infolist()) <= len(whole)
        contents = torch.load(io.BytesIO(whole), "cpu", weights_only=True) if fits else None
    except Exception as error:  # whatever a hostile file makes of it
        raise UserError(f"{path}: not plain weights and values: {type(error).__name__}") from None
    if not (fits and is_no_larger(contents, len(whole))):
        raise UserError(f"{path}: what is in it unfolds to far more than the file")
    if not (isinstance(contents, dict) and all(isinstance(contents.get(p), dict) for p in PARTS)):
        raise UserError(f"{path}: no checkpoint of seqlab: one holds {', '.join(PARTS)}")
    if contents.get("format") != FORMAT:
        given, versions = contents.get("format"), contents.get("versions")
        by = (isinstance(versions, dict) and versions.get("seqlab")) or "of another version"
        ours = f"this is seqlab {version('seqlab')}, which reads format {FORMAT}"
        raise UserError(f"{path}: of format {given}, which seqlab {by} reads; {ours}")
    if not all(isinstance(contents["config"].get(part), dict) for part in ("data", "model")):
        raise UserError(f"{path}: its config names no data and no model")
    return contents


def is_no_larger(contents: Any, size: int) -> bool:
    """Whether contents take about the memory of their file of `size` bytes, which they need not:
    a list may hold another many times, or itself, and a tensor of any shape may have one number.
    They are not deeper than 50 either, and integers have at most 64 bits."""
    n_values, n_bytes, stack = 0, 0, [(contents, 0)]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, dict):
            value = (*value, *value.values())
        if isinstance(value, (list, tuple, set)):
            n_values += len(value)
            stack += [(each, depth + 1) for each in value] if n_values <= size else []
        elif isinstance(value, torch.Tensor):
            n_bytes += value.numel() * value.element_size()
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            return False
        # the file may hold two names of one tensor once
        if n_values > size or n_bytes > 10 * size or depth > 50:
            return False
    return True
