import errno
import io
import os
import random
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from left import Call, plain
from program import ROOT, TINY, run
from torch import Tensor, nn

import seqlab
from seqlab.engine.checkpoint import DIGEST, FORMAT, read, write
from seqlab.engine.errors import UserError
from seqlab.engine.forecaster import load_data
from seqlab.model import LSTMNetwork
from seqlab.series.base import OnBase
from seqlab.series.reading import read_table

SUNSPOTS = [
    "data=series",
    f"data.path={ROOT / 'data' / 'sunspots.csv'}",
    "data.target=sunspots",
    "data.time=year",
    "data.seq_len=9",
    "data.horizon=2",
    "model.n_hidden=4",
    "trainer.max_epochs=2",
    "callbacks.pictures=null",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoints folder of a run on a series."""
    result = run(*SUNSPOTS, cwd=tmp_path_factory.mktemp("sunspots"))
    assert result.code == 0, result.err
    return result.folder / "checkpoints"


@pytest.fixture
def alone(trained, tmp_path, monkeypatch):
    """best.ckpt alone in an empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(trained / "best.ckpt", tmp_path))


@pytest.fixture
def altered(alone):
    """Writes the checkpoint again, its digest right, after something was done to its contents."""

    def alter(change):
        contents = read(alone)
        change(contents)
        write(alone, contents)
        return alone

    return alter


def refusal(path, **arguments):
    """The one line that a file is refused with."""
    with pytest.raises(UserError) as caught:
        seqlab.load(path, **arguments)
    line = str(caught.value)
    assert line.isprintable()
    return line


# what is in the file


@pytest.mark.parametrize("name", ["best", "last"])
def test_torch_alone_reads_a_checkpoint(trained, name):
    contents = torch.load(trained / f"{name}.ckpt", weights_only=True)
    assert contents["format"] == FORMAT
    for part in ("config", "metrics", "versions"):
        assert contents[part]
        assert plain(contents[part])
    data = contents["data"]
    assert data["columns"] == ["sunspots"]
    assert {key for key, value in data.items() if isinstance(value, Tensor)} == {"weights"}
    assert plain({key: value for key, value in data.items() if key != "weights"})
    assert contents["metrics"]["val/mse"] > 0
    assert contents["versions"]["torch"] == torch.__version__


def test_the_file_alone_gives_the_trained_network_in_the_datas_units(alone):
    contents = torch.load(alone, weights_only=True)
    arguments = {k: v for k, v in contents["config"]["model"].items() if k[0] != "_"}
    base = {k: v for k, v in contents["sizes"]["base"].items() if k[0] != "_"}
    network = OnBase(LSTMNetwork(2, 2, **arguments), **base).eval()
    weights = {k.removeprefix("network."): v for k, v in contents["state_dict"].items()}
    network.load_state_dict({k: weights[k] for k in network.state_dict()})
    mean, std = contents["data"]["mean"][0], contents["data"]["std"][0]
    values = read_table(str(ROOT / "data" / "sunspots.csv"), ["sunspots"], [])["sunspots"]
    x = torch.from_numpy(values.to_numpy().copy())[:36].reshape(4, 9, 1)
    forecaster = seqlab.load("best.ckpt")
    with torch.inference_mode():
        scaled, _ = network(((x - mean) / std).float())
        found, hidden = forecaster(x)
        state = None
        for x_t in x.unbind(dim=1):
            stepped, state = forecaster.step(x_t, state)
    assert found.dtype == torch.float64
    assert torch.equal(found, scaled.double() * std + mean)
    torch.testing.assert_close(stepped, found)
    torch.testing.assert_close(state, hidden)
    assert not forecaster.training
    assert not forecaster.network.training
    assert forecaster.metrics == contents["metrics"]


def test_a_toy_tasks_network_predicts_as_it_stands(tmp_path):
    result = run(*TINY, cwd=tmp_path)
    forecaster = seqlab.load(result.folder / "checkpoints" / "best.ckpt")
    x = torch.rand(3, 4, 1)
    with torch.inference_mode():
        assert torch.equal(forecaster(x)[0], forecaster.network(x)[0].double())
    assert forecaster.fitted == {}


@pytest.mark.parametrize("shape", [(4, 9, 2), (4, 9, 3), (9, 1), (4, 9)])
def test_inputs_of_another_width_are_refused_before_they_are_scaled(alone, shape):
    forecaster = seqlab.load(alone)
    with pytest.raises(ValueError, match=r"x must be \(B, T, 1\), got \("):
        forecaster(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"x must be \(B, T, 1\), got \("):
        forecaster.step(torch.zeros(4, 2))


# writing it


class Killed(BaseException):
    """Stands for a process that ends here."""


def dying(error, after):
    """A file that takes so many bytes and then fails."""

    class Dying(io.FileIO):
        def write(self, data):
            super().write(bytes(data)[:after])
            raise error

    return lambda path, mode: Dying(path, mode)


def fail(error):
    def call(*_):
        raise error

    return call


@pytest.mark.parametrize("step", ["open", "write 0", "write 1000", "fsync", "replace"])
def test_killed_at_any_step_it_leaves_the_old_file(alone, monkeypatch, step):
    before, kill = alone.read_bytes(), Killed()
    with monkeypatch.context() as patched:
        match step.split():
            case ["open"]:
                patched.setattr(Path, "open", fail(kill))
            case ["write", after]:
                patched.setattr(Path, "open", dying(kill, int(after)))
            case ["fsync"]:
                patched.setattr(os, "fsync", fail(kill))
            case ["replace"]:
                patched.setattr(Path, "replace", fail(kill))
        with pytest.raises(Killed):
            write(alone, {"other": 1})
    assert alone.read_bytes() == before
    assert read(alone)["format"] == FORMAT
    # what is left beside it is in nobody's way
    write(alone, read(alone) | {"new": 1})
    assert read(alone)["new"] == 1
    assert os.listdir(alone.parent) == ["best.ckpt"]


@pytest.mark.needs("/proc")
def test_killed_after_the_rename_it_leaves_the_new_file(alone, monkeypatch):
    contents, flush = read(alone) | {"new": 1}, os.fsync

    def only_files(number):
        if os.path.isdir(f"/proc/self/fd/{number}"):
            raise Killed
        flush(number)

    monkeypatch.setattr(os, "fsync", only_files)
    with pytest.raises(Killed):
        write(alone, contents)
    assert read(alone)["new"] == 1


@pytest.mark.needs("/proc")
def test_the_file_and_the_folder_reach_the_disk_before_and_after_the_rename(alone, monkeypatch):
    contents, seen = read(alone), []
    flush, rename = os.fsync, Path.replace

    def fsync(number):
        seen.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
        flush(number)

    def replace(path, target):
        seen.append("renamed")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write(alone, contents)
    assert seen == [".best.ckpt.part", "renamed", alone.parent.name]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk_is_told_in_one_line_and_leaves_the_old_file(alone, monkeypatch, number, step):
    before, error = alone.read_bytes(), OSError(number, os.strerror(number))
    contents = read(alone)
    with monkeypatch.context() as patched:
        if step == "write":
            patched.setattr(Path, "open", dying(error, 1000))
        else:
            patched.setattr(
                *{"fsync": (os, "fsync"), "replace": (Path, "replace")}[step], fail(error)
            )
        usage = shutil.disk_usage(alone)._replace(free=123_400_000)
        patched.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(UserError, match=r"^\S+best.ckpt: the disk is full: .* 123.4 free$"):
            write(alone, contents)
    assert alone.read_bytes() == before
    assert os.listdir(alone.parent) == ["best.ckpt"]


def test_another_failure_of_the_disk_is_not_called_full(alone, monkeypatch):
    before, contents = alone.read_bytes(), read(alone)
    monkeypatch.setattr(os, "fsync", fail(OSError(errno.EIO, "I/O error")))
    with pytest.raises(OSError, match="I/O error"):
        write(alone, contents)
    assert alone.read_bytes() == before
    assert os.listdir(alone.parent) == ["best.ckpt"]


# reading what is no checkpoint, or no longer one


def test_every_flipped_bit_is_noticed(alone):
    whole = bytearray(alone.read_bytes())
    draw = random.Random(0)
    positions = [draw.randrange(len(whole)) for _ in range(500)]
    ends = [*range(8), *range(len(whole) - DIGEST - 4, len(whole))]
    for position in positions + ends:
        bit = 1 << draw.randrange(8)
        whole[position] ^= bit
        alone.write_bytes(whole)
        assert refusal(alone).startswith(f"{alone}: ")
        whole[position] ^= bit
    alone.write_bytes(whole)
    seqlab.load(alone)


def test_every_truncation_is_noticed(alone):
    whole = alone.read_bytes()
    draw = random.Random(0)
    lengths = [draw.randrange(len(whole)) for _ in range(100)]
    for length in [*lengths, 0, 1, 4, DIGEST, DIGEST + 1, len(whole) - 1, len(whole) - DIGEST]:
        alone.write_bytes(whole[:length])
        assert refusal(alone).startswith(f"{alone}: ")


def test_bytes_added_at_the_end_are_noticed(alone):
    alone.write_bytes(alone.read_bytes() + b"\0")
    assert "damaged" in refusal(alone)


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (b"", "the file is empty"),
        (b"<!doctype html><html><title>404</title></html>", "no checkpoint"),
        (b"year,sunspots\n1700,5\n", "no checkpoint"),
        (b"\x80\x02}q\x00.", "no checkpoint"),
        (b"PK\x03\x04", "damaged, cut off, or not written by seqlab"),
    ],
    ids=["empty", "HTML", "text", "pickle", "zip"],
)
def test_other_files_are_refused(tmp_path, contents, said):
    path = tmp_path / "best.ckpt"
    path.write_bytes(contents)
    assert refusal(path).startswith(f"{path}: {said}")


@pytest.mark.parametrize("what", ["state_dict", "Lightning checkpoint", "whole network"])
def test_what_torch_saved_is_refused(alone, what):
    contents = read(alone)
    network = seqlab.load(alone).network
    saved = {
        "state_dict": network.state_dict(),
        "Lightning checkpoint": contents,
        "whole network": network,
    }
    torch.save(saved[what], alone)
    assert refusal(alone) == f"{alone}: damaged, cut off, or not written by seqlab"


@pytest.mark.parametrize("contents", [{}, [1], {"config": {}, "state_dict": {}}, 3.0])
def test_a_digest_makes_no_checkpoint(tmp_path, contents):
    write(tmp_path / "best.ckpt", contents)
    assert "no checkpoint of seqlab" in refusal(tmp_path / "best.ckpt")


@pytest.mark.parametrize("part", ["data", "model"])
def test_a_config_without_its_parts_is_refused(altered, part):
    path = altered(lambda contents: contents["config"].pop(part))
    assert refusal(path) == f"{path}: its config names no data and no model"


@pytest.mark.parametrize("number", [0, 1, FORMAT + 1, str(FORMAT), None])
def test_another_format_is_refused(altered, number):
    path = altered(lambda contents: contents.update(format=number))
    assert refusal(path) == (
        f"{path}: of format {number}, which seqlab {version('seqlab')} reads; "
        f"this is seqlab {version('seqlab')}, which reads format {FORMAT}"
    )


def test_the_format_before_is_refused_with_the_version_that_reads_it(altered):
    path = altered(lambda contents: contents.update(format=2, versions={"seqlab": "0.1.0"}))
    assert ": of format 2, which seqlab 0.1.0 reads; " in refusal(path)


@pytest.mark.parametrize("scheme", ["http", "https", "file", "s3", "hf"])
def test_a_url_is_refused(scheme):
    assert refusal(f"{scheme}://localhost/best.ckpt").endswith("a checkpoint is a local file")


def test_a_directory_or_nothing_is_refused(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path}: Is a directory"
    assert refusal(tmp_path / "no.ckpt") == f"{tmp_path / 'no.ckpt'}: No such file or directory"


@pytest.mark.parametrize("value", ["1", "true", "yes"])
def test_the_variable_that_runs_code_in_files_is_refused(alone, monkeypatch, value):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", value)
    assert refusal(alone).startswith("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set")


@pytest.mark.needs("pipes")
@pytest.mark.parametrize("path", ["/dev/zero", "pipe"])
def test_what_never_ends_is_not_read(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    assert refusal(path) == f"{path}: not a regular file"


@pytest.mark.needs("memory limits")
def test_a_network_larger_than_its_weights_is_refused_before_it_takes_memory(altered):
    import resource  # Windows has none

    path = altered(lambda contents: contents["config"]["model"].update(n_hidden=30_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "its weights are not those of its config: " in refusal(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB; it has 43 GB


# files that mean harm


@pytest.mark.parametrize("part", ["extra", "config", "data", "metrics", "state_dict"])
@pytest.mark.parametrize(
    "call",
    [
        Call(os.system, "touch MARKER"),
        Call(open, "MARKER", "w"),
        Call(subprocess.run, ["touch", "MARKER"]),
        Call(eval, "open('MARKER', 'w')"),
        Call(Path.touch, Path("MARKER")),
    ],
    ids=["system", "open", "run", "eval", "touch"],
)
def test_a_pickle_that_calls_is_not_run(altered, call, part):
    path = altered(lambda contents: contents.setdefault(part, {}).update(evil=call))
    assert refusal(path).startswith(f"{path}: not plain weights and values")
    assert os.listdir() == ["best.ckpt"]


HARMFUL = [
    {"_target_": "os.system", "command": "touch MARKER"},
    {"_target_": "subprocess.run", "args": ["touch", "MARKER"]},
    {"_target_": "builtins.eval", "source": "open('MARKER', 'w')"},
    {"_target_": "builtins.open", "file": "MARKER", "mode": "w"},
    {"_target_": "torch.utils.collect_env.run", "command": "touch MARKER"},
    {"_target_": "torch.hub.load", "repo_or_dir": ".", "model": "evil", "source": "local"},
    {"_target_": "torch.save", "obj": 1, "f": "MARKER"},
    {"_target_": "torch.nn.functional.relu", "input": 1},
    {"_target_": "torch.nn.modules.module.torch.save", "obj": 1, "f": "MARKER"},
    {"_target_": "seqlab.engine.checkpoint.write", "path": "MARKER", "contents": {}},
    {"_target_": "seqlab.engine.checkpoint.os.system", "command": "touch MARKER"},
    {"_target_": "seqlab.engine.checkpoint.Path", "args": "MARKER"},
    {"_target_": "lightning.Trainer", "default_root_dir": "MARKER"},
    {"_target_": "seqlab"},
    {"_target_": "seqlab."},
    {"_target_": ".seqlab.model.LSTMNetwork"},
    {"_target_": "seqlab..model.LSTMNetwork"},
    {"_target_": "seqlabs.model.LSTMNetwork"},
    {"_target_": "torch.nn"},
    {"_target_": ""},
    {"_target_": None},
    {"_target_": ["os.system"]},
    {},
]


@pytest.mark.parametrize("where", ["model", "model.inside", "data", "data.task"])
@pytest.mark.parametrize("node", HARMFUL, ids=lambda node: str(node.get("_target_")))
def test_a_config_that_names_no_network_is_not_called(altered, node, where):
    (group, _, inside), torch_hub = where.partition("."), Path("hubconf.py")

    def put(contents):
        if inside:
            contents["config"][group][inside] = node
        else:
            contents["config"][group] = node

    torch_hub.write_text("open('MARKER', 'w')\ndef evil(): open('MARKER', 'w')\n")
    path = altered(put)
    with pytest.raises(UserError) as caught:
        load_data(seqlab.load(path), ())
    assert str(caught.value).isprintable()
    assert sorted(os.listdir()) == ["best.ckpt", "hubconf.py"]


def test_a_checkpoint_cannot_say_where_code_is_imported_from(altered, monkeypatch):
    Path("mine.py").write_text("open('MARKER', 'w').close()\nclass Net: pass\n")
    monkeypatch.syspath_prepend(Path.cwd())
    path = altered(lambda contents: contents["config"]["model"].update(_target_="mine.Net"))
    line = refusal(path)
    assert line.startswith("model._target_=mine.Net: not trusted; --trust mine, ")
    assert refusal(path, trust=("min", "mine.Net", "other")) == line
    assert not Path("MARKER").exists()
    assert "mine" not in sys.modules
    assert refusal(path, trust=("mine",)) == (
        "model._target_=mine.Net: must be a subclass of torch.nn.modules.module.Module"
    )
    assert Path("MARKER").exists()
    del sys.modules["mine"]


# a network of one's own


MINE = """
import torch
from torch import nn

class Part(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

class Net(nn.Module):
    def __init__(self, n_inputs, n_outputs, part, squash):
        super().__init__()
        self.part, self.squash = part, squash
        self.head = nn.Linear(n_inputs, n_outputs)

    def forward(self, x, hidden=None):
        return self.squash(self.head(x.mean(dim=1))), None
"""
NODE = {
    "_target_": "mine.net.Net",
    "n_inputs": 1,
    "n_outputs": 2,
    "part": {"_target_": "mine.net.Part", "width": 3},
    "squash": {"_target_": "torch.nn.Tanh"},
}


@pytest.fixture
def own(altered, monkeypatch):
    """A checkpoint of a network in a package of the user's."""
    Path("mine").mkdir()
    Path("mine", "net.py").write_text(MINE)
    weights = {
        "network.part.linear": nn.Linear(3, 3),
        "network.head": nn.Linear(1, 2),
    }

    def put(contents):
        contents["config"]["model"], contents["sizes"]["base"] = NODE, None
        contents["state_dict"] = {
            f"{name}.{key}": value
            for name, module in weights.items()
            for key, value in module.state_dict().items()
        }

    monkeypatch.syspath_prepend(Path.cwd())
    yield altered(put)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def test_a_network_of_ones_own_is_rebuilt_where_it_is_trusted(own):
    forecaster = seqlab.load(own, trust=("mine",))
    assert type(forecaster.network).__module__ == "mine.net"
    weights, x = read(own)["state_dict"], torch.rand(3, 9, 1)
    expected = x.mean(dim=1) @ weights["network.head.weight"].T + weights["network.head.bias"]
    with torch.inference_mode():
        torch.testing.assert_close(forecaster.network(x)[0], expected.tanh())


def test_a_network_of_ones_own_is_refused_by_name_elsewhere(own):
    assert refusal(own).startswith("model._target_=mine.net.Net: not trusted; --trust mine, ")
    assert "mine.net" not in sys.modules


# a config that is not of these weights


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"n_hidden": 5}, "its weights are not those of its config: "),
        ({"n_layers": 1}, "its weights are not those of its config: "),
        ({"n_outputs": 1}, "its weights are not those of its config: "),
        ({"_target_": "torch.nn.Identity"}, "its weights are not those of its config: "),
        ({"n_hidden": 0}, "model.n_hidden=0: "),
        ({"n_hidden": "4"}, "model.n_hidden=4: "),
        ({"n_hidden": 10**8}, "its weights are not those of its config: "),
        ({"colour": "red"}, "model.colour: no such argument"),
        ({"_target_": "seqlab.model.Gone"}, "model._target_=seqlab.model.Gone: "),
        ({"_target_": "seqlab.gone.Net"}, "model._target_=seqlab.gone.Net: "),
    ],
)
def test_another_networks_config_is_refused_in_one_line(altered, changed, said):
    path = altered(lambda contents: contents["config"]["model"].update(changed))
    assert said in refusal(path)
