"""What a run says of its progress."""

import io
import re

import pytest
from left import scalars
from program import SMALL, run
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn

from seqlab.watch.progress import Bar

LINE = "epoch 103/150  step 12345  train/mse 0.0001234  val/mse 0.0001234  12345 steps/s"


def test_a_line_for_each_validation_has_the_training_loss_beside_the_validation(tmp_path):
    result = run(*SMALL, "trainer.max_epochs=2", "monitor=val/mae", cwd=tmp_path)
    assert result.code == 0, result.err
    points = scalars(result.folder)
    number = r"([\d.e-]+)"
    lines = result.err.splitlines()
    assert len(lines) == 2
    for epoch, line in enumerate(lines):
        pattern = rf"epoch {epoch + 1}/2  step {2 * (epoch + 1)}  train/mse {number}  "
        found = re.fullmatch(rf"{pattern}val/mae {number}  \d+ steps/s", line)
        for name, value in zip(("train/mse", "val/mae"), found.groups(), strict=True):
            assert float(value) == pytest.approx(points[name][epoch][1], rel=1e-3)


def test_on_a_terminal_of_80_columns_the_line_stands_whole_below_the_bar():
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    bar = Bar(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console)
    bar.add_task(LINE, total=2400, completed=1648)
    above, below = map(str.rstrip, capture(console, bar))
    assert "1648/2400 0:00:00" in above
    assert len(above) <= 80
    assert below == LINE


def capture(console, bar):
    """The lines of a bar, without their colours."""
    with console.capture() as captured:
        console.print(*bar.get_renderables(), sep="\n")
    return re.sub(r"\x1b\[[\d;]*m", "", captured.get()).splitlines()
