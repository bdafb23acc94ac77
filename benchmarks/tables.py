"""The literature's toy tasks, run and set beside the published figures.

    python benchmarks/tables.py [ROW ...]     all rows, or some

Each row is an experiment over seeds: `train.py experiment=ROW`, or the words of `WORDS`. A run that
is finished is not run again, so the command may be stopped and started. tables.md is written anew
after each run, and docs/adding.png at the end, if all of its runs are there.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import median

import yaml
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "outputs/tables"

HS97 = "Hochreiter & Schmidhuber 1997"
OLD = "RTRL variant, one update a sequence, about 100 weights, stopped on success"
BAI = "70K parameters, Adam"

#: By row: seeds, the metric that decides, its bound (at most for an error, at least for a share),
#: what was published and by whom, and where the comparison is not like for like.
ROWS = {
    "adding_t50": (5, "mse", 1e-3, "none at this length", "", ""),
    "adding_t100": (5, "mse", 1e-3, "none at this length", "", ""),
    "adding_t200": (5, "mse", 1e-3, "none at this length", "", ""),
    "adding_t600": (5, "mse", 1e-3, "MSE 0.164; GRU 5.3e-5", "Bai et al. 2018", BAI),
    "adding_hs97_t100": (5, "within", 0.999, "74,000 sequences", f"{HS97}, 4", OLD),
    "adding_hs97_t500": (5, "within", 0.999, "209,000 sequences", f"{HS97}, 4", OLD),
    "adding_hs97_t1000": (5, "within", 0.999, "853,000 sequences", f"{HS97}, 4", OLD),
    "adding_hs97_t2000": (3, "within", 0.999, "none", "", ""),
    "adding_hs97_t5000": (3, "within", 0.999, "none", "", ""),
    "multiplication_t50": (5, "mse", 5e-3, "none at this length", "", ""),
    "multiplication_t100": (5, "mse", 5e-3, "1,273,000 sequences, MSE 0.0139", f"{HS97}, 5", OLD),
    "temporal_order": (5, "accuracy", 0.99, "31,390 sequences", f"{HS97}, 6a", OLD),
    "temporal_order_3": (5, "accuracy", 0.99, "571,100 sequences", f"{HS97}, 6b", OLD),
    "reber": (5, "legal", 1.0, "8,440 sequences, 100 % of trials", f"{HS97}, 1", OLD),
    "copy_t10": (5, "recalled", 0.99, "none at this length", "", ""),
    "copy_t50": (5, "recalled", 0.99, "none at this length", "", ""),
    "copy_t100": (3, "recalled", 0.99, "baseline at T=1000", "Bai et al. 2018", ""),
}

#: What is run for a row that has the experiment of another, at another length.
WORDS = {
    "adding_t100": "experiment=adding_t50 data.seq_len=100",
    "adding_t200": "experiment=adding_t50 data.seq_len=200",
    "adding_hs97_t500": "experiment=adding_hs97_t1000 data.seq_len=500",
    "adding_hs97_t2000": "experiment=adding_hs97_t1000 data.seq_len=2000",
    "adding_hs97_t5000": "experiment=adding_hs97_t1000 data.seq_len=5000",
    "multiplication_t50": "experiment=multiplication_t100 data.seq_len=50",
}

#: Other networks, on tasks that take minutes. A transformer has no gates to initialise, and at the
#: recipe's learning rate of 1e-2 it was stuck at 75 % in temporal order.
NETWORKS = {
    "gru": "model=gru",
    "minlstm": "model=minlstm",
    "transformer": "model=transformer '~model.init' optim.lr=1e-3",
}
for task in ("adding_t50", "temporal_order", "reber"):
    for name, words in NETWORKS.items():
        ROWS[f"{task}, {name}"] = (*ROWS[task][:3], "", "", "")
        WORDS[f"{task}, {name}"] = f"experiment={task} {words}"

HEAD = """# The literature's toy tasks

Written by `python benchmarks/tables.py` from the runs in `outputs/tables`. A row is
`python train.py experiment=ROW` over seeds 0, 1, .... Some rows are the experiment of another row
at another length, or with another network in place of the LSTM that its recipe was made for; below
the table stands what is run for them. Every sequence is new (`data.fresh`) and the budget is fixed;
after it the checkpoint that was best in validation is tested on 10,000
further sequences. *Solved*: the test meets the criterion. *Sequences*: seen until the first
validation that meets it, the median of the runs and their range (validation follows each epoch, so
these are whole epochs). *Final*: the tested metric, the median and the worst. *CPU*: seconds of a
run, one thread; those of the other networks were taken on a busy machine.

The recipe was looked for on other draws than these, with one exception: a first round of this
table with batches of 32 met the criterion with 3 of 5 seeds at `adding_t50`, 1 of 5 at
`adding_t100` and 4 of 5 at `adding_hs97_t100`. More steps in the same budget of sequences
(batches of 10) is what helped. For temporal order, half the learning rate left one seed of four
on the plateau, and a forget bias of 1 in place of chrono initialisation all four. Copying wants
its learning rate of 1e-2 and 128 units: at T=10, 3e-3 recalled 76 % after 128,000 sequences, and
a forget bias of 1 91 % after 320,000; at T=50 one trial recalled 97 % after 320,000, so its
budget is longer. At T=100 that budget falls short: 84 and 95 % in two
seeds, whose descent the schedule ended, and 87 % in the third, which one step half-way threw back
from a cross-entropy of 0.028 to 0.17. More sequences and a smaller clip were not tried.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    rows = parser.parse_args().rows or list(ROWS)
    for row in rows:
        if row not in ROWS:
            parser.error(f"{row}: no such row; there are {', '.join(ROWS)}")
    for row in rows:
        for seed in range(ROWS[row][0]):
            run(row, seed)
            write_table()
    write_table()
    drawn = ("adding_t50", "adding_t100", "adding_t200", "adding_t600")
    if all(finished(RUNS / row / str(seed)) for row in drawn for seed in range(ROWS[row][0])):
        draw(drawn, ROOT / "docs/adding.png")


def run(row: str, seed: int) -> None:
    """Train one row with one seed, unless that has been done."""
    folder = RUNS / row / str(seed)
    if finished(folder):
        return
    if folder.exists():  # cut off: kept beside, for its train.log
        folder.rename(folder.with_name(f"{seed}-cut-off-{int(folder.stat().st_mtime)}"))
    words = [*words_of(row), f"seed={seed}", f"hydra.run.dir={folder}"]
    print(" ".join(words), flush=True)
    subprocess.run(
        [sys.executable, ROOT / "train.py", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )


def words_of(row: str) -> list[str]:
    """The overrides that a row is run with, without the seed."""
    return shlex.split(WORDS.get(row, f"experiment={row}"))


def finished(folder: Path) -> dict | None:
    """The results of a run that came to its end."""
    file = folder / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    return results if results.get("status") == "finished" else None


def curve(folder: Path, metric: str) -> list[tuple[int, float]]:
    """The validation metric by the sequences seen."""
    batch_size = yaml.safe_load((folder / "config.yaml").read_text())["data"]["batch_size"]
    events = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    return [(e.step * batch_size, e.value) for e in events.Scalars(f"val/{metric}")]


def meets(metric: str, value: float, bound: float) -> bool:
    return value <= bound if metric == "mse" else value >= bound


def cells(row: str) -> list[str]:
    """One line of the table."""
    seeds, metric, bound, published, source, note = ROWS[row]
    folders = [RUNS / row / str(seed) for seed in range(seeds)]
    done = {folder: results for folder in folders if (results := finished(folder))}
    criterion = f"{metric} {'<=' if metric == 'mse' else '>='} {bound:g}"
    beside = [published, source, note]
    if not done:
        return [row, criterion, "not run", "", "", "", "", *beside]
    first = [
        next((n for n, value in curve(folder, metric) if meets(metric, value, bound)), None)
        for folder in done
    ]
    first = sorted(n for n in first if n)
    tested = sorted(r["metrics"][f"test/{metric}"] for r in done.values())
    solved = sum(meets(metric, value, bound) for value in tested)
    worst = tested[-1] if metric == "mse" else tested[0]
    seconds = [r["cpu_seconds"] for r in done.values()]
    short = f"; {len(done)} of {seeds} seeds run" if len(done) < seeds else ""
    return [
        row,
        criterion,
        f"{solved} of {len(done)}{short}",
        f"{median(first):,.0f} ({first[0]:,} to {first[-1]:,})" if first else "never",
        f"{median(tested):.4g}, {worst:.4g}",
        f"{median(seconds):.0f}",
        f"{next(iter(done.values()))['parameters']:,}",
        *beside,
    ]


def draw(rows: tuple[str, ...], path: Path) -> None:
    """The learning curves of the adding task, every run, and what doing nothing gives."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots()
    for row, colour in zip(rows, ("#0072B2", "#009E73", "#E69F00", "#CC79A7"), strict=True):
        for seed in range(ROWS[row][0]):
            points = zip(*curve(RUNS / row / str(seed), "mse"), strict=True)
            label = None if seed else f"T = {row.rpartition('_t')[2]}"
            axes.plot(*points, color=colour, lw=1.2, label=label)
    axes.axhline(1 / 6, color="black", ls="--", lw=1, label="always 1, MSE 1/6")
    axes.axhline(1e-3, color="grey", ls=":", lw=1, label="solved")
    axes.set(xlabel="sequences seen", ylabel="validation MSE", yscale="log")
    axes.set_title("the adding task: a plateau, then a cliff (five seeds each)")
    axes.legend(loc="center right")
    figure.savefig(path, dpi=110)


def write_table() -> None:
    """A line for each row; one whose runs are not in this folder keeps the line it has."""
    file = ROOT / "benchmarks/tables.md"
    before = {line.split(" | ")[0].strip("| "): line for line in file.read_text().splitlines()}
    columns = ["row", "criterion", "solved", "sequences", "final", "CPU", "parameters"]
    columns += ["published", "by", "not alike"]
    lines = [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns))]
    for row in ROWS:
        line = f"| {' | '.join(cells(row))} |"
        lines.append(before.get(row, line) if "| not run |" in line else line)
    others = [f"- {row}: `python train.py {words}`" for row, words in WORDS.items()]
    file.write_text(HEAD + "\n".join([*lines, "", *others]) + "\n")


if __name__ == "__main__":
    main()
