import json
import re
import shutil
import struct
import time
import urllib.request
from types import SimpleNamespace

import pytest
import yaml
from browser import browse, tensorboard
from left import events, scalars
from lightning.pytorch.loggers import TensorBoardLogger
from program import SMALL, run
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from seqlab.watch.record import Record

EPOCHS, STEPS = 7, 2  # in an epoch
END = EPOCHS * STEPS
NAMES = ("mse", "rmse", "mae", "r2", "skill")


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    overrides = [f"trainer.max_epochs={EPOCHS}", "trainer.log_every_n_steps=3"]
    overrides += ["callbacks.early_stopping=null", "optim/schedule=cosine", "model.n_hidden=2"]
    return run(*SMALL, *overrides, cwd=tmp_path_factory.mktemp("watched"))


def test_every_metric_of_every_split_is_plotted_and_nothing_else(watched):
    tags = {f"{split}/{name}" for split in ("train", "val", "test") for name in NAMES}
    assert scalars(watched.folder).keys() == {*tags, "train/loss", "lr", "best/val/mse"}


def test_each_curve_has_a_point_for_each_epoch_at_its_optimiser_step(watched):
    found = events(watched.folder)
    epochs = [STEPS * epoch for epoch in range(1, EPOCHS + 1)]
    for tag in found.Tags()["scalars"]:
        steps = [point.step for point in found.Scalars(tag)]
        if tag == "train/loss":
            assert steps == [3, 6, 9, 12]
        elif tag.startswith("test/"):
            assert steps == [END]
        else:
            assert steps == epochs, tag


def test_the_last_points_are_the_results_and_best_is_the_best_so_far(watched):
    points, metrics = scalars(watched.folder), watched.results["metrics"]
    for tag, value in metrics.items():
        assert points[tag][-1][1] == pytest.approx(value, rel=1e-5, abs=1e-9), tag
    so_far = [min(value for _, value in points["val/mse"][: epoch + 1]) for epoch in range(EPOCHS)]
    assert [value for _, value in points["best/val/mse"]] == pytest.approx(so_far)


def test_pictures_are_drawn_at_the_first_epoch_every_five_from_there_and_in_the_end(watched):
    found = events(watched.folder)
    expected = {name: [STEPS * 1, STEPS * 6] for name in ("prediction", "states", "unrolled")}
    expected["test/prediction"] = [END]
    assert set(found.Tags()["images"]) == expected.keys()
    for tag, steps in expected.items():
        images = found.Images(tag)
        assert [image.step for image in images] == steps
        for image in images:
            width, height = struct.unpack(">II", image.encoded_image_string[16:24])
            assert image.encoded_image_string.startswith(b"\x89PNG")
            assert min(width, height) >= 300


def test_the_config_page_is_config_yaml(watched):
    (event,) = events(watched.folder).Tensors("config/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    fenced = text.removeprefix("```yaml\n").removesuffix("```")
    assert yaml.safe_load(fenced) == watched.config


def hparams(folder):
    found = events(folder).PluginTagToContent("hparams")
    return {tag.rpartition("/")[2]: HParamsPluginData.FromString(found[tag]) for tag in found}


def test_hparams_are_the_overrides(watched):
    listed = hparams(watched.folder)["session_start_info"].session_start_info.hparams
    values = {key: getattr(value, value.WhichOneof("kind")) for key, value in listed.items()}
    assert values == {
        "trainer.max_epochs": EPOCHS, "data.n_train": 64, "data.n_val": 32, "data.n_test": 32,
        "trainer.log_every_n_steps": 3, "callbacks.early_stopping": "null",
        "optim/schedule": "cosine", "model.n_hidden": 2,
    }  # fmt: skip


def test_overrides_of_every_kind_are_numbers_or_texts():
    words = ["optim.lr=1e-2", "seed=3", "data.fresh=true", "+a.b='c d'", "trust=[x,y]"]
    words += ["callbacks.pictures=null", "~callbacks.early_stopping"]
    assert Record({}, words, "val/mse", "min").hyperparameters() == {
        "optim.lr": 0.01, "seed": 3, "data.fresh": "true", "a.b": "c d", "trust": "[x,y]",
        "callbacks.pictures": "null", "callbacks.early_stopping": "",
    }  # fmt: skip


def test_a_run_without_overrides_has_no_hparams(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = SimpleNamespace(ckpt_path=None, is_global_zero=True, logger=logger)
    Record({"a": 1}, [], "val/mse", "min").on_fit_start(trainer, None)
    logger.experiment.close()
    found = events(tmp_path)
    assert found.Tags()["tensors"] == ["config/text_summary"]
    with pytest.raises(KeyError):
        found.PluginTagToContent("hparams")


def columns(logdir, expected):
    """The columns of the HParams page, keys and metrics, once they are those expected, or at last:
    the server may answer before it has read all files."""
    query = "data/plugin/hparams/experiment?request={}"
    with tensorboard("--logdir", logdir.name, cwd=logdir.parent) as address:
        for _ in range(100):
            with urllib.request.urlopen(address + query) as page:
                found = json.load(page)
            keys = [info["name"] for info in found.get("hparamInfos", [])]
            metrics = [info["name"]["tag"] for info in found.get("metricInfos", [])]
            if (keys, metrics) == expected:
                break
            time.sleep(0.1)
    return keys, metrics


def test_hparams_stand_beside_the_final_and_the_best_value(watched):
    listed = hparams(watched.folder)["session_start_info"].session_start_info.hparams
    expected = sorted(listed), sorted(scalars(watched.folder))
    keys, metrics = columns(watched.cwd / "outputs", expected)
    assert (keys, metrics) == expected
    assert metrics[0] == "best/val/mse"
    assert "val/mse" in metrics


def test_hparams_of_many_runs_are_the_keys_of_all_and_first_those_that_differ(tmp_path):
    small = [*SMALL, "data.seq_len=4", "callbacks.pictures=null"]
    run("-m", "model.n_hidden=2,3", "optim.lr=1e-2,1e-3", *small, cwd=tmp_path)
    run("seed=7", "hydra.run.dir=outputs/another", *small, cwd=tmp_path)
    same = sorted(["seed", *(word.partition("=")[0] for word in small)])
    metrics = sorted(scalars(tmp_path / "outputs/another"))
    expected = ["model.n_hidden", "optim.lr", *same], metrics
    assert columns(tmp_path / "outputs", expected) == expected


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_tensorboard_shows_them_in_a_browser(watched, tmp_path):
    tags = {"train/mse", "val/mse", "test/mse", "best/val/mse"}
    with tensorboard("--logdir", "outputs", cwd=watched.cwd) as address:
        for attempt in range(5):  # a slow machine may take the picture before the page is drawn
            page = browse(
                f"{address}?tagFilter=/mse#timeseries",
                tmp_path / str(attempt),
                "--window-size=1200,4000",
                "--dump-dom",
            )
            text = re.sub(r"<[^>]+>", "", page)
            if tags <= set(re.findall(r"(?:best/)?(?:train|val|test)/mse", text)):
                break
        else:
            pytest.fail("the page does not have the tags")
    assert str(watched.folder.relative_to(watched.cwd / "outputs").parent) in text
