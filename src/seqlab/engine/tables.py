"""Tables on the console, and the table of many runs. Imports nothing heavy."""

import csv
import io
import json
import math
import os
import re
import statistics
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from seqlab.engine.errors import UserError
from seqlab.engine.runs import write_text

#: A line of a table, or what is known of a run, by name.
Row = dict[str, Any]


def terminal() -> float:
    """The columns of the terminal. Without one, and without COLUMNS, a line may have any length."""
    from rich.console import Console

    known = sys.stdout.isatty() or os.environ.get("COLUMNS")
    return Console().width if known else math.inf


def layout(columns: list[str], rows: list[list], tight: bool = False) -> tuple[Any, Any]:
    """A rich table, and how wide it is at least and at most. Numbers have four digits, None is a
    dash, and nothing is read as markup. No header is cut; in a tight one they have two lines."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, not tight))
    for header in map(folded, columns) if tight else columns:
        table.add_column(Text(header), min_width=max(map(len, header.split("\n"))))
    for row in rows:
        cells = ("-" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row)
        table.add_row(*map(Text, cells))
    return table, Console(width=10_000).measure(table)


def folded(name: str) -> str:
    """A name in two lines, cut behind the mark that leaves both as short as can be."""
    cuts = [mark.end() for mark in re.finditer(r"[/. ](?=.)", name)]
    cut = min(cuts, key=lambda n: max(n, len(name) - n), default=len(name))
    return f"{name[:cut].rstrip()}\n{name[cut:]}".strip()


def print_table(
    title: str, columns: list[str], rows: list[list], most: float | None = None
) -> None:
    """Print rows under their columns. Where that is wider than the terminal, or than `most`, the
    columns of a table of numbers become its rows; else headers, and then cells, are folded."""
    from rich.console import Console

    most = terminal() if most is None else most
    ways = [(columns, rows, False), (columns, rows, True)]
    if not any(isinstance(value, str) for row in rows for value in row[1:]):
        heads, *turned = zip(columns, *rows, strict=True)
        ways[1:] = [(heads, turned, False), (heads, turned, True)]
    for way in ways:
        table, width = layout(*way)
        if width.maximum <= most:
            break
    console = Console(width=int(max(width.minimum, min(width.maximum, most))))
    with console.capture() as printed:
        console.print(table)
    print(title, *map(str.rstrip, printed.get().splitlines()), sep="\n")


def cut(name: str, n: int) -> str:
    """The first n letters of a name as a pattern that a shell knows, or the name."""
    return name if len(name) <= n + 1 else f"{name[:n]}*"


def print_runs(title: str, keys: list[str], others: list[str], runs: list[Row], most: float) -> int:
    """Print a line for each run, with as many of its keys as fit. Returns how many do not."""
    free, shown = most - 1, []
    for name in (*others, *keys):
        _, width = layout([name], [[run[name]] for run in runs], tight=True)
        if name in others or width.maximum - 1 <= free:
            free -= width.maximum - 1
            shown.append(name)
    columns = shown[len(others) :] + others
    for run in runs:
        if "whole" in run:  # as much of it as there is room for
            run["folder"] = cut(run["whole"], len(run["folder"]) - 1 + free)
    print_table(title, columns, [[run[name] for name in columns] for run in runs], most)
    return len(others) + len(keys) - len(shown)


@dataclass
class RunTable:
    """Runs, best first, one per row; and in `settings`, where several runs differ in the seed
    alone, mean and standard deviation over the finished ones."""

    columns: list[str]  # the keys that differ, the metrics, status and folder
    rows: list[list]
    keys: list[str]
    settings: list[Row]

    def records(self) -> list[Row]:
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def write(self, path: Path) -> None:
        """Write the rows as CSV."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        write_text(path, text.getvalue())

    def show(self, title: str, every_key: bool = False) -> None:
        """Print the rows, and the settings below. Unless `every_key`, what is wider than the
        terminal has fewer keys, and of long folders as much as tells them apart."""
        most = math.inf if every_key else terminal()
        runs, others = self.records(), self.columns[len(self.keys) :]
        if most < math.inf:
            names = {run["folder"] for run in runs}
            n = next(n for n in count(12) if len({name[:n] for name in names}) == len(names))
            runs = [run | {"whole": run["folder"], "folder": cut(run["folder"], n)} for run in runs]
        left = print_runs(title, self.keys, others, runs, most)
        if self.settings:
            keys = differing([k for k in self.keys if k != "seed"], self.settings)
            seeds, *metrics = [name for name in self.settings[0] if name not in self.keys]
            settings = [s | {name: spread(*s[name]) for name in metrics} for s in self.settings]
            title = "mean ± standard deviation over seeds"
            left = max(left, print_runs(title, keys, [seeds, *metrics], settings, most))
        if left:
            print(f"{left} more keys differ; `seqlab results DIR --all` shows them\n")


def spread(mean: float, deviation: float) -> str:
    return f"{mean:.4g}" if math.isnan(deviation) else f"{mean:.4g} ± {deviation:.2g}"


def tabulate(folders: list[Path], base: Path) -> RunTable:
    """The table of all runs in some folders, which are named relative to `base`."""
    files = {}
    for folder in folders:
        # a multirun's job that could not write its results has checkpoints or a log at least
        ran = {file.parent for name in ("results.json", "train.log") for file in folder.rglob(name)}
        if not ran:
            raise UserError(f"{folder}: no run there, it has no results.json")
        files |= {path.resolve(): path / "results.json" for path in sorted(ran)}
    runs = [read_results(file) for file in files.values()]
    keys = list(dict.fromkeys(key for run in runs for key in run["overrides"]))
    for run in runs:
        known = run["groups"] | run["overrides"]
        if not known.keys() >= set(keys):
            known = from_config(run["folder"] / "config.yaml", keys) | known
        run["values"] = {key: known.get(key) for key in keys}
    keys = differing(keys, [run["values"] for run in runs])
    typed = {key: Counter(run["overrides"].get(key) for run in runs).values() for key in keys}
    alike = {key: sum(n * n for n in typed[key]) for key in keys}  # pairs of runs
    # the most telling first: an experiment sets many keys, a seed tells repetitions apart
    keys.sort(key=lambda key: (key == "seed", key != "experiment", alike[key]))
    monitors = {run["monitor"] for run in runs if run["monitor"]}
    # losses of two kinds stand in one column, and their names in another
    monitor = monitors.pop() if len(monitors) == 1 else ""
    best, tested = f"best/{monitor}".rstrip("/"), monitor.replace("val/", "test/") or "test"
    columns = [*keys, best, tested, *(["metric"] if monitors else []), "status", "folder"]
    for run in runs:
        ends = {best: run["best"], tested: run["test"], "metric": (run["monitor"] or "")[4:]}
        ends |= {"status": run["status"], "folder": os.path.relpath(run["folder"], base)}
        run["row"] = run["values"] | ends
    runs.sort(key=lambda run: rank(run, run["best"]))
    rows = [[run["row"][name] for name in columns] for run in runs]
    settings = over_seeds(runs, keys, [best, tested]) if "seed" in keys else []
    return RunTable(columns, rows, keys, settings)


def differing(keys: list[str], runs: list[Row]) -> list[str]:
    return [key for key in keys if len({run[key] for run in runs}) > 1]


def rank(run: Row, score: float | None) -> tuple[bool, str, float]:
    """Sorts by what is monitored and then best first; what has no score stands last."""
    if score is None or math.isnan(score):
        return True, "", 0
    return False, run["monitor"], -score if run["mode"] == "max" else score


def read_results(file: Path) -> Row:
    """What a run's results.json tells for the table. A run without one has failed."""
    try:
        lost = {"status": "failed", "overrides": []}
        results = json.loads(file.read_text()) if file.exists() else lost
        # none where the run was never built: what is monitored follows from the data
        metrics, monitor = results.get("metrics", {}), results.get("monitor")
        return {
            "folder": file.parent,
            "status": results["status"],
            "overrides": dict(o.split("=", 1) for o in results["overrides"] if "=" in o),
            "groups": {k: v and str(v) for k, v in results.get("groups", {}).items()},
            "monitor": monitor,
            "mode": results.get("mode"),
            "best": metrics.get(f"best/{monitor}"),
            "test": metrics.get(monitor and monitor.replace("val/", "test/")),
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file}: damaged: {error!r}") from None


def from_config(file: Path, keys: list[str]) -> dict[str, str]:
    """Values in a run's config as they are typed, by their keys; a group has none."""
    if not file.exists():
        return {}
    config, found = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)), {}
    for key in keys:
        node = config
        for part in key.lstrip("+").split("."):
            node = node.get(part, {}) if isinstance(node, dict) else {}
        if not isinstance(node, dict):
            found[key] = node if isinstance(node, str) else json.dumps(node)
    return found


def over_seeds(runs: list[Row], keys: list[str], metrics: list[str]) -> list[Row]:
    """For each setting of the keys but the seed that has several runs: how many have finished, with
    mean and standard deviation of both metrics over them. Best first; empty where none has two."""
    groups: dict[tuple, list[Row]] = {}
    others, found = [key for key in keys if key != "seed"], []
    for run in runs:
        groups.setdefault(tuple(run["values"][key] for key in others), []).append(run)
    for setting, same in groups.items():
        done = [run for run in same if run["status"] == "finished"]
        if len(same) < 2 or not done:
            continue
        entry = dict(zip(others, setting, strict=True)) | {"seeds": len(done)}
        for name in metrics:
            values = [math.nan if (v := run["row"][name]) is None else v for run in done]
            deviation = statistics.stdev(values) if len(values) > 1 else math.nan
            entry[name] = [statistics.fmean(values), deviation]
        found.append((rank(done[0], entry[metrics[0]][0]), entry))
    settings = [entry for _, entry in sorted(found, key=lambda pair: pair[0])]
    return settings if any(each["seeds"] > 1 for each in settings) else []
