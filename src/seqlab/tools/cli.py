"""The `seqlab` commands. They import torch, this module does not, so that `--help` is quick.
Results go to stdout, everything else to stderr."""

import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import click
from hydra.errors import HydraException

from seqlab.engine.errors import UserError, first_line, one_line_errors
from seqlab.engine.runs import finite, write_whole
from seqlab.engine.tables import print_table, tabulate

Words = tuple[str, ...]
FORMATS = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}  # with their endings

checkpoint = click.argument("checkpoint", metavar="CKPT", type=click.Path())
data_file = click.option("--data", "file", metavar="FILE", help="Another file with its columns.")
trusted = click.option("--trust", multiple=True, metavar="PACKAGE", help="CKPT may import it.")
level = click.FloatRange(0, 1, min_open=True, max_open=True)
as_json = click.option("--json", "as_json", is_flag=True, help="For a program to read.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="seqlab")
def commands() -> None:
    """Evaluate, predict, stream, export and explain a trained network. CKPT is a .ckpt file of a
    run; it is all that is needed."""


@commands.result_callback()
def flush(result: None) -> None:
    """Write what stdout holds back, since at Python's end an error would be no line of ours."""
    sys.stdout.flush()


def main() -> None:
    """The console script. When the reader of stdout goes away, click ends it without a word."""
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115  it stays open to the end
    with one_line_errors():
        if sys.stdout is None:
            raise UserError("stdout is closed; > /dev/null throws away what is not wanted")
        try:
            commands()
        except HydraException:  # some are OSErrors too
            raise
        except OSError as error:  # a file cannot be written
            sys.stdout = None  # or Python would try to write the rest at its end
            file = error.filename or "stdout"
            said = f"{file}: {error.strerror}" if error.strerror else first_line(error)
            raise UserError(said) from error


@commands.command(short_help="Test metrics beside those of the baselines.")
@checkpoint
@data_file
@click.option("--interval", type=level, default=0.9, show_default=True, help="Of the coverage.")
@click.option("--origins", type=click.IntRange(2), metavar="N", help="Its parts, for a spread.")
@trusted
@as_json
def evaluate(
    checkpoint: str,
    file: str | None,
    interval: float,
    origins: int | None,
    trust: Words,
    as_json: bool,
) -> None:
    """The test metrics of CKPT beside the baselines, or those on another file; and the coverage,
    which is the share of the test values that lie within the intervals of `predict`. With N
    origins the test part of a series is also cut into N parts, one after another, and a table says
    how the loss differs between them."""
    import torch

    from seqlab.engine.forecaster import load, load_data
    from seqlab.engine.intervals import coverage
    from seqlab.engine.report import as_table, compare, verdict
    from seqlab.tools.forecast import from_origins, spread

    forecaster = load(checkpoint, trust)
    torch.set_num_threads(forecaster.config["threads"])  # as in the run, for the same last digit
    data, objective = load_data(forecaster, trust, file)
    if (n := len(data.splits["test"])) < 2:
        raise UserError(f"{file or checkpoint}: {n} test sequences; two have metrics")
    with torch.inference_mode():
        rows = compare(data, objective, forecaster.predict_scaled)
    parts = from_origins(forecaster, data, objective, origins) if origins else []
    if as_json:
        found = {"test": rows, "origins": parts} if origins else rows
        print(json.dumps(finite(found), indent=2))
        return
    inside = coverage(forecaster, data, objective, interval)
    print_table(f"{checkpoint} on {file or 'its test set'}", *as_table(objective, rows))
    print(verdict(objective, rows))
    if parts:
        print_table(*spread(objective, parts))
    if inside is not None:
        print(f"Intervals of {interval:.3g} hold {inside:.3g} of the test values.")


@commands.command(short_help="Forecasts with their times, also after a series' end.")
@checkpoint
@data_file
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Rows after a series' end.")
@click.option("--interval", type=level, metavar="P", help="Add low and high, as in 0.9.")
@click.option("--output", metavar="FILE", help="Write .csv, .parquet or .json; else CSV on stdout.")
@click.option("--picture", metavar="FILE.png", help="Draw the last of a series and what follows.")
@trusted
def predict(
    checkpoint: str,
    file: str | None,
    steps: int | None,
    interval: float | None,
    output: str | None,
    picture: str | None,
    trust: Words,
) -> None:
    """Forecasts in the data's units. Of the test set, or of every window of another file, and of
    what follows a series. A row for each value: its time, the forecast and, if known, the truth.
    With a picture and no other file nothing is written to stdout.

    The last rows, the horizon's or N, follow the end of a series. Beyond the horizon the network
    goes on from its own forecasts, a horizon at a time, and their errors add up. It can do so where
    it reads nothing but the series itself and the first forecast is of the next row.

    The interval from low to high holds the truth with the probability P, as far as new errors are
    like those on the validation part (split conformal prediction)."""
    check_output("output", output, ".csv, .parquet or .json")
    check_output("picture", picture, ".png, .pdf or .svg")
    from seqlab.engine.forecaster import load, load_data
    from seqlab.series.windows import WindowData
    from seqlab.tools.forecast import forecasts

    forecaster = load(checkpoint, trust)
    data, objective = load_data(forecaster, trust, file)
    if picture and not isinstance(data, WindowData):
        raise UserError("--picture: only a series has one; TensorBoard shows those of a task")
    n, hidden = len(data.splits["test"]), not sys.stderr.isatty()
    with click.progressbar(length=n, file=sys.stderr, hidden=hidden) as bar:
        table = forecasts(forecaster, data, objective, bar.update, steps, interval)
    if picture:
        from seqlab.watch.pictures import last_forecasts

        known = forecaster.predict_scaled, forecaster.errors, steps or data.horizon
        figure = last_forecasts(data, "test", objective, *known, interval or 0.9)
        save_figure(picture, figure, "the last forecasts")
    if output:
        getattr(table, f"write_{Path(output).suffix[1:]}")(body := io.BytesIO())
        save(output, body, f"{len(table)} rows")
    elif not picture:
        sys.stdout.write(table.write_csv())


@commands.command(short_help="A time step a line in, a prediction a line out.")
@checkpoint
@trusted
def stream(checkpoint: str, trust: Words) -> None:
    """Read one time step a line on stdin, write the prediction after it a line. A line is a value,
    or one value for each input column, separated by commas. The hidden state is carried from step
    to step. A bad line is reported on stderr and skipped."""
    if sys.stdin is None:
        raise UserError("stdin is closed; the time steps are read there")
    import torch

    from seqlab.engine.forecaster import load

    forecaster, hidden = load(checkpoint, trust), None
    sys.stdin.reconfigure(errors="replace")  # bytes that are no text make a bad line
    F = forecaster.sizes["n_inputs"]
    with torch.inference_mode():
        for number, line in enumerate(sys.stdin, start=1):
            try:
                x_BF = torch.tensor([[float(v) for v in line.split(",")]], dtype=torch.float64)
                if x_BF.shape != (1, F) or not x_BF.isfinite().all():
                    raise ValueError
            except ValueError:
                what = "a finite number" if F == 1 else f"{F} finite numbers"
                click.echo(f"error: line {number}: {line.strip()!r}: give {what}", err=True)
                continue
            prediction, hidden = forecaster.step(x_BF, hidden)
            print(",".join(f"{value:.9g}" for value in prediction[0].tolist()), flush=True)


@commands.command(short_help="Write ONNX, a torch.export program or safetensors.")
@checkpoint
@click.option("--format", "kind", required=True, type=click.Choice(FORMATS))
@click.option("--output", metavar="FILE", help="Default: CKPT's name with the format's ending.")
@trusted
def export(checkpoint: str, kind: str, output: str | None, trust: Words) -> None:
    """Write the network for use without this project. ONNX: windows (B, T, F) in, forecasts (B, O)
    out, any batch and length, data units; checked against PyTorch with onnxruntime. torch: a
    torch.export program of one step, from x_t (B, F) in float64 and the hidden state, zeros at
    first, to the prediction and the hidden state, data units. safetensors: the weights, with the
    config and the scaler as metadata."""
    check_output("output", output)
    from seqlab.engine.forecaster import load
    from seqlab.tools import export

    forecaster = load(checkpoint, trust)
    target = Path(output) if output else Path(checkpoint).with_suffix(FORMATS[kind])
    done = getattr(export, f"to_{kind}")(forecaster, target)
    click.echo(f"{target}: {done}", err=True)


@commands.command(short_help="What goes through an LSTM, and of which shape.")
@click.argument("what", nargs=-1, metavar="[CKPT | KEY=VALUE ...]")
@click.option("--picture", metavar="FILE.png", help="Draw the network unrolled in time.")
@trusted
@as_json
def shapes(what: Words, picture: str | None, trust: Words, as_json: bool) -> None:
    """Walk through the LSTM: what goes in, what comes out, of which shape. Of a checkpoint, or of
    the reference sizes with overrides, as in `seqlab shapes n_hidden=8 seq_len=24`. A key that one
    group alone has needs no group in front of it. With `data=` or `experiment=` the sizes are
    theirs."""
    check_output("picture", picture, ".png, .pdf or .svg")
    from seqlab.tools.shapes import draw, example, show

    network, x = example(what, trust)
    found = show(network, x)
    if picture:
        save_figure(picture, draw(network, x), "the network unrolled in time")
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print_table("The shapes", ["", "shape", "meaning"], found["shapes"])
    title = f"{sum(row[-1] for row in found['layers'])} parameters"
    print_table(title, ["part", "type", "output", "parameters"], found["layers"])
    print(f"stm[-1] == out[:, -1]: {found['stm[-1] == out[:, -1]']}")


@commands.command(short_help="Examine a config before it is trained.")
@click.argument("overrides", nargs=-1, metavar="[GROUP=CHOICE ...] [KEY=VALUE ...]")
@click.option("--config-dir", metavar="FOLDER", help="Config files of yours, as for train.py.")
@click.option("--picture", metavar="FILE.png", help="Draw the loss over the learning rate.")
def check(overrides: Words, config_dir: str | None, picture: str | None) -> None:
    """Examine what `python train.py` would train with the same words, in about ten seconds. A line
    for each check: `ok` and what it found, `FAIL` and what to try, or `skip` and why it does not
    apply. The exit code is 1 if one fails. It computes on the CPU and leaves no run behind."""
    check_output("picture", picture, ".png, .pdf or .svg")
    from seqlab.tools.check import draw, examine

    failed, sweep = False, {}
    for verdict, name, found in examine(overrides, config_dir, sweep):
        click.echo(f"{verdict:<4} {name}: {found}")
        failed |= verdict == "FAIL"
    if picture and sweep:
        save_figure(picture, draw(sweep), "the loss over the learning rate")
    sys.exit(failed)


@commands.command(short_help="A JSON schema of the config files, for editors.")
@click.option("--config-dir", metavar="FOLDER", help="Know its files and their classes too.")
@click.option("--output", metavar="FILE.json", help="Write it; else on stdout.")
def schema(config_dir: str | None, output: str | None) -> None:
    """A JSON schema of the config files, from the types of the constructors. An editor with
    yaml-language-server completes and checks a file that begins with a line such as
    `# yaml-language-server: $schema=../../schema.json#/definitions/model`: the file of the
    schema, as seen from there, and the group. Without #/definitions/... it is a whole config."""
    check_output("output", output, ".json")
    from seqlab.tools.schema import schema

    found = schema(config_dir)
    text = json.dumps(found, indent=1) + "\n"
    if output:
        save(output, io.BytesIO(text.encode()), f"{len(found['definitions'])} definitions")
    else:
        sys.stdout.write(text)


@commands.command(short_help="The table of all runs in some folders, best first.")
@click.argument("folders", nargs=-1, required=True, metavar="DIR...", type=click.Path())
@click.option("--output", metavar="FILE.csv", help="Write the table.")
@click.option("--picture", metavar="FILE.png", help="Draw the metric against each key.")
@click.option("--all", "every_key", is_flag=True, help="Every key that differs, however wide.")
@as_json
def results(
    folders: Words, output: str | None, picture: str | None, every_key: bool, as_json: bool
) -> None:
    """The table of all runs in some folders, best first. Single runs, multiruns and searches,
    finished or not; a column for each key that differs. Where only the seed differs, also mean
    and standard deviation over the seeds."""
    check_output("output", output, ".csv")
    check_output("picture", picture, ".png")
    table = tabulate(list(map(Path, folders)), Path(folders[0] if len(folders) == 1 else "."))
    if output:
        table.write(Path(output))
        click.echo(f"{output}: {len(table.rows)} rows", err=True)
    if picture:
        from seqlab.watch.figures import against_keys

        save_figure(picture, against_keys(table.records(), table.keys), "the metric by key")
    if as_json:
        print(json.dumps(finite({"runs": table.records(), "seeds": table.settings}), indent=2))
    else:
        table.show(f"{len(table.rows)} runs in {' '.join(folders)}", every_key=every_key)


@commands.command(short_help="Search for the best values of some keys.")
@click.argument("words", nargs=-1, metavar="[KEY=SPACE ...] [KEY=VALUE ...]")
@click.option("--trials", type=click.IntRange(1), default=50, show_default=True, help="In all.")
@click.option("--timeout", type=click.FloatRange(0), metavar="S", help="Start none after this.")
@click.option("--study", default="search", show_default=True, help="Its name.")
@click.option("--storage", metavar="URL", help="A database; default: a file in the study's folder.")
@click.option("--seed", type=click.IntRange(0), help="Of the draws.")
@click.option("--heartbeat", type=click.IntRange(1), default=60, show_default=True, metavar="S")
@as_json
def tune(words: Words, as_json: bool, **options: Any) -> None:
    """Search for the best values of some keys with Optuna. KEY=SPACE is an override of Hydra's with
    many values: `model.n_hidden=range(4,128)`, `optim.lr=tag(log,interval(1e-4,1e-1))`,
    `model.init=default,chrono`. Each trial is a run in outputs/tune/STUDY. Repeat the command, on
    other machines too, for more workers on one study. Without KEY=SPACE `--study NAME` goes on with
    its own, and without a name the studies are listed. The trial of a killed worker is tried again,
    in a database after two heartbeats."""
    try:
        from seqlab.tools.tune import report, search
    except ImportError as error:
        raise UserError(f"{error}; pip install -e '.[tune]'") from None

    found = report(*search(words, name=options.pop("study"), **options))
    if as_json:
        print(json.dumps(finite(found), indent=2))
        return
    kinds = ("complete", "pruned", "fail", "running", "waiting")
    print(", ".join(f"{found[kind]} {kind}" for kind in kinds))
    if "best" in found:
        print(f"Best: trial {found['trial']}, {found['best']:.6g}")
        print(f"Repeat it:  {found['command']}")
        print(f"Look at it: {' '.join(found['pictures'])}")


def check_output(option: str, path: str | None, endings: str = "") -> None:
    """Refuse a file that cannot be written, before the work is done."""
    if path is None:
        return
    file, said = Path(path), None
    if endings and file.suffix not in re.split(", | or ", endings):
        said = f"must end in {endings}"
    elif not file.parent.is_dir():
        said = f"there is no folder {file.parent}"
    elif file.is_dir():
        said = "Is a directory"
    elif file.exists() and not file.is_file():
        said = "a device or a pipe, and it would be replaced"
    elif not os.access(file.parent, os.W_OK):
        said = f"the folder {file.parent} cannot be written"
    if said:
        raise UserError(f"--{option}={path}: {said}")


def save(path: str, body: io.BytesIO, what: str) -> None:
    """Write a file whole or not at all, and say so."""
    write_whole(Path(path), body.getvalue())
    click.echo(f"{path}: {what}", err=True)


def save_figure(path: str, figure: Any, what: str) -> None:
    """Write a figure in the format that the file's ending names."""
    figure.savefig(body := io.BytesIO(), format=Path(path).suffix[1:], dpi=150)
    save(path, body, what)
