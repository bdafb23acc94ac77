"""Several processes for one run: starting them where nobody else did, and what each is to know."""

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
from uuid import uuid4

from omegaconf import DictConfig
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from seqlab.errors import FULL_ERROR

#: Set by torchrun, and by `launch`, in each process.
INSIDE = "TORCHELASTIC_RUN_ID" in os.environ


def wanted(cfg: DictConfig) -> bool:
    """Whether the run asks for processes that nobody has started."""
    return not INSIDE and type(cfg.trainer.devices) is int and cfg.trainer.devices > 1


def launch(devices: int, arguments: list[str]) -> int:
    """Run `train.py` in so many processes of this machine, as torchrun does.

    Args:
        devices: how many.
        arguments: the command line of each.

    Returns:
        The exit code of the first that failed, 128 + the number of a signal that ended them, or 0.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        signals_to_handle="SIGTERM,SIGINT,SIGUSR1",
    )
    if not FULL_ERROR:
        os.environ.pop("HYDRA_FULL_ERROR", None)  # each process sets it for itself
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # or torchrun says that it sets it
    try:
        elastic_launch(config, sys.executable)(sys.argv[0], *arguments)
    except SignalException as stop:
        return 128 + stop.sigval
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        if rank == 0 and code < 0:  # it could not tell
            name = signal.Signals(-code).name
            print(f"error: the first process of this run was ended by {name}", file=sys.stderr)
        return code if code > 0 else 128 - code
    return 0


def die_with_parent() -> None:
    """Ask the system to end this process when the one that started it is gone (on Linux)."""
    joblib = multiprocessing.current_process().name.startswith("Loky")
    if (INSIDE or joblib) and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if joblib and os.getppid() != int(os.environ["SEQLAB_LAUNCHER"]):
            os._exit(1)  # it went while this one started


def is_lost(error: Exception) -> bool:
    """Whether it is what remains to a process when another of its run has ended or hangs."""
    return INSIDE and (isinstance(error, DistError) or "gloo" in str(error))
