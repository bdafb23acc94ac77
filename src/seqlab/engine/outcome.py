"""How a run ends: results.json, and what is printed when it was stopped or failed."""

import errno
import math
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from seqlab.engine import processes, report, runs, signals
from seqlab.engine.build import Run
from seqlab.engine.context import RunContext
from seqlab.engine.errors import LostError, UserError, explain, first_line
from seqlab.engine.last import versions
from seqlab.engine.steps import NonFinite
from seqlab.sources import WrongData


@contextmanager
def reported(results: dict[str, Any], context: RunContext) -> Iterator[None]:
    """Write results.json, and say how to go on, whichever way the run inside ends."""
    try:
        yield
        runs.write_results(context.folder, results)
    except (signals.Stopped, SystemExit) as stop:
        number = getattr(stop, "number", signals.received)
        if number is None:
            raise
        runs.write_results(context.folder, results | {"status": "stopped"})
        if not runs.RANK:
            said = f"stopped by {signal.Signals(number).name}"
            # elsewhere the process that waits for the jobs says how to go on
            said += f"; go on with:  {context.go_on()}" if context.here else ""
            with suppress(OSError):  # the terminal may be gone
                print(said, file=sys.stderr)
            # the time of a cluster's job is up
            if signal.Signals(number).name == "SIGUSR1" and "SLURM_JOB_ID" in os.environ:
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
        sys.exit(128 + number)
    except Exception as error:
        if type(error).__name__ == "TrialPruned":
            runs.write_results(context.folder, results | {"status": "pruned"})
            print(f"{context.folder.name}: pruned")
            raise
        if isinstance(error, NonFinite):
            error = UserError(f"{error}; lower optim.lr, or optim.on_nonfinite=skip")
        elif isinstance(error, WrongData):
            error = UserError(f"data: {error}")
        elif isinstance(error, (MisconfigurationException, ModuleNotFoundError)):
            error = UserError(f"trainer or callbacks: {first_line(error)}")
        elif "EADDRINUSE" in str(error):
            port = os.environ["MASTER_PORT"]
            error = UserError(f"MASTER_PORT={port}: in use; give torchrun another")
        elif processes.is_lost(error):
            said = "another process of this run is gone, or did not answer within "
            said += "trainer.strategy.timeout.seconds"
            error = LostError(said if runs.RANK else f"{said}; go on with:  {context.go_on()}")
        elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            error = UserError(f"{context.folder}: the disk is full")
        fail(results, error, context)
        if not context.multirun:
            raise error


def fail(results: dict[str, Any], error: Exception, context: RunContext) -> float:
    """Write down what went wrong; in a multirun, where the other jobs go on, print it too."""
    line = explain(error)
    results["error"] = line or f"{type(error).__name__}: {error}"
    with suppress(OSError, UserError):  # a full disk may be what went wrong
        runs.write_results(context.folder, results)
    if context.multirun:
        if line is None:
            traceback.print_exc()
        print(f"error: {context.folder.name}: {results['error']}", file=sys.stderr)
    return math.nan


def finished(
    run: Run, seconds: list[float], values: dict[str, float], rows: report.Rows
) -> dict[str, Any]:
    """What results.json holds of a run that came to its end.

    Args:
        run: what was trained.
        seconds: the time of the fit, and the processor's time.
        values: its metrics.
        rows: the metrics of the baselines and of published figures, by their names.
    """
    trainer, learner = run.trainer, run.learner
    return {
        "status": "finished",
        "metrics": {**values, f"best/{learner.monitor}": run.best.best_model_score.item()},
        "by_length": learner.by_length,
        "mode": run.best.mode,
        "baselines": rows,
        "advice": run.data.advice(report.best_baseline(run.objective, rows)),
        "epochs": trainer.current_epoch,
        "stopped": report.why_stopped(trainer),
        "steps": trainer.global_step,
        "seconds": round(seconds[0], 3),
        "cpu_seconds": round(seconds[1], 1),
        "steps_per_second": round(trainer.global_step / seconds[0], 1),
        "parameters": sum(p.numel() for p in learner.network.parameters()),
        "best_checkpoint": os.path.relpath(run.best.best_model_path, trainer.default_root_dir),
        "versions": versions(),
        "git": runs.git_revision(),
    }
