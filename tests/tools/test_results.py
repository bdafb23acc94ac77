import csv
import json
import statistics

import pytest
from left import strict_json
from program import TINY, run, seqlab


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A multirun of two settings with two seeds each, a single run, and one never finished."""
    cwd = tmp_path_factory.mktemp("runs")
    words = [word for word in TINY if not word.startswith("model.")]
    both = ["model.n_hidden=2,3", "seed=0,1", "hydra.sweep.dir=runs/sweep"]
    assert run("-m", *words, *both, cwd=cwd).code == 0
    assert run(*words, "model.n_hidden=4", "hydra.run.dir=runs/one", cwd=cwd).code == 0
    assert run(*words, "optim.lr=1e-3", "hydra.run.dir=runs/cut", cwd=cwd).code == 0
    results = strict_json(cwd / "runs/cut/results.json")
    kept = {key: results[key] for key in ("overrides", "monitor")}
    (cwd / "runs/cut/results.json").write_text(json.dumps(kept | {"status": "running"}))
    return cwd


def test_any_runs_in_one_table_best_first(folder):
    result = seqlab("results", "runs", "--json", "--output", "all.csv", cwd=folder)
    assert result.code == 0, result.err
    found = json.loads(result.out)["runs"]
    assert {row["folder"].partition("/")[0] for row in found} == {"sweep", "one", "cut"}
    scores = [row["best/val/mse"] for row in found]
    assert scores[:5] == sorted(scores[:5])
    assert (scores[5], found[5]["status"], found[5]["folder"]) == (None, "running", "cut")
    # of a run that does not override a key, the config's value
    assert [found[5][key] for key in ("model.n_hidden", "seed", "optim.lr")] == ["32", "0", "1e-3"]
    for row in found[:5]:
        results = strict_json(folder / "runs" / row["folder"] / "results.json")
        assert row["test/mse"] == results["metrics"]["test/mse"]
        assert row["optim.lr"] == "0.01"
    with (folder / "all.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["folder"] for row in rows] == [row["folder"] for row in found]


def test_a_multirun_gives_the_table_that_it_ended_with(folder):
    assert seqlab("results", "runs/sweep", "--output", "again.csv", cwd=folder).code == 0
    assert (folder / "again.csv").read_text() == (folder / "runs/sweep/results.csv").read_text()


def test_mean_and_deviation_over_seeds(folder):
    found = json.loads(seqlab("results", "runs/sweep", "--json", cwd=folder).out)
    for setting in found["seeds"]:
        scores = [
            row["test/mse"]
            for row in found["runs"]
            if row["model.n_hidden"] == setting["model.n_hidden"]
        ]
        assert setting["seeds"] == len(scores) == 2
        mean, spread = setting["test/mse"]
        assert mean == pytest.approx(statistics.fmean(scores))
        assert spread == pytest.approx(statistics.stdev(scores))
    first, second = (setting["best/val/mse"][0] for setting in found["seeds"])
    assert first <= second
    assert "±" in seqlab("results", "runs/sweep", cwd=folder).out


def test_a_group_left_at_its_default_has_the_name_of_its_choice(tmp_path):
    def chosen():
        assert seqlab("results", "outputs", "--output", "all.csv", cwd=tmp_path).code == 0
        with (tmp_path / "all.csv").open(newline="") as file:
            return {row.pop("folder"): row for row in csv.DictReader(file)}

    words = [word for word in TINY if not word.startswith("model.")]
    assert run(*words, "hydra.run.dir=outputs/plain", cwd=tmp_path).code == 0
    both = ["model=gru", "experiment=reference", "optim/schedule=step"]
    assert run(*words, *both, "hydra.run.dir=outputs/other", cwd=tmp_path).code == 0
    found, keys = chosen(), ("model", "experiment", "optim/schedule")
    assert [found["plain"][key] for key in keys] == ["lstm", "", "none"]
    assert [found["other"][key] for key in keys] == ["gru", "reference", "step"]
    # the command that resumes a run names no groups
    assert strict_json(tmp_path / "outputs/other/results.json")["groups"]["data"] == "random"
    resumed = run("resume=outputs/other", "trainer.max_epochs=2", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    assert strict_json(tmp_path / "outputs/other/results.json")["groups"]["data"] == "random"
    assert [chosen()["other"][key] for key in keys] == ["gru", "reference", "step"]


def test_a_picture(folder):
    result = seqlab("results", "runs", "--picture", "runs.png", cwd=folder)
    assert result.code == 0, result.err
    assert (folder / "runs.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: no run there"),
        (["runs", "--picture", "a.jpg"], "--picture=a.jpg: must end in .png"),
        (["runs", "--output", "no/a.csv"], "--output=no/a.csv: there is no folder"),
    ],
)
def test_a_mistake_is_one_line(words, said, folder):
    result = seqlab("results", *words, cwd=folder)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result.err
    assert said in result.err
