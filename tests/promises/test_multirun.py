import csv
import re
import shlex
import threading
from pathlib import Path

import pytest
from left import strict_json
from program import TINY, process, run, write

SHARED = [override for override in TINY if not override.startswith("model.")]


def table(folder):
    """The rows of results.csv by column, in order."""
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    overrides = [*SHARED, "model.n_hidden=2,3", "optim.lr=1e-2,1e-3"]
    return run("-m", *overrides, cwd=tmp_path_factory.mktemp("sweep"))


def test_every_combination_is_run_in_a_folder_named_by_what_varies(sweep):
    assert sweep.code == 0
    assert {path.name for path in sweep.folder.iterdir() if path.is_dir()} == {
        "0-model.n_hidden=2,optim.lr=0.01",
        "1-model.n_hidden=2,optim.lr=0.001",
        "2-model.n_hidden=3,optim.lr=0.01",
        "3-model.n_hidden=3,optim.lr=0.001",
    }
    for folder in sweep.folder.glob("*/"):
        names = {path.name for path in folder.iterdir()}
        assert {"config.yaml", "checkpoints", "results.json", "train.log"} <= names


def test_it_says_which_job_begins_and_what_is_its_own(sweep):
    lines = [line for line in sweep.out.splitlines() if re.match(r"job |\d-", line)]
    assert lines[::2] == [
        "job 1 of 4: model.n_hidden=2 optim.lr=0.01",
        "job 2 of 4: model.n_hidden=2 optim.lr=0.001",
        "job 3 of 4: model.n_hidden=3 optim.lr=0.01",
        "job 4 of 4: model.n_hidden=3 optim.lr=0.001",
    ]
    for number, line in enumerate(lines[1::2]):  # its end comes before the next one begins
        assert line.startswith(f"{number}-model.n_hidden=")


SWEEPING = """
# @package _global_
hydra:
  sweeper:
    params:
      +note: a,b
"""


def test_jobs_are_counted_whatever_lists_them(tmp_path):
    """A glob, a range, a value that is a list, a config file; a key that all share."""
    write(tmp_path, {"own/experiment/sweep.yaml": SWEEPING})
    words = ["model=glob(l*)", "seed=range(3,4)", "trainer.max_epochs=0", "+other=[1,2]"]
    result = run("-m", *words, "-cd", "own", "experiment=sweep", cwd=tmp_path)
    jobs = [line for line in result.out.splitlines() if line.startswith("job ")]
    assert jobs == [
        "job 1 of 2: +note=a model=lstm seed=3",
        "job 2 of 2: +note=b model=lstm seed=3",
    ]
    names = sorted(path.name for path in result.folder.glob("*/"))
    assert names == ["0-+note=a,model=lstm,seed=3", "1-+note=b,model=lstm,seed=3"]


def test_the_table_has_the_knobs_and_is_sorted_by_the_monitored_metric(sweep):
    rows = table(sweep.folder)
    scores = [float(row["best/val/mse"]) for row in rows]
    assert len(rows) == 4
    assert scores == sorted(scores)
    for row in rows:
        results = strict_json(sweep.folder / row["folder"] / "results.json")
        assert list(row)[:3] == ["model.n_hidden", "optim.lr", "best/val/mse"]
        assert row["folder"].partition("-")[2] == ",".join(
            f"{key}={row[key]}" for key in ("model.n_hidden", "optim.lr")
        )
        assert row["status"] == results["status"] == "finished"
        for name in ("best/val/mse", "test/mse"):
            assert float(row[name]) == results["metrics"][name]


def printed(result):
    """The cells of the printed table, row by row, from its header on."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in result.out.splitlines()]
    start = next(n for n, line in enumerate(lines) if "folder" in line)
    return [line for line in lines[start:] if len(line) == len(lines[start])]


def test_the_printed_table_is_the_one_in_the_file(sweep):
    rows = table(sweep.folder)
    header, *lines = printed(sweep)
    assert header == list(rows[0])
    for row, line in zip(rows, lines, strict=True):
        for name, cell in zip(header, line, strict=True):
            value = f"{float(row[name]):.4g}" if name.endswith("mse") else row[name]
            assert cell == value


def test_it_ends_with_the_command_that_compares(sweep):
    folder = str(sweep.folder.relative_to(sweep.cwd))
    assert shlex.split(sweep.out.splitlines()[-1])[-3:] == ["tensorboard", "--logdir", folder]


FAILING = """
from lightning.pytorch.callbacks import Callback


class Boom(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, learner):
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("boom")
"""


@pytest.mark.parametrize(
    ("overrides", "failed", "error"),
    [
        (["model.n_hidden=2,0,3"], "model.n_hidden=0", "model.n_hidden=0: at least 1"),
        (
            ["+callbacks.boom._target_=mine.failing.Boom", "+callbacks.boom.epoch=9,0,8"],
            "boom.epoch=0",
            "RuntimeError: boom",
        ),
    ],
)
def test_a_job_that_fails_is_marked_and_stops_no_other(
    overrides, failed, error, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(write(tmp_path, {"mine/failing.py": FAILING}))
    result = run("-m", *SHARED, *overrides, cwd=tmp_path)
    *finished, last = table(result.folder)
    assert result.code == 1
    assert [row["status"] for row in finished] == ["finished", "finished"]
    assert last["status"] == "failed"
    assert failed in last["folder"]
    assert printed(result)[-1][-2:] == ["failed", last["folder"]]
    assert strict_json(result.folder / last["folder"] / "results.json")["error"].startswith(error)
    (line,) = (line for line in result.err.splitlines() if line.startswith("error: "))
    assert failed in line
    assert error in line


def test_a_job_that_diverged_failed(tmp_path):
    result = run("-m", *SHARED, "optim.clip=null", "optim.lr=1e38,1e-2,1e-3", cwd=tmp_path)
    first, second, diverged = table(result.folder)
    assert float(first["best/val/mse"]) < float(second["best/val/mse"]) < 1
    assert (diverged["best/val/mse"], diverged["status"]) == ("", "failed")
    assert "step" in strict_json(result.folder / diverged["folder"] / "results.json")["error"]


@pytest.mark.parametrize(
    ("override", "names"),
    [
        (f"+note={'a' * 200}1,{'a' * 200}2", r"[01]-\+note=a+"),
        ("+note=a/b,c/d", r"[01]-\+note=[ac]_[bd]"),
        ("optim/schedule=none,cosine", r"[01]-optim_schedule=(none|cosine)"),
        ("++model.n_hidden=2,3", r"[01]-\+\+model.n_hidden=[23]"),
        ("seed=range(2)", r"[01]-seed=[01]"),
    ],
)
def test_folder_names_are_short_single_and_distinct(override, names, tmp_path):
    result = run("-m", *SHARED, override, cwd=tmp_path)
    rows = table(result.folder)
    assert result.code == 0
    for row in rows:
        assert re.fullmatch(names, row["folder"])
        assert len(row["folder"]) < 130
        assert (result.folder / row["folder"] / "results.json").exists()
    assert len({row["folder"] for row in rows}) == 2
    assert len({row[next(iter(row))] for row in rows}) == 2  # the knob's column


def test_an_override_without_a_value_is_no_knob(tmp_path):
    overrides = [override for override in SHARED if not override.startswith("callbacks")]
    result = run("-m", *overrides, "~callbacks.pictures", "seed=0,1", cwd=tmp_path)
    assert result.code == 0
    assert sorted(row["seed"] for row in table(result.folder)) == ["0", "1"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("model.n_hiden=2,3", ["model.n_hiden", "no such key"]),
        ("model=lstm,nope", ["model=nope", "lstm"]),
        ("seed=[1", ["seed=[1"]),
        ("hydra.sweep.dir=a_file/sweep seed=0,1", ["a_file/sweep", "hydra.sweep.dir"]),
    ],
)
def test_a_mistake_in_all_jobs_is_one_line_and_leaves_no_folder(overrides, words, tmp_path):
    (tmp_path / "a_file").touch()
    result = run("-m", *SHARED, *overrides.split(), cwd=tmp_path)
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", result.err)
    for word in words:
        assert word in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]


FROZEN = """
import gc

from lightning.pytorch.callbacks import Callback


class Frozen(Callback):
    def on_fit_start(self, trainer, learner):
        print("frozen", gc.isenabled(), gc.get_freeze_count())
"""


@pytest.mark.slow
def test_the_garbage_collector_passes_over_the_imports_and_over_nothing_else(tmp_path):
    write(tmp_path, {"mine/frozen.py": FROZEN})
    tell = "+callbacks.frozen._target_=mine.frozen.Frozen"
    result = process("-m", *TINY, tell, "seed=0,1", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.code == 0, result.err
    said = [line.split() for line in result.out.splitlines() if line.startswith("frozen")]
    assert [enabled for _, enabled, _ in said] == ["True", "True"]
    first, second = (int(count) for *_, count in said)
    assert 200_000 < second <= first  # what a job leaves is collected


def test_a_job_whose_results_were_cut_off_runs_again(tmp_path):
    words = ["-m", *TINY, "seed=0,1", "hydra.sweep.dir=sweep"]
    assert run(*words, cwd=tmp_path).code == 0
    rows = table(tmp_path / "sweep")
    for job, text in (("0-seed=0", '{"status": "fini'), ("1-seed=1", "")):
        (tmp_path / "sweep" / job / "results.json").write_text(text)
    result = run(*words, cwd=tmp_path)
    assert result.code == 0, result.err
    assert "finished before" not in result.out
    assert table(tmp_path / "sweep") == rows


LOSING = """
from pathlib import Path

from lightning.pytorch.callbacks import Callback


class Lose(Callback):
    def on_test_end(self, trainer, learner):
        Path(trainer.default_root_dir, "results.json").unlink()
        Path(trainer.default_root_dir, ".results.json.part").mkdir()
"""


def test_a_job_that_could_not_write_its_results_has_failed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(write(tmp_path, {"mine/losing.py": LOSING}))
    lose = "callbacks.pictures={_target_: mine.losing.Lose},null"
    result = run("-m", *SHARED[:-1], "model.n_hidden=2", lose, cwd=tmp_path)
    assert result.code == 1, result.err
    assert [row["status"] for row in table(result.folder)] == ["finished", "failed"]


@pytest.mark.parametrize("what", ["unwritable", "damaged"])
def test_a_multirun_whose_table_cannot_be_made_says_so_and_does_not_succeed(what, tmp_path):
    words = ["-m", *TINY, "seed=0,1", "hydra.sweep.dir=sweep"]
    if what == "unwritable":
        (tmp_path / "sweep/.results.csv.part").mkdir(parents=True)
    else:
        write(tmp_path, {"sweep/more/results.json": "{"})
    result = run(*words, cwd=tmp_path)
    assert result.code == 2
    assert re.search(r"^error: .*results\.(csv|json)", result.err, re.MULTILINE)
    assert not (tmp_path / "sweep/results.csv").exists()


def test_brackets_in_names_and_values_stay_in_the_table(tmp_path):
    words = ["-m", *TINY, "+note='[a]','[b]'", "hydra.sweep.dir='[/b]'"]
    result = run(*words, cwd=tmp_path)
    assert result.code == 0, result.err
    for text in (f"2 jobs in {Path('[/b]')}", "[a]", "[b]"):
        assert text in result.out


def test_jobs_leave_no_threads(tmp_path):
    before = threading.active_count()
    assert run("-m", *TINY, "seed=range(3)", cwd=tmp_path).code == 0
    assert threading.active_count() == before
