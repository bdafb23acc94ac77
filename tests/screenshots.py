"""Makes the pictures of the documentation: `python tests/screenshots.py`, a few minutes, needs
chromium.

The sweep of the README at its full size in TensorBoard, and the reference network unrolled.
"""

import tempfile
from pathlib import Path

import torch
from browser import browse, tensorboard
from PIL import Image
from program import ROOT, run

from seqlab.engine.forecaster import load, load_data
from seqlab.watch import figures
from seqlab.watch.pictures import over_time

DOCS = ROOT / "docs"


def shrink(file: Path) -> None:
    """Few colours are enough for a picture of a page, and make a small file."""
    Image.open(file).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(
        file, optimize=True
    )
    print(file.relative_to(ROOT), file.stat().st_size // 1000, "kB")


def tensorboard_pages(folder: Path) -> None:
    sweep = run("-m", "model.n_hidden=4,8", "optim.lr=1e-2,1e-3", cwd=folder)
    print(sweep.out)
    four = "#scalars&tagFilter=%5E(train%7Cval)/(mse%7Cskill)&_smoothingWeight=0"
    pages = {"tensorboard": (four, "1120,740"), "hparams": ("#hparams", "1500,400")}
    logdir = str(sweep.folder.relative_to(folder))
    with tensorboard("--logdir", logdir, cwd=folder) as address:
        for name, (page, size) in pages.items():
            file = DOCS / f"{name}.png"
            flags = f"--window-size={size}", f"--screenshot={file}"
            browse(address + page, folder / name, *flags)
            shrink(file)


def unrolled(folder: Path) -> None:
    trained = run("experiment=reference", "trainer.max_epochs=5", cwd=folder)
    forecaster = load(trained.folder / "checkpoints/best.ckpt")
    data, _ = load_data(forecaster, ())
    x, y = data.splits["test"][:1]
    with torch.no_grad():
        prediction, _ = forecaster.network(x)
        stm, _ = over_time(forecaster.network, x)
    figure = figures.unrolled(x[0].numpy(), stm.numpy(), prediction[0].numpy(), y[0].numpy())
    figure.savefig(DOCS / "unrolled.png", dpi=110)


if __name__ == "__main__":
    DOCS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        for make in (unrolled, tensorboard_pages):
            (Path(name) / make.__name__).mkdir()
            make(Path(name) / make.__name__)
