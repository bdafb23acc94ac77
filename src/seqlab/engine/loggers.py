"""The loggers of a run: building them, what each is given, and what of them a resumed run keeps."""

import csv
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import Logger

from seqlab.engine.checkpoint import read
from seqlab.engine.construct import KINDS, Trust, construct
from seqlab.engine.context import RunContext
from seqlab.engine.errors import UserError, first_line
from seqlab.engine.runs import LAST, RANK


def build(nodes: dict[str, Any], context: RunContext, trust: Trust) -> list[Logger]:
    """Construct the loggers that a config names, by their keys; null means none. A constructor that
    asks is told the run's folder and name, and in a resumed run the id that its record had."""
    nodes, last = {k: node for k, node in nodes.items() if node is not None}, context.folder / LAST
    known = read(last).get("loggers", []) if last.exists() and not RANK else []
    above, made = f"{context.multirun.name}/" if context.multirun else "", []
    title = f"{above}{context.folder.absolute().name}"
    for i, (name, node) in enumerate(nodes.items()):
        place = known[i] if i < len(known) and isinstance(known[i], str) else None
        given = {"save_dir": context.folder, "name": title, "run_name": title}
        given |= {"id": place, "run_id": place}
        logger = construct(node, KINDS["logger"], f"logger.{name}", trust, **given)
        if isinstance(logger, TensorBoardLogger):
            logger.NAME_HPARAMS_FILE = "config.yaml"  # is there: Lightning writes no second one
        made.append(logger)
    return made


def connect(loggers: list[Logger]) -> None:
    """Begin the records that may need a server, before a run's folder holds anything."""
    for logger in loggers:
        try:
            if not isinstance(logger, TensorBoardLogger | CSVLogger):
                _ = logger.experiment
        except Exception as error:  # whatever its package makes of it
            said = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"logger: {type(logger).__name__}: {said}") from error


def add_text(logger: Logger, name: str, text: str) -> None:
    """Give a logger a text in Markdown, if it shows any."""
    if isinstance(logger, MLFlowLogger):
        logger.experiment.log_text(logger.run_id, text, f"{name}.md")
    elif isinstance(logger, WandbLogger):
        logger.log_text(name, ["text"], [[text]])
    elif hasattr(logger.experiment, "add_text"):  # as TensorBoard's has
        logger.experiment.add_text(name, text)


def add_figure(logger: Logger, name: str, figure: Any, step: int) -> None:
    """Give a logger a Matplotlib figure, drawn after so many optimiser steps, if it shows any."""
    if isinstance(logger, MLFlowLogger):
        logger.experiment.log_figure(logger.run_id, figure, f"{name}/{step:07}.png")
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [figure], step)
    elif hasattr(logger.experiment, "add_figure"):
        logger.experiment.add_figure(name, figure, step)


def place(logger: Logger) -> int | str | None:
    """How far a logger's record has come, flushed: the rows of a CSV file, of others their id."""
    logger.save()
    if not isinstance(logger, CSVLogger):
        return str(logger.version) if logger.version else None
    return len(csv_of(logger).read_text().splitlines()) - 1 if csv_of(logger).exists() else 0


def csv_of(logger: CSVLogger) -> Path:
    """The file that a CSV logger writes."""
    return Path(logger.log_dir, ExperimentWriter.NAME_METRICS_FILE)


def cut(logger: CSVLogger, n_rows: int) -> None:
    """Cut a CSV file back to the rows that it had at the checkpoint that a run is resumed from.
    Lightning's logger begins a new file, so it is given them again."""
    path, kept = csv_of(logger), csv_of(logger).with_name("kept.csv")
    if path.exists() and not kept.exists():  # there it is after a kill in the middle of this
        path.replace(kept)
    rows = csv.DictReader(kept.read_text().splitlines()) if kept.exists() else ()
    for row in list(rows)[:n_rows]:  # texts, so that each number is written as it stood
        step = int(row.pop("step"))
        logger.log_metrics({name: value for name, value in row.items() if value}, step)
    logger.save()
    kept.unlink(missing_ok=True)


def finish(trainer: L.Trainer, text: str) -> None:
    """Give the loggers the table of the test, and end their records. All but TensorBoard, where one
    point is no curve, have the metrics of the test too: they list runs to compare them."""
    test = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
    for logger in trainer.loggers if trainer.is_global_zero else ():
        add_text(logger, "test", text)
        if not isinstance(logger, TensorBoardLogger):
            logger.log_metrics(test, trainer.global_step)
        logger.finalize("success")  # the text began another file, with a thread of its own
    close(trainer.loggers)


def close(loggers: list[Logger], exit_code: int = 0) -> None:
    """End what would take in the next run of this process too."""
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        import wandb

        wandb.finish(exit_code)
