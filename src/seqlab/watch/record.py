"""The record of a run with its loggers: its config, what it was started with, its best metric."""

from typing import Any, Literal

import lightning as L
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from seqlab.engine import loggers


class Record(Callback):
    """Gives the loggers a run's config and, after each epoch, the best value of the monitored
    metric so far. In TensorBoard the config is a text, and the overrides are the HParams page.

    Args:
        config: the resolved config, plain values.
        overrides: `KEY=VALUE` each.
        monitor: the metric, `split/name`, that decides what is best.
        mode: which direction of it is better.
    """

    def __init__(
        self,
        config: dict[str, Any],
        overrides: list[str],
        monitor: str,
        mode: Literal["min", "max"],
    ):
        self.config, self.overrides = config, overrides
        self.monitor, self.better = monitor, max if mode == "max" else min
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]

    def on_fit_start(self, trainer: L.Trainer, learner: Any) -> None:
        text = f"```yaml\n{yaml.safe_dump(self.config, sort_keys=False)}```"
        for logger in () if trainer.ckpt_path or trainer.global_rank else trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                # Not the list of columns: TensorBoard would take one run's for all. Without it
                # there is a column for each key that any run was given, those that differ first.
                _columns, start, end = hparams(self.hyperparameters(), {})
                for summary in (start, end) if self.overrides else ():
                    logger.experiment.file_writer.add_summary(summary)
            else:
                logger.log_hyperparams(self.config)
            loggers.add_text(logger, "config", text)

    def on_exception(self, trainer: L.Trainer, learner: Any, exception: BaseException) -> None:
        loggers.close(trainer.loggers, exit_code=1)

    def hyperparameters(self) -> dict[str, int | float | str]:
        """What the run was started with, by key: numbers and texts, all else as it was written."""
        found = {}
        for override in OverridesParser.create().parse_overrides(self.overrides):
            value, written = override.value(), override.input_line.partition("=")[2]
            found[override.key_or_group] = value if type(value) in (int, float, str) else written
        return found

    def on_validation_end(self, trainer: L.Trainer, learner: Any) -> None:
        # before a network learns what a base leaves, it is validated, and it may stay the best
        if trainer.datamodule.base or not trainer.sanity_checking:
            value = trainer.callback_metrics[self.monitor].item()
            self.best = value if self.best is None else self.better(self.best, value)

    def on_train_epoch_end(self, trainer: L.Trainer, learner: Any) -> None:
        if self.best is not None:
            # TensorBoard opens two groups, which are to be train and val, and has a column of the
            # HParams page for the first five scalars in alphabetical order
            best = {f"train/best/{self.monitor}": self.best}
            for logger in trainer.loggers:
                logger.log_metrics(best, trainer.global_step)
