"""The experiments of the literature: three in full, and each of the tasks as a whole program. What
the tasks draw is tested in test_literature_tasks.py."""

import functools
import json
import re

import pytest
from left import events
from program import SMALL, ours, run, seqlab

SLOW = pytest.mark.slow

#: The loss of each task.
TASKS = dict.fromkeys(["adding", "adding_uniform", "adding_hs97", "multiplication"], "mse")
TASKS |= dict.fromkeys(["temporal_order", "reber", "copy"], "ce")


@pytest.mark.parametrize(
    ("experiment", "sequences", "metric", "figure"),
    [
        pytest.param("adding_t50", 32_000, "test/mse", 1e-3, marks=SLOW),
        pytest.param("temporal_order", 31_390, "test/accuracy", 0.99, marks=SLOW),
        pytest.param("reber", 8_440, "test/legal", 1.0, marks=SLOW),
    ],
)
def test_an_experiment_reaches_its_figure(experiment, sequences, metric, figure, tmp_path):
    result = run(f"experiment={experiment}", cwd=tmp_path)
    assert result.code == 0, result.err
    assert result.results["steps"] * result.config["data"]["batch_size"] <= sequences
    value = result.results["metrics"][metric]
    assert value < figure if metric == "test/mse" else value >= figure


#: Every day one each of numbers, classes and a target at every step, of different lengths.
EACH = [
    task if task in ("adding_hs97", "temporal_order", "reber") else pytest.param(task, marks=SLOW)
    for task in TASKS
]


@pytest.fixture(scope="module")
def gru(tmp_path_factory):
    """A run of a task's with a GRU."""

    @functools.cache
    def ask(task):
        sizes = ["data.seq_len=24", "data.fresh=true", "callbacks.pictures.every_n_epochs=1"]
        return run(*SMALL, f"data={task}", "model=gru", *sizes, cwd=tmp_path_factory.mktemp(task))

    return ask


@pytest.mark.parametrize("task", EACH)
def test_a_gru_goes_through_every_task(task, gru):
    result = gru(task)
    assert result.code == 0, result.err
    assert result.results["monitor"] == f"val/{TASKS[task]}"
    loss = result.results["metrics"][f"best/{result.results['monitor']}"]
    assert loss == result.results["metrics"][result.results["monitor"]]
    both = {"prediction"} if TASKS[task] == "mse" else {"confusion"}
    both |= {"answers"} if task in ("reber", "copy") else set()  # a target at every step
    drawn = {f"view/{split}/{name}" for split in ("val", "test") for name in both}
    drawn |= {"view/val/states", "view/val/unrolled"}
    assert set(events(result.folder).Tags()["images"]) == drawn


@pytest.mark.parametrize("task", EACH)
def test_evaluate_gives_the_metrics_of_training(task, gru):
    result = gru(task)
    found = seqlab(
        "evaluate", str(result.folder / "checkpoints/best.ckpt"), "--json", cwd=result.cwd
    )
    assert found.code == 0, found.err
    for name, value in json.loads(found.out)["network"].items():
        assert value == pytest.approx(result.results["metrics"][name], rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize("task", [EACH[2], *EACH[4:]])
def test_predict_gives_an_answer_for_each_target(task, gru):
    result = gru(task)
    found = seqlab("predict", str(result.folder / "checkpoints/best.ckpt"), cwd=result.cwd)
    assert found.code == 0, found.err
    header, *lines = found.out.splitlines()
    assert header == "case,step,forecast,truth"
    steps = {"reber": 24, "copy": 24}.get(task, 1)
    assert len(lines) == 32 * steps
    known = [line.split(",") for line in lines if not line.endswith(",")]
    assert (len(known) < len(lines)) == (task == "reber")  # whose strings end before
    if task != "adding_hs97":
        right = sum(forecast == truth for *_, forecast, truth in known) / len(known)
        assert right == pytest.approx(result.results["metrics"]["test/accuracy"])


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_a_gru_is_exported(kind, gru):
    for task in ("adding_hs97", "reber"):
        result = gru(task)
        checkpoint = str(result.folder / "checkpoints/best.ckpt")
        found = seqlab("export", checkpoint, "--format", kind, cwd=result.cwd)
        assert found.code == 0, found.err


def test_other_figures_are_printed_beside_ours(tmp_path):
    result = run(*SMALL, "experiment=adding_t600", "data.seq_len=20", cwd=tmp_path)
    assert result.code == 0, result.err
    assert "LSTM (Bai et al. 2018)   0.164" in result.out
    assert "The network LOSES TO GRU (Bai et al. 2018)" in result.out


HEADERS = ["Purpose", "Command", "Time", "Figure", "Source"]


@pytest.mark.parametrize(
    "file",
    [
        f
        for f in ours("conf/experiment/[!_]*.yaml")
        if re.search("_literature|_languages|mnist1d", f.read_text())
    ],
    ids=lambda file: file.stem,
)
def test_every_experiment_says_what_it_is_for(file):
    lines = file.read_text().splitlines()
    said = [line[2:].partition(":")[0] for line in lines if line[2:3].isupper() and line[0] == "#"]
    assert said == HEADERS
    assert f"# Command: python train.py experiment={file.stem}" in lines
