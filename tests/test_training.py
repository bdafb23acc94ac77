import hashlib
import importlib.metadata
import math
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from left import plain, scalars, strict_json
from program import ROOT, TINY, run, write
from torch.nn.functional import l1_loss, mse_loss

from seqlab.data import seed_of
from seqlab.engine import runs
from seqlab.model import LSTMNetwork
from seqlab.tasks import Sine

EPOCHS = 3
SINE = [f"trainer.max_epochs={EPOCHS}", "callbacks.pictures=null"]
METRICS = ("mse", "rmse", "mae", "r2", "skill")  # in the order of the table


@pytest.fixture(scope="module")
def sine(tmp_path_factory):
    """`python train.py` with three of its epochs, and without pictures, to be quick."""
    return run(*SINE, cwd=tmp_path_factory.mktemp("sine"))


def checkpoint(result, name="best"):
    return torch.load(result.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def network_of(saved):
    """The network rebuilt from nothing but a checkpoint."""
    arguments = {k: v for k, v in saved["config"]["model"].items() if k[0] != "_"}
    arguments |= {k: saved["sizes"][k] for k in ("n_inputs", "n_outputs", "every_step")}
    network = LSTMNetwork(**arguments)
    weights = {k.removeprefix("network."): v for k, v in saved["state_dict"].items()}
    network.load_state_dict({k: weights[k] for k in network.state_dict()})
    return network.eval()


def split_of(config, split):
    generator = torch.Generator().manual_seed(seed_of(config["seed"], split))
    data = config["data"]
    task = Sine(noise=data["task"]["noise"])
    return task.draw(data[f"n_{split}"], data["seq_len"], generator)


def by_hand(split, prediction, y, baseline):
    mse = mse_loss(prediction, y).item()
    return {
        f"{split}/mse": mse,
        f"{split}/rmse": mse**0.5,
        f"{split}/mae": l1_loss(prediction, y).item(),
        f"{split}/r2": 1 - mse / y.var(unbiased=False).item(),
        f"{split}/skill": 1 - mse / mse_loss(baseline, y).item(),
    }


def test_a_few_epochs_of_the_default_come_near_the_noise(sine):
    assert (sine.code, sine.err.count("\n")) == (0, EPOCHS)
    assert 0.1**2 < sine.results["metrics"]["test/mse"] < 0.02


def test_a_run_leaves_these_files_and_no_others(sine):
    files = {path.relative_to(sine.cwd) for path in sine.cwd.rglob("*") if path.is_file()}
    folders = {path.parent for path in files} - {sine.folder.relative_to(sine.cwd) / "checkpoints"}
    assert folders == {sine.folder.relative_to(sine.cwd)}
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d-[0-9a-f]{8}",
        sine.folder.relative_to(sine.cwd / "outputs").as_posix(),
    )
    names = {path.relative_to(*folders).as_posix() for path in files}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert events
    assert names - events == {
        "config.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "results.json",
        "train.log",
    }


def test_config_yaml_is_the_composed_config_with_every_value(sine):
    job = run(*SINE, "--cfg", "job", "--resolve", cwd=sine.cwd)
    assert sine.config == yaml.safe_load(job.out)
    assert checkpoint(sine)["sizes"] == {
        "n_inputs": 1, "n_outputs": 1, "every_step": False, "base": None, "n_values": 1,
    }  # fmt: skip


def test_results_say_what_was_run(sine):
    results = sine.results
    assert results.keys() == {
        "status", "overrides", "monitor", "mode", "metrics", "baselines", "epochs", "steps",
        "advice", "by_length", "stopped", "seconds", "cpu_seconds", "steps_per_second",
        "parameters", "best_checkpoint", "versions", "git", "groups",
    }  # fmt: skip
    assert (results["status"], results["monitor"]) == ("finished", "val/mse")
    assert results["overrides"] == SINE
    assert (results["epochs"], results["steps"]) == (EPOCHS, 256 * EPOCHS)
    assert results["steps_per_second"] == pytest.approx(
        results["steps"] / results["seconds"], rel=0.01
    )
    F, H = 1, 32  # a layer has four gates, each with weights from below, from itself, two biases
    assert results["parameters"] == 4 * H * (F + H + 2) + 4 * H * (H + H + 2) + H + 1
    assert (sine.folder / results["best_checkpoint"]).samefile(
        sine.folder / "checkpoints/best.ckpt"
    )
    for name, version in results["versions"].items():
        if name != "python":
            assert version == importlib.metadata.version(name)
    names = {f"{split}/{name}" for split in ("train", "val", "test") for name in METRICS}
    assert results["metrics"].keys() == {*names, "lr", "best/val/mse"}
    assert all(map(math.isfinite, results["metrics"].values()))


def test_results_name_the_commit_of_this_project_wherever_the_run_was_started(sine):
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if git.returncode:
        pytest.skip("this is no git checkout")
    assert str(sine.results["git"]).removesuffix("+changes") == git.stdout.strip()


def test_metrics_are_those_of_the_best_checkpoint_recomputed_by_hand(sine):
    saved = checkpoint(sine)
    network = network_of(saved)
    for split in ("val", "test"):
        x, y = split_of(saved["config"], split)
        with torch.no_grad():
            prediction = network(x)[0]
        metrics = by_hand(split, prediction, y, baseline=x[:, -1])
        if split == "val":
            assert sine.results["metrics"]["best/val/mse"] == pytest.approx(
                metrics["val/mse"], rel=1e-4
            )
            continue
        for name, value in metrics.items():
            assert sine.results["metrics"][name] == pytest.approx(value, rel=1e-4), name
        persistence = by_hand(split, x[:, -1], y, baseline=x[:, -1])
        assert sine.results["baselines"] == {
            "persistence": pytest.approx(persistence, rel=1e-4, abs=1e-6),
            "noise floor": {"test/mse": pytest.approx(0.1**2)},
        }


def test_a_checkpoint_holds_the_config_as_plain_values(sine):
    for name in ("best", "last"):
        config = checkpoint(sine, name)["config"]
        assert config == sine.config
        assert plain(config)


def test_last_checkpoint_is_the_last_step(sine):
    assert checkpoint(sine, "last")["global_step"] == 256 * EPOCHS


def test_train_log_has_a_line_for_each_validation_and_stderr_the_same(sine):
    lines = (sine.folder / "train.log").read_text().splitlines()
    values = [value for _, value in scalars(sine.folder)["val/mse"]]
    pattern = r"[\d-]{10} [\d:,]{12} (epoch (\d)/3  step (\d+)  "
    pattern += r"train/mse [\d.e-]+  val/mse ([\d.e-]+)  \d+ steps/s)"
    found = [re.fullmatch(pattern, line).groups() for line in lines]
    assert [line for line, *_ in found] == sine.err.splitlines()
    assert [(int(epoch), int(step)) for _, epoch, step, _ in found] == [
        (n, 256 * n) for n in range(1, EPOCHS + 1)
    ]
    assert [float(value) for *_, value in found] == pytest.approx(values, rel=1e-3)


def test_stdout_has_the_network_beside_the_baselines(sine):
    names = [f"test/{name}" for name in METRICS]
    assert f"Test set, best of {EPOCHS} epochs (768 steps, " in sine.out
    assert re.search(r"\s+".join(names), sine.out)
    cells = {}
    for line in sine.out.splitlines():
        name, *values = re.split(r"\s{2,}", line.strip())
        cells[name] = values
    for who, metrics in {"network": sine.results["metrics"], **sine.results["baselines"]}.items():
        shown = [f"{metrics[name]:.4g}" if name in metrics else "-" for name in names]
        assert cells[who] == shown


def test_the_baseline_itself_has_no_skill(sine):
    assert sine.results["baselines"]["persistence"]["test/skill"] == 0


def test_stdout_ends_with_what_to_do_next(sine):
    commands = sine.commands
    above = str(sine.folder.parent.relative_to(sine.cwd))  # where the run has a name
    assert commands["Look at it"] == ["tensorboard", "--logdir", above]
    assert commands["Over five seeds"] == [
        *("python", str(ROOT / "train.py"), "-m", *SINE, "seed=0,1,2,3,4")
    ]
    assert shlex.split(sine.out.splitlines()[-1])[-1] == commands.popitem()[1][-1]


@pytest.mark.parametrize("override", ["+optim.optimizer.betas=[0.8, 0.9]", "model.init='forget'"])
def test_the_command_over_five_seeds_can_be_pasted_into_a_shell(override, tmp_path):
    overrides = [*TINY, override]
    result = run(*overrides, "seed=3", cwd=tmp_path)
    assert result.commands["Over five seeds"] == [
        *("python", str(ROOT / "train.py"), "-m", *overrides, "seed=0,1,2,3,4")
    ]


def test_two_runs_with_one_seed_give_the_same_weights_bit_for_bit(tmp_path):
    weights = []
    for number, seed in enumerate((7, 7, 8)):
        torch.manual_seed(number)  # what happened before has no part in it
        (tmp_path / str(number)).mkdir()
        result = run(*TINY, "model.dropout=0.3", f"seed={seed}", cwd=tmp_path / str(number))
        weights.append(checkpoint(result, "last")["state_dict"])
    first, same, other = weights
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_the_random_task_is_learnt(tmp_path):
    overrides = ["data.seq_len=3", "data.n_train=4096", "model.n_hidden=4"]
    result = run(
        "data=random", *overrides, "trainer.max_epochs=3", "callbacks.pictures=null", cwd=tmp_path
    )
    baseline = result.results["baselines"]["always 1/2"]["test/mse"]
    assert baseline == pytest.approx(1 / (12 * 3 * 5), rel=0.1)
    assert result.results["metrics"]["test/mse"] < 0.05 * baseline


def test_threads_are_those_asked_for(tmp_path):
    before = torch.get_num_threads()
    try:
        assert run(*TINY, f"threads={before + 1}", cwd=tmp_path).code == 0
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_run_stops_early_when_patience_runs_out(tmp_path):
    overrides = ["trainer.max_epochs=9", "optim.lr=0", "callbacks.early_stopping.patience=2"]
    result = run(*TINY, *overrides, cwd=tmp_path)
    assert result.code == 0, result.err
    assert (result.results["epochs"], result.results["steps"]) == (3, 6)


LR = 1e-6  # so small that the metric stands still, which is what the plateau schedule acts on


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("optim/schedule=none", lambda step: LR),
        ("optim/schedule=cosine", lambda step: LR * (1 + math.cos(math.pi * step / 8)) / 2),
        ("optim/schedule=step optim.schedule.step_size=3", lambda step: LR * 0.5 ** (step // 3)),
        (
            "optim/schedule=plateau optim.schedule.patience=0",
            lambda step: LR * 0.5 ** max(0, step // 2 - 2),
        ),
    ],
)
def test_the_learning_rate_follows_its_schedule(overrides, expected, tmp_path):
    result = run(*TINY, *overrides.split(), f"optim.lr={LR}", "trainer.max_epochs=4", cwd=tmp_path)
    logged = scalars(result.folder)["train/lr"]
    assert [step for step, _ in logged] == [2, 4, 6, 8]
    for step, lr in logged:
        assert lr == pytest.approx(expected(step), rel=1e-5, abs=1e-12)


def test_debug_is_two_batches(tmp_path):
    result = run("trainer=debug", "callbacks.pictures=null", cwd=tmp_path)
    assert (result.code, result.results["epochs"], result.results["steps"]) == (0, 1, 2)
    assert result.config["trainer"]["detect_anomaly"] is True


def test_two_hundred_names_are_two_hundred_folders():
    names = set()
    for _ in range(200):
        runs.unique.cache_clear()
        names.add(runs.unique())
        assert runs.unique() in names  # one process, one name
    assert len(names) == 200


def hashes(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_folder_of_another_run_is_refused_and_left_alone(tmp_path):
    run(*TINY, "hydra.run.dir=mine", cwd=tmp_path)
    before = hashes(tmp_path)
    assert "mine/results.json" in before
    result = run(*TINY, "seed=1", "hydra.run.dir=mine", cwd=tmp_path)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert result.err.startswith("error: hydra.run.dir=")
    assert "mine" in result.err
    assert hashes(tmp_path) == before


FAILING = """
import torch
from lightning.pytorch.callbacks import Callback

from seqlab.model import LSTMNetwork


class Boom(Callback):
    def on_train_epoch_start(self, trainer, learner):
        if trainer.current_epoch == 1:
            raise RuntimeError("boom")


class Network(LSTMNetwork):
    def forward(self, x, hidden=None):
        if self.training and torch.is_grad_enabled():
            raise RuntimeError("boom")
        return super().forward(x, hidden)
"""


@pytest.mark.parametrize(
    "override",
    ["+callbacks.boom._target_=mine.failing.Boom", "model._target_=mine.failing.Network"],
)
def test_a_run_that_fails_in_the_middle_says_so(override, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(write(tmp_path, {"mine/failing.py": FAILING}))
    result = run(*TINY, "trainer.max_epochs=3", override, cwd=tmp_path)
    assert result.code == 1
    assert "Traceback" in result.err
    assert 'raise RuntimeError("boom")' in result.err
    assert result.results["status"] == "failed"
    assert result.results["error"] == "RuntimeError: boom"
    assert result.results["overrides"][-1] == override
    assert result.config["trainer"]["max_epochs"] == 3


SIGNALS = {"INT": signal.SIGINT, "TERM": signal.SIGTERM}


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Two processes started at one instant in one folder, and stopped by a signal in the middle of
    training: exit code, stdout and stderr of each, and the run directory."""
    cwd = tmp_path_factory.mktemp("processes")
    overrides = [*TINY, "trainer.max_epochs=10000", "callbacks.early_stopping=null"]
    started, ended = {}, {}
    for name in SIGNALS:
        command = [sys.executable, ROOT / "train.py", *overrides, f"+name={name}"]
        with (cwd / f"{name}.out").open("w") as out, (cwd / f"{name}.err").open("w") as err:
            started[name] = subprocess.Popen(command, cwd=cwd, stdout=out, stderr=err)
    try:
        for name, number in SIGNALS.items():
            deadline = time.monotonic() + 100
            while "epoch 1/" not in (cwd / f"{name}.err").read_text():
                assert time.monotonic() < deadline, (cwd / f"{name}.err").read_text()
                time.sleep(0.1)
            started[name].send_signal(number)
        for name, process in started.items():
            code = process.wait(timeout=100)
            ended[name] = code, *((cwd / f"{name}.{s}").read_text() for s in ("out", "err"))
    finally:
        for process in started.values():
            process.kill()
            process.wait()
    folders = {}
    for folder in cwd.glob("outputs/*/*"):
        folders[yaml.safe_load((folder / "config.yaml").read_text())["name"]] = folder
    return ended, folders


@pytest.mark.slow
@pytest.mark.needs("signals")
def test_processes_started_at_one_instant_get_different_folders(processes):
    _, folders = processes
    assert folders.keys() == SIGNALS.keys()


@pytest.mark.slow
@pytest.mark.needs("signals")
@pytest.mark.parametrize("name", SIGNALS)
def test_a_run_stopped_by_a_signal_is_not_taken_for_a_finished_one(name, processes):
    ended, folders = processes
    code, _, err = ended[name]
    assert code != 0
    assert "Traceback" not in err
    assert strict_json(folders[name] / "results.json")["status"] != "finished"


@pytest.mark.slow
@pytest.mark.needs("signals")
def test_piped_output_has_no_control_characters(processes, sine):
    ended, _ = processes
    for _, out, err in [*ended.values(), (0, sine.out, sine.err)]:
        assert out
        assert err
        assert not re.search(r"[^\n\x20-\x7e─]", out + err)


@pytest.mark.parametrize("max_steps", [1, 10, 16, 17])
def test_a_run_of_so_many_steps_takes_no_more(max_steps, tmp_path):
    words = [*TINY, "data.n_train=1024", f"+trainer.max_steps={max_steps}"]
    result = run(*words, "data.steps_per_call=16", cwd=tmp_path)
    assert result.code == 0, result.err
    assert result.results["steps"] == max_steps


def test_the_best_and_the_last_checkpoint_have_two_names(tmp_path):
    result = run(*TINY, "callbacks.checkpoint.filename=last", cwd=tmp_path)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: callbacks.checkpoint.filename=last: ")


MORE = """
defaults: [_self_, default]
more:  # stands before the one that decides, and keeps by a metric where higher is better
  _target_: lightning.pytorch.callbacks.ModelCheckpoint
  filename: more-{epoch}
  monitor: val/r2
  save_top_k: 2
"""


def test_a_second_checkpoint_before_ours_changes_nothing_of_what_is_best(tmp_path):
    (tmp_path / "without").mkdir()
    words = [*TINY, f"trainer.max_epochs={EPOCHS}"]
    without = run(*words, cwd=tmp_path / "without").results
    folder = write(tmp_path / "with", {"own/callbacks/more.yaml": MORE})
    result = run("--config-dir", "own", "callbacks=more", *words, cwd=folder)
    assert result.code == 0, result.err
    for key in ("monitor", "mode", "metrics", "best_checkpoint"):
        assert result.results[key] == without[key], key
    names = {path.name for path in (result.folder / "checkpoints").iterdir()}
    assert {"best.ckpt", "last.ckpt"} < names
    assert len(names) == 4


KEEPING = """
import numpy as np
from lightning.pytorch.callbacks import Callback


class Keeping(Callback):
    def state_dict(self):
        return {"mean": np.float64(1)}
"""


def test_a_state_that_no_checkpoint_can_keep_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(write(tmp_path, {"mine/keeping.py": KEEPING}))
    result = run(*TINY, "+callbacks.keeping._target_=mine.keeping.Keeping", cwd=tmp_path)
    assert result.code == 2, result.err
    assert result.err.startswith("error: Keeping.state_dict: ")
    assert result.err.count("\n") == 1


def test_a_noise_floor_of_a_whole_number_stands_in_the_table(tmp_path):
    result = run(*TINY, "data.task.noise=5", cwd=tmp_path)
    assert result.code == 0, result.err
    assert result.results["baselines"]["noise floor"] == {"test/mse": 25}
    assert re.search(r"noise floor +25 ", result.out)
