"""Going on with an interrupted run: what it was, what may change, what is not to be trusted."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from seqlab.checkpoint import TRUSTED, read
from seqlab.errors import UserError
from seqlab.runs import remove_empty

#: What a run may go on with in another way; any other difference would make it another run.
MAY_CHANGE = ("trainer.max_epochs", "trainer.accelerator", "trainer.devices", "threads")


#: The file in a run's folder that it is taken up from.
LAST = Path("checkpoints", "last.ckpt")

#: What that file must hold for it.
PARTS = ("loops", "callbacks", "optimizer_states", "lr_schedulers", "sums", "should_stop", "events")


@dataclass
class Interrupted:
    """An interrupted run: its config, the overrides that made it, its last checkpoint."""

    config: DictConfig
    overrides: list[str]
    contents: dict[str, Any]


def reopen(folder: Path, cfg: DictConfig, typed: list[str]) -> Interrupted:
    """Read an interrupted run.

    Args:
        folder: the run's directory.
        cfg: the config composed from this command line, of which `resume` and `trust` count.
        typed: the overrides of this command line.

    Raises:
        UserError: there is nothing to go on with, or not in the way that was typed.
    """
    key = f"resume={cfg.resume}"
    if not (folder / LAST).is_file():
        remove_empty(folder)  # Hydra made it
        raise UserError(f"{key}: nothing to resume, it has no {LAST}")
    contents = read(folder / LAST)
    for part in PARTS:
        if part not in contents:
            raise UserError(f"{key}: {LAST} has no {part} to go on from")
    check_trusted(contents["config"], (*TRUSTED, "torch", "lightning", "datetime", *cfg.trust))
    config = OmegaConf.create(contents["config"])
    try:
        before = json.loads((folder / "results.json").read_text())
        status, overrides = before["status"], list(map(str, before["overrides"]))
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{key}: its results.json is missing or damaged") from None
    new = [word for word in typed if key_of(word) not in ("resume", "trust")]
    epochs = config.trainer.max_epochs
    if new:
        change(key, config, overrides, new)
    if config.trainer.max_epochs < epochs:
        raise UserError(
            f"trainer.max_epochs={config.trainer.max_epochs}: {key} has {epochs}, only more will do"
        )
    if status == "finished" and config.trainer.max_epochs == epochs:
        raise UserError(f"{key}: finished; trainer.max_epochs={2 * epochs} would take it further")
    config.trust = cfg.trust
    replaced = {key_of(word) for word in new}
    kept = [word for word in overrides if key_of(word) not in replaced]
    return Interrupted(config, kept + new, contents)


def key_of(override: str) -> str:
    """The key that `KEY=VALUE` sets."""
    return override.partition("=")[0].lstrip("+")


def change(key: str, saved: DictConfig, overrides: list[str], new: list[str]) -> None:
    """Put what the new overrides change into the saved config.

    Raises:
        UserError: they change what may not change.
    """
    name = HydraConfig.get().job.config_name
    was, now = (flat(compose(name, words)) for words in (overrides, overrides + new))
    for path in {**was, **now}:
        if was.get(path) == now.get(path):
            continue
        if path not in MAY_CHANGE:
            raise UserError(
                f"{path}={now.get(path)}: {key} has {was.get(path)}; "
                f"a resumed run may change {', '.join(MAY_CHANGE)}"
            )
        if path == "trainer.max_epochs" and "${derived.n_steps}" in now.values():
            raise UserError(f"{path}={now[path]}: the run's schedule ends with its {was[path]}")
        OmegaConf.update(saved, path, now[path])


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a nested config by their dotted keys, interpolations as they stand."""
    if isinstance(node, DictConfig):
        node = OmegaConf.to_container(node, resolve=False)
    if not isinstance(node, dict):
        return {prefix: node}
    found = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else key)
    return found


def check_trusted(config: dict[str, Any], trusted: tuple[str, ...]) -> None:
    """Refuse a config that names a class of any other package, before that is imported."""
    for path, value in flat(config).items():
        if path.rpartition(".")[2] != "_target_":
            continue
        package = str(value).partition(".")[0]
        if not any(str(value).startswith(f"{name}.") for name in trusted):
            raise UserError(f"{path}={value}: not trusted; trust=[{package}] says its code may run")
