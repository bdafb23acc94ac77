"""A new run that begins with the weights of another."""

import io
import math
import shutil

import pytest
import torch
from left import left, sha, strict_json
from program import RUN, TINY, Kill, forked, run, write

from seqlab.engine.checkpoint import read
from seqlab.engine.checkpoint import write as write_checkpoint

BEST = "one/checkpoints/best.ckpt"
BATCH_END = "seqlab.engine.last:Last.on_train_batch_end"
#: Thirteen steps an epoch, with small splits to measure on.
SHORT = [word for word in RUN if not word.startswith(("data.n_val=", "data.n_test="))]
SHORT += ["data.n_val=32", "data.n_test=32"]
#: No step moves a weight: what a run leaves is what it began with.
STILL = "optim.lr=0"


def network(path, start="network."):
    """A checkpoint's weights of the network."""
    weights = read(path)["state_dict"]
    return {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}


def series(noise=0.0):
    rows = [math.sin(n / 3) + n / 50 + noise * (n * 7919 % 101) / 99 for n in range(200)]
    return "\n".join(["y", *map(str, rows)])


SERIES = ["data=series", "data.target=y", "data.seq_len=12", "trainer.max_epochs=2",
          "callbacks.pictures=null", "model.n_hidden=2"]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a trained network, `one/`, and one of a series, `series/`."""
    cwd = write(tmp_path_factory.mktemp("home"), {"a.csv": series(), "b.csv": series(0.3)})
    assert run(*TINY, "hydra.run.dir=one", cwd=cwd).code == 0
    assert run(*SERIES, "data.path=a.csv", "hydra.run.dir=series", cwd=cwd).code == 0
    return cwd


@pytest.fixture
def cwd(home, tmp_path):
    shutil.copytree(home, tmp_path / "home")
    return tmp_path / "home"


def begun(*words, cwd, name="new"):
    """The weights that a run begins with."""
    result = run(*words, STILL, f"hydra.run.dir={name}", cwd=cwd)
    assert result.code == 0, result.err
    return network(cwd / name / "checkpoints/last.ckpt")


def test_it_begins_with_these_weights_to_the_bit_and_all_else_is_its_own(cwd):
    words = ["data.n_train=96", "seed=5", "optim=sgd", "trainer.max_epochs=2"]
    found = begun(*TINY, *words, f"init_from={BEST}", cwd=cwd)
    assert sha(found) == sha(network(cwd / BEST))
    last = read(cwd / "new/checkpoints/last.ckpt")
    assert last["config"]["init_from"] == str(cwd / BEST)  # to read from everywhere
    assert last["optimizer_states"][0]["state"].keys() != {0, 1, 2}
    assert strict_json(cwd / "new/results.json")["steps"] == 6
    assert sha(begun(*TINY, *words, cwd=cwd, name="fresh")) != sha(found)


def test_it_learns_from_there(cwd):
    words = [*TINY, "data.seq_len=4", "trainer.max_epochs=1"]
    assert run(*words, f"init_from={BEST}", "hydra.run.dir=new", cwd=cwd).code == 0
    assert run(*words, "hydra.run.dir=fresh", cwd=cwd).code == 0
    one, new, fresh = (
        strict_json(cwd / name / "results.json")["metrics"] for name in ("one", "new", "fresh")
    )
    assert fresh["val/mse"] == one["val/mse"]  # the first epoch again
    assert new["val/mse"] < one["val/mse"]  # and the second


def test_other_inputs_are_refused(cwd):
    other = ["data=copy", "data.seq_len=30", f"init_from={BEST}", "init_head=false"]
    result = run(*TINY, *other, cwd=cwd)
    assert result.code == 2
    assert ": rnn.cells.weight_ih_l0 is (8, 1), in this LSTMNetwork (8, 1" in result.err


def test_all_but_the_head_for_another_number_of_outputs(cwd):
    task = ["data=temporal_order", "data.n_train=64", "data.n_val=32", "data.n_test=32"]
    words = ["model.n_hidden=2", "trainer.max_epochs=1", "callbacks.pictures=null"]
    words += ["data.seq_len=20", STILL]
    assert run(*task, *words, "hydra.run.dir=order", cwd=cwd).code == 0
    order = "order/checkpoints/best.ckpt"
    more = [*task, "data.task.n_markers=3"]
    result = run(*more, *words, f"init_from={order}", cwd=cwd)
    assert result.code == 2
    assert result.err.endswith(
        "head.weight is (4, 2), in this LSTMNetwork (8, 2); init_head=false takes all but the "
        "head's\n"
    )
    found = begun(*more, *words, f"init_from={order}", "init_head=false", cwd=cwd)
    fresh = begun(*more, *words, cwd=cwd, name="fresh")
    old = network(cwd / order)
    for name, value in found.items():
        kept = fresh if name.startswith("head.") else old
        assert torch.equal(value, kept[name]), name


@pytest.mark.parametrize("head", [True, False])
def test_the_base_of_a_series_is_that_of_the_new_data(head, cwd):
    words = [*SERIES, "data.path=b.csv"]
    start = ["init_from=series/checkpoints/best.ckpt", f"init_head={str(head).lower()}"]
    found, fresh = begun(*words, *start, cwd=cwd), begun(*words, cwd=cwd, name="fresh")
    old = network(cwd / "series/checkpoints/best.ckpt")
    assert {"weights", "network.head.weight"} <= found.keys()
    assert not torch.equal(found["weights"], old["weights"])
    for name, value in found.items():
        own = name == "weights" or (name.startswith("network.head.") and not head)
        assert torch.equal(value, (fresh if own else old)[name]), name
    new = strict_json(cwd / "new/results.json")
    assert new["baselines"] == strict_json(cwd / "fresh/results.json")["baselines"]


def test_in_double_precision_no_bit_is_lost(cwd):
    double = [*TINY, "trainer.precision=64-true"]
    assert run(*double, "hydra.run.dir=double", cwd=cwd).code == 0
    found = begun(*double, "init_from=double/checkpoints/best.ckpt", cwd=cwd)
    assert {value.dtype for value in found.values()} == {torch.float64}
    assert sha(found) == sha(network(cwd / "double/checkpoints/best.ckpt"))


def test_a_resumed_run_ends_the_same_and_reads_the_file_no_more(tmp_path):
    assert forked(*SHORT, "hydra.run.dir=one", cwd=tmp_path).code == 0
    words = [*SHORT, f"init_from={BEST}", "seed=3"]
    assert forked(*words, "hydra.run.dir=whole", cwd=tmp_path).code == 0
    assert forked(*words, cwd=tmp_path, kills=[Kill(BATCH_END, 30)]).code == -9
    shutil.rmtree(tmp_path / "one")
    result = run("resume=run", cwd=tmp_path)
    assert result.code == 0, result.err
    found, expected = left(tmp_path / "run"), left(tmp_path / "whole")
    assert found == expected
    config = read(tmp_path / "run/checkpoints/last.ckpt")["config"]
    assert config["init_from"] == str(tmp_path / BEST)


def test_a_multirun_starts_each_job_from_its_file_and_goes_on_without_it(cwd):
    words = ["-m", f"init_from=null,{BEST}", *TINY, STILL, "hydra.sweep.dir=all"]
    assert run(*words, cwd=cwd).code == 0
    jobs = sorted((cwd / "all").glob("*/checkpoints/last.ckpt"))
    found = [sha(network(job)) == sha(network(cwd / BEST)) for job in jobs]
    assert found == [False, True]
    shutil.rmtree(cwd / "one")
    folder = jobs[1].parent.parent
    results = strict_json(folder / "results.json")
    (folder / "results.json").write_text(
        (folder / "results.json").read_text().replace('"finished"', '"stopped"')
    )
    again = run(*words, cwd=cwd)
    assert again.code == 0, again.err
    assert strict_json(folder / "results.json")["metrics"] == results["metrics"]


def no_tensor(contents):
    contents["state_dict"]["network.head.bias"] = 3.0


def less(contents):
    del contents["state_dict"]["network.head.bias"]


def more(contents):
    contents["state_dict"]["network.more"] = torch.zeros(2)


def foreign(contents):
    contents["config"]["model"]["_target_"] = "os.system"
    contents["config"]["data"]["_target_"] = "os.system"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["init_from=nope.ckpt"], "/nope.ckpt: No such file or directory"),
        (["init_from=one"], "/one: Is a directory"),
        (["init_from=a.csv"], "/a.csv: no checkpoint (it does not begin like one)"),
        (["init_from=cut.ckpt"], "/cut.ckpt: damaged, cut off, or not written by seqlab"),
        (["init_from=3"], "error: init_from=3: it should be a valid string"),
        (["init_head=3"], "error: init_head=3: it should be a valid boolean"),
        (["init_head=false"], "error: init_head=false: give init_from=CKPT, whose other weights"),
        (
            [f"init_from={BEST}", "model.n_hidden=3"],
            "best.ckpt: rnn.cells.weight_ih_l0 is (8, 1), in this LSTMNetwork (12, 1)",
        ),
        (
            [f"init_from={BEST}", "model.n_layers=1"],
            "best.ckpt: rnn.cells.weight_ih_l1 is (8, 2), in this LSTMNetwork missing",
        ),
        (
            [f"init_from={BEST}", "model=gru"],
            "best.ckpt: rnn.cells.weight_ih_l0 is (8, 1), in this GRUNetwork (6, 1)",
        ),
        (
            ["init_from=less.ckpt"],
            "less.ckpt: head.bias is missing, in this LSTMNetwork (1,); init",
        ),
        (["init_from=more.ckpt"], "more.ckpt: more is (2,), in this LSTMNetwork missing"),
        (["init_from=no_tensor.ckpt"], "head.bias is missing, in this LSTMNetwork (1,)"),
        (["init_from=pickled.ckpt"], "/pickled.ckpt: not plain weights and values"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_taken_is_one_line(words, said, cwd):
    (cwd / "cut.ckpt").write_bytes((cwd / BEST).read_bytes()[:-50])
    for change in (less, more, no_tensor):
        contents = read(cwd / BEST)
        change(contents)
        write_checkpoint(cwd / f"{change.__name__}.ckpt", contents)
    write_checkpoint(cwd / "pickled.ckpt", {"state_dict": io.BytesIO()})
    result = run(*TINY, *words, cwd=cwd)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result.err
    assert said in result.err
    assert not (cwd / "outputs").exists()


def test_only_weights_are_taken_and_no_class_that_it_names(cwd):
    contents = read(cwd / BEST)
    foreign(contents)
    write_checkpoint(cwd / "foreign.ckpt", contents)
    found = begun(*TINY, "init_from=foreign.ckpt", cwd=cwd)
    assert sha(found) == sha(network(cwd / BEST))


@pytest.mark.parametrize("word", ["model=gru", "data=random", "optim=sgd", f"init_from={BEST}"])
def test_a_resumed_run_says_what_would_do(word, cwd):
    result = run("resume=one", word, cwd=cwd)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert result.err.endswith("; init_from=CKPT starts a new run with these weights\n")


def test_a_resumed_run_on_other_data_says_what_would_do(cwd):
    assert run(*SERIES, "data.path=a.csv", "hydra.run.dir=here", cwd=cwd).code == 0
    (cwd / "a.csv").write_text(series(1.0))
    result = run("resume=here", "trainer.max_epochs=3", cwd=cwd)
    assert (result.code, result.err.count("\n")) == (2, 1)
    last = "here/checkpoints/last.ckpt"
    assert result.err.endswith(f"differs from {last}; init_from={last} starts a new run with its "
                               "weights\n")  # fmt: skip
