"""Published tasks, run over seeds and set beside the published figures.

    python benchmarks/literature/run.py [FOLDER or ROW ...] [--write]

Each folder beside this file is a published table or figure. Its `rows.yaml` says what is run and
what was published, its `text.md` what it is about, and its `runs.jsonl` holds a line for each run.
A run that has its line is not run again, so the command may be stopped and started; take a row's
lines away to run it anew. After each run docs/literature.md and the pictures in the folders are
written from the lines of all folders; `--write` does that alone.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
import textwrap
from collections import defaultdict
from pathlib import Path
from statistics import NormalDist, fmean, median
from typing import Any

import yaml
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs/literature.md"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000")

#: What is added to a row's words for a network other than the LSTM that its recipe is made for. A
#: transformer has no gates to initialise, and needs a lower learning rate than 1e-2.
NETWORKS = {
    "lstm": [],
    "gru": ["model=gru"],
    "minlstm": ["model=minlstm"],
    "transformer": ["model=transformer", "~model.init", "optim.lr=1e-3"],
}


def main() -> None:
    names = {*folders(), *(row for each in folders().values() for row in each["rows"])}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(sorted(names)))
    parser.add_argument("--write", action="store_true", help="run nothing")
    asked = parser.parse_args()
    for name in asked.names:
        if name not in names:
            parser.error(f"{name}: no such folder or row; there are {', '.join(sorted(names))}")
    for folder, said in folders().items() if not asked.write else ():
        for row, each in said["rows"].items():
            if not asked.names or {folder, row} & {*asked.names}:
                for network, seeds in each["seeds"].items():
                    for seed in range(seeds):
                        run(folder, row, each, network, seed)
    write()


def folders() -> dict[str, Any]:
    """What each folder's `rows.yaml` says, by the years in the folders' names."""
    paths = sorted(HERE.glob("*/rows.yaml"), key=lambda path: path.parent.name[-4:])
    return {path.parent.name: yaml.safe_load(path.read_text()) for path in paths}


def records(folder: str) -> dict[tuple[str, str], dict[int, dict]]:
    """What came out, by row and network, and by seed."""
    found = defaultdict(dict)
    path = HERE / folder / "runs.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        record = json.loads(line)
        found[record["row"], record["network"]][record["seed"]] = record
    return found


def words_of(row: str, said: dict, network: str) -> list[str]:
    """The overrides that a row is run with, without the seed."""
    return [*shlex.split(said.get("run", f"experiment={row}")), *NETWORKS[network]]


def run(folder: str, row: str, said: dict, network: str, seed: int) -> None:
    """Train with one seed and add the line, unless it is there."""
    if seed in records(folder)[row, network]:
        return
    where = ROOT / "outputs/literature" / row / network / str(seed)
    if where.exists() and not (where / "results.json").exists():
        where.rename(where.with_name(f"{seed}-cut-off-{int(where.stat().st_mtime)}"))
    results = json.loads(text) if (text := read(where / "results.json")) else {}
    words = [*words_of(row, said, network), f"seed={seed}"]
    print(shlex.join(words), flush=True)
    if results.get("status") != "finished":
        resume = [f"resume={where}"] if (where / "checkpoints/last.ckpt").exists() else None
        command = resume or [*words, f"hydra.run.dir={where}"]
        done = subprocess.run(
            [sys.executable, ROOT / "train.py", *command], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        if done.returncode:
            sys.exit(done.returncode)
        results = json.loads(read(where / "results.json"))
    record = {"row": row, "network": network, "seed": seed}
    record["test"] = results["metrics"][f"test/{said['metric']}"]
    record["curve"] = curve(where, said["metric"])
    if results.get("by_length"):
        record["by_length"] = binned(results["by_length"])
        record["test"] = fmean(results["by_length"].values())  # as published: over the lengths
    record |= {key: results[key] for key in ("steps", "cpu_seconds", "parameters")}
    with (HERE / folder / "runs.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    write()


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def curve(folder: Path, metric: str) -> list[list[float]]:
    """The validation metric by the sequences seen."""
    batch_size = yaml.safe_load((folder / "config.yaml").read_text())["data"]["batch_size"]
    events = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    return [[e.step * batch_size, round(e.value, 7)] for e in events.Scalars(f"val/{metric}")]


def binned(by_length: dict[str, float], width: int = 20) -> dict[int, float]:
    """The mean over each `width` lengths, by the shortest of them."""
    lengths = [*by_length]
    parts = [lengths[i : i + width] for i in range(0, len(lengths), width)]
    return {int(part[0]): round(fmean(by_length[n] for n in part), 6) for part in parts}


def meets(said: dict, value: float) -> bool:
    """Whether a value meets a row's criterion."""
    return value <= said["at_most"] if "at_most" in said else value >= said["at_least"]


def reached(said: dict, record: dict) -> int | None:
    """The sequences seen until a validation first met the criterion."""
    return next((seen for seen, value in record["curve"] if meets(said, value)), None)


def wilson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of a share, k of n, that Wilson (1927) gives."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle, half = k + z**2 / 2, z * (k * (n - k) / n + z**2 / 4) ** 0.5
    return (middle - half) / (n + z**2), (middle + half) / (n + z**2)


def cells(row: str, said: dict, network: str, runs: dict[int, dict]) -> list[str]:
    """One line of a table."""
    wanted, n, is_error = said["seeds"][network], len(runs), "at_most" in said
    bound = f"{'<=' if is_error else '>='} {said['at_most' if is_error else 'at_least']:g}"
    first = network == next(iter(said["seeds"]))
    name = f"`{row}`" + (f", {network}" if network != "lstm" else "")
    line = [name if first else network, f"{said['metric']} {bound}"]
    published = said.get("published", "") if first else ""
    earlier = said.get("earlier", {}).get(network)
    if not runs or (earlier and n < wanted):
        earlier = (earlier or "not run; ; ; ").split("; ")
        return [*line, earlier[0], "", *earlier[1:], published]
    tested = sorted(record["test"] for record in runs.values())
    solved = sum(meets(said, value) for value in tested)
    low, high = wilson(solved, n)
    seen = sorted(filter(None, (reached(said, record) for record in runs.values())))
    met = "never"
    if seen:
        met = f"{median(seen):,.0f}; {fmean(seen):,.0f} ({seen[0]:,} to {seen[-1]:,})"
    seconds = median(record["cpu_seconds"] for record in runs.values())
    return [
        *line,
        f"{solved} of {n}" + (f", {wanted - n} not run" if n < wanted else ""),
        f"{100 * low:.0f} to {100 * high:.0f} %",
        met,
        f"{median(tested):.4g}, {tested[-1] if is_error else tested[0]:.4g}",
        f"{seconds:.0f}",
        published,
    ]


def table(folder: str, rows: dict[str, Any]) -> str:
    """A folder's rows as Markdown, and below them what is run for a row without a file."""
    heads = ["experiment", "criterion", "solved", "95 %", "sequences", "test", "CPU s", "published"]
    lines, found = [heads, ["---"] * len(heads)], records(folder)
    for row, said in rows.items():
        for network in said["seeds"]:
            lines.append(cells(row, said, network, found[row, network]))
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    others = [f"- `{row}`: {said['run']}" for row, said in rows.items() if "run" in said]
    return "\n".join([text, "", *others])


def draw(folder: str, rows: dict[str, Any], name: str, shown: list[str]) -> bool:
    """Draw the LSTM's runs of some rows: `by_length`, the mean accuracy at each length, or the
    validation metric of each run by the sequences seen. Returns whether there are any."""
    found = {row: records(folder)[row, "lstm"].values() for row in shown}
    if not any(found.values()):
        return False
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    for (row, runs), colour in zip(found.items(), COLOURS, strict=False):
        if name == "by_length" and runs:
            lengths = {
                int(n): fmean(run["by_length"][n] for run in runs)
                for n in next(iter(runs))["by_length"]
            }
            mean = fmean(run["test"] for run in runs)  # lines at 1 hide each other
            label = f"{row}, mean {mean:.3f}"
            axes.plot(lengths.keys(), lengths.values(), ".-", color=colour, lw=1.2, label=label)
        for i, run in enumerate(runs if name != "by_length" else ()):
            axes.plot(
                *zip(*run["curve"], strict=True), color=colour, lw=0.8, label="" if i else row
            )
    if name == "by_length":
        axes.set(xlabel="length of the sequence", ylabel="accuracy", ylim=(-0.03, 1.03))
    else:
        criterion = rows[shown[0]]
        axes.axhline(criterion["at_most"], color="grey", ls=":", lw=1, label="solved")
        axes.set(xlabel="sequences seen", ylabel=f"validation {criterion['metric']}", yscale="log")
    figure.legend(loc="outside right", frameon=False)
    figure.savefig(HERE / folder / f"{name}.png", dpi=110)
    return True


def head(row: str, said: dict, runs: dict[int, dict]) -> None:
    """Write what came out with a row's first network into the head of the experiment's file."""
    path = ROOT / f"conf/experiment/{row}.yaml"
    if len(runs) < next(iter(said["seeds"].values())) or not path.exists():
        return
    tested = sorted(record["test"] for record in runs.values())
    solved = sum(meets(said, value) for value in tested)
    first = [seen for record in runs.values() if (seen := reached(said, record))]
    minutes = median(record["cpu_seconds"] for record in runs.values()) / 60
    figure = f"{said['metric']} {median(tested):.4g}, {tested[0]:.4g} to {tested[-1]:.4g} over "
    figure += f"{len(runs)} seeds, {solved} of them solved"
    figure += f", after {min(first):,} to {max(first):,} sequences" if first else ""
    lines = textwrap.wrap(figure, 88)
    block = [f"# Time:    {minutes:.1f} CPU minutes", f"# Figure:  {lines[0]}"]
    block += [f"#          {line}" for line in lines[1:]]
    text = re.sub(r"# Time:.*?(?=# Source:)", "\n".join([*block, ""]), path.read_text(), flags=re.S)
    path.write_text(text)


def write() -> None:
    """Write the page of all tables, the pictures, and the heads of the experiments."""
    parts = [(HERE / "text.md").read_text()]
    for folder, said in folders().items():
        for row, each in said["rows"].items():
            head(row, each, records(folder)[row, next(iter(each["seeds"]))])
        parts += [(HERE / folder / "text.md").read_text(), table(folder, said["rows"])]
        for name, shown in said.get("pictures", {}).items():
            if draw(folder, said["rows"], name, shown):
                alt = f"{name.replace('_', ' ')}: {', '.join(shown)}"
                parts.append(f"![{alt}](../benchmarks/literature/{folder}/{name}.png)")
    PAGE.write_text("\n\n".join(part.strip() for part in parts) + "\n")


if __name__ == "__main__":
    main()
