"""What a command writes: files whole or not at all; streams that may be full, closed or gone."""

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from left import strict_json
from program import ROOT, TINY, call, run, seqlab, write

from seqlab.tools import cli

SEQLAB = Path(sys.executable).with_name("seqlab")
SERIES = ["data=series", f"data.path={ROOT / 'data/sunspots.csv'}", "data.target=sunspots"]
#: What writes a file, up to its name, and what it says on stderr behind that.
FILES = {
    "predict best.ckpt --output": ({"a.csv", "a.parquet", "a.json"}, "47 rows"),
    "results run --output": ({"a.csv"}, "1 rows"),
    "results run --picture": ({"a.png"}, "the metric by key"),
    "shapes best.ckpt --picture": ({"a.png", "a.pdf", "a.svg"}, "the network unrolled in time"),
    "export best.ckpt --format safetensors --output": (
        {"a.x"},
        "11 tensors; config, mean and std as metadata",
    ),
}
SLOW = {"export best.ckpt --format torch --output": ({"a.x"}, "read again, it agrees with PyTorch")}
every_output = pytest.mark.parametrize(
    "outputs", [FILES, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["everyday", "slow"]
)
COMMANDS = ["evaluate best.ckpt", "evaluate best.ckpt --json", "predict best.ckpt", "shapes"]
COMMANDS += ["shapes --json", "stream best.ckpt", "results run", "results run --json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds `run`, of a series, and its best.ckpt beside it."""
    made = tmp_path_factory.mktemp("outputs")
    words = [word for word in TINY if not word.startswith("data.n_")]
    done = run(*SERIES, *words, "hydra.run.dir=run", cwd=made)
    assert done.code == 0, done.err
    (made / "best.ckpt").write_bytes((made / "run/checkpoints/best.ckpt").read_bytes())
    return made


@pytest.fixture
def full_disk(small_disk):
    """A file system with a few files and no room."""
    disk = small_disk("64k")
    for ending in ("csv", "parquet", "json", "png", "pdf", "svg", "x"):
        (disk / f"a.{ending}").write_text("old")
    with contextlib.suppress(OSError), (disk / "fill").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    return disk


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@every_output
def test_each_file_is_announced_and_nothing_is_left_beside_it(outputs, folder, tmp_path):
    for command, (names, said) in outputs.items():
        for name in names:
            (tmp_path / name).write_text("old")
            done = seqlab(*command.split(), str(tmp_path / name), cwd=folder)
            assert done.code == 0, done.err
            assert done.err.startswith(f"{tmp_path / name}: {said}")
            assert done.err.count("\n") == 1
            assert (done.out == "") == (not command.startswith(("results", "shapes")))
            assert (tmp_path / name).read_bytes() != b"old"
            assert set(contents(tmp_path)) == {name}
            (tmp_path / name).unlink()


@every_output
def test_on_a_full_disk_what_was_there_stays(outputs, folder, full_disk):
    before = contents(full_disk)
    for command, (names, _) in outputs.items():
        for name in names:
            done = seqlab(*command.split(), str(full_disk / name), cwd=folder)
            assert (done.code, done.out) == (2, "")
            assert done.err.startswith(f"error: {full_disk / name}: the disk is full: "), command
            assert done.err.count("\n") == 1
            assert contents(full_disk) == before


@pytest.mark.slow
def test_on_a_full_disk_onnx_is_the_same(folder, full_disk):
    """In a process of its own, since the exporter works once in each."""
    before = contents(full_disk)
    code, err = shell(f"export best.ckpt --format onnx --output {full_disk / 'a.x'}", folder)
    assert code == 2
    assert err.startswith(f"error: {full_disk / 'a.x'}: the disk is full: ")
    assert err.count("\n") == 1
    assert contents(full_disk) == before


@every_output
def test_a_folder_that_cannot_be_written_is_told_before_the_work(outputs, folder, full_disk):
    subprocess.run(["mount", "-o", "remount,ro", full_disk], check=True)
    for command, (names, _) in outputs.items():
        option, words = command.split()[-1], command.replace("best.ckpt", "gone.ckpt").split()
        for name in names:
            done = seqlab(*words, str(full_disk / name), cwd=folder)
            said = f"{option}={full_disk / name}: the folder {full_disk} cannot be written"
            assert (done.code, done.out, done.err) == (2, "", f"error: {said}\n")


@pytest.mark.needs("pipes")
def test_a_device_is_not_replaced_by_a_file(folder, tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    done = seqlab("predict", "best.ckpt", "--output", str(tmp_path / "a.csv"), cwd=folder)
    said = "a device or a pipe, and it would be replaced"
    assert (done.code, done.err) == (2, f"error: --output={tmp_path / 'a.csv'}: {said}\n")
    assert (tmp_path / "a.csv").is_fifo()


def into(stdout, command, folder):
    """`seqlab COMMAND` in this process, writing to an open file, with one time step on stdin."""
    stdin = io.TextIOWrapper(io.BytesIO(b"5\n"))
    with mock.patch.object(sys, "stdin", stdin):
        done = call(cli.main, "seqlab", command.split(), folder, (stdout, err := io.StringIO()))
    return done.code, err.getvalue()


@pytest.mark.needs("/dev/full")
@pytest.mark.parametrize("buffering", [1, -1], ids=["lines", "blocks"])
def test_a_full_stdout_is_one_line(buffering, folder):
    for command in COMMANDS:
        full = open("/dev/full", "w", buffering=buffering)  # noqa: SIM115  it cannot be closed
        assert into(full, command, folder) == (2, "error: stdout: No space left on device\n")
        with contextlib.suppress(OSError):
            full.close()


def test_a_reader_that_went_away_ends_a_command_quietly(folder):
    for command in COMMANDS:
        reader, writer = os.pipe()
        os.close(reader)
        with contextlib.suppress(OSError), open(writer, "w") as gone:
            assert into(gone, command, folder) == (1, ""), command


@pytest.mark.needs("/dev/full")
def test_what_is_written_to_a_file_needs_no_stdout(folder, tmp_path):
    with open("/dev/full", "w") as full:
        for command, name in (("predict best.ckpt", "a.csv"), ("export best.ckpt", "a.x")):
            words = f"{command} --output {tmp_path / name}"
            words += " --format safetensors" * command.startswith("export")
            code, err = into(full, words, folder)
            assert (code, err.count("\n")) == (0, 1)
            assert (tmp_path / name).stat().st_size > 100


def shell(command, cwd):
    """A command line in a shell, with Python's own buffers: its exit code and stderr."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    line = f"set -o pipefail; {shlex.quote(str(SEQLAB))} {command}"
    done = subprocess.run(["bash", "-c", line], cwd=cwd, env=env, capture_output=True, text=True)
    return done.returncode, done.stderr


SHELL = {
    "> /dev/full": (2, "error: stdout: No space left on device\n"),
    ">&-": (2, "error: stdout is closed; > /dev/null throws away what is not wanted\n"),
    "| true": (1, ""),
}


@pytest.mark.needs("bash", "/dev/full")
@pytest.mark.parametrize(
    "command",
    [
        "results run",
        "results run --json",
        "--help",
        *(pytest.param(c, marks=pytest.mark.slow) for c in ("predict best.ckpt", "shapes")),
        pytest.param("stream best.ckpt", marks=pytest.mark.slow),
    ],
)
def test_the_same_of_a_process_to_its_very_end(command, folder):
    for where, expected in SHELL.items():
        assert shell(f"{command} <<< 5 {where}", folder) == expected, where


@pytest.mark.needs("bash")
def test_a_stream_without_stdin_is_told(folder):
    code, err = shell("stream best.ckpt <&-", folder)
    assert (code, err) == (2, "error: stdin is closed; the time steps are read there\n")


@pytest.mark.needs("bash")
def test_a_closed_stderr_is_no_mistake(folder, tmp_path):
    assert shell(f"results run --output {tmp_path / 'a.csv'} 2>&-", folder) == (0, "")
    assert set(contents(tmp_path)) == {"a.csv"}


def test_results_in_a_narrow_terminal_names_every_key_if_told_to(folder, tmp_path, monkeypatch):
    keys = [f"model.a_key_with_a_long_name_{i}" for i in range(6)]
    for name in ("one", "two"):
        results = strict_json(folder / "run/results.json")
        results["overrides"] = [f"{key}={name}" for key in keys]
        write(tmp_path, {f"{name}/results.json": json.dumps(results)})
    monkeypatch.setenv("COLUMNS", "80")
    short, whole = (seqlab("results", ".", *more, cwd=tmp_path).out for more in ([], ["--all"]))
    assert any(key not in short for key in keys)
    assert all(key in whole for key in keys)
