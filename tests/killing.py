"""Runs that are killed, each in a process of its own, forked from one that has its imports done."""

import functools
import hashlib
import importlib
import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from program import Result, events, run, strict_json

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["killing", "seqlab.training", "seqlab.cli"])

#: Four epochs of thirteen steps, a step a call; validation and test are two batches each.
RUN = [
    "trainer.max_epochs=4", "trainer.log_every_n_steps=1", "data.n_train=104", "data.batch_size=8",
    "data.n_val=10000", "data.n_test=10000", "data.steps_per_call=1", "data.seq_len=4",
    "model.n_hidden=4", "model.dropout=0.3", "callbacks.pictures=null", "hydra.run.dir=run",
]  # fmt: skip


@dataclass
class Kill:
    """A signal that a run sends itself when a function has been called so often.

    Args:
        after: `module:Class.method` or `module:function`.
        call: which call of it, from 1.
        sign: the signal.
    """

    after: str
    call: int
    sign: int = signal.SIGKILL

    def arm(self) -> None:
        module, _, name = self.after.partition(":")
        *owner, name = name.split(".")
        owner = functools.reduce(getattr, owner, importlib.import_module(module))
        function, calls = getattr(owner, name), itertools.count(1)

        @functools.wraps(function)
        def counted(*args, **kwargs):
            result = function(*args, **kwargs)
            if next(calls) == self.call:
                os.kill(os.getpid(), self.sign)
            return result

        setattr(owner, name, counted)


def child(arguments: list[str], cwd: Path, kills: list[Kill]) -> None:
    torch.set_num_threads(1)
    for kill in kills:
        kill.arm()
    with (cwd / "out").open("w") as out, (cwd / "err").open("w") as err:
        result = run(*arguments, cwd=cwd, streams=(out, err))
    os._exit(result.code)


def start(*arguments: str, cwd: Path, kills: Iterable[Kill] = ()) -> multiprocessing.Process:
    """`python train.py ARGUMENTS` in `cwd`, going on by itself."""
    process = server.Process(target=child, args=(arguments, cwd, list(kills)))
    process.start()
    return process


def end(process: multiprocessing.Process, cwd: Path, after: float | None = None) -> Result:
    """What it left, when it ends or is killed after so many seconds."""
    process.join(after)
    process.kill()
    process.join()
    return Result(process.exitcode, (cwd / "out").read_text(), (cwd / "err").read_text(), cwd)


def forked(*arguments: str, cwd: Path, kills: Iterable[Kill] = ()) -> Result:
    """`python train.py ARGUMENTS` in `cwd` in a process of its own."""
    return end(start(*arguments, cwd=cwd, kills=kills), cwd)


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
            tag: [(e.step, repr(e.value)) for e in found.Scalars(tag)]
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
            digest.update(value.contiguous().numpy().tobytes())
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
