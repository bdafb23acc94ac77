"""What the user is told when something is wrong. Imports nothing heavy."""

import io
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from hydra import errors as hydra
from omegaconf import MissingMandatoryValue
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from seqlab.engine.usage import meant, read

#: Whether the user asked for tracebacks, before `one_line_errors` sets the variable for Hydra.
FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR") == "1"


class UserError(Exception):
    """A mistake of the user's. Its text is one line: the key or file, the value, what would do."""


class LostError(UserError):
    """Another process of the run has ended or hangs; it may be the one that reports mistakes."""


class Unread(io.RawIOBase):
    """A standard stream that drops what it cannot write."""

    def __init__(self, raw: io.RawIOBase):
        super().__init__()
        self.raw, self.writable = raw, raw.writable
        self.fileno, self.isatty = raw.fileno, raw.isatty

    def write(self, data: bytes) -> int | None:
        try:
            return self.raw.write(data)
        except OSError:
            return len(data)


def outlive_readers() -> None:
    """Go on when nobody reads what is printed: the terminal or the reader of a pipe is gone, the
    disk is full, the stream was closed."""
    for name in ("stdin", "stdout", "stderr"):  # in order: a new file takes the first free number
        stream = getattr(sys, name)
        if stream is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        elif name != "stdin" and stream is getattr(sys, f"__{name}__"):
            raw = Unread(getattr(stream.buffer, "raw", stream.buffer))
            at_once = stream.line_buffering or stream.write_through
            look = {"encoding": stream.encoding, "errors": stream.errors, "line_buffering": at_once}
            setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), **look))


@contextmanager
def one_line_errors(
    conf: Path | None = None, tidy_up: Callable[[], None] | None = None
) -> Iterator[None]:
    """Turn a mistake of the user's into one line on stderr and exit code 2, and a bug into its
    traceback and exit code 1. `HYDRA_FULL_ERROR=1` shows every traceback.

    With `conf`, the folder of config files, only the config is handled inside, so any error is a
    mistake in it. `tidy_up` is called before the exit with code 2.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print with exit code 1
    try:
        yield
    except Exception as error:
        if FULL_ERROR:
            raise
        line = explain(error, conf)
        if line is None and not conf:
            traceback.print_exc()
            sys.exit(1)
        said = " ".join(str(error).split()) or repr(error)
        line = line or f"{said} ({' '.join(sys.argv[1:])})"
        if tidy_up:
            tidy_up()
        # of several processes the first reports, or the first on each host
        number = "LOCAL_RANK" if isinstance(error, LostError) else "RANK"
        if os.environ.get(number, "0") == "0":
            print(f"error: {line}", file=sys.stderr)
        else:  # whose end would end the first one, which may not have reported yet
            time.sleep(10)
        sys.exit(2)


def explain(error: BaseException, conf: Path | None = None) -> str | None:
    """The one line for a mistake of the user's, None for anything else. `conf`, the folder of
    config files, tells which key was meant by one that is not there."""
    match error:
        case UserError():
            return str(error)
        case hydra.MissingConfigException():
            group, _, choice = (error.missing_cfg_file or "").rpartition("/")
            if group == "hydra/launcher" and choice in ("joblib", "submitit_slurm"):
                return f"{group}: {choice} is not installed; pip install -e '.[cluster]'"
            options = error.options
            if not options and group and conf:  # Hydra gives none for one of several choices
                folders, _ = read(conf, sys.argv[1:])
                options = sorted(f.stem for each in folders for f in (each / group).glob("*.yaml"))
            if not options:
                return first_line(error)
            choices = ", ".join(o for o in options if o[0] != "_") or "nothing"
            near = "".join(f"did you mean {o}? " for o in get_close_matches(choice, options, 1))
            return f"{group}={choice}: no such choice; {near}{group} can be {choices}"
        case hydra.HydraException() if isinstance(error.__cause__, OmegaConfBaseException):
            return explain(error.__cause__, conf)
        case hydra.OverrideParseException():
            return f"{error.override}: {first_line(error)}"
        case hydra.HydraException():
            return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        case ConfigAttributeError() | ConfigKeyError():
            key, keys = str(error.full_key or error.key), getattr(error.parent_node, "keys", dict)()
            near = conf and meant(key, conf, sys.argv[1:])
            near = f"did you mean {near}? " if near else ""
            return f"{key}: no such key; {near}{', '.join(sorted(map(str, keys)))} can be set here"
        case MissingMandatoryValue():
            return f"{error.full_key}: give it a value, as in {error.full_key}=VALUE"
        case OmegaConfBaseException():
            return f"{error.full_key or error.key}: {first_line(error)}"
        case OSError() if error.filename:
            return f"{error.filename}: {error.strerror}"
    return None


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
