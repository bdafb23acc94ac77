"""What watches a run: progress, the record of what it was, pictures for TensorBoard."""

import logging
import os
import platform
import sys
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from torch import Tensor
from torch.utils.tensorboard.summary import hparams

from seqlab import pictures, signals
from seqlab.arguments import Size, checked
from seqlab.checkpoint import FORMAT
from seqlab.data import SequenceData, WindowData
from seqlab.model import over_time
from seqlab.runs import RANK

log = logging.getLogger("seqlab")

#: TensorBoard's files in a run's folder.
EVENTS = "events.out.tfevents.*"


class Progress(ProgressBar):
    """One bar for the whole fit on a terminal, and a log line after every validation.

    Without a terminal there is no bar and so no control character; the lines remain.
    """

    def __init__(self):
        super().__init__()
        self.bar = None
        self.enabled = sys.stderr.isatty() and RANK == 0

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        self.since = time.perf_counter(), trainer.global_step
        if self.enabled:
            columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
            self.bar = RichProgress(
                *columns,
                TextColumn("{task.description}"),
                console=Console(stderr=True),
                refresh_per_second=4,  # drawing takes milliseconds from the training
            )
            calls = self.total_train_batches * trainer.max_epochs
            self.task = self.bar.add_task(
                "", total=calls, completed=trainer.fit_loop.total_batch_idx
            )
            self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.bar:
            self.bar.update(self.task, completed=trainer.fit_loop.total_batch_idx + 1)

    def on_validation_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        start, from_step = self.since
        rate = (trainer.global_step - from_step) / (time.perf_counter() - start)
        monitored = trainer.callback_metrics[learner.monitor].item()
        line = (
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  step {trainer.global_step}  "
            f"{learner.monitor} {monitored:.4g}  {rate:.0f} steps/s"
        )
        log.info(line)
        if self.bar:
            self.bar.update(self.task, description=line)

    def on_train_end(self, *args: Any) -> None:
        if self.bar:
            self.bar.stop()

    on_exception = on_train_end


class Record(Callback):
    """Writes the run's config where its readers look: TensorBoard's text and HParams pages, and
    every checkpoint, as plain values. A checkpoint also says how far TensorBoard's files reach and
    how long the run took to get there.

    Args:
        config: the resolved config.
        knobs: the values that one would compare runs by, by dotted key.
    """

    def __init__(self, config: dict[str, Any], knobs: dict[str, Any]):
        self.config, self.knobs = config, knobs
        self.began, self.metrics = clocks(), {}

    @property
    def seconds(self) -> list[float]:
        """The time spent on the run and the processor's, what was lost to a kill excepted."""
        return [now - then for now, then in zip(clocks(), self.began, strict=True)]

    def on_fit_start(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        if trainer.ckpt_path or RANK:
            return
        logger = trainer.logger
        # not log_hyperparams, which would give each metric a point at step 0
        metrics = dict.fromkeys((learner.monitor, f"best/{learner.monitor}"), 0.0)
        knobs = {
            k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in self.knobs.items()
        }
        for summary in hparams(knobs, metrics):
            logger.experiment.file_writer.add_summary(summary)
        text = yaml.safe_dump(self.config, sort_keys=False)
        logger.experiment.add_text("config", f"```yaml\n{text}```")

    def on_train_start(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        # an epoch that is taken up after its validation asks for what that gave
        known = {name: torch.tensor(v, dtype=torch.float64) for name, v in self.metrics.items()}
        trainer.callback_metrics.update(known)

    def on_train_epoch_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        # the checkpoint callback takes this epoch's value in only after this hook
        before = trainer.checkpoint_callback.best_model_score
        best = trainer.callback_metrics[learner.monitor].item()
        best = best if before is None else min(best, before.item())
        trainer.logger.log_metrics({f"best/{learner.monitor}": best}, trainer.global_step)

    def on_save_checkpoint(self, trainer: L.Trainer, learner: Any, checkpoint: dict) -> None:
        checkpoint["format"] = FORMAT
        checkpoint["config"] = self.config
        checkpoint["data"] = trainer.datamodule.state_dict()
        checkpoint["metrics"] = {k: v.item() for k, v in trainer.callback_metrics.items()}
        checkpoint["versions"] = versions()
        checkpoint["seconds"] = self.seconds
        checkpoint["events"] = {}
        if trainer.is_global_zero:
            trainer.logger.experiment.flush()
            files = Path(trainer.logger.log_dir).glob(EVENTS)
            checkpoint["events"] = {file.name: file.stat().st_size for file in files}

    def on_load_checkpoint(self, trainer: L.Trainer, learner: Any, checkpoint: dict) -> None:
        if trainer.training:  # the best is loaded too, to be tested
            spent = zip(clocks(), checkpoint["seconds"], strict=True)
            self.began = [now - before for now, before in spent]
            self.metrics = checkpoint["metrics"]


def clocks() -> list[float]:
    """The time and the processor's, in seconds from some moment."""
    return [time.perf_counter(), time.process_time()]


def cut_events(folder: Path, lengths: dict[str, int]) -> None:
    """Take back what TensorBoard was told after a checkpoint, so that it is told only once.

    Args:
        folder: where the event files lie.
        lengths: by name, how much of a file there was at the checkpoint.
    """
    for file in folder.glob(EVENTS):
        if file.name not in lengths:
            file.unlink()
        elif file.stat().st_size > lengths[file.name]:
            os.truncate(file, lengths[file.name])


@cache
def versions() -> dict[str, str]:
    """What a run was made with."""
    packages = ("seqlab", "torch", "lightning", "hydra-core")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


class Last(Checkpoint):
    """Writes `last.ckpt`, which an interrupted run goes on from: when training begins, after each
    epoch, after every so many steps, and when a signal asks the run to end.

    What Lightning counts is put down as one of two places that its loops return to exactly: between
    two epochs, or between two calls of the training step with the validation that may be due there
    still to come.

    Args:
        every_n_steps: optimiser steps between two writings; None: once an epoch.
    """

    @checked
    def __init__(self, every_n_steps: Size | None):
        self.every_n_steps = every_n_steps
        self.place = ""

    def on_train_start(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        self.since = trainer.global_step
        if trainer.ckpt_path is None:
            self.save(trainer, "between epochs")

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        every, before, self.since = self.every_n_steps, self.since, trainer.global_step
        due = every is not None and self.since // every > before // every
        self.save_or_stop(trainer, "in an epoch", due)

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if not trainer.sanity_checking:
            self.save_or_stop(trainer, "in an epoch", due=False)

    def on_train_epoch_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        self.save_or_stop(trainer, "between epochs", due=True)

    def save_or_stop(self, trainer: L.Trainer, place: str, due: bool) -> None:
        """Save if it is due, and end the run if a signal came, on whichever rank."""
        number = signals.received or 0
        if trainer.world_size > 1:
            told = torch.tensor(number, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(told, reduce_op="max"))
        if due or number:
            self.save(trainer, place)
        if number:
            raise signals.Stopped(number)

    def save(self, trainer: L.Trainer, place: str) -> None:
        self.place = place
        trainer.save_checkpoint(Path(trainer.default_root_dir, "checkpoints", "last.ckpt"))
        self.place = ""

    def on_save_checkpoint(self, trainer: L.Trainer, learner: Any, checkpoint: dict) -> None:
        checkpoint["should_stop"] = trainer.should_stop
        counts = checkpoint["loops"]["fit_loop"]
        epochs, batches = counts["epoch_progress"], counts["epoch_loop.batch_progress"]
        validation = counts["epoch_loop.val_loop.batch_progress"]
        if self.place == "between epochs":
            for part in (epochs["total"], epochs["current"]):
                part.update(dict.fromkeys(part, part["processed"]))
            validation["total"].update(dict.fromkeys(validation["total"], 0))
        elif self.place == "in an epoch":
            for part in (batches["total"], batches["current"]):
                part.update(dict.fromkeys(part, part["processed"]))
            loop = trainer.fit_loop.epoch_loop
            due = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
            counts["epoch_loop.state_dict"]["_batches_that_stepped"] = (
                loop.total_batch_idx + 1 - due
            )
            # a validation in its first batch is what Lightning begins anew
            for part, n in ((validation["total"], 1), (validation["current"], 0)):
                part.update(ready=n, started=n, processed=0, completed=0)

    def on_load_checkpoint(self, trainer: L.Trainer, learner: Any, checkpoint: dict) -> None:
        trainer.should_stop = checkpoint["should_stop"]
        # a run's folder may have been moved
        here = str(Path(trainer.default_root_dir, "checkpoints"))
        for state in checkpoint["callbacks"].values():
            if there := state.get("dirpath"):
                moved = {k: v.replace(there, here) for k, v in state.items() if isinstance(v, str)}
                state.update(moved)
                if "best_k_models" in state:
                    models = state["best_k_models"].items()
                    state["best_k_models"] = {k.replace(there, here): v for k, v in models}


class Pictures(Callback):
    """Draws what the network does, for TensorBoard's image page: its predictions and its states on
    the validation set as it learns, and in the end its predictions on the test set.

    Args:
        every_n_epochs: epochs between two drawings, at least 1; the first epoch is drawn too.
    """

    @checked
    def __init__(self, every_n_epochs: Size):
        self.every_n_epochs = every_n_epochs

    def on_validation_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        if trainer.current_epoch % self.every_n_epochs == 0 and not trainer.sanity_checking:
            self.add("", "val", trainer, learner)

    def on_test_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        self.add("test/", "test", trainer, learner)

    def add(self, prefix: str, split: str, trainer: L.Trainer, learner: L.LightningModule) -> None:
        """Draw one split's first sequences into TensorBoard's images."""
        if RANK:
            return
        learner.eval()
        with torch.inference_mode():
            figures = predictions(trainer.datamodule, split, learner)
            if split == "val":  # each figure is a tenth of a second, in a sweep for every job
                figures |= states(trainer.datamodule, split, learner)
        for name, figure in figures.items():
            trainer.logger.experiment.add_figure(prefix + name, figure, trainer.global_step)


def predictions(data: SequenceData, split: str, learner: L.LightningModule) -> dict[str, Any]:
    """Figures of the predictions for a split, by name; none where targets are no numbers or stand
    at every step."""
    x, y, *lengths = data.splits[split][:1000]
    if data.every_step == "always" or not y.is_floating_point():
        return {}
    name, baseline = next(iter(data.baselines(x).items()), ("", None))
    # in the data's units: what was predicted, what was true, what the baseline says
    prediction = to_numpy(data.unscale(learner(x, *lengths)))
    target = to_numpy(data.unscale(y))
    baseline = None if baseline is None else to_numpy(data.unscale(baseline))
    figures = {"prediction": pictures.prediction_against_target(target, prediction, baseline, name)}
    if isinstance(data, WindowData):
        times = data.target_times(split).to_numpy()[: len(x)]  # of the first group alone
        parts = (part[: len(times)] for part in (target, prediction, baseline))
        figures["forecast"] = pictures.forecast(times, *parts, name, data.lead)
    return figures


def states(data: SequenceData, split: str, learner: L.LightningModule) -> dict[str, Any]:
    """Figures of what the hidden units hold over a split's first sequence, by name; none where the
    network has no step."""
    x, y, *lengths = data.splits[split][:1]
    x = x[:, : lengths[0][0]] if lengths else x
    found = over_time(learner.network, x.to(learner.dtype))
    if not found:
        return {}
    x_TF, stm_TLH, *ltm_TLH = to_numpy(x[0]), *map(to_numpy, found)
    always = data.every_step == "always"
    last = learner(x)[:, -1] if always else learner(x)
    numbers = y.is_floating_point() and not always
    return {
        "states": pictures.states_over_time(x_TF, stm_TLH, *ltm_TLH),
        "unrolled": pictures.unrolled(
            x_TF,
            stm_TLH,
            to_numpy(last[0]),
            to_numpy(y[0]) if numbers else None,
            "(STM, LTM)" if ltm_TLH else "STM",
        ),
    }


def to_numpy(value: Tensor) -> Any:
    """A float array for the pictures."""
    return value.double().cpu().numpy()
