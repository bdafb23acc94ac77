"""The walk through the LSTM: what goes in, what comes out, of which shape. Letters: B batch, T time
steps, F input features, L layers, H hidden units per layer, O outputs."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from seqlab.engine.construct import network_of, parts_of
from seqlab.engine.errors import UserError
from seqlab.engine.forecaster import load
from seqlab.engine.report import layers, shapes
from seqlab.engine.runs import register_resolvers
from seqlab.engine.usage import composed
from seqlab.model import RecurrentNetwork
from seqlab.series.base import OnBase
from seqlab.watch.figures import unrolled
from seqlab.watch.pictures import over_time

CONF = Path(__file__).parents[3] / "conf"  # of the checkout that this package is installed from


def example(what: tuple[str, ...], trust: tuple[str, ...]) -> tuple[RecurrentNetwork, torch.Tensor]:
    """A network and inputs `(B, T, F)`: of a checkpoint, or of overrides of the reference sizes."""
    files = [w for w in what if Path(w).is_file() or ("=" not in w and not w.startswith("~"))]
    if files and len(what) > 1:
        raise UserError(f"{files[0]}: give one CKPT alone, or KEY=VALUE overrides")
    torch.manual_seed(0)  # for the same picture each time
    if files:
        found = load(files[0], trust)
        config, network = found.config, found.network
    else:
        if not CONF.is_dir():
            raise UserError("the config files are not beside this package: give a CKPT")
        register_resolvers()
        if not any(word.startswith(("experiment=", "data=")) for word in what):
            what = (*what, "experiment=reference")
        chosen = [word for word in what if (CONF / word.partition("=")[0]).is_dir()]
        try:
            groups, _ = composed([CONF], chosen)
        except ValueError as error:  # Hydra's for a group that is no text
            raise UserError(f"{' '.join(chosen)}: {error}") from error
        cfg, _ = composed([CONF], [in_its_group(word, groups) for word in what])
        config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        *_, sizes = parts_of(config, None)
        network = network_of(config["model"], sizes, None).eval()
    if isinstance(network, OnBase):
        network = network.network
    if not isinstance(network, RecurrentNetwork):
        raise UserError(f"a {type(network).__name__} has no STM to show")
    B, T = (config["data"].get(key) or size for key, size in (("batch_size", 10), ("seq_len", 24)))
    return network, torch.rand(B, T, network.rnn.cells.input_size)


def in_its_group(word: str, cfg: DictConfig) -> str:
    """An override `KEY=VALUE` with the one group of the config in front that has the key."""
    key = word.partition("=")[0]
    if key in cfg:
        return word
    # `in` a DictConfig sees no key that still needs a value
    found = [g for g, node in cfg.items() if isinstance(node, DictConfig) and key in list(node)]
    if len(found) > 1:
        raise UserError(f"{word}: give {' or '.join(f'{group}.{word}' for group in found)}")
    return f"{found[0]}.{word}" if found else word


@torch.inference_mode()
def draw(network: RecurrentNetwork, x: torch.Tensor) -> Figure:
    """The network unrolled in time, reading the first sequence of `x` `(B, T, F)`."""
    prediction, hidden = network(x[:1])
    last_O = prediction.flatten()[-prediction.shape[-1] :].tolist()
    carried = "(STM, LTM)" if isinstance(hidden, tuple) else "STM"
    return unrolled(x[0], over_time(network, x[:1])[0], last_O, carried=carried)


@torch.inference_mode()
def show(network: RecurrentNetwork, x: torch.Tensor) -> dict[str, object]:
    """The shapes, the layers and whether `stm[-1]` equals `out[:, -1]`."""
    (out, hidden), (prediction, _) = network.rnn(x), network(x)
    stm, *ltm = hidden if isinstance(hidden, tuple) else (hidden,)
    memory = "(L, B, H): {}-term memory ({}) of every layer after the last step"
    head = "(B, T, O): head(out)" if network.every_step else "(B, O): head(stm[-1])"
    rows = [
        ["x", shapes(x), "(B, T, F): batch, time steps, input features"],
        ["out", shapes(out), "(B, T, H): the top layer's STM at every step"],
        ["stm", shapes(stm), memory.format("short", "h")],
        *(["ltm", shapes(state), memory.format("long", "c")] for state in ltm),
        ["prediction", shapes(prediction), head],
    ]
    same = torch.equal(stm[-1], out[:, -1])
    return {"shapes": rows, "layers": layers(network, x), "stm[-1] == out[:, -1]": same}
