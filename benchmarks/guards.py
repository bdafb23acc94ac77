"""What the promises cost: an epoch with all guards against the same epoch without them.

`python benchmarks/guards.py [--rounds N]`: at B=32 T=20 H=64, in CPU seconds of one process, the
two in turn. Guards are the check of every loss and gradient, the seeding of every step's dropout,
the look for a signal after every call, and writing `last.ckpt` durably after the epoch.
"""

import argparse
import contextlib
import logging
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from hydra import compose, initialize_config_dir
from overhead import heading, machine, spread

from seqlab.engine import checkpoint, last, steps
from seqlab.engine.build import build
from seqlab.engine.context import RunContext
from seqlab.engine.runs import register_resolvers

CONF = Path(__file__).parents[1] / "conf"
SIZES = [
    *("data=sine", "data.seq_len=20", "data.batch_size=32", "model.n_hidden=64"),
    *("trainer.max_epochs=1", "callbacks.pictures=null", "callbacks.early_stopping=null"),
]


def plain_save(self, saved, path, storage_options=None):
    Path(path).parent.mkdir(exist_ok=True)
    torch.save(saved, path)


def without_guards() -> contextlib.ExitStack:
    """Take every guard out."""
    stack = contextlib.ExitStack()
    for owner, name, new in (
        (torch.Tensor, "isfinite", lambda self: 1),
        (steps.math, "isfinite", lambda value: True),
        (steps.Steps, "seed", lambda self, learner, *key: None),
        (last.Last, "on_save_checkpoint", lambda self, *args: None),
        (last.Last, "save_or_stop", lambda self, *args, **more: None),
        (last.Last, "on_train_start", lambda self, *args: setattr(self, "since", 0)),
        (checkpoint.DurableIO, "save_checkpoint", plain_save),
    ):
        stack.enter_context(mock.patch.object(owner, name, new))
    return stack


def epoch() -> float:
    """The CPU seconds of one epoch."""
    with tempfile.TemporaryDirectory() as folder:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            run = build(compose("config", SIZES), RunContext(Path(folder), []))
        start = time.process_time()
        run.trainer.fit(run.learner, run.data)
        return time.process_time() - start


def measure(rounds: int) -> tuple[list[float], list[float]]:
    """The CPU seconds of an epoch with guards, and of one without, in each round."""
    register_resolvers()
    logging.getLogger("seqlab").setLevel(logging.ERROR)
    with_guards, without = [], []
    epoch()
    for n in range(rounds):
        for guarded in (True, False) if n % 2 else (False, True):
            with contextlib.nullcontext() if guarded else without_guards():
                (with_guards if guarded else without).append(epoch())
    return with_guards, without


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(heading("Guards", **machine("cpu"), rounds=rounds))
    ratios = [guarded / plain for guarded, plain in zip(*measure(rounds), strict=True)]
    print(f"\nAn epoch with all guards as a multiple of one without: {spread(ratios, '.3f')}")
