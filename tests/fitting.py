"""Short runs of a learner, in Lightning alone: no config, no run folder, no callbacks of ours."""

from copy import copy
from functools import partial

import lightning as L
import torch

from seqlab.data import Chunks
from seqlab.engine.steps import Steps
from seqlab.learner import Learner
from seqlab.model import LSTMNetwork
from seqlab.tasks import Sine, TaskData

ADAM = partial(torch.optim.Adam, lr=1e-2)


def parts(task=None, objective=None, dropout=0.0, n_hidden=4, seed=0, optimizer=ADAM,
          schedule=None, clip=None, on_nonfinite="stop", **changed):  # fmt: skip
    """Prepared data and the learner of a two-layer LSTM; `optimizer` is called with the parameters
    and `schedule` with the optimiser."""
    sizes = {"seq_len": 6, "n_train": 96, "n_val": 40, "n_test": 40, "batch_size": 8}
    rest = {"fresh": False, "accumulate": 1, "steps_per_call": 4, "seed": seed}
    rest |= dict.fromkeys(["min_len", "val_len", "test_len", "test_task"])
    data = TaskData(task or Sine(noise=0.1), **(sizes | rest | changed))
    torch.manual_seed(seed)
    sizes = {"n_inputs": data.n_inputs, "n_outputs": data.n_outputs, "n_hidden": n_hidden}
    net = LSTMNetwork(**sizes, n_layers=2, dropout=dropout, every_step=data.every_step)
    made = optimizer(net.parameters())
    steps = Steps(made, schedule and schedule(made), clip, on_nonfinite)
    return data, learner_of(net, data, steps, objective, seed)


def learner_of(net, data, steps, objective=None, seed=0):
    """A learner whose objective is attached to the data, which are prepared on the CPU."""
    objective = objective or copy(data.objective)
    data.prepare(torch.device("cpu"))
    objective.attach(data)
    return Learner(net, objective, steps, f"val/{objective.loss_name}", seed)


def fit(data, learner, epochs=2, callbacks=(), **changed):
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        num_sanity_val_steps=0,
        **({"logger": False, "enable_checkpointing": False} | changed),
    )
    trainer.fit(learner, data)
    return trainer


def batches_of(data, epoch):
    """The batches of a training epoch in order, whatever chunks they come in."""
    chunks = Chunks(data)
    chunks.set_epoch(epoch)
    for chunk in chunks:
        for step in zip(*chunk, strict=True):
            yield from zip(*step, strict=True)


def weights(learner_or_network):
    """All weights of a network, or of a learner's, as one vector."""
    network = getattr(learner_or_network, "network", learner_or_network)
    return torch.cat([p.detach().flatten() for p in network.parameters()])
