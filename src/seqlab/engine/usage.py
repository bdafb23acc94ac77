"""What `train.py --help` prints, and the key that was meant by one that is not there."""

import re
import textwrap
from argparse import ArgumentParser
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

#: The column in which comments begin, and the width of the whole.
COLUMN, WIDTH = 36, 80


def usage(conf: Path, words: list[str]) -> str:
    """The groups with their choices, and every key with its value and the comment of its line.
    `conf` is the folder of config files; of the command line, `words`, the overrides and
    `--config-dir` count."""
    folders, overrides = read(conf, words)
    config, chosen = composed(folders, overrides)
    choices: dict[str, set[str]] = {}
    comments: dict[str, str] = {}
    # a key of the chosen file may have its comment in one that it begins with, or in any other
    named = ((group, f / group / f"{name}.yaml") for group, name in chosen.items() for f in folders)
    rank = {(group, stem): n for group, f in named for n, stem in enumerate(bases(f))}
    for folder in reversed(folders):  # what the user says of a key counts before what we say
        files = [(f.parent.relative_to(folder).as_posix(), f) for f in folder.rglob("*.yaml")]
        files.sort(key=lambda pair: (pair[0], rank.get((pair[0], pair[1].stem), 99), pair[1]))
        for group, file in files:
            if group.startswith("hydra"):
                continue
            if group != "experiment" or chosen.experiment:
                comments = commented(file, group) | comments
            if group != "." and file.stem[0] != "_":
                choices.setdefault(group, set()).add(file.stem)
    groups = "\n".join(
        filled(f"  {group:<14} ", ", ".join(sorted(names)), " " * 17)
        for group, names in sorted(choices.items())
    )
    return f"""Train a network: python train.py [GROUP=CHOICE ...] [KEY=VALUE ...]

  python train.py optim.lr=1e-3 data=random         one run
  python train.py -m optim.lr=1e-2,1e-3 seed=0,1    a run for each combination

Groups and their choices (files under conf/):
{groups}

Keys and their values:
{keys(config, comments)}

Where a run writes:      hydra.run.dir=FOLDER, or hydra.sweep.dir=FOLDER with -m
What it would train:     --cfg job, with --resolve for the values of ${{...}}
Config files of yours:   --config-dir FOLDER
Options of Hydra's own:  --hydra-help
"""


def filled(begin: str, text: str, more: str) -> str:
    """A text in lines, the first after `begin` and the others after `more`."""
    return textwrap.fill(text, WIDTH, initial_indent=begin, subsequent_indent=more)


def keys(config: DictConfig, comments: dict[str, str]) -> str:
    """The config as YAML, with comments from one column on."""
    text = OmegaConf.to_yaml(config).replace(": ???\n", ": (to be given)\n")
    names, lines = {line: name for name, line in places(text).items()}, []
    for number, line in enumerate(text.splitlines()):
        said, more = comments.get(names.get(number)), f"{'':<{COLUMN}}# "
        if said and len(line) > COLUMN - 2:
            lines.append(line)
            line = ""
        lines.append(filled(f"{line:<{COLUMN}}# ", said, more) if said else line)
    return "\n".join(lines)


def commented(file: Path, group: str) -> dict[str, str]:
    """The comments of a config file's lines by the keys that stand in them."""
    with suppress(OSError, ValueError, yaml.YAMLError):  # a file that nobody asked for
        text = file.read_text()
        package = re.search(r"^# @package (?:_global_|)(\S*)", text, re.MULTILINE)
        prefix = (package[1] if package else group.replace("/", ".")).strip(".") + "."
        said = [line.partition(" #")[2].strip() for line in text.splitlines()]
        return {(prefix + k).lstrip("."): said[n] for k, n in places(text).items() if said[n]}
    return {}


def bases(file: Path) -> list[str]:
    """The name of a config file and of those beside it that its defaults name."""
    found = [file.stem]
    for stem in found:  # it grows
        with suppress(OSError, ValueError, TypeError, yaml.YAMLError):
            given = OmegaConf.load(file.with_name(f"{stem}.yaml")).get("defaults", ())
            found += [each for each in given if isinstance(each, str) and each not in found]
    return found


def places(text: str) -> dict[str, int]:
    """The dotted keys of a YAML text, groups of keys too, with the number of each one's line."""
    found = {}

    def walk(node: yaml.Node | None, prefix: str) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            found[f"{prefix}{key.value}"] = key.start_mark.line
            walk(value, f"{prefix}{key.value}.")

    walk(yaml.compose(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), "")
    return found


def read(conf: Path, words: list[str]) -> tuple[list[Path], list[str]]:
    """The folders of config files, and the overrides, of a command line."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    options, rest = parser.parse_known_args(words)
    own = [Path(options.config_dir).resolve()] if options.config_dir else []
    if own and not own[0].is_dir():
        raise HydraException(f"--config-dir={options.config_dir}: no such folder")
    return [conf, *own], [word for word in rest if not word.startswith("-")]


def composed(folders: list[Path], overrides: list[str]) -> tuple[DictConfig, DictConfig]:
    """The config, and what was chosen in each group."""
    own = ",".join(f"'file://{folder}'" for folder in folders[1:])
    with initialize_config_dir(str(folders[0]), version_base="1.3"):
        words = [*overrides, f"hydra.searchpath=[{own}]"]
        config = compose("config", words, return_hydra_config=True)
    OmegaConf.set_struct(config, False)
    return config, config.pop("hydra").runtime.choices


def meant(key: str, conf: Path, words: list[str]) -> str | None:
    """The key of the config, or the group, that was meant by one that is not there: under the same
    group or under another, with a name that is the same or nearly so."""
    folders, overrides = read(conf, words)
    groups = [o for o in overrides if any((f / o.partition("=")[0]).is_dir() for f in folders)]
    try:
        config, _ = composed(folders, groups)
    except HydraException:  # several choices of a group, say
        config, _ = composed(folders, [])
    parent, _, name = key.replace("/", ".").rpartition(".")
    found = sorted(set(places(OmegaConf.to_yaml(config))) - {key}, key=lambda k: -k.count("."))
    beside = [place for place in found if place.rpartition(".")[0] == parent]
    for where in (beside, found):
        by_name = {place.rpartition(".")[2]: place for place in where}  # of one name the shortest
        for near in get_close_matches(name, by_name, 1, 0.75):
            group = by_name[near].replace(".", "/")
            return group if any((folder / group).is_dir() for folder in folders) else by_name[near]
    return None
