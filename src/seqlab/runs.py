"""Run directories: their names, the claim on one, what a run leaves there, tables of many runs.

Imports nothing heavy: Hydra asks for the names before anything is trained.
"""

import csv
import json
import os
import secrets
import sys
from functools import cache
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from seqlab.errors import UserError


@cache
def unique() -> str:
    """Random letters, the same through one process: what keeps two runs' folders apart."""
    return secrets.token_hex(4)


def run_name(number: int, overrides: str) -> str:
    """A sweep's sub-folder: the job's number and what it overrides, as one short folder name."""
    return f"{number}-{overrides.replace('/', '_')}"[:120].rstrip("-")


def register_resolvers() -> None:
    """Teach the config files `${unique:}` and `${run_name:NUMBER,OVERRIDES}`."""
    OmegaConf.register_new_resolver("unique", unique, replace=True)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)


def claim(folder: Path) -> None:
    """Take a folder for one run, and refuse one that belongs to another."""
    try:
        (folder / "checkpoints").mkdir(parents=True)
    except FileExistsError:
        raise UserError(
            f"hydra.run.dir={folder}: holds another run; leave it out, or name a new folder"
        ) from None


def unclaim(folder: Path) -> None:
    """Give back the folder of a run that never began, and its empty parents."""
    os.removedirs(folder / "checkpoints")


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write `results.json`; NaN and infinity become null, which JSON can say."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=2, default=str)
    (folder / "results.json").write_text(text + "\n")


class SweepTable(Callback):
    """Hydra's hook at the end of a multirun: one table of its jobs, printed and as results.csv."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        monitor = config.monitor
        rows = []
        for file in folder.glob("*/results.json"):
            results = json.loads(file.read_text())
            knobs = dict(o.lstrip("+").split("=", 1) for o in results["overrides"])
            score = results.get("metrics", {}).get(f"best/{monitor}")
            rows.append(
                {
                    **knobs,
                    f"best {monitor}": score,
                    "test/mse": results.get("metrics", {}).get("test/mse"),
                    "status": results["status"],
                    "folder": file.parent.name,
                }
            )
        rows.sort(key=lambda row: (row[f"best {monitor}"] is None, row[f"best {monitor}"]))
        columns = list(dict.fromkeys(column for row in rows for column in row))
        # knobs first, also where only a later row has them
        fixed = [f"best {monitor}", "test/mse", "status", "folder"]
        columns = [c for c in columns if c not in fixed] + fixed
        with (folder / "results.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        print_table(str(folder), columns, [[row.get(column) for column in columns] for row in rows])
        print(f"\nCompare them:  tensorboard --logdir {folder}")
        if any(row["status"] != "finished" for row in rows):
            sys.exit(1)


def print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print rows under their columns; numbers with four digits, None as a dash."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left", box=box.SIMPLE)
    for row in rows:
        table.add_row(
            *("-" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row)
        )
    # a pipe has no width to fit into
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
