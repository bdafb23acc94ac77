"""Tables on the console, and the table of many runs. Imports nothing heavy."""

import csv
import io
import json
import math
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from seqlab.engine.errors import UserError
from seqlab.engine.runs import write_text


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


@dataclass
class RunTable:
    """Runs, best first, one per row.

    Args:
        columns: the names of the columns: the keys that differ, the metrics, status and folder.
        rows: the cells of each run.
        keys: the config keys that differ.
        settings: where several runs differ in the seed alone, a dict for each such setting, with
            mean and standard deviation over its finished seeds.
    """

    columns: list[str]
    rows: list[list[Any]]
    keys: list[str]
    settings: list[dict[str, Any]]

    def records(self) -> list[dict[str, Any]]:
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def write(self, path: Path) -> None:
        """Write the rows as CSV."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        write_text(path, text.getvalue())

    def show(self, title: str) -> None:
        """Print the rows, and the settings below."""
        print_table(title, self.columns, self.rows)
        if self.settings:
            rows = [
                [f"{v[0]:.4g} ± {v[1]:.2g}" if isinstance(v, list) else v for v in each.values()]
                for each in self.settings
            ]
            print_table("mean ± standard deviation over seeds", list(self.settings[0]), rows)


@dataclass
class Finding:
    """One run as its results.json tells it."""

    folder: Path
    overrides: dict[str, str]
    monitor: str | None
    mode: str
    ends: list[Any]

    @classmethod
    def read(cls, file: Path) -> "Finding":
        try:
            results = json.loads(file.read_text())
            # none where the run was never built: what is monitored follows from the data
            metrics, monitor = results.get("metrics", {}), results.get("monitor")
            overrides = dict(o.split("=", 1) for o in results["overrides"] if "=" in o)
            tested = monitor and monitor.replace("val/", "test/")
            ends = [metrics.get(f"best/{monitor}"), metrics.get(tested), results["status"]]
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{file}: damaged: {error!r}") from None
        return cls(file.parent, overrides, monitor, results.get("mode", "min"), ends)

    def order(self) -> float:
        """Best first, and those without a score last."""
        score = self.ends[0]
        return math.inf if score is None else -score if self.mode == "max" else score


def tabulate(folders: list[Path], base: Path) -> RunTable:
    """The table of all runs in some folders.

    Args:
        folders: of single runs, of multiruns, or of many of both.
        base: what the names of the runs' folders are relative to.

    Raises:
        UserError: there is no run in one of them, or a results.json is damaged.
    """
    files = {}
    for folder in folders:
        found = sorted(folder.rglob("results.json"), key=in_order)
        if not found:
            raise UserError(f"{folder}: no run there, it has no results.json")
        files |= {file.parent.resolve(): file for file in found}
    runs = [Finding.read(file) for file in files.values()]
    keys = list(dict.fromkeys(key for run in runs for key in run.overrides))
    values = [{k: r.overrides.get(k, configured(r.folder, k)) for k in keys} for r in runs]
    keys = [key for key in keys if len({row[key] for row in values}) > 1]
    monitors = {run.monitor for run in runs if run.monitor}
    # losses of two kinds stand in one column
    monitor = monitors.pop() if len(monitors) == 1 else ""
    best, tested = f"best/{monitor}".rstrip("/"), monitor.replace("val/", "test/") or "test"
    pairs = sorted(zip(runs, values, strict=True), key=lambda pair: pair[0].order())
    rows = [
        [*(row[key] for key in keys), *run.ends, os.path.relpath(run.folder, base)]
        for run, row in pairs
    ]
    columns = [*keys, best, tested, "status", "folder"]
    return RunTable(columns, rows, keys, over_seeds(columns, rows, keys))


def in_order(file: Path) -> tuple[Any, ...]:
    """Jobs of a multirun by their number, everything else by name."""
    number = file.parent.name.partition("-")[0]
    return file.parent.parent, int(number) if number.isdecimal() else -1, file.parent


def configured(folder: Path, key: str) -> str | None:
    """The value of a key in a run's config, for runs that do not override it."""
    path = folder / "config.yaml"
    node = yaml.safe_load(path.read_text()) if path.exists() else None
    for part in key.lstrip("+").split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return None if node is None else str(node)


def over_seeds(columns: list[str], rows: list[list[Any]], keys: list[str]) -> list[dict[str, Any]]:
    """For each setting of the keys but the seed: how many seeds finished, and mean and standard
    deviation of both metrics over them, in the order of the rows. Empty where none has two."""
    if "seed" not in keys:
        return []
    groups: dict[tuple, list[dict[str, Any]]] = {}
    others = [key for key in keys if key != "seed"]
    for row in rows:
        run = dict(zip(columns, row, strict=True))
        if run["status"] == "finished":
            groups.setdefault(tuple(run[key] for key in others), []).append(run)
    found, metrics = [], columns[len(keys) : len(keys) + 2]
    for setting, runs in groups.items():
        entry = dict(zip(others, setting, strict=True)) | {"seeds": len(runs)}
        for name in metrics:
            values = [math.nan if run[name] is None else run[name] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else math.nan
            entry[name] = [statistics.fmean(values), spread]
        found.append(entry)
    if not any(entry["seeds"] > 1 for entry in found):
        return []
    return sorted(found, key=lambda e: (math.isnan(e[metrics[0]][0]), e[metrics[0]][0]))
