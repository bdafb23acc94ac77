"""What every checkpoint holds beside the weights, and when `last.ckpt` is written."""

import io
import pickle
import platform
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from seqlab.engine import loggers, signals
from seqlab.engine.checkpoint import FORMAT
from seqlab.engine.errors import UserError
from seqlab.engine.runs import LAST

#: TensorBoard's files in a run's folder.
EVENTS = "events.out.tfevents.*"


class Last(Checkpoint):
    """Writes `last.ckpt`, from which an interrupted run goes on: when training begins, after each
    epoch, every so many steps, and when a signal asks the run to end. Adds to every checkpoint
    what the commands and a resumed run need.

    Within an epoch it is written before a batch or before a validation. Lightning has begun to
    count that one by then; the file has its counters as they are when that one comes next.

    Args:
        every_n_steps: optimiser steps between two writings, at least 1; None: once an epoch.
        config: the resolved config, plain values.
        sizes: of the network, see `construct.sizes_of`.
    """

    def __init__(self, every_n_steps: int | None, config: dict[str, Any], sizes: dict[str, Any]):
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps}: at least 1, or null")
        self.every_n_steps, self.config, self.sizes = every_n_steps, config, sizes
        self.began, self.metrics = clocks(), {}
        self.best: ModelCheckpoint | None = None
        self.untrained: dict[str, torch.Tensor] | None = None
        self.restored = False  # whether all that a run goes on from was taken from the file
        self.place, self.chunk, self.validated, self.since = "", 0, False, 0

    @property
    def seconds(self) -> list[float]:
        """The time spent on the run and the processor's time, without what a kill lost."""
        return [now - then for now, then in zip(clocks(), self.began, strict=True)]

    def on_train_start(self, trainer: L.Trainer, learner: Any) -> None:
        self.restored = True
        signals.install()  # Lightning's would send to other processes from inside a handler
        # an epoch that is resumed after its validation asks for the values of that
        known = {name: torch.tensor(v, dtype=torch.float64) for name, v in self.metrics.items()}
        trainer.callback_metrics.update(known)
        self.since = trainer.global_step
        for owner in (learner.network, *trainer.callbacks):
            check_plain(owner)
        if trainer.ckpt_path is None:
            if self.untrained is not None:
                self.keep_untrained(trainer)
            self.save(trainer, "epoch")

    def on_sanity_check_end(self, trainer: L.Trainer, learner: Any) -> None:
        if trainer.datamodule.base:  # the whole validation part was seen
            self.untrained = trainer.callback_metrics

    def keep_untrained(self, trainer: L.Trainer) -> None:
        """Have the untrained network, which was just validated, be the best so far."""
        best, known = self.best, {"epoch": 0, "step": 0, **self.untrained}
        best.best_model_score = best.kth_value = best.current_score = known[best.monitor]
        best.best_model_path = best.kth_best_model_path = best.format_checkpoint_name(known)
        best.best_k_models[best.best_model_path] = best.best_model_score
        trainer.callback_metrics.update(self.untrained)
        trainer.save_checkpoint(best.best_model_path)

    def on_train_batch_start(
        self, trainer: L.Trainer, learner: Any, batch: Any, batch_idx: int
    ) -> None:
        self.chunk = batch_idx
        self.save_or_stop(trainer, "batch", self.is_due(trainer))
        self.chunk, self.validated = batch_idx + 1, False

    def on_validation_start(self, trainer: L.Trainer, learner: Any) -> None:
        if learner.steps.average:
            learner.steps.average.begin(learner.network)
        if not trainer.sanity_checking:
            self.save_or_stop(trainer, "validation", self.is_due(trainer))
            self.validated = True

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if not trainer.sanity_checking:
            self.save_or_stop(trainer, "validation", due=False)

    def on_validation_end(self, trainer: L.Trainer, learner: Any) -> None:
        if learner.steps.average:
            learner.steps.average.end(learner.network)

    def on_train_epoch_end(self, trainer: L.Trainer, learner: Any) -> None:
        self.chunk = 0
        self.since = trainer.global_step
        self.save_or_stop(trainer, "epoch", due=True)

    def on_test_start(self, trainer: L.Trainer, learner: Any) -> None:
        signals.install()

    def on_test_batch_start(
        self, trainer: L.Trainer, learner: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0:  # a callback may have put other weights in place of the file's
            saved = trainer.strategy.load_checkpoint(trainer.ckpt_path, weights_only=True)
            learner.load_state_dict(saved["state_dict"])

    def is_due(self, trainer: L.Trainer) -> bool:
        """Whether a multiple of `every_n_steps` was passed since the last look."""
        every, before, self.since = self.every_n_steps, self.since, trainer.global_step
        return every is not None and self.since // every > before // every

    def save_or_stop(self, trainer: L.Trainer, place: str, due: bool) -> None:
        """Save if it is due, and end the run if a signal arrived, in whichever process."""
        number = signals.received or 0
        if trainer.world_size > 1:
            told = torch.tensor(number, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(told, reduce_op="max"))
        if due or number:
            self.save(trainer, place)
        if number:
            raise signals.Stopped(number)

    def save(self, trainer: L.Trainer, place: str) -> None:
        """Write the file; `place` is what comes next: an `epoch`, a `batch` or a `validation`."""
        self.place = place
        trainer.save_checkpoint(Path(trainer.default_root_dir, LAST))
        self.place = ""

    def on_save_checkpoint(self, trainer: L.Trainer, learner: Any, checkpoint: dict) -> None:
        if not all(weight.isfinite().all() for weight in learner.network.state_dict().values()):
            raise UserError(f"step {trainer.global_step}: weights overflow; lower optim.lr")
        checkpoint |= {
            "format": FORMAT,
            "config": self.config,
            "sizes": self.sizes,
            "data": trainer.datamodule.state_dict(),
            "metrics": {name: value.item() for name, value in trainer.callback_metrics.items()},
            "versions": versions(),
            "seconds": self.seconds,
            "should_stop": trainer.should_stop,
            "first": [0, 0] if self.place in ("", "epoch") else [trainer.current_epoch, self.chunk],
            "sums": {  # what the epoch's training metrics have summed so far, in each process
                f"{name}/{key}": learner.all_gather(sums).reshape(-1, *sums.shape)
                for name, metric in learner.metrics["train"].items(keep_base=True)
                for key, sums in metric.metric_state.items()
            },
            "loggers": [],  # how far each has come,
            "events": {},  # and how far TensorBoard's files reach
        }
        if trainer.is_global_zero:
            checkpoint["loggers"] = list(map(loggers.place, trainer.loggers))
            files = Path(trainer.default_root_dir).glob(EVENTS)
            checkpoint["events"] = {file.name: file.stat().st_size for file in files}
        if learner.steps.average:
            learner.steps.average.write(learner, checkpoint, resumable=bool(self.place))
        self.set_counters(checkpoint["loops"]["fit_loop"], trainer)

    def set_counters(self, counts: dict[str, Any], trainer: L.Trainer) -> None:
        """Set Lightning's counters to where what comes next is what comes next."""
        epochs, batches = counts["epoch_progress"], counts["epoch_loop.batch_progress"]
        validation = counts["epoch_loop.val_loop.batch_progress"]
        if self.place == "epoch":
            for part in (epochs["total"], epochs["current"]):
                part["completed"] = part["processed"]
            for part in (validation["total"], validation["current"]):
                part.update(dict.fromkeys(part, 0))
        if self.place == "batch":  # it was fetched and counted as ready
            batches["is_last_batch"] = False
            for part in (batches["total"], batches["current"]):
                part["ready"] = part["completed"]
            # On a restart Lightning counts one batch too many where it asks whether to validate
            # first: after a validation, and before the first batch, of an epoch or of all
            every = trainer.check_val_every_n_epoch
            seen = self.chunk if every else batches["total"]["completed"]
            twice = self.validated or seen == 0
            if every:
                twice = twice and (trainer.current_epoch + 1) % every == 0
            counts["epoch_loop.state_dict"]["_batches_that_stepped"] -= twice
        if self.place == "validation":  # Lightning begins anew one that ended in its first batch
            for part, n in ((validation["total"], 1), (validation["current"], 0)):
                part.update(ready=n, started=n, processed=0, completed=0)

    def on_load_checkpoint(self, trainer: L.Trainer, learner: Any, checkpoint: dict) -> None:
        if not trainer.training:  # the best is loaded too, to be tested
            return
        self.began = [now - t for now, t in zip(clocks(), checkpoint["seconds"], strict=True)]
        self.metrics, trainer.should_stop = checkpoint["metrics"], checkpoint["should_stop"]
        if trainer.max_epochs > checkpoint["config"]["trainer"]["max_epochs"]:
            trainer.should_stop = False  # a run that stopped early goes on, its patience anew
            for state in checkpoint["callbacks"].values():
                state.update({"wait_count": 0} if "wait_count" in state else {})
        if learner.steps.average:
            learner.steps.average.restore(learner.network, checkpoint["average"])
        trainer.datamodule.first = tuple(checkpoint["first"])
        self.chunk = checkpoint["first"][1]
        for name, metric in learner.metrics["train"].items(keep_base=True):
            for key in metric.metric_state:
                ranks = checkpoint["sums"][f"{name}/{key}"]
                if len(ranks) != trainer.world_size:  # another number of processes: one takes all
                    ranks = torch.cat([ranks.sum(0, keepdim=True), torch.zeros_like(ranks[:1])])
                setattr(metric, key, ranks[min(trainer.global_rank, len(ranks) - 1)].clone())
        folder = Path(trainer.default_root_dir)
        for state in checkpoint["callbacks"].values():
            if there := state.get("dirpath"):  # a run's folder may have been moved
                here = str(folder / "checkpoints")
                moved = {k: v.replace(there, here) for k, v in state.items() if isinstance(v, str)}
                state.update(moved)
                if models := state.get("best_k_models"):
                    state["best_k_models"] = {k.replace(there, here): models[k] for k in models}
            check_inside(state, folder)


def check_plain(owner: Any) -> None:
    """Refuse a state that could be written into a checkpoint and not be read again."""
    torch.save(owner.state_dict(), buffer := io.BytesIO())
    buffer.seek(0)
    try:
        torch.load(buffer, weights_only=True)
    except pickle.UnpicklingError:
        plain = "numbers, texts, lists, dicts and tensors can be kept"
        raise UserError(f"{type(owner).__name__}.state_dict: {plain}, other objects not") from None


def check_inside(value: Any, folder: Path) -> None:
    """Refuse paths out of a run's folder in its checkpoint: a callback would write there."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple)):
        for each in value:
            check_inside(each, folder)
    elif isinstance(value, str) and not (
        # relative to the folder too: a monitored `val/mse` is no path, and inside
        Path(folder, value).resolve().is_relative_to(folder.resolve())
    ):
        raise UserError(f"{LAST}: {value} is outside of the run's folder")


def clocks() -> list[float]:
    """The time and the processor's time, in seconds from some moment."""
    return [time.perf_counter(), time.process_time()]


@cache
def versions() -> dict[str, str]:
    """What a run was made with."""
    packages = ("seqlab", "torch", "lightning", "hydra-core")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
