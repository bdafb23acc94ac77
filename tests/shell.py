"""A person at a shell: lines typed into bash, in a checkout and an environment of their own."""

import os
import re
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
import urllib.request
import venv
from collections.abc import Callable
from pathlib import Path

from program import BIN, ROOT

#: What pip writes on top of a script whose interpreter has a space in its path.
POLYGLOT = "#!/bin/sh\n'''exec' \"{}\" \"$0\" \"$@\"\n' '''\n"


def checkout(folder: Path) -> Path:
    """A clone of this checkout, with what is not committed yet."""
    subprocess.run(["git", "clone", "-q", ROOT, folder], check=True)
    listed = ["git", "-C", ROOT, "ls-files", "-z", "-m", "-o", "--exclude-standard"]
    changed = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
    for name in filter(None, changed.split("\0")):
        (folder / name).unlink(missing_ok=True)
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def installed(project: Path) -> Path:
    """A checkout as `make test` leaves it, its environment made of the packages of this one."""
    venv.create(project / ".venv", symlinks=True)
    scripts = project / ".venv/bin"
    (packages,) = (project / ".venv").glob("lib/python*/site-packages")
    paths = [project / "src", sysconfig.get_path("purelib")]
    (packages / "shared.pth").write_text("".join(f"{path}\n" for path in paths))
    for name in ("seqlab", "tensorboard", "torchrun", "pytest"):
        text = (BIN / name).read_text()
        (scripts / name).write_text(
            POLYGLOT.format(scripts / "python") + text[text.index("import ") :]
        )
        (scripts / name).chmod(0o755)
    for stamp in ("train.done", "dev.done"):
        (project / ".venv" / stamp).touch()
    return project


class Shell:
    """A shell that a person has open. Each line goes through `bash -c` as it stands, in the folder
    and the environment that the line before it left."""

    def __init__(self, cwd: Path, **environment: str):
        inherited = ("HOME", "LANG", "TMPDIR")
        given = {
            key: os.environ[key] for key in os.environ if re.match("(?i)PIP_|SSL_|.*_proxy", key)
        }
        given |= {key: os.environ[key] for key in inherited if key in os.environ}
        path = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if p != str(BIN))
        self.cwd, self.environment = cwd, given | {"PATH": path} | environment

    def types(
        self,
        line: str,
        keys: str = "",
        until: Callable[[str], object] | None = None,
        timeout: float = 1500,
    ) -> str:
        """Run a line to its end, which must be a success, and return all that it said.

        Args:
            line: what is typed.
            keys: what is typed into the program that it starts.
            until: Ctrl-C is pressed as soon as this is true of what was said so far.
            timeout: seconds that it may take.
        """
        with tempfile.TemporaryDirectory() as folder:
            left, said = Path(folder, "environment"), Path(folder, "said")
            Path(folder, "keys").write_text(keys)
            after = f"\ncode=$?; env -0 >'{left}'; exit $code"
            # where this process ignores Ctrl-C, as one started with & does, so would the shell
            ours = signal.signal(signal.SIGINT, signal.default_int_handler)
            with said.open("w") as out, Path(folder, "keys").open() as stdin:
                shell = subprocess.Popen(
                    ["bash", "-c", line + after], cwd=self.cwd, env=self.environment, stdin=stdin,
                    stdout=out, stderr=out, start_new_session=True,
                )  # fmt: skip
            signal.signal(signal.SIGINT, ours)
            try:
                deadline, stopped = time.monotonic() + timeout, False
                while shell.poll() is None and time.monotonic() < deadline:
                    if until and not stopped and until(said.read_text()):
                        os.killpg(shell.pid, signal.SIGINT)
                        stopped = True
                    time.sleep(0.05)
                text = said.read_text()
                assert shell.poll() is not None, f"{line}\nis not done in {timeout} s:\n{text}"
                assert stopped or shell.returncode == 0, (
                    f"{line}\nended {shell.returncode}:\n{text}"
                )
                assert stopped or not until, f"{line}\nended by itself:\n{text}"
            finally:
                if shell.poll() is None:
                    os.killpg(shell.pid, signal.SIGKILL)
                    shell.wait()
            if not stopped:
                lines = (entry.partition("=") for entry in left.read_text().split("\0") if entry)
                self.environment = {key: value for key, _, value in lines}
        return text

    def opens(self, line: str) -> str:
        """Start TensorBoard, open the page at the address that it prints, and press Ctrl-C."""

        def answers(said: str) -> bool:
            address = re.search(r"http://\S+", said)
            if address:
                with urllib.request.urlopen(address[0], timeout=30) as page:
                    assert b"TensorBoard" in page.read()
            return bool(address)

        return self.types(line, until=answers)

    def follows(self, kind: str, text: str) -> str:
        """Do what a text says, a block of Python or a command, and return all that was said."""
        if kind == "python":  # pasted at the prompt
            said = self.types("python -i", keys=text)
            beside = re.findall(r"^print\(.*\)  # (.+)$", text, re.MULTILINE)
            assert "Traceback" not in said, said
            assert [line for line in beside if line not in said] == [], said
        elif text.startswith("tensorboard"):
            said = self.opens(text)
        else:
            said = self.types(text, keys="0.1\n0.2\n" if " stream " in text else "")
            for _, name in re.findall(r"--(output|picture) ('[^']+'|\S+)", text):
                assert (self.cwd / name.strip("'")).stat().st_size > 0, text
        return said


#: A command at the end of a printed line, after a colon and two spaces or more.
PRINTED = re.compile(r":  +((?:\S*/)?(?:python|seqlab|tensorboard) .+)$", re.MULTILINE)
