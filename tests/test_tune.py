import json
import shlex
import subprocess
import sys

import pytest
from program import run, seqlab, strict_json

SMALL = [
    "trainer.max_epochs=3", "data.n_train=64", "data.n_val=32", "data.n_test=32",
    "data.steps_per_call=1", "data.seq_len=4", "callbacks.pictures=null",
]  # fmt: skip
SPACE = ["model.n_hidden=range(2,9)", "optim.lr=tag(log,interval(1e-4,1e-1))", "seed=0,1"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("search")
    result = seqlab("tune", *SMALL, *SPACE, "--trials", "9", "--seed", "1", "--json", cwd=cwd)
    assert result.code == 0, result.err
    return cwd, json.loads(result.out[result.out.index("{") :])


def test_trials_are_runs_and_the_best_can_be_repeated(searched, tmp_path):
    cwd, found = searched
    assert found["complete"] + found["pruned"] == 9
    folders = list(cwd.glob("outputs/tune/search/*/"))
    ended = [strict_json(folder / "results.json") for folder in folders]
    assert len(ended) == 9
    assert [r["status"] for r in ended].count("pruned") == found["pruned"]
    finished = [r["metrics"]["best/val/mse"] for r in ended if r["status"] == "finished"]
    assert found["best"] == min(finished)
    python, script, *words = shlex.split(found["command"])
    assert (python, script) == ("python", "train.py")
    result = run(*words, cwd=tmp_path)
    assert result.results["metrics"]["best/val/mse"] == found["best"]
    for picture in found["pictures"]:
        assert (cwd / picture).read_bytes().startswith(b"\x89PNG")
    assert 2 <= found["params"]["model.n_hidden"] <= 8


def test_a_study_goes_on_with_its_own_space(searched):
    cwd, _ = searched
    result = seqlab("tune", "--trials", "10", "--json", cwd=cwd)
    found = json.loads(result.out[result.out.index("{") :])
    assert found["complete"] + found["pruned"] == 10


def test_a_trial_that_fails_is_counted_and_the_search_goes_on(tmp_path):
    space = ["optim.lr=1e-2,1e38", "optim.clip=null"]
    result = seqlab("tune", *SMALL, *space, "--trials", "6", "--seed", "0", "--json", cwd=tmp_path)
    assert result.code == 0, result.err
    found = json.loads(result.out[result.out.index("{") :])
    assert found["fail"] > 0
    assert found["complete"] + found["pruned"] + found["fail"] == 6
    assert found["params"] == {"optim.lr": "0.01"}


def test_two_workers_that_start_at_once_share_a_study(tmp_path):
    code = "import sys; sys.argv[0] = 'seqlab'; from seqlab.cli import main; main()"
    command = [sys.executable, "-c", code, "tune", *SMALL, *SPACE, "--trials", "8", "--json"]
    workers = [
        subprocess.Popen(
            command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for worker in workers:
        _, err = worker.communicate(timeout=120)
        assert worker.returncode == 0, err
    found = [strict_json(path) for path in tmp_path.glob("outputs/tune/search/*/results.json")]
    assert 8 <= len(found) <= 9  # the last two may have begun together
    assert {each["status"] for each in found} <= {"finished", "pruned"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--study", "none"], "--study=none: no such study"),
        (["model.n_hidden=4"], "nothing to search"),
        (["model.n_hidden=range(4,4)"], "model.n_hidden=range(4,4)"),
        (["optim.lr=interval(1,0.1)"], "its start must be below its end"),
        (["optim.lr=tag(log,interval(0.0,0.1))"], "optim.lr=tag(log"),
        (["seed=1,2", "seed=3"], "seed is given twice"),
        (["model.n_hiden=1,2"], "model.n_hiden"),
        (["seed=0,1", "trainer.devices=2"], "leave out trainer.devices"),
        (["seed=0,1", "--storage", "postgresql+psycopg://127.0.0.1:9/none"], "--storage=postgre"),
        (["seed=0,1", "--storage", "nonsense"], "--storage=nonsense"),
    ],
)
def test_a_mistake_is_one_line(words, said, tmp_path):
    result = seqlab("tune", *SMALL[:0], *words, cwd=tmp_path)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result.err
    assert said in result.err


def test_another_space_in_one_study_is_refused(searched):
    cwd, _ = searched
    result = seqlab("tune", *SMALL, "seed=0,1", cwd=cwd)
    assert result.code == 2
    assert "--study=search: has another space" in result.err
