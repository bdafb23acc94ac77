"""One function: config in, trained run and its score out."""

import json
import logging
import math
import os
import shlex
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from seqlab import launch, runs, signals
from seqlab.build import Run, build, check_devices
from seqlab.callbacks import cut_events, versions
from seqlab.checkpoint import read
from seqlab.errors import LostError, UserError, explain
from seqlab.evaluation import as_table, compare, verdict
from seqlab.learner import Learner
from seqlab.model import layers
from seqlab.results import again
from seqlab.resume import LAST, Interrupted, flat, reopen


def train(cfg: DictConfig, pruning: Callable[[str], Callback] | None = None) -> float:
    """Build what the config names, fit it, test its best checkpoint and write the results.

    Args:
        cfg: the composed config of `conf/config.yaml`; `derived` is filled in here.
        pruning: of a search: makes what watches the monitored metric, whose name it is given, and
            may end the run with `TrialPruned`, which is raised.

    Returns:
        The best value of `monitor`. In a multirun, NaN for a job that failed: what went wrong is
        told on stderr and in its results.json, and the other jobs go on.

    Raises:
        UserError, hydra.errors.HydraException: the config names something that cannot be built.
            No run directory is left then.
    """
    hydra = HydraConfig.get()
    multirun = hydra.mode == RunMode.MULTIRUN
    folder = Path(hydra.runtime.output_dir)
    typed = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    saved, hold = None, runs.claim
    if cfg.resume is not None:
        if multirun:
            raise UserError(f"resume={cfg.resume}: one run at a time, without -m")
        saved, hold = reopen(folder, cfg, typed), runs.hold
        cfg = saved.config
    elif multirun and (folder / "checkpoints").exists():
        before = runs.earlier(folder, typed)
        if before["status"] == "finished":
            score = before["metrics"][f"best/{before['monitor']}"]
            print(f"{folder.name}: finished before")
            return math.nan if score is None else score
        if before["status"] in ("running", "stopped") and (folder / LAST).is_file():
            saved, hold = Interrupted(cfg, typed, read(folder / LAST)), runs.hold
        else:
            runs.clear(folder)
    if launch.wanted(cfg):
        if multirun and saved:
            typed = [f"resume={runs.quoted(str(folder))}", f"trust={cfg.trust}"]
        return in_processes(cfg, folder, typed, multirun)
    launch.die_with_parent()
    with signals.handled(), hold(folder):
        overrides = saved.overrides if saved else typed
        results = {"status": "failed", "overrides": overrides}
        try:
            run = build(cfg, folder, [pruning] if pruning else [])
        except Exception as error:
            if multirun:
                return fail(folder, results, error)
            raise
        if saved:
            take_up(run, saved, folder)
        try:
            results["monitor"] = run.learner.monitor  # the default follows from the data
            runs.write_results(folder, results | {"status": "running"})
            runs.write(folder / "config.yaml", yaml.safe_dump(run.config, sort_keys=False))
            if not (multirun or runs.RANK):
                print_layers(run.learner)
            with log_file(folder / "train.log"):
                results |= fit_and_test(run, folder / LAST if saved else None)
        except (signals.Stopped, SystemExit) as stop:
            number = getattr(stop, "number", signals.received)
            if number is None:
                raise
            runs.write_results(folder, results | {"status": "stopped"})
            if not runs.RANK:
                said = f"stopped by {signal.Signals(number).name}"
                # elsewhere the process that waits for the jobs tells how to go on
                here = not multirun or hydra.launcher._target_.endswith("BasicLauncher")
                print(f"{said}; go on with:  {go_on(folder)}" if here else said, file=sys.stderr)
            if number == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ and not runs.RANK:
                # time is up
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
            sys.exit(128 + number)
        except Exception as error:
            if pruning and type(error).__name__ == "TrialPruned":
                runs.write_results(folder, results | {"status": "pruned"})
                print(f"{folder.name}: pruned")
                raise
            if "EADDRINUSE" in str(error):
                port = os.environ["MASTER_PORT"]
                error = UserError(f"MASTER_PORT={port}: in use; give torchrun another")
            elif launch.is_lost(error):
                key = "trainer.strategy.timeout.seconds"
                said = "another process of this run is gone, or did not answer within "
                said += f"{key}={OmegaConf.select(cfg, key)}"
                said += "" if runs.RANK else f"; go on with:  {go_on(folder)}"
                error = LostError(said)
            fail(folder, results, error)
            if multirun:
                return math.nan
            raise error
        runs.write_results(folder, results)
    score = results["metrics"][f"best/{run.learner.monitor}"]
    if multirun:
        print(f"{folder.name}: best {run.learner.monitor} {score:.4g}")
    elif not runs.RANK:
        report(results, os.path.relpath(folder))
    return score


def go_on(folder: Path) -> str:
    """The command that goes on with a run that was stopped, or with its multirun."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        return again(hydra.sweep.dir)
    words = [*config_dir(), f"resume={runs.quoted(os.path.relpath(folder))}"]
    return shlex.join(["python", "train.py", *words])


def in_processes(cfg: DictConfig, folder: Path, typed: list[str], multirun: bool) -> float:
    """Train in several processes, which do all the work and say what came of it."""
    if not any(word.startswith("resume=") for word in typed):
        typed = [*typed, f"hydra.run.dir={runs.quoted(str(folder))}"]
    try:
        check_devices(cfg)
        code = launch.launch(cfg.trainer.devices, [*config_dir(), *typed])
    finally:
        runs.remove_empty(folder)  # Hydra made it
    if code and not multirun:
        sys.exit(code)
    if code:
        return math.nan
    results = json.loads((folder / "results.json").read_text())
    return results["metrics"][f"best/{results['monitor']}"]


def fail(folder: Path, results: dict[str, Any], error: Exception) -> float:
    """Put down what went wrong; tell it too in a multirun, where the other jobs go on."""
    line = explain(error)
    results["error"] = line or f"{type(error).__name__}: {error}"
    with suppress(OSError):  # a full disk may be what went wrong
        runs.write_results(folder, results)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        if line is None:
            traceback.print_exc()
        print(f"error: {folder.name}: {results['error']}", file=sys.stderr)
    return math.nan


def take_up(run: Run, saved: Interrupted, folder: Path) -> None:
    """Refuse to go on with weights of another network, or on other data; take back what
    TensorBoard was told after the last checkpoint."""
    last = os.path.relpath(folder / LAST)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        now = flat(run.config)
        for key, value in flat(saved.contents["config"]).items():
            if now.get(key) != value:
                raise UserError(f"{key}={now.get(key)}: {last} has {value}; name another folder")
    try:
        run.learner.load_state_dict(saved.contents["state_dict"])
    except RuntimeError as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{last}: its weights are not those of its config: {said}") from None
    now = run.data.state_dict()
    for name, fitted in saved.contents["data"].items():
        same = torch.equal(now[name], fitted) if torch.is_tensor(fitted) else now[name] == fitted
        if not same:
            raise UserError(f"data: no longer those of the run: {name} differs from {last}")
    if not runs.RANK:
        cut_events(folder, saved.contents["events"])


def fit_and_test(run: Run, last: Path | None) -> dict[str, Any]:
    """Fit, from the last checkpoint on if there is one, test the best, and say what came of it:
    the contents of results.json. The figures of others, by whose they are and by metric, are rows
    of the table like the baselines."""
    trainer, learner, data = run.trainer, run.learner, run.data
    with signals.noted():
        trainer.fit(learner, data, ckpt_path=last, weights_only=True)
    (seconds, cpu), values = run.record.seconds, run.record.metrics
    values |= {name: value.item() for name, value in trainer.callback_metrics.items()}
    best = trainer.checkpoint_callback
    trainer.test(learner, data, ckpt_path=best.best_model_path, weights_only=True, verbose=False)
    values |= {name: value.item() for name, value in trainer.callback_metrics.items()}
    rows = compare(data, data.whole("test")) | run.config["published"]
    columns, cells = as_table({"network": values, **rows})
    lines = [columns, ["---"] * len(columns), *cells]
    text = "\n".join("|".join("" if v is None else str(v) for v in line) for line in lines)
    trainer.logger.experiment.add_text("test", text)
    return {
        "status": "finished",
        "metrics": {**values, f"best/{learner.monitor}": best.best_model_score.item()},
        "baselines": rows,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu, 1),
        "steps_per_second": round(trainer.global_step / seconds, 1),
        "parameters": sum(p.numel() for p in learner.network.parameters()),
        "best_checkpoint": os.path.relpath(best.best_model_path, trainer.default_root_dir),
        "versions": versions(),
        "git": git_revision(),
    }


def print_layers(learner: Learner) -> None:
    """The network's parts with the shapes that come out of them."""
    x, network = learner.example_input_array, learner.network
    total = sum(p.numel() for p in network.parameters())
    runs.print_table(
        f"{type(network).__name__}, {total} parameters, x {tuple(x.shape)}",
        ["part", "type", "output", "parameters"],
        layers(network, x),
    )


def report(results: dict[str, Any], folder: str) -> None:
    """The end of a run on the console: the network beside the baselines, and what to do next."""
    rows = {"network": results["metrics"], **results["baselines"]}
    runs.print_table(
        f"Test set, best of {results['epochs']} epochs "
        f"({results['steps']} steps, {results['seconds']:.0f} s)",
        *as_table(rows),
    )
    print(verdict(rows), end="\n\n")
    print(f"Look at it:       tensorboard --logdir {folder}")
    knobs = [o for o in results["overrides"] if not o.startswith("seed=")]
    command = shlex.join(["python", "train.py", "-m", *config_dir(), *knobs, "seed=0,1,2,3,4"])
    print(f"Over five seeds:  {command}")
    print(f"Use it:           seqlab predict {folder}/{results['best_checkpoint']}")


def config_dir() -> list[str]:
    """The `--config-dir` of this command line, as words of the next one."""
    sources = HydraConfig.get().runtime.config_sources
    return [
        f"--config-dir={os.path.relpath(source.path)}"
        for source in sources
        if source.provider == "command-line"
    ]


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Send this run's log lines to a file, and to stderr where no progress bar stands."""
    if runs.RANK:
        yield
        return
    handlers: list[logging.Handler] = [logging.FileHandler(path)]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    if not sys.stderr.isatty():
        handlers.append(logging.StreamHandler())
    log = logging.getLogger("seqlab")
    log.setLevel(logging.INFO)
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def git_revision() -> str | None:
    """The commit of the working tree, with `+changes` if files differ; None outside git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    try:
        return subprocess.check_output(
            command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return None
