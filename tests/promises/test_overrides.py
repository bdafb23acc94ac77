"""Whatever is typed: a run of two batches, or exit code 2 and at most three lines."""

import inspect
import shutil
import tempfile
from pathlib import Path

import lightning
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lightning.pytorch import callbacks
from program import ROOT, ours, run

from seqlab.engine.settings import flat

GROUPS = ("data", "model", "loss", "optim", "optim/schedule", "trainer", "callbacks", "experiment")
CHOICES = [
    f"{group}={path.stem}"
    for group in GROUPS
    for path in ours(f"conf/{group}/[!_]*.yaml")
    if path.stem not in ("ddp", "series", "sunspots")  # processes, a file
]
with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
    CONFIG = compose("config")
KEYS = sorted(key for key in flat(CONFIG) if "_target_" not in key)
#: What Lightning's own Trainer takes, and its callbacks.
TRAINER = [f"trainer.{name}" for name in list(inspect.signature(lightning.Trainer).parameters)]
CALLBACKS = [f"+callbacks.x._target_=lightning.pytorch.callbacks.{n}" for n in callbacks.__all__]
#: Large enough to be wrong in every way, too small to take the machine down.
VALUES = st.one_of(
    st.integers(-3, 40).map(str),
    st.sampled_from(["99", "100000", "4294967296"]),
    st.floats(-2, 2).map(lambda value: f"{value:.3g}"),
    st.sampled_from(["1e-300", "1e30", "nan", "inf", "-inf", "null", "true", "false", "''", "???"]),
    st.sampled_from(["abc", "'a b'", "[]", "[1,2]", "{}", "{a:1}", "${seed}", "${nope}"]),
    st.just("{_target_:x}"),
    st.sampled_from(["val/mae", "train/mse", "chrono", "forget", "min", "cpu", "gpu", "16-true"]),
)  # fmt: skip
WORDS = st.one_of(
    st.tuples(st.sampled_from(["", "+", "++"]), st.sampled_from(KEYS), VALUES).map(
        lambda parts: f"{parts[0]}{parts[1]}={parts[2]}"
    ),
    st.sampled_from(KEYS).map(lambda key: f"~{key}"),
    st.sampled_from(CHOICES),
    st.tuples(st.sampled_from(TRAINER), VALUES).map(lambda parts: f"++{parts[0]}={parts[1]}"),
    st.sampled_from(CALLBACKS),
)
BASE = [
    *("trainer=debug", "data.n_train=64", "data.n_val=8", "data.n_test=8", "data.batch_size=4"),
    *("data.seq_len=4", "model.n_hidden=4"),
]
#: Sizes that would take minutes or the memory, typed by nobody.
ENDLESS = ("data.n", "data.seq_len", "model.n_hidden", "model.n_layers", "trainer.max_epochs")


def is_endless(word):
    key, _, value = word.lstrip("+").partition("=")
    return key.startswith(ENDLESS) and value in ("100000", "4294967296", "1e30")


LISTS = st.lists(WORDS.filter(lambda word: not is_endless(word)), min_size=1, max_size=3)


def runs_or_is_told_in_three_lines(words):
    folder = Path(tempfile.mkdtemp())
    try:
        result = run(*BASE, *words, cwd=folder)
        said = f"{words}: {result.code}\n{result.err}"
        assert result.code in (0, 2), said
        assert "Traceback" not in result.err, said
        if result.code:
            lines = [line for line in result.err.splitlines() if "steps/s" not in line]
            assert len(lines) <= 3, said
        else:
            assert list(folder.rglob("results.json")), said
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("examples", [5, pytest.param(600, marks=pytest.mark.slow)])
def test_whatever_is_typed(examples):
    once = settings(
        max_examples=examples, deadline=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    once(given(LISTS)(runs_or_is_told_in_three_lines))()


#: What generated words found of Lightning's, and what is said.
REFUSED = {
    "++trainer.accelerator=tpu": "torch_xla",
    "++trainer.devices=0": "trainer.devices=0: this machine has",
    "++trainer.logger={}": "trainer.logger={}: ",
    "++trainer.callbacks=[]": "callbacks.NAME={_target_: CLASS} adds one here",
    "++trainer.plugins=[]": "trainer.plugins=[]: ",
    "++trainer.default_root_dir=x": "trainer.default_root_dir=x: hydra.run.dir",
    "++trainer.limit_train_batches=0": "trainer.limit_train_batches=0: ",
    "++trainer.profiler=xla": "trainer.profiler=xla: ",
    "++trainer.val_check_interval=0": "trainer.val_check_interval=0: it should be greater than 0",
    "++trainer.val_check_interval={}": "trainer.val_check_interval={}: ",
    "++trainer.val_check_interval=3": "trainer.val_check_interval=3: an epoch has 2 calls",
    "++trainer.check_val_every_n_epoch=0": "trainer.check_val_every_n_epoch=0: ",
    "++trainer.check_val_every_n_epoch=3": "the run ended before its first validation: ",
    "++trainer.max_time={}": "the run ended before its first validation: ",
    **{
        f"+callbacks.x={{_target_:lightning.pytorch.callbacks.{name}}}": said
        for name, said in {
            "BackboneFinetuning": "no network here has a backbone",
            "BaseFinetuning": "name a subclass of it",
            "SpikeDetection": "optim.on_nonfinite=skip",
            "ModelPruning,pruning_fn:l1_unstructured": "its masks are saved in no checkpoint",
        }.items()
    },
}


@pytest.mark.slow
def test_what_lightning_has_and_a_run_cannot_do_is_one_line(tmp_path):
    for word, said in REFUSED.items():
        result = run(*BASE, word, cwd=tmp_path)
        lines = [line for line in result.err.splitlines() if "steps/s" not in line]
        assert (result.code, len(lines)) == (2, 1), f"{word}: {result.code}\n{result.err}"
        assert said in lines[0]
