"""One function: config in, trained run and its score out."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from seqlab.engine import loggers, processes, report, resume, runs, signals
from seqlab.engine.build import Run, build
from seqlab.engine.construct import untrusted
from seqlab.engine.context import RunContext
from seqlab.engine.intervals import complete
from seqlab.engine.outcome import fail, finished, reported


def train(
    cfg: DictConfig, context: RunContext, watch: Callable[[str], Callback] | None = None
) -> float:
    """Build what the config names, fit it, test its best checkpoint and write the results.

    Args:
        cfg: the composed config of `conf/config.yaml`.
        context: the run's folder and the command that started it.
        watch: makes one more callback from the monitored metric's name.

    Returns:
        The best value of the monitored metric. In a multirun, NaN for a job that failed: its error
        is printed and stands in its results.json, and the other jobs go on.

    Raises:
        UserError: the config names something that cannot be built. No run folder is left then.
        SystemExit: a signal ended the run; the exit code is 128 + its number.
    """
    folder, multirun = context.folder, context.multirun is not None
    begun = resume.begin(cfg, context)
    if begun.score is not None:
        print(f"{folder.name}: finished before")
        return begun.score
    if processes.wanted(begun.config.trainer.devices):
        return resume.in_processes(begun, context)
    processes.die_with_parent()
    context = replace(context, trust=untrusted(OmegaConf.to_container(begun.config)))
    results = dict(status="failed", overrides=begun.overrides, groups=begun.groups, metrics={})
    take_folder = runs.lock_folder if begun.saved else runs.new_folder
    with signals.handled(), take_folder(folder):
        try:
            run = build(begun.config, context, begun.trust, watch)
            loggers.connect(run.trainer.loggers)
        except Exception as error:
            if multirun:
                return fail(results, error, context)
            raise
        if begun.saved:
            resume.check_resumable(run, begun.saved, context)
        with reported(results, context):
            results["monitor"] = run.learner.monitor
            runs.write_results(folder, results | {"status": "running"})
            runs.write_text(folder / "config.yaml", yaml.safe_dump(run.config, sort_keys=False))
            report.print_layers(run, context)
            with runs.log_file(folder / "train.log"):
                results |= fit_and_test(run, folder / runs.LAST if begun.saved else None)
    score = results["metrics"].get(f"best/{run.learner.monitor}", math.nan)
    report.print_end(run, results, context)
    return score


def fit_and_test(run: Run, last: Path | None) -> dict[str, Any]:
    """Fit, from the last checkpoint on if there is one; test the best checkpoint; and return what
    results.json holds. Published figures are rows of the table like the baselines."""
    trainer, learner, data = run.trainer, run.learner, run.data
    with signals.defer_signals():
        resume.fit(run, last)
    seconds, values = run.last.seconds, run.last.metrics
    values |= {name: value.item() for name, value in trainer.callback_metrics.items()}
    best = run.best.best_model_path
    data.refit()
    if trainer.is_global_zero:
        complete(best, data, run.objective)
    trainer.strategy.barrier()
    trainer.test(learner, data, ckpt_path=best, weights_only=True, verbose=False)
    values |= {name: value.item() for name, value in trainer.callback_metrics.items()}
    rows = report.compare(data, run.objective) | run.config["published"]
    loggers.finish(trainer, report.as_markdown(run.objective, {"network": values, **rows}))
    return finished(run, seconds, values, rows)
