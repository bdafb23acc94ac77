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
    from rich.markup import escape  # brackets in names and values are no markup
    from rich.table import Table

    look = {"title": escape(title), "title_justify": "left", "box": box.SIMPLE}
    table = Table(*map(escape, columns), **look)
    for row in rows:
        cells = ("-" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row)
        table.add_row(*map(escape, cells))
    # a pipe has no width to fit into
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)


@dataclass
class RunTable:
    """Runs, best first, one per row; and in `settings`, where several runs differ in the seed
    alone, mean and standard deviation over the finished ones."""

    columns: list[str]  # the keys that differ, the metrics, status and folder
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


def tabulate(folders: list[Path], base: Path) -> RunTable:
    """The table of all runs in some folders, which are named relative to `base`."""
    files = {}
    for folder in folders:
        # a multirun's job that could not write its results has checkpoints or a log at least
        ran = {file.parent for name in ("results.json", "train.log") for file in folder.rglob(name)}
        if not ran:
            raise UserError(f"{folder}: no run there, it has no results.json")
        files |= {path.resolve(): path / "results.json" for path in sorted(ran, key=in_order)}
    runs = [read_results(file) for file in files.values()]
    keys = list(dict.fromkeys(key for run in runs for key in run["overrides"]))
    for run in runs:
        run["values"] = {k: run["overrides"].get(k, configured(run["folder"], k)) for k in keys}
    keys = [key for key in keys if len({run["values"][key] for run in runs}) > 1]
    monitors = {run["monitor"] for run in runs if run["monitor"]}
    # losses of two kinds stand in one column
    monitor = monitors.pop() if len(monitors) == 1 else ""
    best, tested = f"best/{monitor}".rstrip("/"), monitor.replace("val/", "test/") or "test"
    rows = [
        [*(run["values"][k] for k in keys), *run["ends"], os.path.relpath(run["folder"], base)]
        for run in sorted(runs, key=lambda run: run["order"])
    ]
    columns = [*keys, best, tested, "status", "folder"]
    return RunTable(columns, rows, keys, over_seeds(columns, rows, keys))


def read_results(file: Path) -> dict[str, Any]:
    """What a run's results.json tells for the table. A run without one has failed."""
    try:
        lost = {"status": "failed", "overrides": []}
        results = json.loads(file.read_text()) if file.exists() else lost
        # none where the run was never built: what is monitored follows from the data
        metrics, monitor = results.get("metrics", {}), results.get("monitor")
        overrides = dict(o.split("=", 1) for o in results["overrides"] if "=" in o)
        score, tested = metrics.get(f"best/{monitor}"), monitor and monitor.replace("val/", "test/")
        ends = [score, metrics.get(tested), results["status"]]
        sign = -1 if results.get("mode") == "max" else 1
        order = math.inf if score is None else sign * score  # without a score: last
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file}: damaged: {error!r}") from None
    found = {"folder": file.parent, "overrides": overrides, "monitor": monitor}
    return found | {"ends": ends, "order": order}


def in_order(folder: Path) -> tuple[Any, ...]:
    """Jobs of a multirun by their number, everything else by name."""
    number = folder.name.partition("-")[0]
    return folder.parent, int(number) if number.isdecimal() else -1, folder


def configured(folder: Path, key: str) -> str | None:
    """The value of a key in a run's config, for runs that do not override it."""
    path = folder / "config.yaml"
    node = yaml.safe_load(path.read_text()) if path.exists() else None
    for part in key.lstrip("+").split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return None if node is None or isinstance(node, dict) else str(node)  # a group has no value


def over_seeds(columns: list[str], rows: list[list[Any]], keys: list[str]) -> list[dict[str, Any]]:
    """For each setting of the keys but the seed: how many seeds finished, with mean and standard
    deviation of both metrics over them. Empty where no setting has two."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    others, metrics = [key for key in keys if key != "seed"], columns[len(keys) : len(keys) + 2]
    for row in rows:
        run = dict(zip(columns, row, strict=True))
        if run["status"] == "finished":
            groups.setdefault(tuple(run[key] for key in others), []).append(run)
    if "seed" not in keys or all(len(runs) < 2 for runs in groups.values()):
        return []
    found = []
    for setting, runs in groups.items():
        entry = dict(zip(others, setting, strict=True)) | {"seeds": len(runs)}
        for name in metrics:
            values = [math.nan if run[name] is None else run[name] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else math.nan
            entry[name] = [statistics.fmean(values), spread]
        found.append(entry)
    return sorted(found, key=lambda e: (math.isnan(e[metrics[0]][0]), e[metrics[0]][0]))
