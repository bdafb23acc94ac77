import json
import math
import re

import pytest
from program import write

from seqlab.engine.tables import print_table, tabulate

EXPERIMENTS = {"adding": ("mse", "min"), "copy": ("ce", "min"), "parity": ("accuracy", "max")}


def add(folder, *overrides, best, test=0.5, metric="mse", mode="min", **config):
    """What a finished run leaves that the table reads."""
    metrics = {f"best/val/{metric}": best, f"test/{metric}": test}
    results = {"status": "finished", "overrides": overrides, "metrics": metrics}
    results |= {"monitor": f"val/{metric}", "mode": mode}
    write(folder, {"results.json": json.dumps(results), "config.yaml": json.dumps(config)})


@pytest.fixture
def many(tmp_path):
    """Sixty single runs of three experiments, each with some keys of its own."""
    for n in range(60):
        name = list(EXPERIMENTS)[n % 3]
        metric, mode = EXPERIMENTS[name]
        own = [f"data.key_{n % 12}={n}", f"optim.lr={1 / (n + 1):.3g}", f"seed={n % 5}"]
        groups = [f"experiment={name}", *(["data=random"] if n % 4 else [])]
        config = {"data": {"seq_len": 10, "_target_": "seqlab.tasks.TaskData"}, "monitor": None}
        folder = tmp_path / f"outputs/2026-11-{n % 28 + 1:02}/10-00-{n:02}-{n * 7919:08x}"
        add(folder, *groups, *own, best=n / 7, metric=metric, mode=mode, **config)
    return tmp_path / "outputs"


def lines_of(capsys, table, **options):
    table.show("sixty", **options)
    return capsys.readouterr().out.splitlines()


def test_many_different_runs_fit_the_terminal_a_line_each(many, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    table = tabulate([many], many)
    assert len(table.keys) == 16
    lines = lines_of(capsys, table)
    (n,) = (n for n, line in enumerate(lines) if line.strip(" ─") == "" and line)
    assert (lines[:2], n) == (["sixty", ""], 4)  # a header of two lines
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    columns = ["experiment", "lr", "best", "test", "metric", "status", "folder"]
    assert lines[n - 1].split() == columns
    rows = [line.split() for line in lines[n + 1 :][:60]]
    assert rows[0][:1] + rows[0][2:6] == ["parity", f"{59 / 7:.4g}", "0.5", "accuracy", "finished"]
    for row in rows:  # a pattern that a shell finds this one folder with
        (run,) = many.glob(row[-1])
        assert (run / "results.json").exists()
    assert lines[n + 61 :] == ["", "14 more keys differ; `seqlab results DIR --all` shows them", ""]
    monkeypatch.setenv("COLUMNS", "110")
    wider = lines_of(capsys, table)
    assert wider[n - 1].split()[:4] == ["experiment", "lr", "data", "key_0"]
    assert 80 < max(map(len, wider)) <= 110


def test_every_key_is_shown_on_request_and_in_a_pipe(many, capsys, monkeypatch):
    table = tabulate([many], many)
    monkeypatch.delenv("COLUMNS", raising=False)
    piped = lines_of(capsys, table)
    monkeypatch.setenv("COLUMNS", "80")
    assert lines_of(capsys, table, every_key=True) == piped
    assert re.split(r"\s{2,}", piped[2].strip()) == table.columns
    assert [line.split()[-1] for line in piped[4:64]] == [row[-1] for row in table.rows]
    assert not [line for line in piped if line != line.rstrip() or "more keys" in line]


def test_a_group_is_named_by_its_choice_and_a_value_as_it_is_typed(tmp_path):
    model = {"_target_": "seqlab.model.LSTMNetwork", "n_hidden": 32, "bias": True}
    add(tmp_path / "a", best=1.0, model=model, monitor=None)
    typed = ["model=gru", "model.n_hidden=32", "model.bias=true", "monitor=null", "optim.lr=1e-3"]
    add(tmp_path / "b", *typed, best=2.0)
    first, second = tabulate([tmp_path], tmp_path).records()
    assert list(first)[:2] == ["model", "optim.lr"]
    assert [run["model"] for run in (first, second)] == [None, "gru"]
    results = json.loads((tmp_path / "a/results.json").read_text())
    (tmp_path / "a/results.json").write_text(json.dumps(results | {"groups": {"model": "lstm"}}))
    assert [run["model"] for run in tabulate([tmp_path], tmp_path).records()] == ["lstm", "gru"]


def test_settings_are_sorted_by_what_is_better(tmp_path):
    for n, (lr, best) in enumerate([("1", 0.5), ("1", 0.7), ("2", 0.8), ("2", 0.9)]):
        add(tmp_path / f"{n}", f"optim.lr={lr}", f"seed={n % 2}", best=best, mode="max")
    add(tmp_path / "4", "optim.lr=3", "seed=0", best=0.1, mode="max")  # no repetition
    table = tabulate([tmp_path], tmp_path)
    assert [run["best/val/mse"] for run in table.records()] == [0.9, 0.8, 0.7, 0.5, 0.1]
    assert [each["optim.lr"] for each in table.settings] == ["2", "1"]
    assert [each["best/val/mse"][0] for each in table.settings] == pytest.approx([0.85, 0.6])


def test_a_setting_of_which_one_seed_failed_has_no_deviation(tmp_path, capsys):
    for n, lr in enumerate(["1", "1", "2", "2"]):
        add(tmp_path / f"{n}", f"optim.lr={lr}", f"seed={n % 2}", best=float(n + 1))
    lost = {"status": "failed", "overrides": ["optim.lr=1", "seed=0"]}
    (tmp_path / "0/results.json").write_text(json.dumps(lost))
    table = tabulate([tmp_path], tmp_path)
    alone, both = table.settings
    assert (alone["seeds"], both["seeds"]) == (1, 2)
    assert alone["best/val/mse"][0] == 2
    assert math.isnan(alone["best/val/mse"][1])
    table.show("four")
    assert re.search(r"^  1 +1 +2 +0.5$", capsys.readouterr().out, re.M)


NUMBERS = ["", "test/mse", "test/rmse", "test/mae", "test/r2", "test/mase", "test/skill"]


@pytest.mark.parametrize(
    ("width", "header"),
    [(200, NUMBERS), (80, ["network", "LSTM (Bai et al. 2018)", "AR[bold](52)"])],
)
def test_a_table_of_numbers_is_turned_where_it_is_too_wide(width, header, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    names = ["network", "LSTM (Bai et al. 2018)", "AR[bold](52)"]
    print_table(
        "a [red]title[/red] " * 9, NUMBERS, [[n, 1234567.0, None, *[0.1] * 4] for n in names]
    )
    title, _, first, *rest = capsys.readouterr().out.splitlines()
    assert title == "a [red]title[/red] " * 9  # one line, whatever its length
    assert re.split(r"\s{2,}", first.strip()) == [name for name in header if name]
    assert max(map(len, [first, *rest])) <= width
    cells = [re.split(r"\s{2,}", line.strip()) for line in rest[1:-1]]
    if width == 80:
        assert [row[0] for row in cells] == NUMBERS[1:]
        assert cells[0] == ["test/mse", *["1.235e+06"] * 3]
        assert cells[1] == ["test/rmse", *"---"]
    else:
        assert [row[0] for row in cells] == names


@pytest.mark.parametrize("width", [30, 20])
def test_headers_are_folded_and_never_cut(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    shapes = "(1, 2), (3, 4), (5, 6)"
    print_table("t", ["", "test/mse", "shape"], [["net", 0.5, shapes]])
    out = capsys.readouterr().out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= width
    words = re.sub("─+", "", out).split()
    assert sorted(words) == sorted(["t", "test/", "mse", "shape", "net", "0.5", *shapes.split()])
