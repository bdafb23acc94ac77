"""Calls programs without what Python lacks on Windows: `python windows.py COMMAND...`. Libraries
are imported before it is taken away, since on Windows they do without it in their own ways.
`pytest WORDS` is a command too."""

# ruff: noqa: E402
import gc
import json
import os
import shlex
import signal
import sys
from pathlib import Path

gc.disable()  # what is imported stays

import filelock  # noqa: F401
import hydra.main  # noqa: F401
import pytest
import torch.distributed.launcher
import torch.utils.tensorboard  # noqa: F401
from lightning.pytorch.trainer.connectors import signal_connector

# Lightning takes its way on Windows
signal_connector._IS_WINDOWS, known = True, {signal.SIGINT, signal.SIGTERM}
signal.valid_signals = known.copy
system_open = os.open


def open_no_folder(path, *more, **named):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return system_open(path, *more, **named)


os.open = open_no_folder
sys.modules |= dict.fromkeys(("fcntl", "grp", "pwd", "resource"))
for module, names in {
    signal: ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGALRM", "SIGPIPE"),
    os: ("fork", "getuid", "getpgid", "killpg", "mkfifo", "openpty", "setsid", "O_DIRECTORY"),
}.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)

import program

gc.enable()

for words in map(shlex.split, sys.argv[1:]):
    if words[0] == "pytest":
        sys.exit(pytest.main(words[1:]))
    call = program.run if words[0] == "train" else program.seqlab
    result = call(*words[words[0] == "train" :], cwd=Path.cwd())
    print(json.dumps([result.code, result.err]))
