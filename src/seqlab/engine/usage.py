"""What `train.py --help` prints. Hydra's own help takes twice the time allowed here, most of it for
listing the groups."""

from argparse import ArgumentParser
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf


def usage(conf: Path, arguments: list[str]) -> str:
    """The groups with their choices, and every key with its value.

    Args:
        conf: the folder of config files.
        arguments: the command line; the values shown heed its overrides and `--config-dir`.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    options, rest = parser.parse_known_args(arguments)
    overrides = [word for word in rest if not word.startswith("-")]
    if options.config_dir:
        overrides.append(f"hydra.searchpath=['file://{Path(options.config_dir).resolve()}']")
    choices: dict[str, list[str]] = {}
    for file in sorted(conf.rglob("*.yaml")):
        group = str(file.parent.relative_to(conf))
        if group != "." and not group.startswith("hydra") and file.stem[0] != "_":
            choices.setdefault(group, []).append(file.stem)
    with initialize_config_dir(str(conf), version_base="1.3"):
        keys = OmegaConf.to_yaml(compose("config", overrides))
    groups = "\n".join(f"  {group}={'|'.join(names)}" for group, names in choices.items())
    return f"""Train a network: python train.py [GROUP=CHOICE ...] [KEY=VALUE ...]

  python train.py optim.lr=1e-3 data=random         one run
  python train.py -m optim.lr=1e-2,1e-3 seed=0,1    a run for each combination

Groups and their choices (files under conf/):
{groups}

Keys and their values:
{keys}
Options: --cfg job (the composed config), --resolve (with its interpolations), -m (multirun),
--config-dir FOLDER (config files of your own), --hydra-help (the others).
"""
