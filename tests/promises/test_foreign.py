"""A checkpoint from somebody else: small files that would take the machine are refused in a line,
before they take it."""

import io
import json
import math
import shutil
import zipfile
from hashlib import blake2b
from pathlib import Path

import pytest
import torch
from foreign import COMMANDS, attempted
from program import ROOT, SMALL, TINY, run

from seqlab.engine.checkpoint import DIGEST, read, write

SERIES = [
    "data=series", f"data.path={ROOT / 'data' / 'sunspots.csv'}", "data.target=sunspots",
    "data.time=year", "data.seq_len=9", "model.n_hidden=2", "trainer.max_epochs=1",
    "callbacks.pictures=null",
]  # fmt: skip
GONE = object()


def put(key, value):
    """Alters a checkpoint's contents: sets a key, or takes it out."""

    def alter(contents):
        *groups, name = key.split(".")
        for group in groups:
            contents = contents[group]
        if value is GONE:
            del contents[name]
        else:
            contents[name] = value

    return alter


def many_times_itself(contents):
    found = [1]
    for _ in range(15):
        found = [found] * 10
    contents["config"]["model"]["n_layers"] = found


def within_itself(contents):
    contents["config"]["data"]["inside"] = contents["config"]["data"]


def deep(contents):
    found = []
    for _ in range(300):
        found = [found]
    contents["config"]["model"]["n_layers"] = found


def strides_of_zero(contents):
    """Weights of 160 GB that are one number each, and a config that agrees with them."""
    H, weights = 100_000, contents["state_dict"]
    contents["config"]["model"] |= {"n_hidden": H, "n_layers": 1}
    shapes = {"weight_ih_l0": (4 * H, 1), "weight_hh_l0": (4 * H, H)}
    shapes |= {"bias_ih_l0": (4 * H,), "bias_hh_l0": (4 * H,)}
    weights.clear()
    for name, shape in shapes.items():
        weights[f"network.rnn.cells.{name}"] = torch.zeros(1).expand(shape)
    weights["network.head.weight"] = torch.zeros(1).expand(1, H)
    weights["network.head.bias"] = torch.zeros(1)


UNFOLDS = "what is in it unfolds to far more than the file"
OTHERS = "its weights are not those of its config"
LARGE = 10**13
#: What is done to a run's checkpoints, the commands by which it shows, and what is said.
COMPUTING = ("evaluate", "predict", "resume")
SCALING = ("evaluate", "predict", "export", "stream")
CASES = {
    "a list many times in itself": (many_times_itself, (*COMMANDS,), UNFOLDS),
    "a dict within itself": (within_itself, (*COMMANDS,), UNFOLDS),
    "a deep list": (deep, (*COMMANDS,), UNFOLDS),
    "strides of zero": (strides_of_zero, (*COMMANDS,), UNFOLDS),
    "a long integer": (put("config.data.n_test", 10**30), (*COMMANDS,), UNFOLDS),
    "layers": (put("config.model.n_layers", 100_000), (*COMMANDS,), OTHERS),
    "more layers": (put("config.model.n_layers", 10**9), (*COMMANDS,), OTHERS),
    "hidden units": (put("config.model.n_hidden", 10**6), (*COMMANDS,), OTHERS),
    **{
        f"{key}={value}": (put(f"config.data.{key}", value), COMPUTING, f"data.{key}={value}")
        for key, value in (("seq_len", LARGE), ("n_train", LARGE), ("n_val", LARGE),
                           ("n_test", LARGE), ("seq_len", 0), ("seed", "a"))
    },
    "a batch": (put("config.data.batch_size", LARGE), COMPUTING, f"batch_size={LARGE}"),
    **{
        f"threads={value}": (put("config.threads", value), (*COMMANDS,), "threads")
        for value in (-1, 0, 10**9, "a", None, 1.5, GONE)
    },
    "sizes gone": (put("sizes", GONE), (*COMMANDS,), "sizes.n_inputs"),
    "sizes a list": (put("sizes", [1]), (*COMMANDS,), "sizes.n_inputs"),
    "a size gone": (put("sizes.n_outputs", GONE), (*COMMANDS,), "sizes.n_outputs"),
    "a size more": (put("sizes.n_hidden", 3), (*COMMANDS,), "sizes.n_hidden"),
    "a size that is a text": (put("sizes.n_inputs", "1"), (*COMMANDS,), "sizes.n_inputs=1"),
    "a size": (put("sizes.n_outputs", 10**9), (*COMMANDS,), OTHERS),
    "every step": (put("sizes.every_step", True), ("evaluate", "predict"), "sizes.every_step=True"),
}  # fmt: skip
OF_SERIES = {
    **{
        f"std={value}": (put("data.std", value), SCALING, "data.std=")
        for value in ([0.0], [-1.0], [math.nan], [math.inf], [], [1.0, 2.0], "a", ["a"], GONE)
    },
    **{
        f"mean={value}": (put("data.mean", value), SCALING, "data.mean=")
        for value in ([math.nan], [1.0, 2.0], [[0.0]], "a", GONE)
    },
    **{
        f"weights {value}": (put("data.weights", value), ("evaluate", "predict"), "data: ")
        for value in ("a", GONE)
    },
    "weights of a shape": (put("data.weights", torch.ones(2, 3)), ("evaluate",), "data: "),
    "mase": (put("data.mase_scale", "a"), ("evaluate", "predict"), "data.mase_scale=a"),
    "no mase": (put("data.mase_scale", GONE), ("evaluate", "predict"), "data: "),
    "rows of a base": (put("sizes.base.rows", LARGE), (*COMMANDS,), f"sizes.base.rows={LARGE}"),
    "no dict of a base": (put("sizes.base", [1]), (*COMMANDS,), "sizes.base="),
    "data more": (put("data.more", 1), ("resume",), "data: no longer those of the run: more"),
    "data less": (put("data.mean", GONE), ("resume",), "data: no longer those of the run: mean"),
    "no path": (put("config.data.path", 1), ("evaluate", "predict"), "1: no such file"),
    "loops": (put("loops.fit_loop", math.nan), ("resume",), "last.ckpt: nothing to go on from"),
    "sums": (put("sums", {}), ("resume",), "last.ckpt: nothing to go on from: KeyError"),
    "a version": (put("pytorch-lightning_version", 1), ("resume",), "nothing to go on from"),
    "an optimiser": (put("optimizer_states", [1]), ("resume",), "nothing to go on from"),
    "no trainer": (put("config.trainer", 1), ("resume",), "has no trainer"),
    "a window": (put("config.data.seq_len", LARGE), COMPUTING, f"seq_len={LARGE}"),
    "a horizon": (put("config.data.horizon", LARGE), COMPUTING, f"horizon={LARGE}"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folders of two runs that look as if they had been interrupted."""
    folders = tmp_path_factory.mktemp("toy"), tmp_path_factory.mktemp("series")
    for folder, words in zip(folders, (TINY, SERIES), strict=True):
        result = run(*words, "hydra.run.dir=run", cwd=folder)
        assert result.code == 0, result.err
        results = folder / "run/results.json"
        results.write_text(json.dumps(json.loads(results.read_text()) | {"status": "running"}))
    return folders


def refused(trained, cases, commands, folder):
    """Each command on each case that is for it: exit code 2 and the one line, in seconds, and with
    less memory than any of the sizes would take."""
    asked = {}
    for number, (name, (alter, which, said)) in enumerate(cases.items()):
        place = shutil.copytree(trained, folder / str(number))
        for file in (place / "run/checkpoints").glob("*.ckpt"):
            contents = read(file)
            alter(contents)
            write(file, contents)
        asked |= {(str(place), command): (name, said) for command in which if command in commands}
    places = list(dict.fromkeys(place for place, _ in asked))
    found = attempted(places, commands, folder / "report", seconds=len(places) * len(commands) * 5)
    found = {(place, command): rest for place, command, *rest in found}
    for key, (name, said) in asked.items():
        assert key in found, f"{name}: {key[1]} did not end"
        code, err, seconds, grown = found[key]
        told = f"{name}: {key[1]}: {code}\n{err}"
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (code, len(lines), len(err.splitlines())) == (2, 1, 1), told
        assert said in err, told
        assert seconds < 5, told
        assert grown < 300_000, told


@pytest.mark.needs("memory limits")
@pytest.mark.parametrize(
    "commands", [["evaluate"], pytest.param([*COMMANDS], marks=pytest.mark.slow)], ids=len
)
def test_small_files_do_not_take_the_machine(commands, trained, tmp_path):
    for which, (folder, cases) in enumerate(zip(trained, (CASES, OF_SERIES), strict=True)):
        (tmp_path / str(which)).mkdir()
        refused(folder, cases, commands, tmp_path / str(which))


@pytest.mark.needs("memory limits")
def test_a_zip_that_unfolds_is_not_unfolded(trained, tmp_path):
    path = Path(shutil.copy(trained[0] / "run/checkpoints/best.ckpt", tmp_path))
    contents, stored, packed = read(path), io.BytesIO(), io.BytesIO()
    torch.save(contents | {"more": torch.zeros(10**8, dtype=torch.uint8)}, stored)
    with zipfile.ZipFile(stored) as parts, zipfile.ZipFile(packed, "w", 8) as file:
        for part in parts.infolist():
            file.writestr(part.filename, parts.read(part))
    body = packed.getvalue()[:-2] + DIGEST.to_bytes(2, "little")
    path.write_bytes(body + blake2b(body, digest_size=DIGEST).digest())
    assert path.stat().st_size < 10**6
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    path.rename(tmp_path / "run/checkpoints/best.ckpt")
    (line,) = attempted([str(tmp_path)], ["evaluate"], tmp_path / "report", seconds=20)
    _, _, code, err, _, grown = line
    assert (code, err.count("\n")) == (2, 1)
    assert err.endswith(f"best.ckpt: {UNFOLDS}\n")
    assert grown < 50_000


def test_a_run_that_memory_cannot_hold_is_not_begun(tmp_path):
    result = run(*SMALL, "data.n_train=100000000000", cwd=tmp_path)
    assert result.code == 2
    said = "error: data.n_train=100000000000, data.seq_len=24: too much data: 2.88e+04 GB of"
    assert result.err.startswith(said)
    assert result.err.count("\n") == 1
    assert not list(tmp_path.rglob("*.ckpt"))
