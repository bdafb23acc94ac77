"""Constructs what a config names: the one place where its classes are imported and called."""

import inspect
import os
import re
import sys
from contextlib import suppress
from copy import copy
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from seqlab.data import SequenceData
from seqlab.engine.errors import UserError, first_line
from seqlab.objectives import Objective
from seqlab.sources import ModuleData, OwnData
from seqlab.tasks import Task, TaskData

#: What a class must be a subclass of; of several, any.
Kinds = tuple[type, ...]

#: Packages of the user's whose classes may be imported beside `TRUSTED`; None: any, for a config
#: that the user wrote.
Trust = tuple[str, ...] | None

#: What a `_target_` may be where the config expects a class, by key;
KINDS: dict[str, Kinds] = {
    "data": (SequenceData, L.LightningDataModule),
    "model": (nn.Module,),
    "loss": (Objective,),
    "optim.optimizer": (Optimizer,),
    "optim.schedule": (LRScheduler,),
    "trainer": (L.Trainer,),
    "callbacks": (Callback,),
    "logger": (Logger,),
}
#: and what it may be further inside of a group.
INSIDE: dict[str, Kinds] = {
    "data": (Task, nn.Module),
    "model": (nn.Module,),
    "trainer": (Strategy, Profiler, timedelta),
}

#: Where a class that a checkpoint names may come from, unless the user trusts more packages.
TRUSTED = ("seqlab", "torch", "lightning")

#: What constructors raise for values that they cannot take.
WRONG = (ValueError, TypeError, ArithmeticError, RuntimeError, MemoryError, OSError)
WRONG += (MisconfigurationException,)


def construct(node: Any, kinds: Kinds, path: str, trust: Trust, **given: Any) -> Any:
    """Call the class that a part of a config names.

    Args:
        node: plain values (dicts, lists, numbers, texts); `_target_` is the class's import path.
        kinds, trust: see `Kinds` and `Trust`.
        path: the key of this part, for messages. Its group decides what may stand inside.
        given: arguments for a constructor that takes them, where the config has none or null.

    Raises:
        UserError: the class is not trusted, and is not imported; it is of another kind, or stands
            where no class is expected, and is not called; or it refuses its arguments. The text
            begins with the key.
    """
    if not isinstance(node, dict) or "_target_" not in node:
        way = "optim/schedule chooses a file" if path == "optim.schedule" else "give it a _target_"
        raise UserError(f"{path}={node}: names no class; {way}")
    found = find_class(node["_target_"], kinds, path, trust)
    takes, inside = parameters(found), INSIDE.get(path.partition(".")[0], ())
    plain = {key: value for key, value in node.items() if key != "_target_"}
    arguments = construct_inside(plain, inside, path, trust)
    check_types(found, takes, arguments, path, given)
    for key, value in given.items():
        if (key in takes or key in arguments) and arguments.get(key) is None:
            arguments[key] = value
    library = found.__module__.startswith(("torch.", "lightning."))
    wrong = (Exception,) if library else WRONG
    try:
        return found(**arguments)
    except wrong as error:
        said = first_line(error)
        if said.replace(":", "=").partition("=")[0] in takes:  # ours begin with the argument
            raise UserError(f"{path}.{said}") from error
        for word, key in re.findall(r"(missing|unexpected) .*?'(\w+)'", said):  # Python's own words
            if word == "missing" and key in takes and key not in arguments:
                raise UserError(f"{path}.{key}: not given, and it has no default") from error
            if word == "unexpected" and key in plain and key not in takes:
                names = ", ".join(name for name in takes if name not in given) or "none"
                said = f"no such argument; {found.__name__} takes {names}"
                raise UserError(f"{path}.{key}: {said}; ~{path}.{key} leaves it out") from error
        raise UserError(f"{path}={plain}: {said}" if library else f"{path}: {said}") from error


def construct_data(node: Any, trust: Trust) -> SequenceData:
    """The data that a config names, none of it loaded; of a task, none that memory cannot hold."""
    kinds, own = KINDS["data"], {}
    if isinstance(node, dict) and "_target_" in node:
        found = find_class(node["_target_"], kinds, "data", trust)
        if not issubclass(found, SequenceData):  # these are for what reads its loaders
            own = {key: node.get(key) for key in ("seq_len", "n_classes")}
            own["seed"] = node.get("seed", 0)
            node = {k: v for k, v in node.items() if k not in own or k in parameters(found)}
            if found.__module__.startswith("lightning."):  # its examples download files
                raise UserError(f"data._target_={node['_target_']}: no data of your own")
    # an older run's config has none of these
    given = dict.fromkeys(("min_len", "val_len", "test_len", "test_task"))
    data = construct(node, kinds, "data", trust, **given)
    try:
        data = data if isinstance(data, SequenceData) else ModuleData(data, **own)
        if isinstance(data, OwnData):
            data.read()
        for name in ("n_inputs", "n_outputs", "seq_len", *(["n_train"] * ("fitted" not in node))):
            getattr(data, name)
    except (AttributeError, *WRONG) as error:
        said = first_line(error)
        begins = said.partition("=")[0] in parameters(type(data))  # as in `construct`
        raise UserError(f"data.{said}" if begins else f"data: {said}") from error
    meminfo = Path("/proc/meminfo")  # elsewhere than on Linux nobody says what is free
    if isinstance(data, TaskData) and meminfo.exists():
        values = {split: n * data.ranges[split][1] for split, n in data.sizes.items()}
        split = max(values, key=lambda name: values[name])
        # float32, and twice that while they are drawn
        needed = 12 * sum(values.values()) * data.n_inputs / 1e9
        free = int(re.search(r"MemAvailable: *(\d+)", meminfo.read_text())[1]) / 1e6
        if needed > free:
            longest = data.ranges[split][1]
            steps = f"data.seq_len={longest}" if longest == data.seq_len else f"of {longest} steps"
            said = f"too much data: {needed:.3g} GB of memory are needed, {free:.3g} GB are free"
            raise UserError(f"data.n_{split}={data.sizes[split]}, {steps}: {said}")
    return data


def objective_of(node: Any, data: SequenceData, trust: Trust) -> Objective:
    """The objective that a config's `loss` names, with the metrics that the data bring along, or
    that of the data; not yet attached."""
    if not node:
        return copy(data.objective)
    found = construct(node, KINDS["loss"], "loss", trust, n_outputs=data.n_outputs)
    if found.dtype != data.objective.dtype:
        said = f"for {'numbers' if found.numeric else 'classes'}, targets of {found.dtype}"
        said = f"{said}; loss=task fits those of the data, {data.objective.dtype}"
        raise UserError(f"loss={node['_target_']}: {said}")
    ours, wanted = (each.target_shape(data.n_outputs) for each in (found, data.objective))
    if ours != wanted:
        said = f"for targets {ours}; loss=task fits those of the data, {wanted}"
        raise UserError(f"loss={node['_target_']}: {said}")
    found.figures = data.objective.figures | found.figures
    return found


def sizes_of(data: SequenceData, objective: Objective) -> dict[str, Any]:
    """What a network for these data is told, and a checkpoint holds to build it again."""
    sizes = {key: getattr(data, key) for key in ("n_inputs", "n_outputs", "every_step", "base")}
    return sizes | {"n_values": objective.n_values}


def parts_of(config: dict[str, Any], trust: Trust) -> tuple[SequenceData, Objective, dict]:
    """The data and the objective that a config names, and the sizes of a network for them."""
    data = construct_data(config["data"], trust)
    objective = objective_of(config.get("loss"), data, trust)
    return data, objective, sizes_of(data, objective)


def network_of(node: dict[str, Any], sizes: dict[str, Any], trust: Trust) -> nn.Module:
    """The network that a config's `model` names, for data of these sizes, on its base."""
    base = sizes.get("base")
    inner = sizes | {"n_outputs": sizes["n_outputs"] * sizes.get("n_values", 1)}
    if base:  # one that is added to a base is given the target twice, see `series.base.OnBase`
        inner["n_inputs"] += 1
    network = construct(node, KINDS["model"], "model", trust, **inner)
    return construct(base, KINDS["model"], "data", trust, network=network) if base else network


def prepare(data: SequenceData, objective: Objective, device: torch.device) -> None:
    """Load the data onto a device, and attach the objective to them."""
    try:
        data.prepare(device)
        objective.attach(data)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise UserError(f"data: {first_line(error)}") from error


def construct_inside(value: Any, inside: Kinds, path: str, trust: Trust) -> Any:
    """An argument, with the classes that it names constructed, in dicts and lists of any depth."""
    if isinstance(value, list):
        return [construct_inside(v, inside, f"{path}[{i}]", trust) for i, v in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if "_target_" in value:
        return construct(value, inside, path, trust)
    for key, each in value.items():
        if str(key).startswith("_"):  # Hydra's special keys change how a class is called
            raise UserError(f"{path}.{key}={each}: no key to set")
    return {k: construct_inside(v, inside, f"{path}.{k}", trust) for k, v in value.items()}


def find_class(target: Any, kinds: Kinds, path: str, trust: Trust) -> type:
    """The class of an import path, once it is known to be trusted and of the right kind."""
    where, target = f"{path}._target_={target}", str(target)
    packages = (*TRUSTED, *(trust or ()))
    trusted = any(owned(target).startswith(f"{name}.") for name in packages)
    if not (trust is None or trusted or target == "datetime.timedelta"):
        package = owned(target).partition(".")[0]
        way = f"--trust {package}, or trust=[{package}] for a run,"
        raise UserError(f"{where}: not trusted; {way} says that its code may run")
    module, _, name = target.rpartition(".")
    if trust and os.getcwd() not in sys.path:  # where the console script does not look
        sys.path.append(os.getcwd())
    try:
        found = getattr(import_module(module), name)
    except Exception as error:  # an import runs any code
        package = target.partition(".")[0]
        here = isinstance(error, ModuleNotFoundError) and error.name == package
        here = here and (Path(package).is_dir() or Path(f"{package}.py").is_file())
        way = "; PYTHONPATH=. has Python look in this folder" if here else ""
        raise UserError(f"{where}: {first_line(error)}{way}") from error
    if not (isinstance(found, type) and issubclass(found, kinds)):
        names = " or ".join(f"{kind.__module__}.{kind.__name__}" for kind in kinds)
        said = f"must be a subclass of {names}" if kinds else "no class is expected here"
        raise UserError(f"{where}: {said}")
    return found


def owned(target: str) -> str:
    """The import path by which a class is trusted, its own. A logger of Lightning's that may send
    to where a config says is the package's that it sends with, as in `mlflow.MLFlowLogger`."""
    name = target.rpartition(".")[2]
    sends = name.endswith("Logger") and name not in ("TensorBoardLogger", "CSVLogger")
    own = f"{name.removesuffix('Logger').lower()}.{name}"
    return own if sends and target.startswith("lightning.") else target


def untrusted(node: Any) -> tuple[str, ...]:
    """The packages that a config names and that a command must be told to trust."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return ()
    found = {owned(str(node.get("_target_", "seqlab"))).partition(".")[0]}
    return tuple(sorted(found.union(*map(untrusted, node.values())) - {*TRUSTED, "datetime"}))


def parameters(found: type) -> dict[str, inspect.Parameter]:
    """What a constructor takes by name, with what its `**` passes on to base classes."""
    takes: dict[str, inspect.Parameter] = {}
    for owner in found.__mro__:
        if "__init__" in vars(owner):
            own = list(inspect.signature(owner.__init__).parameters.values())[1:]
            takes = {p.name: p for p in own if "VAR" not in p.kind.name} | takes
            if not any(p.kind is p.VAR_KEYWORD for p in own):
                break
    return takes


def check_types(
    found: type, takes: dict[str, Any], arguments: dict[str, Any], path: str, given: dict[str, Any]
) -> None:
    """Refuse arguments that the constructor states another type for."""
    own, types = inspect.signature(found.__init__).parameters.values(), {}
    rest = next((p.name for p in own if p.kind is p.VAR_KEYWORD), None)
    for owner in found.__mro__[::-1]:
        with suppress(Exception):  # an annotation that names what cannot be imported here
            types |= get_type_hints(vars(owner)["__init__"])
    for key, value in arguments.items():
        kind = types.get(key if key in takes else rest, Any)
        if kind is Any or (value is None and key in given):
            continue
        if kind in (str, str | None) and type(value) is int:
            arguments[key] = value = str(value)  # Hydra reads the name of a column 0 as a number
        try:  # not strict for a list, which may stand for a tuple
            checker = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
            checker.validate_python(value, strict=not isinstance(value, list))
        except ValidationError as error:
            said = " or ".join(dict.fromkeys(each["msg"] for each in error.errors()))
            said = said.replace("Input should", "it should")
            if "valid tuple" in said or "Field required" in said:
                said = "it should be two values, as in [1,2]"
            if isinstance(value, str) and "valid list" in said:
                said += f"; [{value}] would do"
            raise UserError(f"{path}.{key}={value}: {said}") from None
        except PydanticUserError:  # a type that pydantic cannot check
            continue
