"""A million windows through `seqlab evaluate` and `seqlab predict`, against a bare loop.

    python benchmarks/inference.py [--rounds N] [--windows N]

The bare loop is the network under `torch.inference_mode` over batches of 8192 windows, in the
scaler's units, with nothing computed from the predictions. Start, reading the checkpoint and the
file, and writing are left out on both sides; metrics, baselines and the table of forecasts are in.
Seconds are the processor's, of one thread.
"""

import argparse
import tempfile
import time
from pathlib import Path

import polars as pl
import torch
from hydra import compose, initialize_config_dir
from overhead import heading, machine, spread, table

from seqlab.engine.build import build
from seqlab.engine.context import RunContext
from seqlab.engine.forecaster import load, load_data
from seqlab.engine.report import compare
from seqlab.engine.runs import register_resolvers
from seqlab.tools.forecast import forecasts

CONF = Path(__file__).parents[1] / "conf"
SIZES = {"reference": (3, 4), "medium": (20, 64)}


def measure(T: int, H: int, windows: int, rounds: int) -> dict[str, list[float]]:
    """Processor's seconds by name, one for each round."""
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name, "series.parquet")
        steps = torch.arange(windows + T)
        pl.DataFrame({"y": steps.div(7).sin().numpy()}).write_parquet(path)
        words = ["data=series", f"data.path={path}", "data.target=y", "trainer.max_epochs=1"]
        words += [f"data.seq_len={T}", f"model.n_hidden={H}", "callbacks.pictures=null"]
        words += ["data.until=null", "+trainer.limit_train_batches=1"]
        words += ["+trainer.limit_val_batches=1"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            run = build(compose("config", words), RunContext(folder, []))
        run.trainer.fit(run.learner, run.data)
        checkpoint = folder / "checkpoints/last.ckpt"
        forecaster = load(checkpoint)
        data, objective = load_data(forecaster, (), str(path))
        network, split = load(checkpoint).network, data.splits["test"]
        assert len(split) == windows

        def bare() -> None:
            for rows in torch.arange(windows).split(8192):
                network(split[slice(int(rows[0]), int(rows[-1]) + 1)][0])

        def evaluate() -> None:
            compare(data, objective, lambda x: forecaster.network(x, None)[0])

        def predict() -> None:
            forecasts(forecaster, data, objective, lambda n: None)

        ways, seconds = (bare, evaluate, predict), {}
        with torch.inference_mode():
            for n in range(rounds):
                for way in ways[n % 3 :] + ways[: n % 3]:
                    begin = time.process_time()
                    way()
                    seconds.setdefault(way.__name__, []).append(time.process_time() - begin)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=1_000_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    register_resolvers()
    info, rows = machine("cpu") | {"rounds": args.rounds, "windows": args.windows}, []
    for name, (T, H) in SIZES.items():
        seconds = measure(T, H, args.windows, args.rounds)
        ratios = [
            [a / b for a, b in zip(seconds["bare"], seconds[way], strict=True)]
            for way in ("evaluate", "predict")
        ]
        rows.append([f"{name}: T={T} H={H}", *(spread(each, ".2f") for each in ratios)])
    print(heading("Inference", **info))
    print("\nSpeed as a multiple of the bare loop's, median (min-max):\n")
    print(table(["size", "evaluate", "predict"], rows))


if __name__ == "__main__":
    main()
