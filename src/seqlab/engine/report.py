"""The tables and sentences that a run and the commands print."""

import os
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from seqlab.data import SequenceData
from seqlab.engine.build import Run
from seqlab.engine.construct import untrusted
from seqlab.engine.context import RunContext, command, from_here
from seqlab.engine.last import EVENTS
from seqlab.engine.runs import RANK
from seqlab.engine.tables import print_table
from seqlab.objectives import Objective

#: Metrics by name, of the network and of each baseline.
Rows = dict[str, dict[str, float]]


def compare(
    data: SequenceData, objective: Objective, network: Callable[..., Tensor] | None = None
) -> Rows:
    """The test metrics of each baseline, and the MSE of a perfect prediction where it is known.
    Given a function from inputs (and lengths) to predictions, the first row is the network's."""
    scores = {}
    for x, y, *lengths in data.whole("test"):
        predictions = {"network": network(x, *lengths)} if network else {}
        for name, prediction in (predictions | data.baselines(x)).items():
            if name not in scores:
                scores[name] = objective.metrics("test").to(y.device)
            objective.measure(scores[name], prediction, y)
    rows = {
        name: {key: float(value) for key, value in objective.values("test", score).items()}
        for name, score in scores.items()
    }
    return rows | ({"noise floor": {"test/mse": data.floor}} if data.floor else {})


def as_table(objective: Objective, rows: Rows) -> tuple[list[str], list[list]]:
    """Rows as column names and cells, in the order of the objective."""
    columns = [f"test/{name}" for name in objective.better()]
    columns = [column for column in columns if column in rows["network"]]
    return ["", *columns], [[name, *map(row.get, columns)] for name, row in rows.items()]


def as_markdown(objective: Objective, rows: Rows) -> str:
    """A table for TensorBoard's text page, numbers with four digits."""
    columns, cells = as_table(objective, rows)
    numbers = int, float
    lines = [[f"{v:.4g}" if isinstance(v, numbers) else v or "" for v in row] for row in cells]
    lines = [["forecast", *columns[1:]], ["---"] * len(columns), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def compared(objective: Objective) -> str:
    """The metric of the test that forecasts are compared by, lower is better."""
    return f"test/{objective.compared or objective.loss_name}"


def best_baseline(objective: Objective, rows: Rows) -> str | None:
    """The best forecast beside the network; None: there is none."""
    key = compared(objective)
    others = {n: row for n, row in rows.items() if n not in ("network", "noise floor")}
    return min((n for n in others if key in others[n]), key=lambda n: others[n][key], default=None)


def verdict(objective: Objective, rows: Rows) -> str:
    """One sentence: whether the network is better than the best baseline."""
    key, best = compared(objective), best_baseline(objective, rows)
    if best is None:
        return "There is no baseline to compare with."
    network, other = rows["network"][key], rows[best][key]
    word = "beats" if network < other else "LOSES TO"
    return f"The network {word} {best}: {objective.title} {network:.4g} against {other:.4g}."


@torch.no_grad()
def layers(network: nn.Module, x: Tensor) -> list[list]:
    """Name, type, output shapes and number of parameters of each part of a network that has
    parameters of its own, in the order in which `x` `(B, T, F)` passes through them."""
    rows, training = [], network.training
    names = {module: name for name, module in network.named_modules()}

    def note(module, args, output):
        count = sum(p.numel() for p in module.parameters(recurse=False))
        if module in names and count:
            rows.append([names[module], type(module).__name__, shapes(output), count])

    with register_module_forward_hook(note):
        network.eval()(x)
    network.train(training)
    return rows


def shapes(value: Any) -> str:
    """The shapes of tensors in nested tuples, as in `(B, T, H), ((L, B, H), (L, B, H))`."""
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    if isinstance(value, tuple):
        return ", ".join(f"({shapes(v)})" if isinstance(v, tuple) else shapes(v) for v in value)
    return str(value)


def print_layers(run: Run, context: RunContext) -> None:
    """The network's parts with the shapes that come out of them, of a run that is alone."""
    if context.multirun or RANK:
        return
    network, x = run.learner.network, run.learner.example_input_array
    total = sum(p.numel() for p in network.parameters())
    title = f"{type(network).__name__}, {total} parameters, x {tuple(x.shape)}"
    print_table(title, ["part", "type", "output", "parameters"], layers(network, x))


def why_stopped(trainer: L.Trainer) -> str | None:
    """What ended a run before its last epoch, in words."""
    epochs, early = trainer.current_epoch, trainer.early_stopping_callback
    if epochs >= trainer.max_epochs or early is None or trainer.global_step == trainer.max_steps:
        return None
    said = f"stopped early after {epochs} of {trainer.max_epochs} epochs"
    return f"{said}: {early.monitor} had no new best in {early.patience}"


def print_end(run: Run, results: dict[str, Any], context: RunContext) -> None:
    """The end of a run: the network beside the baselines, and what to do next; in a multirun its
    score alone."""
    if context.multirun and results["status"] == "finished":
        score = results["metrics"][f"best/{run.learner.monitor}"]
        print(f"{context.folder.name}: best {run.learner.monitor} {score:.4g}")
    if context.multirun or RANK:
        return
    objective = run.objective
    rows = {"network": results["metrics"], **results["baselines"]}
    folder = from_here(context.folder)
    took = f"{results['steps']} steps, {results['seconds']:.0f} s"
    title = f"Test set, best of {results['epochs']} epochs ({took})"
    print_table(title, *as_table(objective, rows))
    print(said := verdict(objective, rows))
    if results["advice"] and "LOSES" in said:
        print(f"{results['advice'][0].upper()}{results['advice'][1:]}.")
    print(f"It {results['stopped']}.\n" if results["stopped"] else "")
    # TensorBoard calls the folder that it is given "."; in the one above, the run has its name,
    # and where that is the current one, the run is given its name
    above, name = os.path.dirname(folder), context.folder.absolute().name
    look = ("--logdir", above) if above else ("--logdir_spec", f"{name}:{folder}")
    kept = [o for o in results["overrides"] if not o.startswith("seed=")]
    if any(context.folder.glob(EVENTS)):
        print(f"Look at it:       {command('tensorboard', *look)}")
    seeds = context.train_command(*kept, "seed=0,1,2,3,4", options=("-m",))
    print(f"Over five seeds:  {seeds}")
    built = {group: node for group, node in run.config.items() if group != "logger"}
    trust = [word for package in untrusted(built) for word in ("--trust", package)]
    best = os.path.join(folder, results["best_checkpoint"])
    print(f"Use it:           {command('seqlab', 'predict', best, *trust)}")
