"""What each logger of a run is given, and what of it a resumed run keeps."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml
from left import left, scalars, strict_json
from lightning.pytorch.loggers import wandb as lightning_wandb
from program import RUN, TINY, Kill, forked, process, run, write

from seqlab.engine.checkpoint import read
from seqlab.engine.checkpoint import write as write_checkpoint

BOTH = "logger=[tensorboard,csv]"
PICTURES = ("prediction", "states", "unrolled")
BATCH_END = "seqlab.engine.last:Last.on_train_batch_end"
OWN = {
    "mine/__init__.py": "",
    "mine/log.py": """
import json
from pathlib import Path
from lightning.pytorch.loggers import Logger

class Log(Logger):
    def __init__(self, save_dir, name, mark="."):
        super().__init__()
        self.file, self.title, self.mark, self.lines = Path(save_dir, "log.json"), name, mark, []

    @property
    def name(self):
        return self.title

    @property
    def version(self):
        return 7

    @property
    def experiment(self):
        return self

    def log_metrics(self, metrics, step):
        self.lines.append(["metrics", sorted(metrics), step])
        assert {type(value) for value in metrics.values()} == {float}

    def log_hyperparams(self, params):
        self.lines.append(["config", params["seed"], self.mark])

    def add_text(self, name, text):
        self.lines.append(["text", name, text[:7]])

    def add_figure(self, name, figure, step):
        self.lines.append(["figure", name, step])

    def finalize(self, status):
        self.file.write_text(json.dumps(self.lines))
""",
}


#: Thirteen steps an epoch, with small splits to measure on.
SHORT = [word for word in RUN if not word.startswith(("data.n_val=", "data.n_test="))]
SHORT += ["data.n_val=32", "data.n_test=32"]


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


def rows_of(folder):
    """The rows of a run's CSV file, without the cells that are empty."""
    with (folder / "csv/metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def points_of(folder):
    """The points of each column of a run's CSV file."""
    found = {}
    for row in rows_of(folder):
        step = int(row.pop("step"))
        for name, value in row.items():
            found.setdefault(name, []).append((step, float(value)))
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    words = [*TINY, "trainer.max_epochs=3", "trainer.log_every_n_steps=1", BOTH]
    result = run(*words, cwd=tmp_path_factory.mktemp("both"))
    assert result.code == 0, result.err
    return result


def test_every_logger_has_every_point(both):
    points, found = scalars(both.folder), points_of(both.folder)
    test = {name for name in found if name.startswith("test/")}
    assert found.keys() - test == points.keys()
    for name, expected in points.items():
        assert [step for step, _ in found[name]] == [step for step, _ in expected]
        values = [value for _, value in expected]
        assert [value for _, value in found[name]] == pytest.approx(values, rel=1e-6)
    metrics = both.results["metrics"]
    expected = {name: [(6, value)] for name, value in metrics.items() if name.startswith("test/")}
    assert {name: found[name] for name in test} == expected
    assert yaml.safe_load((both.folder / "csv/hparams.yaml").read_text()) == both.config


def test_tensorboard_holds_what_it_holds_alone(both, tmp_path):
    words = [*TINY, "trainer.max_epochs=3", "trainer.log_every_n_steps=1"]
    alone = left(run(*words, cwd=tmp_path).folder)
    found = left(both.folder)
    for key in ("points", "texts", "best", "metrics"):
        assert found[key] == alone[key]


@pytest.mark.parametrize("choice", ["csv", "[]"])
def test_a_run_without_tensorboard_leaves_all_else(choice, tmp_path):
    rows = "\n".join(["y", *(f"{n % 7}.5" for n in range(120))])
    write(tmp_path, {"a.csv": rows})
    series = ["data=series", "data.path=a.csv", "data.target=y", "data.seq_len=12"]
    result = run(*series, "trainer.max_epochs=1", f"logger={choice}", cwd=tmp_path)
    assert result.code == 0, result.err
    assert "tensorboard --" not in result.out
    names = {path.name for path in result.folder.iterdir()}
    expected = {"checkpoints", "config.yaml", "forecast.png", "results.json", "train.log"}
    assert names == expected | ({"csv"} if choice == "csv" else set())
    files = {path.name for path in (result.folder / "checkpoints").iterdir()}
    assert files == {"best.ckpt", "last.ckpt"}
    assert result.results["status"] == "finished"
    assert result.config["logger"].keys() == ({"csv"} if choice == "csv" else set())


def test_a_logger_of_ones_own_has_scalars_config_texts_and_pictures(tmp_path):
    write(tmp_path, OWN)
    words = [*TINY[:-1], "callbacks.pictures.every_n_epochs=1", "trainer.log_every_n_steps=1"]
    own = "+logger.mine={_target_: mine.log.Log, mark: x}"
    with mock.patch.object(sys, "path", [*sys.path, str(tmp_path)]):
        result = run(*words, own, "hydra.run.dir=outputs/a/b", cwd=tmp_path)
    assert result.code == 0, result.err
    lines = json.loads((result.folder / "log.json").read_text())
    assert lines[:2] == [["config", 0, "x"], ["text", "config", "```yaml"]]
    figures = [f"val/{name}" for name in PICTURES]
    expected = [["figure", f"view/{name}", 2] for name in (*figures, "test/prediction")]
    assert [line for line in lines if line[0] == "figure"] == expected
    names = {name for line in lines if line[0] == "metrics" for name in line[1]}
    assert names == {n for n in scalars(result.folder)} | {
        n for n in result.results["metrics"] if n.startswith("test/")
    }
    assert lines[-2][:2] == ["text", "test"]
    assert lines[-1][0] == "metrics"
    assert result.results["status"] == "finished"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("undisturbed")
    assert forked(*SHORT, BOTH, cwd=cwd).code == 0
    return (cwd / "run/csv/metrics.csv").read_text(), left(cwd / "run")


@pytest.mark.parametrize(
    "kills",
    [
        [(BATCH_END, 30)],
        slow([("seqlab.learner:Learner.on_test_epoch_end", 1)]),
        # and again while the rows are given to the new file: before the first, after the last
        slow([(BATCH_END, 30), ("csv:DictReader", 1)]),
        slow([(BATCH_END, 30), ("lightning.pytorch.loggers:CSVLogger.save", 1)]),
    ],
    ids=["in an epoch", "in the test", "before the rows", "after the rows"],
)
def test_a_csv_file_of_a_resumed_run_has_each_row_once(kills, undisturbed, tmp_path):
    """Flushed with each row, it goes beyond the checkpoint when the run is killed."""
    words = [*SHORT, BOTH, "+logger.csv.flush_logs_every_n_steps=1"]
    for kill in kills:
        assert forked(*words, cwd=tmp_path, kills=[Kill(*kill)]).code == -9
        words = ["resume=run"]
    result = forked("resume=run", cwd=tmp_path)
    assert result.code == 0, result.err
    text, expected = undisturbed
    assert (tmp_path / "run/csv/metrics.csv").read_text() == text
    found = left(tmp_path / "run")
    assert {k: found[k] for k in ("points", "texts", "last")} == {
        k: expected[k] for k in ("points", "texts", "last")
    }
    assert sorted(os.listdir(tmp_path / "run/csv")) == ["hparams.yaml", "metrics.csv"]


def test_a_run_of_before_there_were_loggers_goes_on(undisturbed, tmp_path):
    assert forked(*SHORT, cwd=tmp_path, kills=[Kill(BATCH_END, 30)]).code == -9
    last = tmp_path / "run/checkpoints/last.ckpt"
    contents = read(last)
    del contents["loggers"]
    for key in ("logger", "init_from", "init_head"):
        del contents["config"][key]
    write_checkpoint(last, contents)
    result = run("resume=run", cwd=tmp_path)
    assert result.code == 0, result.err
    assert left(tmp_path / "run")["points"] == undisturbed[1]["points"]


def refused(cwd, *words):
    result = run(*words, cwd=cwd)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result.err
    assert not (cwd / "outputs").exists()
    return result.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["logger=nope"], "logger=nope: no such choice; logger can be csv, mlflow, tensorboard, w"),
        (
            ["+logger.x={_target_: lightning.Trainer}"],
            "logger.x._target_=lightning.Trainer: must be a subclass of lightning.pytorch.loggers.",
        ),
        (["+logger.x=3"], "logger.x=3: names no class; give it a _target_"),
        (["logger=csv", "+logger.csv.mark=3"], "logger.csv.mark: no such argument; CSVLogger take"),
        (["+trainer.logger=true"], "trainer.logger=True: logger=[tensorboard,csv] chooses loggers"),
    ],
)
def test_a_mistake_is_one_line(words, said, tmp_path):
    assert refused(tmp_path, *TINY, *words).startswith(f"error: {said}")


def test_a_logger_whose_package_is_missing_names_the_command(tmp_path):
    missing = lightning_wandb.RequirementCache("no-such-wandb>=0.12.10")
    with mock.patch.object(lightning_wandb, "_WANDB_AVAILABLE", missing):
        line = refused(tmp_path, *TINY, "logger=wandb")
    assert line.startswith("error: logger.wandb=")
    assert "pip install -U 'no-such-wandb>=0.12.10'" in line


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("killed")
    assert forked(*SHORT, BOTH, cwd=cwd, kills=[Kill(BATCH_END, 30)]).code == -9
    return cwd / "run"


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"version": "../../../elsewhere"}, "/elsewhere is outside of the run's folder"),
        ({"name": "/elsewhere"}, "last.ckpt: /elsewhere is outside of the run's folder"),
        (
            {"_target_": "lightning.pytorch.loggers.MLFlowLogger", "tracking_uri": "http://a.b"},
            "logger.csv._target_=lightning.pytorch.loggers.MLFlowLogger: not trusted; --trust mlfl",
        ),
        (
            {"_target_": "lightning.pytorch.loggers.wandb.WandbLogger"},
            "logger.csv._target_=lightning.pytorch.loggers.wandb.WandbLogger: not trusted; --trust",
        ),
        ({"_target_": "mine.log.Log"}, "logger.csv._target_=mine.log.Log: not trusted; --trust m"),
    ],
)
def test_a_checkpoint_makes_no_logger_write_elsewhere(node, said, killed, tmp_path):
    shutil.copytree(killed, tmp_path / "run")
    last = tmp_path / "run/checkpoints/last.ckpt"
    contents = read(last)
    contents["config"]["logger"]["csv"] |= node
    write_checkpoint(last, contents)
    assert said in refused(tmp_path, "resume=run")


def test_a_resumed_run_writes_into_its_own_folder(killed, tmp_path):
    shutil.copytree(killed, tmp_path / "run")
    last = tmp_path / "run/checkpoints/last.ckpt"
    contents = read(last)
    contents["config"]["logger"]["csv"]["save_dir"] = str(tmp_path / "victim")
    write_checkpoint(last, contents)
    result = run("resume=run", cwd=tmp_path)
    assert result.code == 0, result.err
    assert sorted(os.listdir(tmp_path)) == ["run"]
    assert len(rows_of(tmp_path / "run")) == 4 * (13 + 3) + 1


def test_each_job_of_a_multirun_has_its_own(tmp_path):
    result = run("-m", "seed=0,1", *TINY, BOTH, "hydra.sweep.dir=all", cwd=tmp_path)
    assert result.code == 0, result.err
    folders = sorted(path.parent for path in (tmp_path / "all").glob("*/config.yaml"))
    assert [len(rows_of(folder)) for folder in folders] == [4, 4]
    for folder in folders:
        losses = points_of(folder)["val/mse"]
        assert losses == [(2, strict_json(folder / "results.json")["metrics"]["val/mse"])]


QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
}
EPOCHS = [*TINY[:-1], "trainer.max_epochs=3", "trainer.log_every_n_steps=1"]
EPOCHS += ["callbacks.pictures.every_n_epochs=2", "callbacks.early_stopping=null"]


def python(code, cwd):
    """What a program of its own prints, read as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=os.environ | QUIET, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


MLFLOW = """
import json
from mlflow import MlflowClient
client = MlflowClient("sqlite:///mlflow.db")
(experiment,) = [e for e in client.search_experiments() if e.name == "seqlab"]
def paths(run, path=None):
    for item in client.list_artifacts(run, path):
        yield from paths(run, item.path) if item.is_dir else [item.path]
found = {}
for run in client.search_runs([experiment.experiment_id]):
    id = run.info.run_id
    history = {n: [[m.step, m.value] for m in client.get_metric_history(id, n)]
               for n in run.data.metrics}
    found[run.info.run_name] = [id, run.info.status, run.data.params, history, sorted(paths(id))]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_mlflow_has_scalars_config_texts_and_pictures_and_the_same_run_goes_on(tmp_path):
    words = [*EPOCHS, "logger=[tensorboard,mlflow]", "hydra.run.dir=run"]
    epoch_end = Kill("seqlab.engine.last:Last.on_train_epoch_end", 2)
    assert forked(*words, cwd=tmp_path, kills=[epoch_end], **QUIET).code == -9
    ((id, status, *_),) = python(MLFLOW, tmp_path).values()
    assert status == "RUNNING"
    result = forked("resume=run", "trust=[mlflow]", cwd=tmp_path, **QUIET)
    assert result.code == 0, result.err
    found = python(MLFLOW, tmp_path)
    assert found.keys() == {"run"}
    again, status, params, history, artifacts = found["run"]
    assert (again, status) == (id, "FINISHED")
    assert params["model/n_hidden"] == "2"
    points, metrics = scalars(tmp_path / "run"), strict_json(tmp_path / "run/results.json")
    test = {n: v for n, v in metrics["metrics"].items() if n.startswith("test/")}
    assert {n: v for n, v in history.items() if n in test} == {n: [[6, test[n]]] for n in test}
    assert history.keys() - test.keys() == points.keys()
    for name, expected in points.items():
        assert [step for step, _ in history[name]] == [step for step, _ in expected], name
        values = [value for _, value in expected]
        assert [value for _, value in history[name]] == pytest.approx(values, rel=1e-6)
    drawn = [
        f"view/val/{n}/{s:07}.png" for n in ("prediction", "states", "unrolled") for s in (2, 6)
    ]
    assert artifacts == ["config.md", "test.md", "view/test/prediction/0000006.png", *drawn]
    for path in Path(tmp_path, "mlruns").rglob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_each_job_of_a_multirun_is_a_run_of_mlflow(tmp_path):
    words = ["-m", "seed=0,1", *TINY, "logger=mlflow", "hydra.sweep.dir=all"]
    result = process(*words, cwd=tmp_path, **QUIET)
    assert result.code == 0, result.err
    found = python(MLFLOW, tmp_path)
    names = sorted(path.parent.name for path in (tmp_path / "all").glob("*/config.yaml"))
    assert sorted(found) == [f"all/{name}" for name in names]
    assert sorted(params["seed"] for _, _, params, *_ in found.values()) == ["0", "1"]
    assert {status for _, status, *_ in found.values()} == {"FINISHED"}
    assert len([*(tmp_path / "all").glob("*/checkpoints/best.ckpt")]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["logger=mlflow", "logger.mlflow.tracking_uri=nope://a"], "error: logger.mlflow="),
        (
            ["logger=mlflow", "logger.mlflow.tracking_uri=http://localhost:1"],
            "error: logger: MLFlowLogger: MlflowException: ",
        ),
        (["logger=wandb"], "error: logger: WandbLogger: UsageError: "),
    ],
)
def test_a_record_that_cannot_begin_is_one_line_and_leaves_nothing(words, said, tmp_path):
    never = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "WANDB_MODE": "online"}
    never |= {"WANDB_API_KEY": "", "HOME": str(tmp_path)}  # where no key is kept
    result = process(*TINY, *words, cwd=tmp_path, **(QUIET | never))
    assert result.code == 2, result.err
    assert result.err.splitlines()[-1].startswith(said)
    assert "Traceback" not in result.err
    assert not (tmp_path / "outputs").exists()


WANDB = """
import json, struct, sys
from pathlib import Path
from wandb.proto.wandb_internal_pb2 import Record
def records(body, at=7, part=b""):  # blocks of 32 KiB, as LevelDB's log has them, after a header
    while at + 7 <= len(body):
        if (rest := -at % 32768) and rest < 7:
            at += rest
            continue
        length, kind = struct.unpack("<HB", body[at + 4 : at + 7])
        part += body[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield Record.FromString(part)
            part = b""
found = []
for file in sorted(Path(sys.argv[1]).glob("wandb/offline-run-*/*.wandb")):
    run = {"id": "", "name": "", "config": {}, "points": {}}
    for record in records(file.read_bytes()):
        if record.HasField("run"):
            run |= {"id": record.run.run_id, "name": record.run.display_name}
        for item in (*record.run.config.update, *record.config.update):
            run["config"][item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        values = {"/".join(i.nested_key) or i.key: json.loads(i.value_json)
                  for i in record.history.item}
        for name, value in values.items():
            run["points"].setdefault(name, []).append([values.get("trainer/global_step"), value])
    found.append(run)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_wandb_has_scalars_config_texts_and_pictures_offline_and_the_same_run_goes_on(tmp_path):
    words = [*EPOCHS, "logger=[tensorboard,wandb]", "hydra.run.dir=run"]
    epoch_end = Kill("seqlab.watch.record:Record.on_train_epoch_end", 2, signal.SIGTERM)
    assert forked(*words, cwd=tmp_path, kills=[epoch_end], **QUIET).code == 128 + signal.SIGTERM
    result = forked("resume=run", "trust=[wandb]", cwd=tmp_path, **QUIET)
    assert result.code == 0, result.err
    first, second = python(f"import sys; sys.argv[1:] = ['run']\n{WANDB}", tmp_path)
    assert first["id"] == second["id"]
    assert first["name"] == second["name"] == "run"
    assert first["config"]["model"]["n_hidden"] == 2
    points = scalars(tmp_path / "run")
    for name, expected in points.items():
        found = [*first["points"].get(name, []), *second["points"].get(name, [])]
        assert [step for step, _ in found] == [step for step, _ in expected], name
        values = [value for _, value in expected]
        assert [value for _, value in found] == pytest.approx(values, rel=1e-6)
    metrics = strict_json(tmp_path / "run/results.json")["metrics"]
    assert second["points"]["test/mse"] == [[6, metrics["test/mse"]]]
    kinds = {}  # of what is no number
    for record in (first, second):
        for name, found in record["points"].items():
            if name.endswith("/_type"):
                kinds[name.removesuffix("/_type")] = [kind for _, kind in found]
    pictures = {f"view/val/{name}": ["images/separated"] for name in PICTURES}
    pictures = {**pictures, "view/test/prediction": ["images/separated"]}
    assert kinds == {**pictures, "config": ["table-file"], "test": ["table-file"]}


@pytest.mark.slow
def test_each_job_of_a_multirun_is_a_run_of_wandb_also_after_one_that_fails(tmp_path):
    words = ["-m", "optim.lr=1e-2,1e39,1e-3", *TINY, "logger=wandb", "hydra.sweep.dir=all"]
    result = forked(*words, cwd=tmp_path, **QUIET)
    assert result.code == 1
    folders = sorted(path.parent for path in (tmp_path / "all").glob("*/config.yaml"))
    found = [python(f"import sys; sys.argv[1:] = [{str(f)!r}]\n{WANDB}", tmp_path) for f in folders]
    assert [len(each) for each in found] == [1, 1, 1]
    jobs = [each[0] for each in found]
    assert len({job["id"] for job in jobs}) == 3
    assert [job["config"]["optim"]["lr"] for job in jobs] == [1e-2, 1e39, 1e-3]
    for i in (0, 2):
        value = strict_json(folders[i] / "results.json")["metrics"]["val/mse"]
        assert jobs[i]["points"]["val/mse"] == [[2, pytest.approx(value)]]


@pytest.mark.slow
@pytest.mark.needs("several processes")
def test_several_processes_write_one_record(both, tmp_path):
    two = ["trainer=ddp", "trainer.devices=2", *TINY, "trainer.max_epochs=3"]
    result = process(*two, "trainer.log_every_n_steps=1", BOTH, cwd=tmp_path)
    assert result.code == 0, result.err
    found, expected = points_of(result.folder), points_of(both.folder)
    assert found.keys() == expected.keys()
    assert [step for step, _ in found["train/loss"]] == [step for step, _ in expected["train/loss"]]
    for (step, value), (same, close) in zip(found["val/mse"], expected["val/mse"], strict=True):
        assert (step, value) == (same, pytest.approx(close, rel=1e-4))
