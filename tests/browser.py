"""TensorBoard in a browser."""

import contextlib
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from program import BIN


@contextlib.contextmanager
def tensorboard(*words: str, cwd: Path) -> Iterator[str]:
    """A TensorBoard that answers, at the address given."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [BIN / "tensorboard", *words, "--host", "127.0.0.1", "--port", str(port)],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address, deadline = f"http://127.0.0.1:{port}/", time.monotonic() + 60
    try:
        while True:
            try:
                urllib.request.urlopen(address).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()


def browse(address: str, profile: Path, *flags: str) -> str:
    """What headless Chromium prints about a page, given the time to draw itself."""
    off = ["gpu", "quic", "sync", "background-networking", "component-update"]
    command = ["chromium", "--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars"]
    command += [f"--disable-{feature}" for feature in off]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=100000", *flags, address]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
