"""Signals that ask a run to end: noted at once, acted on where a checkpoint can be written."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Ctrl-C, the system's, the one that cluster schedulers send before a time limit, and that of a
#: terminal that is gone; as many as the platform has.
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
ENDING = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))

received: int | None = None
_deferred = False


class Stopped(Exception):
    """A run ended between two batches, with a checkpoint, because a signal asked for it."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def handler(number: int, frame: FrameType | None) -> None:
    """Note the first signal, and exit where nothing could be saved; exit at once on a second.
    Nothing is saved or sent from here: a handler runs between any two lines of the program."""
    global received
    if received is not None:
        os._exit(128 + number)
    received = number
    if not _deferred:
        sys.exit(128 + number)


def install() -> None:
    """Handle the signals. Lightning replaces some handlers when it begins; this puts ours back."""
    for number in ENDING:
        if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)  # nohup has a terminal's end ignored


@contextmanager
def handled() -> Iterator[None]:
    """Exit with 128 + the signal's number when one of them arrives inside."""
    global received
    received = None
    before = {number: signal.getsignal(number) for number in ENDING}
    install()
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Only note a signal in `received`, for the code inside to act on. Raises `Stopped` at the end
    if it did not."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False
    if received is not None:
        raise Stopped(received)
