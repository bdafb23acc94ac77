"""A run that is killed and taken up again ends as if nothing had happened, to the bit."""

import random
import shutil
import signal

import pytest
import torch
from left import left, strict_json
from program import ROOT, RUN, Kill, end, forked, run, start, write

from seqlab.engine.checkpoint import read
from seqlab.engine.checkpoint import write as write_checkpoint
from seqlab.engine.forecaster import load, load_data

RESUME = "resume=run"
BATCH_START = "seqlab.engine.last:Last.on_train_batch_start"
BATCH_END = "seqlab.engine.last:Last.on_train_batch_end"
VALIDATION_START = "seqlab.engine.last:Last.on_validation_start"
EPOCH_END = "seqlab.engine.last:Last.on_train_epoch_end"

#: What is resumed beside the plain run, by name.
OPTIONS = {
    "plain": [],
    "cosine": ["optim/schedule=cosine"],
    "step": ["optim/schedule=step", "optim.schedule.step_size=5"],
    "plateau": ["optim/schedule=plateau", "optim.schedule.patience=0", "optim.lr=1e-5"],
    "accumulate": ["data.accumulate=2"],
    "steps per call": ["data.steps_per_call=4"],
    "validation twice": ["+trainer.val_check_interval=0.5"],
    "saved every step": ["callbacks.last.every_n_steps=1", "+trainer.val_check_interval=0.5"],
    "saved every third": ["callbacks.last.every_n_steps=3", "optim/schedule=plateau"],
    "top two": ["callbacks.checkpoint.save_top_k=2", "callbacks.checkpoint.filename='{epoch}'"],
    "early stopping": ["optim.lr=0", "callbacks.early_stopping.patience=2"],
    "pictures": [
        "callbacks.pictures={_target_: seqlab.watch.pictures.Pictures, every_n_epochs: 2}"
    ],
    "fresh sequences": ["data.fresh=true"],
    "lengths that differ": ["data=temporal_order", "data.seq_len=20"],
    "gru": ["model=gru"],
    "double": ["trainer.precision=64-true"],
    "half": ["trainer.precision=bf16-true"],
    "another checkpoint": [
        "+callbacks.more={_target_: lightning.pytorch.callbacks.ModelCheckpoint, save_top_k: -1}",
        "+callbacks.more.filename='{step}'",
    ],
    "one cycle": ["optim=sgd", "optim/schedule=onecycle"],
    "warmup": ["optim=rmsprop", "optim/schedule=warmup", "optim.schedule.warmup_steps=20"],
    "weight decay": ["optim.clip=null", "+optim.optimizer.weight_decay=0.1"],
    "average": [
        "+callbacks.more={_target_: lightning.pytorch.callbacks.EMAWeightAveraging, decay: 0.5}"
    ],
}
POINTS = [
    (BATCH_START, 6),
    (BATCH_END, 5),
    (BATCH_END, 13),  # the epoch's last
    (VALIDATION_START, 2),
    ("seqlab.learner:Learner.training_step", 17),
    ("seqlab.learner:Learner.validation_step", 2),
    ("seqlab.watch.record:Record.on_train_epoch_end", 2),
    (EPOCH_END, 2),
    (EPOCH_END, 4),  # after the last writing, before the test
    ("seqlab.engine.checkpoint:write", 4),
    ("seqlab.learner:Learner.on_test_epoch_end", 1),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a run leaves that is not killed, by its options."""
    found = {}

    def ask(options):
        key = tuple(options)
        if key not in found:
            cwd = tmp_path_factory.mktemp("undisturbed")
            result = forked(*RUN, *options, cwd=cwd)
            assert result.code == 0, result.err
            found[key] = left(cwd / "run")
        return found[key]

    return ask


def assert_same(folder, expected):
    found = left(folder)
    for name in expected:
        assert found[name] == expected[name], name


def resumed(cwd, *arguments, tries=1):
    for _ in range(tries):
        result = forked(RESUME, *arguments, cwd=cwd)
        assert result.code == 0, result.err


@pytest.mark.parametrize("point", POINTS, ids=str)
@pytest.mark.parametrize(
    "option", [*OPTIONS][:1] + [pytest.param(o, marks=pytest.mark.slow) for o in [*OPTIONS][1:]]
)
def test_killed_anywhere_and_resumed_it_ends_the_same(option, point, undisturbed, tmp_path):
    killed = forked(*RUN, *OPTIONS[option], cwd=tmp_path, kills=[Kill(*point)]).code == -9
    # some options have fewer calls, or end earlier
    always = (BATCH_END, 13), ("seqlab.learner:Learner.validation_step", 2)
    assert killed or (option != "plain" and point not in always), "not reached"
    if killed:
        resumed(tmp_path)
    assert_same(tmp_path / "run", undisturbed(OPTIONS[option]))


@pytest.fixture(scope="module")
def drifting(tmp_path_factory):
    """A run on a series, which is added to a base, and what it leaves, by learning rate: with the
    large one no epoch is better than the untrained network."""
    rows = [f"{i + (7 * i) % 11 + (i * i) % 5}" for i in range(150)]
    file = tmp_path_factory.mktemp("series") / "y.csv"
    file.write_text("\n".join(["y", *rows]))
    words = [word for word in RUN if not word.startswith("data.n_")]
    words += ["data=series", f"data.path={file}", "data.target=y"]
    found = {}
    for lr in ("0.01", "30"):
        cwd = tmp_path_factory.mktemp("undisturbed")
        result = forked(*words, f"optim.lr={lr}", cwd=cwd)
        assert result.code == 0, result.err
        found[lr] = [*words, f"optim.lr={lr}"], left(cwd / "run"), cwd
    return found


SERIES_POINTS = [
    ("seqlab.engine.last:Last.keep_untrained", 1),
    ("seqlab.learner:Learner.validation_step", 1),  # of the untrained network
    *POINTS[:1], *POINTS[3:4], *POINTS[7:9], POINTS[10],
    ("seqlab.engine.intervals:calibrate", 1),
    ("seqlab.engine.intervals:write", 1),
]  # fmt: skip


@pytest.mark.parametrize("lr", ["0.01", "30"])
@pytest.mark.parametrize(
    "point",
    SERIES_POINTS[:1] + [pytest.param(p, marks=pytest.mark.slow) for p in SERIES_POINTS[1:]],
)
def test_a_series_with_a_base_ends_the_same_too(point, lr, drifting, tmp_path):
    words, expected, _ = drifting[lr]
    assert forked(*words, cwd=tmp_path, kills=[Kill(*point)]).code == -9
    if (tmp_path / "run/checkpoints/last.ckpt").exists():
        resumed(tmp_path)
    else:  # it had not begun to train
        shutil.rmtree(tmp_path / "run")
        assert forked(*words, cwd=tmp_path).code == 0
    assert_same(tmp_path / "run", expected)


def test_no_run_ends_below_its_base_on_validation(drifting):
    for lr, ended in (("0.01", False), ("30", True)):
        _, expected, cwd = drifting[lr]
        forecaster = load(cwd / "run" / expected["best_checkpoint"])
        assert bool((forecaster.network.network.head.weight == 0).all()) == ended
        data, _ = load_data(forecaster, ())
        data.fit_weights(data.window_numbers["train"])  # as they were at that time
        x, y = data.splits["val"][:]
        errors = data.unscale(y) - data.unscale(data.baselines(x)["AR(4)"])
        base = errors.square().mean().item()
        if ended:
            assert expected["metrics"]["best/val/mse"] == pytest.approx(base, rel=1e-4)
        else:
            assert expected["metrics"]["best/val/mse"] < base


@pytest.mark.needs("signals")
@pytest.mark.parametrize(
    ("after", "call"),
    [
        ("seqlab.engine.last:Last.on_train_start", 1),
        ("seqlab.engine.last:Last.on_train_epoch_end", 2),
        ("seqlab.engine.checkpoint:write", 4),
    ],
)
@pytest.mark.parametrize(
    "words",
    [
        ["data.steps_per_call=64"],  # an epoch is one call
        pytest.param(["+trainer.check_val_every_n_epoch=2"], marks=pytest.mark.slow),
        pytest.param(
            ["+trainer.check_val_every_n_epoch=null", "+trainer.val_check_interval=3"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_a_signal_between_two_epochs_changes_no_counter(words, after, call, undisturbed, tmp_path):
    kill = Kill(after, call, signal.SIGTERM)
    assert forked(*RUN, *words, cwd=tmp_path, kills=[kill]).code == 143
    resumed(tmp_path)
    assert_same(tmp_path / "run", undisturbed(words))


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(1, 53))
def test_killed_at_each_batch(batch, undisturbed, tmp_path):
    options = ["callbacks.last.every_n_steps=1"]
    epoch, rest = divmod(batch, 13)
    kill = Kill(BATCH_START, batch + 1) if rest else Kill(VALIDATION_START, epoch)
    assert forked(*RUN, *options, cwd=tmp_path, kills=[kill]).code == -9
    saved = read(tmp_path / "run/checkpoints/last.ckpt")
    assert saved["global_step"] == batch
    resumed(tmp_path)
    assert_same(tmp_path / "run", undisturbed(options))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_chain_of_kills_at_random_times(seed, undisturbed, tmp_path):
    draw = random.Random(seed)
    options = [
        *draw.choice(list(OPTIONS.values())),
        f"callbacks.last.every_n_steps={draw.choice(['null', 1, 2, 5])}",
    ]
    expected = undisturbed(options)
    for seconds in [draw.uniform(0.1, 1) for _ in range(draw.randint(2, 12))] + [None]:
        words = [RESUME]
        if not (tmp_path / "run/checkpoints/last.ckpt").exists():  # killed before it began
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            words = [*RUN, *options]
        result = end(start(*words, cwd=tmp_path), tmp_path, after=seconds)
    ended = "finished" in result.err or "stopped early after" in result.err  # before the last kill
    assert result.code == 0 or ended, result.err
    assert_same(tmp_path / "run", expected)


def test_a_run_goes_on_where_its_folder_was_moved_to(undisturbed, tmp_path):
    assert forked(*RUN, cwd=tmp_path, kills=[Kill(BATCH_END, 30)]).code == -9
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "run", tmp_path / "elsewhere/run")
    resumed(tmp_path / "elsewhere")
    assert_same(tmp_path / "elsewhere/run", undisturbed([]))


# what may change on the way, and what may not


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("killed")
    assert forked(*RUN, cwd=cwd, kills=[Kill(BATCH_END, 30)]).code == -9
    return cwd / "run"


@pytest.fixture
def interrupted(killed, tmp_path):
    """A folder with a run that was killed in its third epoch."""
    shutil.copytree(killed, tmp_path / "run")
    return tmp_path


def refused(cwd, *arguments):
    result = run(*arguments, cwd=cwd)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result.err
    return result.err


def test_more_epochs_end_as_if_they_had_been_asked_for_at_once(interrupted, undisturbed):
    resumed(interrupted, "trainer.max_epochs=6")
    expected = undisturbed(["trainer.max_epochs=6"])
    found = left(interrupted / "run")
    assert found == expected
    overrides = strict_json(interrupted / "run/results.json")["overrides"]
    assert [o for o in overrides if "max_epochs" in o] == ["trainer.max_epochs=6"]


def test_a_finished_run_can_be_taken_further(undisturbed, tmp_path):
    assert forked(*RUN, cwd=tmp_path).code == 0
    assert "finished" in refused(tmp_path, RESUME)
    resumed(tmp_path, "trainer.max_epochs=6")
    assert left(tmp_path / "run")["last"] == undisturbed(["trainer.max_epochs=6"])["last"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model.n_hidden=8"], ["model.n_hidden=8", "has 4", "trainer.max_epochs"]),
        (["optim/schedule=cosine"], ["optim.schedule"]),
        (["seed=3"], ["seed=3", "has 0"]),
        (["trainer.max_epochs=2"], ["trainer.max_epochs=2", "has 4"]),
        (["model.nope=8"], ["model.nope", "no such key"]),
    ],
)
def test_another_knob_is_refused_with_the_difference(arguments, words, interrupted):
    before = left_files(interrupted)
    line = refused(interrupted, RESUME, *arguments)
    for word in words:
        assert word in line
    assert left_files(interrupted) == before


def left_files(folder):
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("out", "err")
    }


@pytest.mark.parametrize(
    "option",
    ["cosine", *(pytest.param(o, marks=pytest.mark.slow) for o in ("one cycle", "warmup"))],
)
def test_more_epochs_are_refused_where_the_schedule_ends_with_them(option, tmp_path):
    options = OPTIONS[option]
    assert forked(*RUN, *options, cwd=tmp_path, kills=[Kill(BATCH_END, 30)]).code == -9
    assert "schedule" in refused(tmp_path, RESUME, "trainer.max_epochs=6")


def test_threads_may_change(interrupted):
    resumed(interrupted, "threads=2")
    assert strict_json(interrupted / "run/results.json")["steps"] == 52


@pytest.mark.parametrize("folder", ["nowhere", "empty", "."])
def test_nothing_to_resume(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "nothing to resume" in refused(tmp_path, f"resume={folder}")
    assert not (tmp_path / "nowhere").exists()


def test_a_run_that_another_process_writes_to_is_refused(tmp_path):
    long = ["trainer.max_epochs=100000", "callbacks.early_stopping=null"]
    process = start(*RUN, *long, cwd=tmp_path)
    try:
        while not (tmp_path / "run/checkpoints/last.ckpt").exists():
            assert process.is_alive()
        assert "another process is writing to it" in refused(tmp_path, RESUME)
    finally:
        process.kill()
        process.join()


def test_of_two_resumes_at_once_one_goes_on(interrupted, undisturbed):
    (interrupted / "second").mkdir()
    folder = interrupted / "run"
    both = [start(f"resume={folder}", cwd=cwd) for cwd in (interrupted, interrupted / "second")]
    results = [
        end(process, cwd)
        for process, cwd in zip(both, (interrupted, interrupted / "second"), strict=True)
    ]
    codes = sorted(result.code for result in results)
    assert codes == [0, 2], [result.err for result in results]
    assert_same(folder, undisturbed([]))


def test_in_a_multirun_there_is_no_resume(interrupted):
    result = run("-m", RESUME, "seed=0,1", cwd=interrupted)
    assert (result.code, result.out) == (2, "job 1 of 2: seed=0\n")
    assert result.err == f"error: {RESUME}: one run at a time, without -m\n"


def test_points_that_are_gone_are_told(interrupted):
    (file,) = (interrupted / "run").glob("events.*")
    file.unlink()
    result = run(RESUME, cwd=interrupted)
    assert result.code == 0, result.err
    assert f"note: {file.name}: gone" in result.err


# files that are not what they should be


def last_of(interrupted):
    return interrupted / "run/checkpoints/last.ckpt"


@pytest.mark.parametrize("contents", [b"", b"<!DOCTYPE html>", b"PK\x03\x04"])
def test_a_damaged_checkpoint_is_refused(contents, interrupted):
    last_of(interrupted).write_bytes(contents)
    assert "last.ckpt" in refused(interrupted, RESUME)


def test_a_checkpoint_cut_short_is_refused(interrupted):
    last_of(interrupted).write_bytes(last_of(interrupted).read_bytes()[:-100])
    assert "last.ckpt: damaged" in refused(interrupted, RESUME)


def test_a_bare_state_dict_is_refused(interrupted):
    torch.save(read(last_of(interrupted))["state_dict"], last_of(interrupted))
    assert "last.ckpt" in refused(interrupted, RESUME)


def test_weights_of_another_network_are_refused(interrupted):
    contents = read(last_of(interrupted))
    contents["config"]["model"]["n_hidden"] = 8
    write_checkpoint(last_of(interrupted), contents)
    assert "its weights are not those of its config" in refused(interrupted, RESUME)


@pytest.mark.parametrize("part", ["loops", "events", "sums", "callbacks", "optimizer_states"])
def test_a_checkpoint_that_lacks_a_part_is_refused(part, interrupted):
    contents = read(last_of(interrupted))
    del contents[part]
    write_checkpoint(last_of(interrupted), contents)
    assert part in refused(interrupted, RESUME)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": "running"}'])
def test_damaged_results_are_refused(text, interrupted):
    (interrupted / "run/results.json").write_text(text)
    assert "results.json" in refused(interrupted, RESUME)


PAYLOAD = """
from pathlib import Path

Path("imported").touch()


def touch(*args, **kwargs):
    Path("called").touch()
"""


@pytest.mark.parametrize(
    "key", ["model", "data", "trainer", "callbacks.progress", "optim.optimizer"]
)
@pytest.mark.parametrize("target", ["payload.touch", "os.system", "torch.utils.collect_env.run"])
def test_a_checkpoint_runs_nothing_of_its_own(key, target, interrupted, monkeypatch):
    monkeypatch.syspath_prepend(write(interrupted, {"payload.py": PAYLOAD}))
    contents = read(last_of(interrupted))
    node = contents["config"]
    for part in key.split("."):
        node = node[part]
    node.update(_target_=target, command="touch called")
    write_checkpoint(last_of(interrupted), contents)
    line = refused(interrupted, RESUME)
    assert target in line
    assert "not trusted" in line or "subclass" in line
    assert not {"called", "imported"} & {path.name for path in interrupted.rglob("*")}


OWN = """
from seqlab.model import LSTMNetwork


class Network(LSTMNetwork):
    pass
"""


def test_a_network_of_ones_own_is_taken_up_once_its_package_is_trusted(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(write(tmp_path, {"mine/network.py": OWN}))
    own = "model._target_=mine.network.Network"
    assert run(*RUN, own, "callbacks.early_stopping.patience=9", cwd=tmp_path).code == 0
    line = refused(tmp_path, RESUME, "trainer.max_epochs=5")
    assert "model._target_=mine.network.Network: not trusted" in line
    assert "trust=[mine]" in line
    result = run(RESUME, "trainer.max_epochs=5", "trust=[mine]", cwd=tmp_path)
    assert result.code == 0, result.err


NOISE = """
import random
import numpy as np
import torch
from seqlab.model import LSTMNetwork

class Network(LSTMNetwork):
    def forward(self, x, hidden=None):
        prediction, hidden = super().forward(x, hidden)
        drawn = random.random() + np.random.rand() + torch.rand(prediction.shape)
        return prediction + 0.1 * drawn, hidden
"""


def test_a_network_that_draws_noise_whenever_it_is_called_ends_the_same(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(write(tmp_path, {"mine/noise.py": NOISE}))
    words = [*RUN, "model._target_=mine.noise.Network", "callbacks.last.every_n_steps=1"]
    words += ["data.n_train=48", "trainer.max_epochs=2"]
    for name in ("one", "two"):
        shutil.copytree(tmp_path / "mine", tmp_path / name / "mine")
    assert forked(*words, cwd=tmp_path / "one").code == 0
    kill = Kill("seqlab.learner:Learner.validation_step", 3)  # in the second epoch
    assert forked(*words, cwd=tmp_path / "two", kills=[kill]).code == -9
    resumed(tmp_path / "two", "trust=[mine]")
    assert_same(tmp_path / "two/run", left(tmp_path / "one/run"))


@pytest.mark.parametrize("row", [5, 250, -1])
def test_other_data_are_refused(row, tmp_path):
    """Whether the training, the validation or the test part has changed."""
    shutil.copy(ROOT / "data/sunspots.csv", tmp_path / "series.csv")
    series = [
        *("data=series", "data.path=series.csv", "data.target=sunspots", "data.seq_len=9"),
        *("trainer.max_epochs=2", "model.n_hidden=4", "callbacks.pictures=null"),
    ]
    assert run(*series, "hydra.run.dir=run", cwd=tmp_path).code == 0
    lines = (tmp_path / "series.csv").read_text().splitlines()
    lines[row] = lines[row].split(",")[0] + ",77.7"
    (tmp_path / "series.csv").write_text("\n".join(lines) + "\n")
    assert "data: no longer those of the run" in refused(tmp_path, RESUME, "trainer.max_epochs=3")


def test_the_environment_stays_out_of_what_a_run_leaves(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_NAME", "hunter2")
    overrides = ["+note=${oc.env:SECRET_NAME}", "+copy=${note}"]
    assert run(*RUN, *overrides, cwd=tmp_path).code == 0
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert b"hunter2" not in path.read_bytes(), path.name
    assert read(last_of(tmp_path))["config"]["copy"] == "${oc.env:SECRET_NAME}"


# what a folder of somebody else's may do


def tampered(interrupted, change):
    contents = read(last_of(interrupted))
    change(contents)
    write_checkpoint(last_of(interrupted), contents)


RUNS = {"_target_": "torch.utils.collect_env.run", "command": "touch called"}
SHAPES = {
    "dict": RUNS,
    "in a list": [RUNS],
    "in a list of lists": [[RUNS]],
    "under a key with a dot": {"a.b": RUNS},
    "under a key with brackets": {"a[0]": RUNS},
    "partial": {**RUNS, "_partial_": True},
    "with arguments": {"_target_": "os.system", "_args_": ["touch called"]},
    "from Python itself": {"_target_": "builtins.open", "file": "called", "mode": "w"},
    "a method": {"_target_": "pathlib.Path.touch", "_args_": ["called"]},
}
PLACES = ["model", "data", "data.task", "optim.optimizer", "trainer", "callbacks.checkpoint"]


@pytest.mark.parametrize("place", [*PLACES, "callbacks.last", "loss", "optim.schedule"])
@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_that_a_foreign_folder_names_is_called(shape, place, interrupted):
    def put(contents):
        *parents, name = place.split(".")
        node = contents["config"]
        for part in parents:
            node = node[part]
        if node.get(name) is None:  # where no class is named
            node[name] = SHAPES[shape]
        else:
            node[name]["junk"] = SHAPES[shape]

    tampered(interrupted, put)
    line = refused(interrupted, RESUME)
    assert line.startswith(f"error: {place}")
    assert not list(interrupted.rglob("called"))


@pytest.mark.parametrize("path", ["run/checkpoints/../../victim.txt", "/victim.txt", "victim.txt"])
def test_a_foreign_folder_removes_nothing_outside_of_itself(path, interrupted):
    (interrupted / "victim.txt").write_text("mine")
    path = str(interrupted / path.lstrip("/")) if path[0] != "/" else f"{interrupted}{path}"

    def put(contents):
        for state in contents["callbacks"].values():
            if "best_k_models" in state:
                state["best_k_models"] = {path: torch.tensor(1e9)}
                state["kth_best_model_path"] = path

    tampered(interrupted, put)
    result = run(RESUME, cwd=interrupted)
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    assert "is outside of the run's folder" in result.err
    assert (interrupted / "victim.txt").read_text() == "mine"


@pytest.mark.parametrize("folder", ["/elsewhere", "../elsewhere"])
@pytest.mark.parametrize("group", ["callbacks", "trainer"])
def test_a_foreign_folder_writes_nothing_outside_of_itself(group, folder, interrupted):
    folder = str(interrupted) + folder if folder[0] == "/" else folder

    def put(contents):
        if group == "callbacks":
            node = {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": folder}
            contents["config"]["callbacks"]["more"] = node
        else:
            node = {"_target_": "lightning.pytorch.profilers.SimpleProfiler", "dirpath": folder}
            contents["config"]["trainer"]["profiler"] = node

    tampered(interrupted, put)
    assert "elsewhere is outside of the run's folder" in refused(interrupted, RESUME)
    assert not (interrupted / "elsewhere").exists()


# a run that stopped early


def test_a_run_that_stopped_early_says_so_and_goes_on_with_more_epochs(tmp_path):
    words = ["trainer.max_epochs=8", "callbacks.early_stopping.patience=3"]
    words += ["+callbacks.early_stopping.min_delta=10"]  # after the first nothing is a new best
    result = run(*RUN, *words, cwd=tmp_path)
    said = "stopped early after 4 of 8 epochs: val/mse had no new best in 3"
    assert f"It {said}." in result.out
    assert strict_json(tmp_path / "run/results.json")["stopped"] == said
    assert said in refused(tmp_path, RESUME)
    result = run(RESUME, "trainer.max_epochs=16", cwd=tmp_path)
    assert result.code == 0, result.err
    assert "It stopped early after 7 of 16 epochs" in result.out
    (tmp_path / "never").mkdir()
    never = ["trainer.max_epochs=7", "callbacks.early_stopping=null"]
    assert run(*RUN, *never, cwd=tmp_path / "never").code == 0
    assert left(tmp_path / "run")["last"] == left(tmp_path / "never/run")["last"]
