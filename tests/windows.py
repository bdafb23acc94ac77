"""Calls programs without what Python lacks on Windows: `python windows.py COMMAND...`. Libraries
are imported before it is taken away, since on Windows they do without it in their own ways."""

import json
import os
import shlex
import signal
import sys
from pathlib import Path

import filelock  # noqa: F401
import hydra.main  # noqa: F401
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
sys.modules |= dict.fromkeys(("fcntl", "resource"))
for module, names in {
    signal: ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGALRM", "SIGPIPE"),
    os: ("fork", "getuid", "getpgid", "killpg", "setsid", "O_DIRECTORY"),
}.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)

import program  # noqa: E402

for words in map(shlex.split, sys.argv[1:]):
    call = program.run if words[0] == "train" else program.seqlab
    result = call(*words[words[0] == "train" :], cwd=Path.cwd())
    print(json.dumps([result.code, result.err]))
