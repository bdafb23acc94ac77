"""Going on with an interrupted run: what it was, and what may change."""

import json
import math
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose
from omegaconf import DictConfig, OmegaConf

from seqlab.engine import loggers, processes, runs
from seqlab.engine.build import Run
from seqlab.engine.checkpoint import read
from seqlab.engine.construct import untrusted
from seqlab.engine.context import RunContext, from_here, quoted
from seqlab.engine.errors import UserError, first_line
from seqlab.engine.forecaster import check_network
from seqlab.engine.last import EVENTS, check_inside
from seqlab.engine.runs import LAST
from seqlab.engine.settings import check_devices, flat

#: What a run may go on with in another way; any other difference would make it another run.
MAY_CHANGE = ("trainer.max_epochs", "trainer.accelerator", "trainer.devices", "threads")

#: Keys that the config of an older run has not, which then goes on with those of the command.
ADDED = ("logger", "init_from", "init_head")

#: What `last.ckpt` must hold for it.
PARTS = {"loops": dict, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list}
PARTS |= {"sums": dict, "should_stop": bool, "events": dict, "first": list, "seconds": list}
PARTS |= {"loggers": list}


@dataclass
class Begun:
    """What a run begins with."""

    config: DictConfig
    overrides: list[str]  # that made it
    groups: dict[str, str | None]  # and the choice of each config group
    saved: dict[str, Any] | None = None  # the contents of its `last.ckpt`, where it is resumed
    trust: tuple[str, ...] | None = None  # see `construct`; None: the config is the user's own
    score: float | None = None  # of a multirun's job that finished before


def begin(cfg: DictConfig, context: RunContext) -> Begun:
    """Tell whether a run is new, resumed with `resume=DIR`, or a job of a multirun whose command
    was repeated."""
    folder, overrides = context.folder, context.overrides
    if cfg.resume is not None:
        if context.multirun:
            raise UserError(f"resume={cfg.resume}: one run at a time, without -m")
        return reopen(cfg, context)
    if not (context.multirun and (folder / "checkpoints").exists()):
        return Begun(cfg, overrides, context.groups)
    before = results_of(folder) or {"status": "failed", "overrides": overrides}
    if sorted(before["overrides"]) != sorted(overrides):
        other = " ".join(before["overrides"])
        raise UserError(f"hydra.sweep.dir: {folder} holds another run, {other}")
    if before["status"] == "finished":
        return Begun(cfg, overrides, context.groups, score=score_of(before))
    if before["status"] in ("running", "stopped") and (folder / LAST).is_file():
        return Begun(cfg, overrides, context.groups, read(folder / LAST))
    runs.clear(folder)
    return Begun(cfg, overrides, context.groups)


def results_of(folder: Path) -> dict[str, Any] | None:
    """A run's results, as far as it got; None where its file is missing or damaged."""
    with suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        results = json.loads((folder / "results.json").read_text())
        overrides = list(map(str, results["overrides"]))
        known = {"status": results["status"], "groups": dict(results.get("groups", {}))}
        return results | known | {"overrides": overrides}
    return None


def score_of(results: dict[str, Any]) -> float:
    """The best value of a finished run's monitored metric."""
    score = results["metrics"][f"best/{results['monitor']}"]
    return math.nan if score is None else score


def in_processes(begun: Begun, context: RunContext) -> float:
    """Train in several processes, each of which runs this program."""
    config, words = begun.config, list(context.overrides)
    if context.multirun and begun.saved:
        trust = ",".join(sorted({*config.trust, *untrusted(OmegaConf.to_container(config))}))
        words = [f"resume={quoted(str(context.folder))}", f"trust=[{trust}]"]
    elif config.resume is None:
        words.append(f"hydra.run.dir={quoted(str(context.folder))}")
    try:
        check_devices(config.trainer, config.data.get("batch_size"))
        code = processes.launch(config.trainer.devices, [*context.config_dirs, *words])
    finally:
        runs.remove_empty(context.folder)  # Hydra made it
    if code and not context.multirun:
        sys.exit(code)
    return math.nan if code else score_of(results_of(context.folder))


def reopen(cfg: DictConfig, context: RunContext) -> Begun:
    """Read an interrupted run: `cfg` and `context` are of this command line, of which `resume`,
    `trust` and what may change count."""
    key, folder = f"resume={cfg.resume}", context.folder
    if not (folder / LAST).is_file():
        runs.remove_empty(folder)  # Hydra made it
        raise UserError(f"{key}: nothing to resume, it has no {LAST}")
    saved = read(folder / LAST)
    node = {key: OmegaConf.to_container(cfg)[key] for key in ADDED} | saved["config"]
    saved.setdefault("loggers", [])
    for part, kind in PARTS.items():
        if not isinstance(saved.get(part), kind):
            raise UserError(f"{key}: {LAST} has no {part} to go on from")
    for group in ("callbacks", "trainer", "logger"):
        if not isinstance(node.get(group), dict):
            raise UserError(f"{key}: the config in {LAST} has no {group}")
        for each in node[group].values() if group == "logger" else ():
            if isinstance(each, dict):  # it writes into the run's folder now
                each.pop("save_dir", None)
        check_inside(node[group], folder)
    check_network(saved, tuple(cfg.trust), folder / LAST)
    config, before = OmegaConf.create(node), results_of(folder)
    if before is None:
        raise UserError(f"{key}: its results.json is missing or damaged")
    overrides = before["overrides"]
    new = [word for word in context.overrides if key_of(word) not in ("resume", "trust")]
    epochs = config.trainer.max_epochs
    if new:
        change(key, config, overrides, new)
    if config.trainer.max_epochs < epochs:
        asked = f"trainer.max_epochs={config.trainer.max_epochs}"
        raise UserError(f"{asked}: {key} has {epochs}, only more will do")
    if before["status"] == "finished" and config.trainer.max_epochs == epochs:
        why = before.get("stopped") or "finished"
        raise UserError(f"{key}: {why}; trainer.max_epochs={2 * epochs} would take it further")
    config.trust = cfg.trust
    replaced = {key_of(word) for word in new}
    kept = [word for word in overrides if key_of(word) not in replaced]
    return Begun(config, kept + new, before["groups"], saved, tuple(cfg.trust))


def key_of(override: str) -> str:
    """The key that `KEY=VALUE` sets."""
    return override.partition("=")[0].lstrip("+")


def change(key: str, saved: DictConfig, overrides: list[str], new: list[str]) -> None:
    """Put what the new overrides change into the saved config, if it may change."""
    was, now = (flat(compose("config", words)) for words in (overrides, overrides + new))
    for path in {**was, **now}:
        if was.get(path) == now.get(path):
            continue
        if path not in MAY_CHANGE:
            said = f"{key} has {was.get(path)}; a resumed run may change {', '.join(MAY_CHANGE)}"
            new = "init_from=CKPT starts a new run with these weights"
            raise UserError(f"{path}={now.get(path)}: {said}; {new}")
        lengths = (now.get(f"optim.schedule.{key}", 1) for key in ("T_max", "total_steps"))
        if path == "trainer.max_epochs" and None in lengths:
            raise UserError(f"{path}={now[path]}: the run's schedule ends with its {was[path]}")
        OmegaConf.update(saved, path, now[path])


def check_resumable(run: Run, saved: dict[str, Any], context: RunContext) -> None:
    """Refuse to go on with other data, or with another config of a multirun's job; then cut
    TensorBoard's and CSV files back to the checkpoint."""
    last = from_here(context.folder / LAST)
    if context.multirun:
        now = flat(run.config)
        for key, value in flat(saved["config"]).items():
            if now.get(key) != value:
                raise UserError(f"{key}={now.get(key)}: {last} has {value}; name another folder")
    now = run.data.state_dict()
    for name in {**now, **saved["data"]}:
        pair = now.get(name), saved["data"].get(name)
        if not (torch.equal(*pair) if all(map(torch.is_tensor, pair)) else pair[0] == pair[1]):
            new = f"init_from={last} starts a new run with its weights"
            raise UserError(f"data: no longer those of the run: {name} differs from {last}; {new}")
    if runs.RANK:
        return
    for logger, place in zip(run.trainer.loggers, saved.get("loggers", []), strict=False):
        if isinstance(place, int):
            loggers.cut(logger, place)
    if gone := [name for name in saved["events"] if not (context.folder / name).exists()]:
        said = "gone, and with it the points that TensorBoard had until here"
        print(f"note: {', '.join(gone)}: {said}", file=sys.stderr)
    for file in context.folder.glob(EVENTS):
        if file.name not in saved["events"]:
            file.unlink()
        elif file.stat().st_size > saved["events"][file.name]:
            os.truncate(file, saved["events"][file.name])


def fit(run: Run, last: Path | None) -> None:
    """Train, from the last checkpoint on if there is one."""
    try:
        run.trainer.fit(run.learner, run.data, ckpt_path=last, weights_only=True)
    except Exception as error:
        if last is None or run.last.restored or isinstance(error, UserError):
            raise
        said = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{last}: nothing to go on from: {said}") from error
    if not run.best.best_model_path:
        said = "trainer.max_time, max_steps and check_val_every_n_epoch decide when"
        raise UserError(f"the run ended before its first validation: {said}")
