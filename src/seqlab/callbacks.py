"""What watches a run: progress, the record of what it was, pictures for TensorBoard."""

import logging
import platform
import sys
import time
from importlib.metadata import version
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback, ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from torch import Tensor
from torch.utils.tensorboard.summary import hparams

from seqlab import pictures
from seqlab.arguments import Size, checked
from seqlab.checkpoint import FORMAT
from seqlab.data import SequenceData, WindowData
from seqlab.model import over_time

log = logging.getLogger("seqlab")


class Progress(ProgressBar):
    """One bar for the whole fit on a terminal, and a log line after every validation.

    Without a terminal there is no bar and so no control character; the lines remain.
    """

    def __init__(self):
        super().__init__()
        self.bar = None
        self.enabled = sys.stderr.isatty()

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        self.since = time.perf_counter(), trainer.global_step
        if self.enabled:
            columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
            self.bar = RichProgress(
                *columns, TextColumn("{task.description}"), console=Console(stderr=True)
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
    every checkpoint, as plain values.

    Args:
        config: the resolved config.
        knobs: the values that one would compare runs by, by dotted key.
    """

    def __init__(self, config: dict[str, Any], knobs: dict[str, Any]):
        self.config, self.knobs = config, knobs

    def on_fit_start(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
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


def versions() -> dict[str, str]:
    """What a run was made with."""
    packages = ("seqlab", "torch", "lightning", "hydra-core")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


class Pictures(Callback):
    """Draws what the network does, for TensorBoard's image page: on the validation set as it
    learns, and at the end on the test set.

    Args:
        every_n_epochs: epochs between two drawings, at least 1; the first epoch is drawn too.
    """

    @checked
    def __init__(self, every_n_epochs: Size):
        self.every_n_epochs = every_n_epochs

    def on_validation_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        if trainer.current_epoch % self.every_n_epochs == 0:
            self.add("", "val", trainer, learner)

    def on_test_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        self.add("test/", "test", trainer, learner)

    def add(self, prefix: str, split: str, trainer: L.Trainer, learner: L.LightningModule) -> None:
        """Draw one split's first sequences into TensorBoard's images."""
        learner.eval()
        with torch.inference_mode():
            figures = self.draw(trainer.datamodule, split, learner)
        for name, figure in figures.items():
            trainer.logger.experiment.add_figure(prefix + name, figure, trainer.global_step)

    def draw(self, data: SequenceData, split: str, learner: L.LightningModule) -> dict[str, Any]:
        """The figures by name."""
        x, y, *lengths = data.splits[split][:1000]
        figures, target = {}, None
        if y.is_floating_point() and not data.every_step:
            name, baseline = next(iter(data.baselines(x).items()), ("", None))
            # in the data's units: what was predicted, what was true, what the baseline says
            prediction = to_numpy(data.unscale(learner(x, *lengths)))
            target = to_numpy(data.unscale(y))
            baseline = None if baseline is None else to_numpy(data.unscale(baseline))
            figures["prediction"] = pictures.prediction_against_target(
                target, prediction, baseline, name
            )
        if isinstance(data, WindowData):
            figures["forecast"] = pictures.forecast(target, prediction, baseline, name)
        x = x[:1, : lengths[0][0]] if lengths else x[:1]
        states = over_time(learner.network, x.to(learner.dtype))
        if states:
            x_TF, stm_TLH, *ltm_TLH = to_numpy(x[0]), *map(to_numpy, states)
            figures["states"] = pictures.states_over_time(x_TF, stm_TLH, *ltm_TLH)
            last = learner(x)[:, -1] if data.every_step else learner(x)
            figures["unrolled"] = pictures.unrolled(
                x_TF,
                stm_TLH,
                to_numpy(last[0]),
                None if target is None else to_numpy(y[0]),
                "(STM, LTM)" if ltm_TLH else "STM",
            )
        return figures


def to_numpy(value: Tensor) -> Any:
    """A float array for the pictures."""
    return value.float().cpu().numpy()
