import os
import re
import subprocess
import sys

import pytest
import torch
from program import ROOT, forked, process, run, write

SCHEDULES = ", ".join(sorted(path.stem for path in (ROOT / "conf/optim/schedule").glob("*.yaml")))
#: What is typed, and what the one line must hold; if not given, the last KEY=VALUE typed.
CASES = {
    # no such key, no such choice: it says which there are
    "model.n_hiden=4": ["model.n_hiden: no such key", "n_hidden", "n_layers", "dropout", "init"],
    "nope=1": ["nope: no such key", "seed", "threads", "monitor"],
    "+model.nope=1": ["model.nope: no such argument"],
    "+trainer.nope=1": ["trainer", "nope"],
    "+optim.optimizer.nope=1": ["optim.optimizer", "nope"],
    "model=nope": ["model=nope", "lstm"],
    "data=nope": ["data=nope", "random", "sine"],
    "optim/schedule=nope": ["optim/schedule=nope", SCHEDULES],
    "experiment=nope": ["experiment=nope", "reference"],
    "model=null": ["model"],
    # a value of another type or out of range
    "model.n_hidden=abc": None,
    "model.n_hidden=0": None,
    "model.n_hidden=-3": None,
    "model.n_hidden=4.5": None,
    "model.dropout=1.5": None,
    "model.init=nope": ["model.init=nope", "default", "forget", "chrono"],
    "data.batch_size=0": None,
    "data.n_train=31": ["data.n_train=31", "batch_size=32"],
    "data.n_val=1": ["data.n_val=1", "at least 2"],
    "data.task.noise=-1": None,
    "optim.clip=0": None,
    "seed=abc": None,
    "seed=-1": None,
    "threads=0": None,
    "threads=true": ["threads="],
    "monitor=val/nope": ["monitor=val/nope", "val/mse", "val/mae"],
    "data=temporal_order monitor=val/mse": ["monitor=val/mse", "val/ce"],
    "data=reber data.seq_len=19": ["data.seq_len=19", "at least 20"],
    "published=1": ["published=1", "{LSTM: {test/mse: 0.1}}"],
    "+published.a.b=c": ["published=", "{LSTM: {test/mse: 0.1}}"],
    "trainer.max_epochs=0": None,
    "trainer.max_epochs=1.5": None,
    # the same where PyTorch's or Lightning's words are passed on
    "optim.lr=-1": ["optim", "lr", "-1"],
    "optim.lr=abc": ["optim", "lr", "abc"],
    "optim.schedule=cosine": ["optim.schedule=cosine", "optim/schedule chooses a file"],
    "optim/schedule=step optim.schedule.step_size=0": ["optim.schedule", "step_size", "0"],
    "optim/schedule=onecycle optim.schedule.total_steps=1": [
        "total_steps=1",
        "at least 30, the steps",
    ],
    "optim/schedule=cosine optim.schedule.T_max=abc": ["optim.schedule", "T_max", "abc"],
    "optim/schedule=plateau optim.schedule.factor=2": ["optim.schedule", "actor", "2"],
    "callbacks.early_stopping.patience=abc": ["callbacks.early_stopping", "patience", "abc"],
    "callbacks.checkpoint.monitor=val/nope": ["callbacks.checkpoint", "monitor", "val/nope"],
    "callbacks.pictures.every_n_epochs=0": None,
    "trainer.devices=abc": ["trainer", "devices", "abc"],
    "trainer.precision=13": ["trainer", "recision", "13", "32-true", "bf16-mixed"],
    "trainer.accelerator=abc": ["trainer", "accelerator", "abc", "cpu"],
    "trainer.log_every_n_steps=0": ["trainer", "log_every_n_steps", "0"],
    # not understood at all
    "data.seq_len=[1": None,
    "model.n_hidden=1,2": ["model.n_hidden=1,2", "--multirun"],
    "model.n_hidden=${nope}": ["model.n_hidden", "nope"],
    "model.n_hidden": None,
    # a class that is not there
    "model._target_=nope.Network": ["model._target_=nope.Network", "No module named 'nope'"],
    "model._target_=seqlab.model.Nope": None,
    # what Lightning has and does not go with several steps a call
    "+trainer.gradient_clip_val=1": ["trainer.gradient_clip_val=1", "optim.clip"],
    "+trainer.accumulate_grad_batches=2": ["accumulate_grad_batches=2", "data.accumulate"],
    "+trainer.fast_dev_run=true": ["trainer.fast_dev_run=True", "trainer=debug"],
    "+trainer.limit_val_batches=0": ["trainer.limit_val_batches=0"],
    "+trainer.limit_test_batches=0": ["trainer.limit_test_batches=0"],
    "+trainer.val_check_interval=50": ["trainer.val_check_interval=50", "data.steps_per_call"],
    "+callbacks.checkpoint.every_n_epochs=50": ["callbacks.checkpoint.every_n_epochs=50"],
    "+callbacks.checkpoint.save_weights_only=true": ["checkpoint.save_weights_only=True"],
    **{
        f"+callbacks.x._target_=lightning.pytorch.callbacks.{name}": ["callbacks.x._target_", said]
        for name, said in {
            "LearningRateFinder": "seqlab tune",
            "BatchSizeFinder": "batch_size",
        }.items()
    },
    "+callbacks.x={_target_:lightning.pytorch.callbacks.GradientAccumulationScheduler,"
    "scheduling:{4:2}}": ["callbacks.x._target_", "data.accumulate"],
    "+callbacks.x={_target_:lightning.pytorch.callbacks.StochasticWeightAveraging,swa_lrs:0.01}": [
        "callbacks.x._target_",
        "saved in no checkpoint",
    ],
    "optim.optimizer={_target_:torch.optim.LBFGS,lr:1}": ["optim.optimizer", "LBFGS"],
    "data.n_train=100000000000": ["data: ", "memory"],
    # a folder that cannot be made
    "hydra.run.dir=a_file/run": ["hydra.run.dir", "a_file/run", "Not a directory"],
}
SMALL_SET = [f"data.n_{split}=64" for split in ("train", "val", "test")]


def assert_one_line(result, *words, at_start=frozenset({"a_file"})):
    """Exit code 2, one line on stderr, and not a trace left anywhere else."""
    assert result.code == 2
    assert result.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", result.err), result.err
    for word in words:
        assert word in result.err
    assert {path.name for path in result.cwd.iterdir()} == at_start


@pytest.fixture
def cwd(tmp_path):
    (tmp_path / "a_file").touch()
    return tmp_path


@pytest.mark.parametrize("typed", CASES)
def test_a_mistake_is_one_line_that_names_the_key_and_the_value(typed, cwd):
    assert_one_line(run(*SMALL_SET, *typed.split(), cwd=cwd), *CASES[typed] or [typed])


def test_a_text_in_place_of_a_list_is_told_its_brackets(cwd):
    words = ("data=series", "data.path=x.csv", "data.target=y", "data.features=temperature")
    assert_one_line(run(*words, cwd=cwd), "data.features=temperature: ", "[temperature] would do")


def test_bfloat16_trains_where_the_processor_has_it_and_is_refused_where_not(tmp_path):
    narrow, wide = (tmp_path / name for name in ("narrow", "wide"))
    narrow.mkdir()
    wide.mkdir()
    words = [*SMALL_SET, "trainer.max_epochs=2", "callbacks.pictures=null"]
    result = run(*words, "trainer.precision=bf16-mixed", cwd=narrow)
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert_one_line(result, "trainer.precision=bf16-mixed", "32-true", at_start=set())
        return
    assert result.code == 0, result.err
    assert result.results["metrics"]["test/mse"] == pytest.approx(
        run(*words, cwd=wide).results["metrics"]["test/mse"], rel=0.05
    )


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_bfloat16_is_refused_on_a_processor_without_it(precision, cwd):
    """The library that computes an LSTM is told to use no newer instructions than AVX2."""
    words = [*SMALL_SET, f"trainer.precision={precision}"]
    result = forked(*words, cwd=cwd, ONEDNN_MAX_CPU_ISA="AVX2")
    said = f"trainer.precision={precision}", "no bfloat16", "32-true"
    assert_one_line(result, *said, at_start={"a_file", "out", "err"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(cwd):
    assert_one_line(run("trainer=gpu", cwd=cwd), "trainer.accelerator=gpu", "trainer=cpu")


def test_a_config_file_that_is_no_yaml_is_named(cwd):
    write(cwd, {"own/model/broken.yaml": "n_hidden: {4\n"})
    result = run("--config-dir", "own", "model=broken", cwd=cwd)
    assert_one_line(result, "model/broken", "line 2", at_start={"a_file", "own"})


def test_a_mistake_in_an_empty_folder_leaves_that_folder(tmp_path):
    run("model.n_hidden=0", cwd=tmp_path)
    run("model.n_hidden=0", f"hydra.run.dir={tmp_path / 'new' / 'run'}", cwd=tmp_path)
    assert tmp_path.is_dir()
    assert list(tmp_path.iterdir()) == []


MARKER = """
from pathlib import Path


def make(*args, **kwargs):
    Path("called").touch()
"""


@pytest.mark.parametrize(
    "typed",
    [
        "model._target_",
        "data._target_",
        "data.task._target_",
        "optim.optimizer._target_",
        "optim/schedule=step optim.schedule._target_",
        "trainer._target_",
        "callbacks.progress._target_",
    ],
)
def test_a_target_of_the_wrong_kind_is_refused_before_it_is_called(typed, cwd, monkeypatch):
    monkeypatch.syspath_prepend(write(cwd, {"mine/marker.py": MARKER}))
    result = run(*f"{typed}=mine.marker.make".split(), cwd=cwd)
    assert_one_line(
        result, f"{typed.split()[-1]}=mine.marker.make", "subclass", at_start={"a_file", "mine"}
    )


def test_the_traceback_is_one_variable_away(cwd):
    assert_one_line(run("model.n_hiden=4", cwd=cwd), "model.n_hiden")
    full = process("model.n_hiden=4", cwd=cwd, HYDRA_FULL_ERROR="1")
    assert full.code != 0
    assert "Traceback (most recent call last)" in full.err
    assert "ConfigCompositionException" in full.err


HEAVY = {"torch", "lightning", "pydantic", "numpy", "matplotlib", "tensorboard", "rich"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("--help", 0, "n_hidden: 32"),
        ("--cfg job", 0, "n_hidden: 32"),
        ("-sc query=bash", 0, "data=random"),
        ("model.n_hiden=4", 2, ""),
        ("-m model.n_hiden=4,8", 2, ""),
    ],
)
def test_what_needs_no_torch_does_not_wait_for_it(arguments, code, said, tmp_path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "train.py", *arguments.split()],
        cwd=tmp_path,
        env=os.environ | {"COMP_LINE": "python train.py data=", "COMP_POINT": "21"},
        capture_output=True,
        text=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == code
    assert said in done.stdout
    assert "hydra" in imported
    assert not {name.partition(".")[0] for name in imported} & HEAVY
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", ["--help", "--cfg job", "--cfg job --resolve"])
def test_help_heeds_the_overrides_and_the_config_folder(arguments, tmp_path):
    write(tmp_path, {"own/model/mine.yaml": "_target_: mine.Network\nn_channels: 7\n"})
    result = run("--config-dir", "own", "model=mine", *arguments.split(), cwd=tmp_path)
    assert (result.code, result.err) == (0, "")
    assert "n_channels: 7" in result.out
    assert "n_hidden" not in result.out
