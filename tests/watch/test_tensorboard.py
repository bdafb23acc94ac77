import html
import json
import math
import re
import shutil
import struct
import time
import urllib.parse
import urllib.request
from types import SimpleNamespace

import pytest
import yaml
from browser import browse, tensorboard
from left import events, scalars
from lightning.pytorch.loggers import TensorBoardLogger
from program import SMALL, TINY, run
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


def test_every_metric_of_training_and_validation_is_plotted_and_nothing_else(watched):
    tags = {f"{split}/{name}" for split in ("train", "val") for name in NAMES}
    expected = {*tags, "train/loss", "train/lr", "train/best/val/mse"}
    assert scalars(watched.folder).keys() == expected


def test_each_curve_has_a_point_for_each_epoch_at_its_optimiser_step(watched):
    found = events(watched.folder)
    epochs = [STEPS * epoch for epoch in range(1, EPOCHS + 1)]
    for tag in found.Tags()["scalars"]:
        steps = [point.step for point in found.Scalars(tag)]
        if tag == "train/loss":
            assert steps == [3, 6, 9, 12]
        else:
            assert steps == epochs, tag


def test_the_last_points_are_the_results_and_best_is_the_best_so_far(watched):
    points, metrics = scalars(watched.folder), watched.results["metrics"]
    for name, value in metrics.items():
        if not name.startswith("test/"):  # which are no curve: they stand in the table below
            tag = name if name.startswith(("train/", "val/")) else f"train/{name}"
            assert points[tag][-1][1] == pytest.approx(value, rel=1e-5, abs=1e-9), tag
    so_far = [min(value for _, value in points["val/mse"][: epoch + 1]) for epoch in range(EPOCHS)]
    assert [value for _, value in points["train/best/val/mse"]] == pytest.approx(so_far)


def test_the_best_of_a_series_may_be_the_untrained_network(tmp_path):
    rows = [f"{math.sin(n / 3) + (n * 7919 % 101) / 99}" for n in range(300)]
    (tmp_path / "a.csv").write_text("\n".join(["y", *rows]))
    words = ["data=series", "data.path=a.csv", "data.target=y", "data.seq_len=12", "optim.lr=1"]
    words += ["trainer.max_epochs=2", "callbacks.pictures=null"]
    result = run(*words, cwd=tmp_path)
    assert result.code == 0, result.err
    points, best = scalars(result.folder), result.results["metrics"]["best/val/mse"]
    assert best < min(value for _, value in points["val/mse"])
    assert [value for _, value in points["train/best/val/mse"]] == pytest.approx([best] * 2)


def test_pictures_are_drawn_at_the_first_epoch_every_five_from_there_and_in_the_end(watched):
    found = events(watched.folder)
    names = ("prediction", "states", "unrolled")
    expected = {f"view/val/{name}": [STEPS * 1, STEPS * 6] for name in names}
    expected["view/test/prediction"] = [END]
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
    trainer = SimpleNamespace(ckpt_path=None, global_rank=0, loggers=[logger])
    Record({"a": 1}, [], "val/mse", "min").on_fit_start(trainer, None)
    logger.experiment.close()
    found = events(tmp_path)
    assert found.Tags()["tensors"] == ["config/text_summary"]
    with pytest.raises(KeyError):
        found.PluginTagToContent("hparams")


@pytest.fixture(scope="module")
def board(watched):
    """The address of a TensorBoard of all runs."""
    with tensorboard("--logdir", "outputs", cwd=watched.cwd) as address:
        yield address


def answer(address, query, enough):
    """What TensorBoard answers once it is `enough`, or at last: it may answer before it has read
    all files."""
    for _ in range(100):
        with urllib.request.urlopen(f"{address}data/plugin/{query}") as page:
            found = json.load(page)
        if enough(found):
            break
        time.sleep(0.1)
    return found


def columns(found):
    """The columns of the HParams page, keys and metrics."""
    keys = [info["name"] for info in found.get("hparamInfos", [])]
    return keys, [info["name"]["tag"] for info in found.get("metricInfos", [])]


HPARAMS = "hparams/experiment?request={}"


def test_hparams_stand_beside_the_final_and_the_best_value(watched, board):
    listed = hparams(watched.folder)["session_start_info"].session_start_info.hparams
    expected = sorted(listed), sorted(scalars(watched.folder))
    keys, metrics = columns(answer(board, HPARAMS, lambda found: columns(found) == expected))
    assert (keys, metrics) == expected
    assert metrics[0] == "train/best/val/mse"  # the page shows the first five
    assert "val/mse" in metrics


def test_hparams_of_many_runs_are_the_keys_of_all_and_first_those_that_differ(tmp_path):
    small = [*SMALL, "data.seq_len=4", "callbacks.pictures=null"]
    run("-m", "model.n_hidden=2,3", "optim.lr=1e-2,1e-3", *small, cwd=tmp_path)
    run("seed=7", "hydra.run.dir=outputs/another", *small, cwd=tmp_path)
    same = sorted(["seed", *(word.partition("=")[0] for word in small)])
    metrics = sorted(scalars(tmp_path / "outputs/another"))
    expected = ["model.n_hidden", "optim.lr", *same], metrics
    with tensorboard("--logdir", "outputs", cwd=tmp_path) as address:
        found = answer(address, HPARAMS, lambda found: columns(found) == expected)
    assert columns(found) == expected


def test_the_text_page_has_the_table_of_the_test_and_the_config(watched, board):
    run = watched.folder.relative_to(watched.cwd / "outputs")

    def page(tag):
        query = urllib.parse.urlencode({"run": run, "tag": f"{tag}/text_summary"})
        ((event),) = answer(board, f"text/text?{query}", bool)
        return event["text"]

    metrics = watched.results["metrics"]
    cells = ["forecast", *(f"test/{name}" for name in NAMES), "network"]
    cells += [f"{metrics[f'test/{name}']:.4g}" for name in NAMES]
    table = page("test")
    assert "<table>" in table
    assert re.findall(r"<t[hd]>(.*)</t[hd]>", table)[: len(cells)] == cells
    (code,) = re.findall(r"<pre><code>(.*)</code></pre>", page("config"), re.DOTALL)
    assert yaml.safe_load(html.unescape(code)) == watched.config


@pytest.mark.slow
def test_the_printed_command_shows_the_run_by_the_name_of_its_folder(watched):
    program, *words = watched.commands["Look at it"]
    assert program == "tensorboard"
    with tensorboard(*words, cwd=watched.cwd) as address:
        assert list(answer(address, "scalars/tags", bool)) == [watched.folder.name]


@pytest.mark.slow
def test_a_run_in_a_folder_of_the_current_one_has_its_name_too(tmp_path):
    result = run(*TINY, "hydra.run.dir=y", cwd=tmp_path)
    with tensorboard(*result.commands["Look at it"][1:], cwd=tmp_path) as address:
        assert list(answer(address, "scalars/tags", bool)) == ["y/."]


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_tensorboard_opens_on_training_and_validation_in_a_browser(watched, board, tmp_path):
    tags = {"train/mse", "val/mse", "train/best/val/mse"}
    for attempt in range(5):  # a slow machine may take the picture before the page is drawn
        profile = tmp_path / str(attempt)
        page = browse(f"{board}#timeseries", profile, "--window-size=1200,4000", "--dump-dom")
        text = re.sub(r"<[^>]+>", "", page)
        if tags <= set(re.findall(r"(?:train/best/|train/)?(?:val/)?mse", text)):
            break
    else:
        pytest.fail("the page does not have the tags")
    assert str(watched.folder.relative_to(watched.cwd / "outputs").parent) in text
    # what is open can be made less
    groups = r'class="group-title" title="([^"]+)".*?svgicon="expand_(less|more)'
    found = re.findall(groups, page, re.DOTALL)
    assert found == [("train", "less"), ("val", "less"), ("view", "more")]
