"""A Hydra sweeper that composes each job's config once, not before the first job and again.

Hydra looks for its plugins in packages of this name.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.types import HydraContext
from omegaconf import DictConfig


class JobConfigs(ConfigLoaderImpl):
    """Hydra's config loader, which may have the configs of jobs already."""

    jobs: dict[tuple[str, ...], DictConfig]

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        config = self.jobs.pop(tuple(sweep_overrides), None)
        return config or super().load_sweep_config(master_config, sweep_overrides)


class ComposeOnce(BasicSweeper):
    """Hydra's own sweeper, which composes the configs of all jobs before it starts the first, so
    that a mistake in any is told at once. Jobs that run in this process get these: what changes
    under `conf/` meanwhile is for the next multirun, and each begins a tenth of a second earlier.
    """

    #: How many configs are kept, each of an eighth of a megabyte.
    KEPT = 1000

    def setup(self, *, hydra_context: HydraContext, config: DictConfig, **rest: Any) -> None:
        if config.hydra.launcher._target_.endswith("BasicLauncher"):
            loader = JobConfigs(hydra_context.config_loader.get_search_path())
            loader.jobs = {}
            hydra_context = replace(hydra_context, config_loader=loader)
        super().setup(hydra_context=hydra_context, config=config, **rest)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        loader = self.hydra_context.config_loader
        if isinstance(loader, JobConfigs):
            here, batch = batch[: self.KEPT], batch[self.KEPT :]
            loader.jobs = {
                tuple(job): loader.load_sweep_config(self.config, list(job)) for job in here
            }
        super().validate_batch_is_legal(batch)
