import json
import os
import re
import shlex
import signal
import sys
import time

import optuna
import pytest
from children import worker
from left import strict_json
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState
from program import ROOT, run, seqlab, write

from seqlab.tools import tune

SMALL = [
    "trainer.max_epochs=3", "data.n_train=64", "data.n_val=32", "data.n_test=32",
    "data.steps_per_call=1", "data.seq_len=4", "callbacks.pictures=null",
]  # fmt: skip
SPACE = ["model.n_hidden=range(2,9)", "optim.lr=tag(log,interval(1e-4,1e-1))", "seed=0,1"]


def states(study, folder):
    """A report without its pictures."""
    found = [trial.state for trial in study.trials]
    return {state.name.lower(): found.count(state) for state in TrialState}


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
    assert {(r["groups"]["model"], r["groups"]["data"]) for r in ended} == {("lstm", "sine")}
    finished = [r["metrics"]["best/val/mse"] for r in ended if r["status"] == "finished"]
    assert found["best"] == min(finished)
    python, script, *words = shlex.split(found["command"])
    assert (python, (cwd / script).resolve()) == ("python", ROOT / "train.py")
    result = run(*words, cwd=tmp_path)
    assert result.results["metrics"]["best/val/mse"] == found["best"]
    for picture in found["pictures"]:
        assert (cwd / picture).read_bytes().startswith(b"\x89PNG")
    assert 2 <= found["params"]["model.n_hidden"] <= 8


def test_a_study_goes_on_with_its_own_space(searched):
    cwd, _ = searched
    result = seqlab("tune", "--study", "search", "--trials", "10", "--json", cwd=cwd)
    found = json.loads(result.out[result.out.index("{") :])
    assert found["complete"] + found["pruned"] == 10


def test_without_a_space_and_a_name_the_studies_are_listed(tmp_path, monkeypatch):
    result = seqlab("tune", cwd=tmp_path)
    assert (result.code, result.err, list(tmp_path.iterdir())) == (0, "", [])
    (line,) = result.out.splitlines()
    assert line.startswith("no study in outputs/tune; KEY=SPACE begins one:  ")
    assert shlex.split(line)[-2:] == ["tune", "optim.lr=tag(log,interval(1e-4,1e-1))"]

    def train(cfg, context, watch):
        watch("val/mse")
        return 1 / (cfg.seed + 1)

    monkeypatch.setattr(tune, "train", train)
    monkeypatch.setattr(tune, "report", states)
    for name, trials in (("it's", "1"), ("b", "2")):
        words = ["model.n_hidden=4", "seed=range(7,9)", "--trials", trials, "--study", name]
        assert seqlab("tune", *words, "--seed", "0", "--json", cwd=tmp_path).code == 0
    before = sorted(path for path in tmp_path.rglob("*"))
    journals = [path.read_text() for path in before if path.name == "journal.log"]
    result = seqlab("tune", "--trials", "9", cwd=tmp_path)
    assert (result.code, result.err) == (0, "")
    assert (
        re.sub(r"tune: .*seqlab tune", "", result.out).splitlines()[0]
        == "b: 2 trials, best 0.111111"
    )
    found = re.findall(
        r"^(.+): (\d) trials?, .*\n  its space:  (.*)\n  go on: +(.*)$", result.out, re.M
    )
    assert [each[:2] for each in found] == [("b", "2"), ("it's", "1")]
    assert shlex.split(found[1][2]) == ["model.n_hidden=4", "seed=range(7,9)"]
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert [path.read_text() for path in before if path.name == "journal.log"] == journals
    listed = json.loads(seqlab("tune", "--json", cwd=tmp_path).out)
    assert [each["command"] for each in listed] == [each[3] for each in found]
    for each, name, trials in zip(listed, ("b", "it's"), (2, 1), strict=True):
        words = shlex.split(each["command"])
        assert words[1:] == ["tune", "--study", name]
        result = seqlab(*words[1:], "--trials", "3", "--json", cwd=tmp_path)
        assert json.loads(result.out[result.out.index("{\n") :])["complete"] == 3, trials


def test_a_trial_that_fails_is_counted_and_the_search_goes_on(tmp_path):
    space = ["optim.lr=1e-2,1e38", "optim.clip=null"]
    result = seqlab("tune", *SMALL, *space, "--trials", "6", "--seed", "0", "--json", cwd=tmp_path)
    assert result.code == 0, result.err
    found = json.loads(result.out[result.out.index("{") :])
    assert found["fail"] > 0
    assert found["complete"] + found["pruned"] + found["fail"] == 6
    assert found["params"] == {"optim.lr": "0.01"}


def ends(*workers):
    """What each worker found in the end."""
    for each in workers:
        out, err = each.communicate(timeout=120)
        assert each.returncode == 0, err
        yield json.loads(out[out.index("{\n") :])


def test_a_search_follows_the_direction_of_what_it_monitors(tmp_path):
    words = [*SMALL, "optim.lr=1e-5,1e-2", "monitor=val/r2", "--trials", "4", "--json"]
    result = seqlab("tune", *words, "--seed", "0", cwd=tmp_path)
    assert result.code == 0, result.err
    found = json.loads(result.out[result.out.index("{") :])
    ended = [strict_json(path) for path in tmp_path.glob("outputs/tune/search/*/results.json")]
    values = {r["metrics"]["best/val/r2"] for r in ended if r["status"] == "finished"}
    assert len(values) > 1
    assert found["best"] == max(values)


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("n=range(2,5)", {2, 3, 4}),
        ("n=range(2,9,3)", {2, 5, 8}),
        ("n=range(0.5,2.0,0.5)", {0.5, 1.0, 1.5}),
        ("n=int(interval(1,3))", {1, 2, 3}),
        ("n=tag(log,range(1,3))", {1, 2}),
        ("n=choice(a,b)", {"a", "b"}),
        ("n=[1,2],[3]", {"[1,2]", "[3]"}),
    ],
)
def test_a_key_takes_the_values_of_its_space(word, values):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    choose = tune.parse(["m=7", word], study.ask())
    assert {tuple(choose(study.ask())) for _ in range(50)} == {("m=7", f"n={v}") for v in values}


def test_whole_numbers_are_searched_as_numbers():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    tune.parse(["m=4,16,8", "n=4,null", "o=1e-2,1e-3"], trial := study.ask())
    choices = {key: list(space.choices) for key, space in trial.distributions.items()}
    assert choices == {"m": [4, 16, 8], "n": ["4", "null"], "o": ["0.01", "0.001"]}


@pytest.mark.needs("signals")
def test_a_worker_stopped_by_a_signal_hands_its_trial_on(tmp_path):
    words = ["trainer.max_epochs=500", *SMALL[1:], *SPACE[:2], "--trials", "1", "--json"]
    words += ["callbacks.early_stopping=null"]
    with worker(*words, cwd=tmp_path) as stopped:
        while not list(tmp_path.glob("outputs/tune/search/*/checkpoints/last.ckpt")):
            assert stopped.poll() is None, stopped.communicate()[1]
            time.sleep(0.01)
        stopped.terminate()
        _, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 128 + signal.SIGTERM
    assert f"go on with:  {shlex.join(['seqlab', 'tune', *words])}" in err
    journal = tmp_path / "outputs/tune/search"
    study = optuna.load_study(storage=tune.open_storage(None, journal, 1), study_name="search")
    lost, again = study.trials
    assert (lost.state, again.state) == (TrialState.FAIL, TrialState.WAITING)
    assert again.params == lost.params
    result = seqlab("tune", "--study", "search", "--timeout", "0", "--json", cwd=tmp_path)
    assert json.loads(result.out[result.out.index("{") :])["waiting"] == 1


@pytest.mark.needs("fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_workers_at_once_make_as_many_trials_as_asked_for(tmp_path, monkeypatch):
    def counted(trials):
        found = count(trials)
        time.sleep(1)  # so that they count at the same time, unless one waits for the other
        return found

    monkeypatch.setattr(tune, "train", lambda cfg, context, watch: 1.0)
    monkeypatch.setattr(tune, "report", states)
    words = ["tune", "seed=range(0,9)", "--study", "s", "--json"]
    assert seqlab(*words, "--trials", "1", cwd=tmp_path).code == 0
    count, workers = tune.counted, []
    monkeypatch.setattr(tune, "counted", counted)
    for _ in range(2):
        if (pid := os.fork()) == 0:
            os._exit(seqlab(*words, "--trials", "2", cwd=tmp_path).code)
        workers.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in workers] == [0, 0]
    storage = tune.open_storage(None, tmp_path / "outputs/tune/s", 1)
    trials = optuna.load_study(storage=storage, study_name="s").trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    assert not list(tmp_path.glob("outputs/tune/s/[0-9]*"))  # no trial's lock is left


@pytest.mark.needs("fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_the_trial_of_a_killed_worker_is_tried_again(tmp_path, monkeypatch):
    def train(cfg, context, watch):
        given.append(cfg.seed)
        return 1.0

    given = []
    monkeypatch.setattr(tune, "train", train)
    monkeypatch.setattr(tune, "report", states)
    words = ["tune", "seed=range(0,9)", "--study", "s", "--json"]
    pid = os.fork()
    if pid == 0:
        tune.train = lambda cfg, context, watch: os.kill(os.getpid(), signal.SIGKILL)
        seqlab(*words, "--trials", "2", cwd=tmp_path)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    result = seqlab(*words, "--trials", "2", cwd=tmp_path)
    found = json.loads(result.out[result.out.index("{\n") :])
    assert (found["complete"], found["fail"], found["running"]) == (2, 1, 0)
    storage = tune.open_storage(None, tmp_path / "outputs/tune/s", 1)
    lost, again, _ = optuna.load_study(storage=storage, study_name="s").trials
    assert lost.state == TrialState.FAIL
    assert again.params == lost.params == {"seed": given[0]}
    assert again.system_attrs["failed_trial"] == lost.number


@pytest.mark.slow
def test_two_workers_that_start_at_once_share_a_study(tmp_path):
    words = [*SMALL, *SPACE, "--trials", "8", "--json"]
    with worker(*words, cwd=tmp_path) as one, worker(*words, cwd=tmp_path) as two:
        found = [each["complete"] + each["pruned"] for each in ends(one, two)]
    folders = list(tmp_path.glob("outputs/tune/search/*/"))
    numbers = sorted(int(folder.name.partition("-")[0]) for folder in folders)
    assert numbers == list(range(8))
    statuses = {strict_json(folder / "results.json")["status"] for folder in folders}
    assert statuses <= {"finished", "pruned"}
    assert max(found) == len(folders)


@pytest.mark.slow
def test_a_killed_worker_loses_its_own_trial_alone(tmp_path):
    words = [*SMALL, *SPACE, "--trials", "8", "--json"]
    begun = "outputs/tune/search/*/checkpoints/last.ckpt"
    with worker(*words, cwd=tmp_path) as victim:
        while not list(tmp_path.glob(begun)):
            assert victim.poll() is None, victim.communicate()[1]
            time.sleep(0.01)
        victim.kill()
        victim.communicate()
    with worker(*words, cwd=tmp_path) as other:
        (found,) = ends(other)
    folders = list(tmp_path.glob("outputs/tune/search/*/"))
    statuses = sorted(strict_json(folder / "results.json")["status"] for folder in folders)
    assert found["complete"] + found["pruned"] == 8
    lost = statuses.count("running")
    assert found["running"] == 0
    assert found["fail"] == lost <= 1
    assert len(folders) == 8 + lost


@pytest.mark.needs("fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_worker_killed_while_it_writes_stops_no_other(tmp_path):
    """It holds the lock of the study's file, and leaves half a line there."""
    study = optuna.create_study(storage=tune.open_storage(None, tmp_path, 1), study_name="s")
    pid = os.fork()
    if pid == 0:
        tune.JournalLock(tmp_path / "journal.log").acquire()
        with (tmp_path / "journal.log").open("ab") as file:
            file.write(b'{"op_code": 4')
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    again = optuna.load_study(storage=tune.open_storage(None, tmp_path, 1), study_name="s")
    assert [trial.number for trial in again.trials] == [0, 1]


@pytest.fixture
def database(tmp_path):
    return f"sqlite:///{tmp_path}/study.db"


def test_a_trial_taken_for_lost_does_not_end_its_worker(database, tmp_path, monkeypatch):
    """Of a worker too busy for its heartbeat: another has the trial tried again."""
    given = []

    def train(cfg, context, watch):
        study = optuna.load_study(storage=tune.open_storage(database, tmp_path, 1), study_name="s")
        if not given:
            (mine,) = study.get_trials(states=(TrialState.RUNNING,))
            study.tell(mine.number, state=TrialState.FAIL)
            RetryHeartbeatStaleTrialCallback()(study, mine)
        given.append(cfg.seed)
        return 1.0

    monkeypatch.setattr(tune, "train", train)
    words = ["seed=0,1", "--trials", "2", "--study", "s", "--storage", database, "--json"]
    result = seqlab("tune", *words, cwd=tmp_path)
    assert result.code == 0, result.err
    found = json.loads(result.out[result.out.index("{\n") :])
    assert (found["complete"], found["fail"]) == (2, 1)
    assert given[0] == given[1]


def test_a_worker_killed_before_its_first_heartbeat_is_not_waited_for(
    database, tmp_path, monkeypatch
):
    monkeypatch.setattr(tune, "train", lambda cfg, context, watch: 1.0)
    words = ["seed=0,1", "--study", "s", "--storage", database, "--heartbeat", "1", "--json"]
    assert seqlab("tune", *words, "--trials", "1", cwd=tmp_path).code == 0
    store = tune.open_storage(database, tmp_path, 1)
    store.create_new_trial(store.get_study_id_from_name("s"))
    result = seqlab("tune", *words, "--trials", "3", cwd=tmp_path)
    found = json.loads(result.out[result.out.index("{\n") :])
    assert (found["complete"], found["fail"], found["running"]) == (2, 1, 0)


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
        (["seed=0,1", "--storage", "postgresql+psycopg://me:secret@127.0.0.1:9/x"], "me:***@127"),
        (["seed=0,1", "--storage", "sqlite:////nowhere/x.db"], "--storage=sqlite:////nowhere/x.db"),
        (["--study", "none", "--storage", "sqlite://"], "--study=none: no such study"),
        (["seed=0,1", "--storage", "nonsense"], "--storage=nonsense"),
        (["model.n_hidden=choice()"], "model.n_hidden=choice()"),
        (["optim.lr=interval(0.1,0.1)"], "optim.lr=interval(0.1,0.1)"),
    ],
)
def test_a_mistake_is_one_line(words, said, tmp_path):
    result = seqlab("tune", *SMALL[:0], *words, cwd=tmp_path)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result.err
    assert said in result.err


def test_a_study_is_named_like_a_folder_and_stays_in_its_place(tmp_path, monkeypatch):
    for name in ("", " ", ".", "..", "../x", "a/../b", "a//b", "/tmp/x", "a\\b", "C:x", "a\nb"):
        result = seqlab("tune", "seed=0,1", "--study", name, cwd=tmp_path)
        assert (result.code, result.out) == (2, ""), name
        assert f"--study={name}: give it a name that a folder can have" in result.err
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(tune, "train", lambda cfg, context, watch: 1.0)
    assert seqlab("tune", "seed=0,1", "--trials", "1", "--study", "a/b.c", cwd=tmp_path).code == 0
    assert [path.name for path in tmp_path.glob("outputs/tune/*")] == ["a_b.c"]


def test_another_space_in_one_study_is_refused(searched):
    cwd, _ = searched
    result = seqlab("tune", *SMALL, "seed=0,1", cwd=cwd)
    assert result.code == 2
    assert "--study=search: has another space" in result.err


def test_pictures_name_the_metric_and_hide_no_trial(tmp_path, monkeypatch):
    figures = {}
    monkeypatch.setattr(Figure, "savefig", lambda f, path, **_: figures.update({path.stem: f}))
    spaces = {
        "model.n_hidden": CategoricalDistribution([16, 128, 8]),
        "model.init": CategoricalDistribution(["chrono", "default"]),
        "model.n_layers": IntDistribution(1, 3),
        "optim.lr": FloatDistribution(1e-4, 1e-1, log=True),
    }
    study = optuna.create_study(direction="maximize")
    for n in range(9):
        params = {"model.n_hidden": [16, 128, 8][n % 3], "model.n_layers": n % 3 + 1}
        params |= {"model.init": ["chrono", "default"][n % 2], "optim.lr": 10.0 ** -(n % 3 + 1)}
        made = {"params": params, "distributions": spaces, "value": float(n)}
        attrs = {"monitor": "val/r2", "overrides": []}
        study.add_trial(optuna.trial.create_trial(**made, user_attrs=attrs))
    tune.report(study, tmp_path)
    assert set(figures) == {"history", "importance", "parallel"}
    history, *_ = figures["history"].axes
    assert history.get_ylabel() == "val/r2"
    assert all(tick == round(tick) for tick in history.get_xticks())
    (legend,) = figures["importance"].axes[0].get_legend().get_texts()
    assert legend.get_text() == "val/r2"
    axes, bar, *marks = figures["parallel"].axes
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["val/r2", "model.init", "model.n_hidden", "model.n_layers", "optim.lr"]
    assert bar.get_ylabel() == "val/r2"
    ticks = [[label.get_text() for label in each.get_yticklabels()] for each in marks]
    assert ticks[1] == ["8", "16", "128"]
    assert {1, 2, 3} <= set(marks[2].get_yticks()) <= set(range(-2, 7))
    assert sorted(ticks[0]) == ["chrono", "default"]
    (lines,) = axes.collections
    brightness = lines.to_rgba(lines.get_array())[:, :3].mean(axis=1)
    assert brightness.max() < 0.7  # the ground has 0.9
    assert brightness[lines.get_array().argmax()] == brightness.min()  # the best is dark


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model._target_=foreign.Evil", "it names foreign"),
        ("+model.junk={_target_:foreign.Evil}", "it names foreign"),
        ("hydra.searchpath=[pkg://foreign]", "it changes where Hydra finds config files"),
    ],
)
def test_a_study_of_somebody_elses_runs_nothing_of_its_own(override, said, tmp_path, monkeypatch):
    (tmp_path / "foreign.py").write_text("open('PWNED', 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "outputs/tune/theirs"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    study = optuna.create_study(
        study_name="theirs", storage=tune.open_storage(None, folder, 60), direction="minimize"
    )
    study.set_user_attr("overrides", [*SMALL, "model.n_hidden=2,3", override])
    found = seqlab("tune", "--study", "theirs", "--trials", "1", cwd=tmp_path)
    again = "--study=theirs: give its KEY=SPACE again to say that its code may run"
    assert (found.code, found.out, found.err) == (2, "", f"error: {again}: {said}\n")
    assert not (tmp_path / "PWNED").exists()
    assert not any(trial.state == TrialState.RUNNING for trial in study.trials)


DATAMODULE = """
import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset


class Noise(L.LightningDataModule):
    def train_dataloader(self):
        x = torch.arange(48.0).sin().view(8, 6, 1)
        return DataLoader(TensorDataset(x, x[:, -1]), batch_size=4)

    val_dataloader = test_dataloader = train_dataloader
"""


def test_a_datamodule_of_ones_own_is_searched(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr(tune, "train", lambda cfg, context, watch: cfg.seed)
    monkeypatch.setattr(tune, "report", states)
    write(tmp_path, {"mine.py": DATAMODULE, "conf/data/noise.yaml": "_target_: mine.Noise\n"})
    words = [f"hydra.searchpath=[file://{tmp_path}/conf]", "data=noise", "seed=range(0,9)"]
    words += ["monitor=val/r2", "--trials", "2", "--json"]
    found = seqlab("tune", *words, cwd=tmp_path)
    assert (found.code, found.err, json.loads(found.out)["complete"]) == (0, "", 2)
    storage = tune.open_storage(None, tmp_path / "outputs/tune/search", 1)
    assert optuna.load_study(storage=storage, study_name="search").direction.name == "MAXIMIZE"
