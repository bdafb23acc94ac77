"""Several processes for one run: starting them where torchrun did not, and ending them together."""

import atexit
import ctypes
import logging
import multiprocessing
import os
import signal
import sys

from torch.distributed import DistError, destroy_process_group, is_initialized

from seqlab.engine.errors import FULL_ERROR
from seqlab.engine.signals import ENDING

#: Whether torchrun, or `launch`, started this process as one of several.
INSIDE = "TORCHELASTIC_RUN_ID" in os.environ


@atexit.register
def leave_group() -> None:
    """Leave the group of processes: its threads must not outlive Python."""
    if is_initialized():
        destroy_process_group()


def wanted(devices: object) -> bool:
    """Whether a run asks for processes that nobody has started."""
    return not INSIDE and type(devices) is int and devices > 1


def launch(devices: int, arguments: list[str]) -> int:
    """Run this program in `devices` processes of this machine, as torchrun does. Returns the exit
    code of the first that failed, 128 + the number of the signal that ended them, or 0."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # only now: on a Mac they print a note when they are imported
    from torch.distributed.elastic.multiprocessing import SignalException, errors
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    ending = ",".join(signal.Signals(number).name for number in ENDING)
    config = LaunchConfig(
        1, 1, devices, run_id=str(os.getpid()), rdzv_backend="c10d", max_restarts=0,
        rdzv_endpoint="localhost:0", signals_to_handle=ending,
    )  # fmt: skip
    os.environ["HYDRA_FULL_ERROR"] = str(int(FULL_ERROR))  # each process sets it for itself
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # or torchrun reports that it sets it
    try:
        elastic_launch(config, sys.executable)(sys.argv[0], *arguments)
    except SignalException as stop:
        return 128 + stop.sigval
    except errors.ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        if rank == 0 and code < 0:  # the first process reports errors, and it was killed
            name = signal.Signals(-code).name
            print(f"error: the first process of this run was ended by {name}", file=sys.stderr)
        return code if code > 0 else 128 - code
    return 0


def die_with_parent() -> None:
    """Ask Linux to kill this process when the launcher that started it is gone."""
    joblib = multiprocessing.current_process().name.startswith("Loky")
    if (INSIDE or joblib) and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if joblib and os.getppid() != int(os.environ["SEQLAB_LAUNCHER"]):
            os._exit(1)  # the launcher ended while this process started


def is_lost(error: Exception) -> bool:
    """Whether the error is that another process of the run has ended or hangs."""
    return INSIDE and (isinstance(error, DistError) or "gloo" in str(error))
