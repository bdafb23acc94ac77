"""The one line for each kind of mistake."""

import errno
import os

import pytest
from program import run

from seqlab.engine.errors import UserError, explain, one_line_errors


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("hydra.run.dir=file/run", "hydra.run.dir=file/run: Not a directory"),
        ("hydra.run.dir=file", "hydra.run.dir=file: File exists"),
        ("-m seed=0,1 hydra.sweep.dir=file/a", "hydra.sweep.dir=file/a: Not a directory"),
    ],
)
def test_a_folder_that_cannot_be_made_is_named_with_its_key(words, line, tmp_path):
    (tmp_path / "file").touch()
    result = run(*words.split(), cwd=tmp_path)
    assert (result.code, result.out) == (2, "")
    assert result.err == f"error: {line}; name another folder\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("rank", "waits"), [("0", []), ("1", [10])])
def test_the_first_of_several_processes_has_time_to_report(rank, waits, monkeypatch, capsys):
    slept = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # put back: it is set inside
    monkeypatch.setattr("time.sleep", slept.append)
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise UserError("n=0: at least 1")
    assert (end.value.code, slept) == (2, waits)
    assert capsys.readouterr().err == ("" if waits else "error: n=0: at least 1\n")


def test_of_any_other_file_the_line_says_what_the_system_says():
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "conf/model/mine.yaml")
    assert explain(error) == "conf/model/mine.yaml: Permission denied"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("experiment=sunspot", "experiment=sunspot: no such choice; did you mean sunspots? exp"),
        ("model=ltsm", "model=ltsm: no such choice; did you mean lstm? model can be gru, lstm, "),
        ("model=xyz", "model=xyz: no such choice; model can be gru, lstm, minlstm, transformer\n"),
        (
            "logger=[tensorboard,cvs]",
            "logger=cvs: no such choice; did you mean csv? logger can be csv, mlflow, tensorboard,",
        ),
    ],
)
def test_a_choice_that_is_nearly_right_is_recognised(words, line, tmp_path):
    result = run(words, cwd=tmp_path)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {line}")
    assert result.err.count("\n") == 1
