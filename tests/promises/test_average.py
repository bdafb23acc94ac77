"""`optim.average`: what is validated, kept and tested is the average, and a killed run has it."""

import pytest
import torch
from left import left, sha, strict_json
from program import RUN, TINY, Kill, forked, run, seqlab

from seqlab import load
from seqlab.engine.checkpoint import read, write
from seqlab.engine.forecaster import load_data

AVERAGE = "optim.average=0.9"


def checkpoint(folder, name="last.ckpt"):
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def whole(folder):
    """What a run left, with every bit of its average."""
    return left(folder) | {"average": sha(checkpoint(folder)["average"])}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    found = {}

    def ask(*words):
        if words not in found:
            cwd = tmp_path_factory.mktemp("undisturbed")
            result = forked(*RUN, AVERAGE, *words, cwd=cwd)
            assert result.code == 0, result.err
            found[words] = cwd / "run"
        return found[words]

    return ask


POINTS = [
    ("seqlab.engine.last:Last.on_train_batch_start", 6),
    ("seqlab.engine.last:Last.on_train_batch_end", 13),
    ("seqlab.engine.last:Last.on_validation_start", 2),
    ("seqlab.learner:Learner.validation_step", 3),  # the average is in the network's place
    ("seqlab.engine.last:Last.on_validation_end", 2),
    ("seqlab.engine.last:Last.on_train_epoch_end", 2),
    ("seqlab.engine.last:Last.on_train_epoch_end", 4),
    ("seqlab.engine.checkpoint:write", 4),
    ("seqlab.learner:Learner.on_test_epoch_end", 1),
]
SAVED = ("callbacks.last.every_n_steps=1", "+trainer.val_check_interval=0.5")
SLOW = pytest.param(SAVED, marks=pytest.mark.slow, id="saved every step")
HALF = pytest.param(("trainer.precision=bf16-true",), marks=pytest.mark.slow, id="half")


@pytest.mark.parametrize("point", POINTS, ids=str)
@pytest.mark.parametrize("words", [pytest.param((), id="plain"), SLOW, HALF])
def test_killed_anywhere_and_resumed_it_ends_the_same(words, point, undisturbed, tmp_path):
    assert forked(*RUN, AVERAGE, *words, cwd=tmp_path, kills=[Kill(*point)]).code == -9
    result = forked("resume=run", cwd=tmp_path)
    assert result.code == 0, result.err
    found, expected = whole(tmp_path / "run"), whole(undisturbed(*words))
    for name in expected:
        assert found[name] == expected[name], name


@pytest.mark.parametrize("call", [1, 3])
def test_a_signal_in_the_midst_of_a_validation_mixes_nothing_up(call, undisturbed, tmp_path):
    kill = Kill("seqlab.learner:Learner.validation_step", call, 15)
    assert forked(*RUN, AVERAGE, cwd=tmp_path, kills=[kill]).code == 143
    assert forked("resume=run", cwd=tmp_path).code == 0
    assert whole(tmp_path / "run") == whole(undisturbed())


def test_the_checkpoints_hold_the_average_and_the_last_the_weights_too(undisturbed):
    last, plain = checkpoint(undisturbed()), checkpoint(undisturbed("optim.average=0"))
    weights = list(plain["state_dict"].values())
    assert all(map(torch.equal, last["average"]["kept"], weights))
    assert all(map(torch.equal, last["average"]["values"], last["state_dict"].values()))
    assert not any(map(torch.equal, weights, last["state_dict"].values()))
    assert last["average"]["n_steps"] == 4 * 13
    best = strict_json(undisturbed() / "results.json")["best_checkpoint"].rpartition("/")[2]
    assert "average" not in checkpoint(undisturbed(), best)


def test_what_is_validated_and_tested_is_the_file_that_is_kept(undisturbed):
    results = strict_json(undisturbed() / "results.json")
    best = undisturbed() / results["best_checkpoint"]
    forecaster = load(best)
    data, objective = load_data(forecaster, ())
    for split, key in (("val", "best/val/mse"), ("test", "test/mse")):
        metrics = objective.metrics(split)
        for x, y in data.whole(split):
            with torch.inference_mode():
                objective.measure(metrics, forecaster.predict_scaled(x), y)
        found = objective.values(split, metrics)[f"{split}/mse"].item()
        assert found == pytest.approx(results["metrics"][key], rel=1e-6)
    evaluated = seqlab("evaluate", str(best), cwd=best.parent)
    assert f"{results['metrics']['test/mse']:.4g}" in evaluated.out


def test_it_does_not_depend_on_the_steps_in_a_call(undisturbed):
    found, other = whole(undisturbed()), whole(undisturbed("data.steps_per_call=4"))
    for name in ("last", "best", "average"):
        assert found[name] == other[name], name
    for name, value in found["metrics"].items():  # those of training are sums in another order
        assert value == pytest.approx(other["metrics"][name], rel=1e-12), name


def test_on_a_series_the_untrained_network_may_still_be_the_best(tmp_path):
    rows = [f"{i + (7 * i) % 11 + (i * i) % 5}" for i in range(150)]
    (tmp_path / "y.csv").write_text("\n".join(["y", *rows]))
    words = ["data=series", "data.path=y.csv", "data.target=y", "optim.lr=30"]
    result = run(*TINY[:1], *words, AVERAGE, "callbacks.pictures=null", cwd=tmp_path)
    assert result.code == 0, result.err
    network = load(result.folder / "checkpoints/best.ckpt").network
    assert not network.network.head.weight.any()


def test_without_it_no_checkpoint_has_any(tmp_path):
    result = run(*TINY, cwd=tmp_path)
    assert result.config["optim"]["average"] is None
    assert "average" not in checkpoint(result.folder)


def test_a_run_from_before_there_was_any_goes_on(tmp_path):
    result = run(*TINY, "hydra.run.dir=run", cwd=tmp_path)
    last = tmp_path / "run/checkpoints/last.ckpt"
    contents = read(last)
    del contents["config"]["optim"]["average"]
    write(last, contents)
    result = run("resume=run", "trainer.max_epochs=2", cwd=tmp_path)
    assert result.code == 0, result.err
    assert strict_json(tmp_path / "run/results.json")["epochs"] == 2


@pytest.mark.parametrize("value", ["1", "1.5", "-0.1", "abc"])
def test_a_decay_that_is_none_is_one_line(value, tmp_path):
    result = run(*TINY, f"optim.average={value}", cwd=tmp_path)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: optim.average={value}: ")
    assert result.err.count("\n") == 1
    assert not (tmp_path / "outputs").exists()
