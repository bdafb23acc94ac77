"""The walk through the LSTM: what goes in, what comes out, of which shape. Letters: B batch, T time
steps, F input features, L layers, H hidden units per layer, O outputs."""

from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from seqlab.engine.construct import KINDS, construct
from seqlab.engine.errors import UserError
from seqlab.engine.forecaster import load
from seqlab.engine.report import layers, shapes
from seqlab.model import RecurrentNetwork
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
        config, network, sizes = found.config, found.network, found.sizes
    else:
        if not CONF.is_dir():
            raise UserError("the config files are not beside this package: give a CKPT")
        chosen = [word for word in what if word.startswith("experiment=")]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", [*what, *([] if chosen else ["experiment=reference"])])
        config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        data = construct(config["data"], KINDS["data"], "data", None)
        sizes = {key: getattr(data, key) for key in ("n_inputs", "n_outputs", "every_step")}
        network = construct(config["model"], KINDS["model"], "model", None, **sizes).eval()
    if not isinstance(network, RecurrentNetwork):
        raise UserError(f"a {type(network).__name__} has no STM to show")
    B, T, F = config["data"]["batch_size"], config["data"]["seq_len"], sizes["n_inputs"]
    return network, torch.rand(B, T, F)


@torch.inference_mode()
def show(network: RecurrentNetwork, x: torch.Tensor, picture: str | None) -> dict[str, object]:
    """The shapes, the layers and whether `stm[-1]` equals `out[:, -1]`; draws the picture file."""
    (out, hidden), (prediction, _) = network.rnn(x), network(x)
    stm, *ltm = hidden if isinstance(hidden, tuple) else (hidden,)
    if picture:
        last_O = prediction[0].flatten()[-prediction.shape[-1] :].tolist()
        stm_TLH, carried = over_time(network, x[:1])[0], "(STM, LTM)" if ltm else "STM"
        unrolled(x[0], stm_TLH, last_O, carried=carried).savefig(picture, dpi=150)
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
