"""The walk through the LSTM: what goes in, what comes out, of which shape.

Letters: B batch, T time steps, F input features, L layers, H hidden units a layer, O outputs.
"""

from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from seqlab import pictures
from seqlab.checkpoint import construct, load
from seqlab.data import SequenceData
from seqlab.errors import UserError
from seqlab.model import RecurrentNetwork, layers, over_time

REFERENCE = ["experiment=reference"]

#: The config files of the checkout that this package is installed from.
CONF = Path(__file__).parents[2] / "conf"


def describe(what: tuple[str, ...], trust: tuple[str, ...]) -> tuple[RecurrentNetwork, Tensor]:
    """A network and inputs `(B, T, F)`: of a checkpoint, or of the config with the reference
    sizes and Hydra overrides such as `model.n_hidden=8`."""
    files = [word for word in what if word[0] != "~" and "=" not in word]
    if files and len(what) > 1:
        raise UserError(f"{files[0]}: give one CKPT alone, or KEY=VALUE overrides")
    if files:
        found = load(files[0], trust)
        config, network = found.config, found.network
    else:
        config = composed(what)
        torch.manual_seed(config["seed"])
        network = construct(config["model"], nn.Module, trust).eval()
    if not isinstance(network, RecurrentNetwork):
        raise UserError(f"a {type(network).__name__} has no STM to show")
    sizes = config["data"]["batch_size"], config["data"]["seq_len"], config["derived"]["n_inputs"]
    return network, torch.rand(sizes, generator=torch.Generator().manual_seed(0))


def composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    """The config with the reference sizes, `derived` filled in."""
    if not CONF.is_dir():
        raise UserError("the config files are not beside this package: give a CKPT")
    experiment = [] if any(o.startswith("experiment=") for o in overrides) else REFERENCE
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [*experiment, *overrides])
    node = OmegaConf.to_container(cfg.data, resolve=True, throw_on_missing=True)
    data = construct(node, SequenceData, ())
    cfg.derived = {
        "n_inputs": data.n_inputs,
        "n_outputs": data.n_outputs,
        "every_step": data.every_step,
        "loss": data.objective.loss_name,
        "n_steps": 1,
    }
    return OmegaConf.to_container(cfg, resolve=True)


@torch.inference_mode()
def show(network: RecurrentNetwork, x: Tensor) -> dict[str, Any]:
    """The shapes with their meaning, the layers, and whether `stm[-1]` equals `out[:, -1]`."""
    out, hidden = network.rnn(x)
    stm, *ltm = hidden if isinstance(hidden, tuple) else (hidden,)
    prediction, _ = network(x)
    head = "(B, T, O): head(out)" if prediction.dim() == 3 else "(B, O): head(stm[-1])"
    rows = [
        ("x", x, "(B, T, F): batch, time steps, input features"),
        ("out", out, "(B, T, H): the top layer's STM at every step"),
        ("stm", stm, "(L, B, H): short-term memory (h) of every layer after the last step"),
        *(
            ("ltm", state, "(L, B, H): long-term memory (c) of every layer after the last step")
            for state in ltm
        ),
        ("prediction", prediction, head),
    ]
    return {
        "shapes": [[name, str(tuple(value.shape)), meaning] for name, value, meaning in rows],
        "layers": layers(network, x),
        "stm[-1] == out[:, -1]": torch.equal(stm[-1], out[:, -1]),
    }


@torch.inference_mode()
def draw(network: RecurrentNetwork, x: Tensor, path: Path) -> None:
    """The network unrolled in time for the first sequence, as a picture file."""
    stm_TLH, *ltm_TLH = over_time(network, x[:1])
    prediction_O = network(x[:1])[0].reshape(-1, network.head.out_features)[-1]
    carried = "(STM, LTM)" if ltm_TLH else "STM"
    figure = pictures.unrolled(x[0].numpy(), stm_TLH.numpy(), prediction_O.numpy(), carried=carried)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"--picture={path}: {error}") from None
