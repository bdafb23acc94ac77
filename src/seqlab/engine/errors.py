"""What the user is told when something is wrong. Imports nothing heavy."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import OmegaConfBaseException

#: Whether the user asked for tracebacks, before `one_line_errors` sets the variable for Hydra.
FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR") == "1"


class UserError(Exception):
    """A mistake of the user's. Its text is one line: the key or file, the value, what would do."""


class LostError(UserError):
    """Another process of the run has ended or hangs; it may be the one that reports mistakes."""


@contextmanager
def one_line_errors(
    config: bool = False, tidy_up: Callable[[], None] | None = None
) -> Iterator[None]:
    """Turn a mistake of the user's into one line on stderr and exit code 2, and a bug into its
    traceback and exit code 1. `HYDRA_FULL_ERROR=1` shows every traceback.

    With `config` only the config is handled inside, so any error is a mistake in it. `tidy_up` is
    called before the exit with code 2.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print with exit code 1
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
        # of several processes the first reports, or the first on each host
        number = "LOCAL_RANK" if isinstance(error, LostError) else "RANK"
        if os.environ.get(number, "0") == "0":
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


def explain(error: BaseException) -> str | None:
    """The one line for a mistake of the user's, None for anything else."""
    match error:
        case UserError():
            return str(error)
        case MissingConfigException():
            group, _, choice = (error.missing_cfg_file or "").rpartition("/")
            if group == "hydra/launcher" and choice in ("joblib", "submitit_slurm"):
                return f"{group}: {choice} is not installed; pip install -e '.[cluster]'"
            if error.options:
                choices = ", ".join(o for o in error.options if o[0] != "_") or "nothing"
                return f"{group}={choice}: no such choice; {group} can be {choices}"
            return first_line(error)
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


def explain_node(error: OmegaConfBaseException) -> str:
    """The config has no such key, or a value that it needs was not given."""
    key = error.full_key or error.key
    kind = type(error).__name__
    if kind in ("ConfigAttributeError", "ConfigKeyError"):
        keys = getattr(error.parent_node, "keys", dict)()
        return f"{key}: no such key; {', '.join(sorted(map(str, keys)))} can be set here"
    if kind == "MissingMandatoryValue":
        return f"{key}: give it a value, as in {key}=VALUE"
    return f"{key}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
