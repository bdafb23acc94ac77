"""Imported once, by the process from which others are forked: what all of them would do first."""

# ruff: noqa: E402
import gc
import os

gc.disable()  # what is imported stays
_, _, given = os.environ.pop("PYTHONPATH").partition(os.pathsep)
if given:
    os.environ["PYTHONPATH"] = given  # without the tests' own folder, put there to find this file

import program
from hydra import compose, initialize_config_dir

import seqlab.tools.cli
import seqlab.training  # noqa: F401

with initialize_config_dir(str(program.ROOT / "conf"), version_base="1.3"):
    compose("config")
gc.freeze()
gc.enable()
