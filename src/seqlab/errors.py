"""What the user is told when something is wrong: one line, exit code 2. Imports nothing heavy."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hydra._internal.hydra import Hydra
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

#: Asked for before `one_line_errors` sets the variable for Hydra.
FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR") == "1"


class UserError(Exception):
    """A mistake of the user's; its text is one line: the key or file, the value, what would do."""


class LostError(UserError):
    """Another process of the run is gone, or hangs; it may be the one that tells of mistakes."""


@contextmanager
def one_line_errors(
    config: bool = False, tidy_up: Callable[[], None] | None = None
) -> Iterator[None]:
    """Turn a mistake of the user's into one line on stderr and exit code 2.

    `HYDRA_FULL_ERROR=1` shows the traceback instead. Anything else is a bug, and its traceback is
    the message, with exit code 1.

    Args:
        config: only the config is handled here: whatever goes wrong is a mistake in it.
        tidy_up: called before the exit with code 2.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print, with exit code 1
    if config:
        Hydra.get_mode = get_mode
    try:
        yield
    except Exception as error:
        line = explain(error)
        if FULL_ERROR:
            raise
        if line is None and config:
            said = " ".join(str(error).split()) or repr(error)
            line = f"{said} ({' '.join(sys.argv[1:])})"
        if line is None:
            traceback.print_exc()
            sys.exit(1)
        if tidy_up:
            tidy_up()
        # of several processes one tells, or one on each host
        number = "LOCAL_RANK" if isinstance(error, LostError) else "RANK"
        if os.environ.get(number, "0") == "0":
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> RunMode | None:
    """Whether the config asks for a multirun, as a method of Hydra, whose own passes over a mistake
    to meet it when it composes the config again."""
    config = self.compose_config(
        config_name, overrides, RunMode.MULTIRUN, validate_sweep_overrides=False
    )
    return config.hydra.mode


def explain(error: BaseException) -> str | None:
    """The one line for a mistake of the user's, None for anything else."""
    match error:
        case UserError():
            return str(error)
        case MissingConfigException():
            group, _, choice = (error.missing_cfg_file or "").rpartition("/")
            if group == "hydra/launcher" and choice in ("joblib", "submitit_slurm"):
                return f"{group}: {choice} is not installed; pip install 'seqlab[cluster]'"
            if error.options:
                choices = ", ".join(o for o in error.options if o[0] != "_") or "nothing"
                return f"{group}={choice}: no such choice; {group} can be {choices}"
            return first_line(error)
        case InstantiationException():
            return explain_call(error)
        case ConfigCompositionException() if isinstance(error.__cause__, OmegaConfBaseException):
            return explain(error.__cause__)
        case OverrideParseException():
            return f"{error.override}: {first_line(error)}"
        case HydraException():
            return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        case OmegaConfBaseException():
            return explain_node(error)
        case OSError() if error.filename:
            way_out = "name another with hydra.run.dir or hydra.sweep.dir"
            return f"{error.filename}: {error.strerror}; {way_out}"
    return None


def explain_call(error: InstantiationException) -> str:
    """A constructor did not take its arguments."""
    cause, text = error.__cause__, str(error)
    key = text.rpartition("full_key: ")[2] if "full_key: " in text else ""
    while isinstance(cause, InstantiationException):
        cause = cause.__cause__
    if isinstance(cause, UserError):
        return str(cause)
    if type(cause).__name__ == "ValidationError":
        return explain_argument(cause, key)
    return f"{key or 'config'}: {first_line(cause or error)}"


def explain_argument(error: Exception, key: str) -> str:
    """The first complaint of pydantic's ValidationError about the arguments under `key`."""
    first = error.errors()[0]
    where = ".".join([key, *map(str, first["loc"])])
    if first["type"] == "unexpected_keyword_argument":
        return f"{where}: no such argument"
    if first["type"].startswith("missing"):
        return f"{where}: not given, and it has no default"
    said = first["msg"][0].lower() + first["msg"][1:]
    return f"{where}={first['input']}: {said.replace('input should', 'it should')}"


def explain_node(error: OmegaConfBaseException) -> str:
    """The config has no such key, or a value it needs was not given."""
    key = error.full_key or error.key
    what = first_line(error)
    if type(error).__name__ in ("ConfigAttributeError", "ConfigKeyError"):
        keys = getattr(error.parent_node, "keys", dict)()
        return f"{key}: no such key; {', '.join(sorted(map(str, keys)))} can be set here"
    if type(error).__name__ == "MissingMandatoryValue":
        return f"{key}: give it a value, as in {key}=VALUE"
    return f"{key}: {what}"


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, with its type where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
