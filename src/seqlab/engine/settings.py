"""What a config says, as plain values, and what is checked before anything is built from it."""

import os
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from seqlab.engine.errors import UserError, first_line
from seqlab.engine.processes import INSIDE
from seqlab.engine.runs import register_resolvers

#: Arguments of Lightning's Trainer that do not go with a run here, and what does.
INSTEAD = {
    "gradient_clip_val": "optim.clip clips gradients here",
    "accumulate_grad_batches": "data.accumulate adds gradients here",
    "fast_dev_run": "trainer=debug is a short run here",
    "limit_train_batches": "without training no epoch is best",
    "limit_val_batches": "without validation no epoch is best",
    "limit_test_batches": "without a test there are no results",
    "callbacks": "callbacks.NAME={_target_: CLASS} adds one here",
    "default_root_dir": "hydra.run.dir names the run's folder here",
    "logger": "logger=[tensorboard,csv] chooses loggers here",
    "plugins": "a run writes its files and finds its processes itself",
}


class Threads(BaseModel):
    """What is checked of the config wherever a network computes."""

    model_config = ConfigDict(strict=True)
    threads: int = Field(ge=1, le=1024)


class Settings(Threads):
    """What no constructor asks for or checks."""

    seed: int = Field(ge=0, lt=2**32)
    monitor: str | None
    published: dict[str, dict[str, float]]
    trust: list[str]
    resume: Any
    init_from: str | None
    init_head: bool
    optimizer: Any = Field(alias="optim.optimizer")
    clip: Any = Field(alias="optim.clip")
    on_nonfinite: Any = Field(alias="optim.on_nonfinite")
    graph: bool = Field(False, alias="optim.graph")  # an older run's config has none
    max_epochs: int = Field(ge=1, alias="trainer.max_epochs")
    log_every_n_steps: int = Field(ge=1, alias="trainer.log_every_n_steps")
    check_val_every_n_epoch: int | None = Field(1, ge=1, alias="trainer.check_val_every_n_epoch")
    val_check_interval: int | float | None = Field(1, gt=0, alias="trainer.val_check_interval")
    checkpoint: Any = Field(alias="callbacks.checkpoint")
    last: Any = Field(alias="callbacks.last")


def resolved(cfg: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config as plain values, checked, to build from and to write down. In what is written down
    a value from the environment stays the `${oc.env:...}` that asks for it, since it may be a
    secret, or the `${torchrun:...}`, since it may be another when the run is resumed."""
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        if (raw := flat(cfg).get(error.full_key)) is None:
            raise
        raise UserError(f"{error.full_key}={raw}: {first_line(error)}") from error
    check_settings(values)
    for name in ("oc.env", "torchrun"):
        OmegaConf.register_new_resolver(
            name, lambda *words, n=name: f"${{{n}:{','.join(map(str, words))}}}", replace=True
        )
    try:
        config = OmegaConf.to_container(cfg, resolve=True)
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
        register_resolvers()
    # the checkpoint will be read from other folders
    pairs = ("path", config["data"], values["data"]), ("init_from", config, values)
    for key, written, used in pairs:
        path = written.get(key)
        if isinstance(path, str) and not path.startswith("${"):
            written[key] = used[key] = os.path.abspath(path)
    return values, config


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


def check_settings(values: dict[str, Any]) -> None:
    """Refuse values that are missing, of another type or out of range."""
    known = dict(values)
    for group in ("data", "model", "optim", "trainer", "callbacks", "logger"):
        if not isinstance(values.get(group), dict):
            raise UserError(f"{group}={values.get(group)}: no group of keys, as conf/{group}/ has")
        known |= {f"{group}.{key}": value for key, value in values[group].items()}
    validate(Settings, known)
    harmless = {"accumulate_grad_batches": 1, "fast_dev_run": False}
    for key, way in INSTEAD.items():
        value = values["trainer"].get(key)
        if value == 0 if key.startswith("limit") else value not in (None, harmless.get(key)):
            raise UserError(f"trainer.{key}={value}: {way}")


def validate(model: type[BaseModel], values: dict[str, Any], prefix: str = "") -> None:
    """Refuse the first value that is not as a model says; `prefix` is for its key."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = first["loc"][0]
        said = first["msg"].lower().replace("input should", "it should")
        if key == "published":
            said = "give whose figures, and these by metric, as in {LSTM: {test/mse: 0.1}}"
        if first["type"] == "missing":
            raise UserError(f"{prefix}{key}: not given, and it has no default") from None
        raise UserError(f"{prefix}{key}={values.get(key)}: {said}") from None


def check_devices(trainer: dict[str, Any], batch_size: Any) -> None:
    """Refuse a device that is not here, more processes than the machine has places for or than can
    share a batch, others than torchrun started, and a precision without an LSTM."""
    accelerator, devices = trainer.get("accelerator"), trainer.get("devices")
    if trainer.get("profiler") == "xla":
        raise UserError("trainer.profiler=xla: it is for TPUs; simple, advanced or pytorch")
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator={accelerator}: PyTorch sees no GPU here; trainer=cpu")
    precision = str(trainer.get("precision"))
    if accelerator == "cpu" and precision in ("16-mixed", "16", "bf16-mixed", "bf16"):
        try:  # on a CPU Lightning takes float16 for bfloat16
            with torch.autocast("cpu", torch.bfloat16):
                nn.LSTM(1, 1)(torch.zeros(1, 1, 1))[0].sum().backward()
        except RuntimeError:
            said = "this processor has no bfloat16; 32-true"
            raise UserError(f"trainer.precision={precision}: {said}") from None
    if accelerator != "cpu" and precision in ("16-mixed", "16"):
        # the gradient's norm and the clip would see gradients times the loss scale
        raise UserError(f"trainer.precision={precision}: bf16-mixed, which needs no loss scale")
    if type(devices) is not int:
        return
    nodes = trainer.get("num_nodes", 1)
    here = torch.cuda.device_count() if accelerator in ("gpu", "cuda") else os.cpu_count()
    if devices > here or devices == 0:
        raise UserError(f"trainer.devices={devices}: this machine has {here}")
    started = [int(os.environ.get(n, 1)) for n in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")]
    if INSIDE and [devices, nodes] != started:
        asked = f"trainer.devices={devices}, trainer.num_nodes={nodes}"
        said = f"torchrun started {started[0]} on each of {started[1]}, which trainer=ddp reads"
        raise UserError(f"{asked}: {said}")
    if not INSIDE and nodes != 1:
        raise UserError(f"trainer.num_nodes={nodes}: start the run with torchrun on each of them")
    if type(batch_size) is int and batch_size % (devices * nodes):
        raise UserError(f"data.batch_size={batch_size}: must be a multiple of {devices * nodes}")
