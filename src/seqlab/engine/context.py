"""Where a run stands: its folder, the command that started it, and those that go on from it."""

import os
import re
import shlex
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from seqlab.engine.errors import UserError
from seqlab.engine.usage import meant

#: Hydra's options that are followed by a value, and the others.
TAKE_VALUE = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--cfg", "-c")
TAKE_VALUE += ("--package", "-p", "--experimental-rerun")
OPTIONS = (*TAKE_VALUE, "--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r")
OPTIONS += ("--multirun", "-m", "--shell-completion", "-sc", "--info", "-i")


@dataclass(frozen=True)
class RunContext:
    """What a run is told about the command that started it."""

    folder: Path  # where the run writes
    overrides: list[str]  # KEY=VALUE each
    multirun: Path | None = None  # the folder of the multirun or search that it is a job of
    config_dirs: tuple[str, ...] = ()  # the options --config-dir=FOLDER of the command line
    again: str = ""  # the command that goes on with the multirun or search
    trust: tuple[str, ...] = ()  # packages of the user's that the config names
    here: bool = True  # whether this process started the job, and prints how to go on
    groups: dict[str, str | None] = field(default_factory=dict)  # the choice of each config group

    @classmethod
    def of_hydra(cls) -> "RunContext":
        """The context of a run that Hydra started."""
        hydra = HydraConfig.get()
        sources = (s for s in hydra.runtime.config_sources if s.provider == "command-line")
        multirun = hydra.mode == RunMode.MULTIRUN
        return cls(
            Path(hydra.runtime.output_dir),
            OmegaConf.to_container(hydra.overrides.task, resolve=False),
            Path(hydra.sweep.dir) if multirun else None,
            tuple(f"--config-dir={from_here(source.path)}" for source in sources),
            multirun_command(hydra.sweep.dir) if multirun else "",
            here=not multirun or runs_here(hydra.launcher),
            groups={k: v for k, v in hydra.runtime.choices.items() if not k.startswith("hydra")},
        )

    def go_on(self) -> str:
        """The command that goes on with this run, or with its multirun."""
        resume = f"resume={quoted(from_here(self.folder))}"
        trust = [f"trust=[{','.join(self.trust)}]"] if self.trust else []
        return self.again or self.train_command(resume, *trust)

    def train_command(self, *words: str, options: tuple[str, ...] = ()) -> str:
        """A command that runs `train.py` with the same config folders."""
        return command("train.py", *options, *self.config_dirs, *words)


def from_here(path: str | Path) -> str:
    """A path as one would type it here; on another drive, whole."""
    try:
        return os.path.relpath(path)
    except ValueError:
        return os.path.abspath(path)


def command(program: str, *words: str) -> str:
    """A command line to paste into the shell that this process was started from. Programs of this
    environment are called by their names where it is active, else by their paths."""
    folder, script = Path(sys.executable).parent, []
    if program == "train.py":
        script = [sys.argv[0]]
        if Path(sys.argv[0]).name != program:  # another program prints the command
            ours = Path(__file__).parents[3] / program
            script = [program if Path(program).exists() or not ours.exists() else from_here(ours)]
        program = "python"
    found = shutil.which(program)
    if found is None or Path(found).absolute().parent != folder:
        program = from_here(folder / program)
    return shlex.join([program, *script, *words])


def runs_here(launcher: object) -> bool:
    """Whether a multirun's jobs run in the process that started it, one after the other."""
    return launcher._target_.endswith("BasicLauncher")


def multirun_command(folder: str) -> str:
    """The command line of this process's multirun, to go on in its folder."""
    words = [word for word in sys.argv[1:] if not word.startswith("hydra.sweep.dir=")]
    folder = quoted(from_here(folder))
    return command("train.py", *words, f"hydra.sweep.dir={folder}")


def as_typed(words: list[str], conf: Path | None = None) -> list[str]:
    """A command line as Hydra reads it: options before overrides, and a value that its grammar
    does not know, such as a folder named `2-optim.lr=0.01`, in quotes. `conf`, the folder of config
    files, tells which key was meant by a word that is no option, which a UserError says."""
    options, overrides, rest = [], [], iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            overrides.append(readable(word))
            continue
        if name not in OPTIONS:
            if near := get_close_matches(name, OPTIONS, 1, 0.85):
                raise UserError(f"{word}: no such option; did you mean {near[0]}?")
            key = name.lstrip("-")
            key = (conf and meant(key, conf, words)) or (equals and key)
            if not key:
                raise UserError(f"{word}: no such option; --help shows what can be given")
            raise UserError(f"{word}: overrides have no dashes; {key}={value or 'VALUE'}")
        options.append(word)
        if name in TAKE_VALUE and not equals:
            if (value := next(rest, None)) is None:
                raise UserError(f"{name}: give it a value")
            options.append(value)
        if name in ("--cfg", "-c") and value not in ("job", "hydra", "all"):
            raise UserError(f"{name}={value}: job, hydra or all")
    return options + overrides


def readable(override: str) -> str:
    """One override, its value in quotes if Hydra cannot read it, or would read a list in the name
    of a file that is there."""
    key, equals, value = override.partition("=")
    parser = OverridesParser.create()
    with suppress(HydraException):
        parser.parse_override(override)
        if not ("," in value and os.path.exists(value)):
            return override
    with suppress(HydraException):
        parser.parse_override(f"{key}={quoted(value)}")
        if equals and value[:1] not in "[{'\"":  # a list or a text that is not closed is a mistake
            return f"{key}={quoted(value)}"
    return override


def quoted(path: str) -> str:
    """A path as a value that Hydra reads as it stands."""
    plain = re.fullmatch(r"[\w./-]+", path, re.ASCII)
    return path if plain else "'" + path.replace("'", r"\'") + "'"
