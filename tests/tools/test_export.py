"""The files for others give what the network gives, in the data's own units."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import polars as pl
import pytest
import torch
from program import TINY, run, seqlab
from safetensors import safe_open
from torch import nn

from seqlab import load
from seqlab.engine.errors import UserError
from seqlab.tools.export import need, to_onnx, to_torch

O, F = 3, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds best.ckpt of a run on a series far from mean 0 and deviation 1, with one feature."""
    made, draw = tmp_path_factory.mktemp("export"), np.random.default_rng(0)
    y = 5000 + 300 * np.sin(np.arange(300) / 5) + draw.normal(size=300)
    pl.DataFrame({"y": y, "f": draw.random(300)}).write_csv(made / "a.csv")
    small = ["model.n_hidden=4", "trainer.max_epochs=2", "callbacks.pictures=null"]
    series = ["data=series", "data.path=a.csv", "data.target=y", "data.features=[f]"]
    done = run(*series, f"data.horizon={O}", *small, cwd=made)
    assert done.code == 0, done.err
    (done.folder / "checkpoints/best.ckpt").rename(made / "best.ckpt")
    return made


def export(folder: Path, kind: str) -> str:
    """What `seqlab export` says, in a process of its own: ONNX is exported once in each."""
    command = [Path(sys.executable).with_name("seqlab"), "export", "best.ckpt", "--format", kind]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr


def inputs(B: int, T: int) -> torch.Tensor:
    """`(B, T, F)` in the data's units."""
    draw = torch.Generator().manual_seed(B * T)
    return torch.rand(B, T, F, generator=draw) * torch.tensor([600.0, 1]) + torch.tensor(
        [4700.0, 0]
    )


@pytest.mark.slow
def test_onnx_equals_pytorch_in_the_datas_units_for_any_batch_and_length(folder):
    assert "onnxruntime agrees with PyTorch" in export(folder, "onnx")
    session = onnxruntime.InferenceSession(folder / "best.onnx")
    forecaster = load(folder / "best.ckpt")
    assert [value.name for value in session.get_inputs()] == ["x"]
    for B, T in ((1, 1), (1, 24), (2, 5), (7, 24), (64, 100)):
        x = inputs(B, T)
        (got,) = session.run(["forecast"], {"x": x.numpy()})
        with torch.inference_mode():
            expected = forecaster(x)[0].numpy()
        assert got.shape == (B, O)
        assert 4000 < expected.mean() < 6000
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.slow
def test_a_second_onnx_export_of_a_process_is_right_or_refused(folder):
    code = (
        "import onnxruntime\n"
        "from pathlib import Path\n"
        "from seqlab import load\n"
        "from seqlab.engine.errors import UserError\n"
        "from seqlab.tools.export import to_onnx\n"
        "for name in ('first', 'second'):\n"
        "    try: print(name, to_onnx(load('best.ckpt'), Path(f'{name}.onnx')))\n"
        "    except UserError as error: print(name, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("first onnxruntime agrees")
    right_or_refused = "onnxruntime agrees", "second.onnx: B or T is fixed"
    assert second.startswith(tuple(f"second {said}" for said in right_or_refused))
    assert (folder / "second.onnx").exists() == ("agrees" in second)
    assert not list(folder.glob(".*.part"))


@pytest.mark.slow
def test_the_program_steps_as_the_network_does(folder):
    assert "agrees with PyTorch" in export(folder, "torch")
    step = torch.export.load(folder / "best.pt2").module()
    forecaster = load(folder / "best.ckpt")
    for B in (1, 6):
        x = inputs(B, 10).double()
        # before the first row stands the first row, as often as a window has rows
        first = forecaster.scale(x[:, :1]).transpose(0, 1)
        rows = forecaster.sizes["base"]["rows"]
        state = [*[torch.zeros(2, B, 4)] * 2, first.expand(rows, -1, -1)]
        for x_t in x.unbind(1):
            prediction, *state = step(x_t, *state)
        with torch.inference_mode():
            expected, hidden = forecaster(x)
        torch.testing.assert_close(prediction, expected)
        torch.testing.assert_close(tuple(state), hidden)


class Branching(nn.Module):
    """A network that goes one way or another by what it is given."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, hidden=None):
        return self.network(x if x.mean() > 0 else -x, hidden)


@pytest.mark.slow
def test_a_network_that_cannot_be_exported_is_told_in_one_line(folder):
    forecaster = load(folder / "best.ckpt")
    forecaster.network = Branching(forecaster.network)
    with pytest.raises(UserError, match=r"^a\.onnx: ONNX has no form of this network: .+"):
        to_onnx(forecaster, Path("a.onnx"))
    with pytest.raises(UserError, match=r"^a\.pt2: torch\.export takes no such network: .+"):
        to_torch(forecaster, Path("a.pt2"))
    assert not {*Path().glob("a.*")}


@pytest.mark.slow
def test_a_state_of_any_shape_is_exported(tmp_path):
    words = [*TINY, "model=transformer", "model.n_hidden=4", "hydra.run.dir=run"]
    assert run(*words, cwd=tmp_path).code == 0
    (tmp_path / "run/checkpoints/best.ckpt").rename(tmp_path / "best.ckpt")
    assert "agrees with PyTorch" in export(tmp_path, "torch")


def test_safetensors_hold_the_weights_the_config_and_the_scaler(folder):
    done = seqlab("export", "best.ckpt", "--format", "safetensors", cwd=folder)
    assert (done.code, done.out) == (0, "")
    assert done.err == "best.safetensors: 11 tensors; config, mean and std as metadata\n"
    forecaster = load(folder / "best.ckpt")
    with safe_open(folder / "best.safetensors", "pt") as file:
        about = {key: json.loads(value) for key, value in file.metadata().items()}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert about == {k: forecaster.fitted[k] for k in ("mean", "std")} | {
        "config": forecaster.config
    }
    network = forecaster.network.state_dict()
    assert weights.keys() == network.keys()
    assert all(torch.equal(weights[name], network[name]) for name in network)


@pytest.mark.parametrize("kind", ["onnx", "torch", "safetensors"])
def test_a_folder_that_is_not_there_is_told(folder, kind):
    output = ["--output", "gone/a.file"]
    done = seqlab("export", "best.ckpt", "--format", kind, *output, cwd=folder)
    assert (done.code, done.err) == (2, "error: --output=gone/a.file: there is no folder gone\n")


def test_without_the_extra_one_line_says_how_to_install_it():
    with pytest.raises(UserError, match=r"^nope is not installed: pip install -e '\.\[export\]'"):
        need("torch", "nope")
