"""docs/literature.md and the heads of the experiments say what the recorded runs say."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """The script, in a copy of the folders that it reads and writes."""
    for name in ("benchmarks/literature", "conf/experiment"):
        for path in (ROOT / name).rglob("*"):
            if path.is_file() and path.suffix in (".py", ".yaml", ".md", ".jsonl"):
                copy = tmp_path / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
    (tmp_path / "docs").mkdir()
    spec = importlib.util.spec_from_file_location(
        "tables_run", tmp_path / "benchmarks/literature/run.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["run.py", "--write"])
    return module


def test_the_page_and_the_heads_are_those_of_the_runs(tables, tmp_path):
    tables.main()
    assert tables.PAGE.is_relative_to(tmp_path)
    assert tables.PAGE.read_text() == (ROOT / "docs/literature.md").read_text()
    for path in (tmp_path / "conf/experiment").glob("*.yaml"):
        assert path.read_text() == (ROOT / "conf/experiment" / path.name).read_text(), path.name


def test_every_run_that_is_recorded_belongs_to_a_row(tables):
    for path in (ROOT / "benchmarks/literature").glob("*/runs.jsonl"):
        rows = tables.folders()[path.parent.name]["rows"]
        seen = set()
        for line in path.read_text().splitlines():
            record = json.loads(line)
            key = record["row"], record["network"], record["seed"]
            assert key not in seen
            seen.add(key)
            assert record["seed"] < rows[record["row"]]["seeds"][record["network"]]


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # Wilson 1927: the roots p of (k/n - p)**2 = z**2 p (1 - p) / n, z = 1.96
    [(20, 20, 0.8389, 1.0), (8, 10, 0.4902, 0.9433), (0, 3, 0.0, 0.5615), (10, 11, 0.6226, 0.9838)],
)
def test_the_interval_of_a_share_is_wilsons(tables, k, n, low, high):
    assert tables.wilson(k, n) == pytest.approx((low, high), abs=1e-4)


def record(row, seed, test, curve, network="lstm"):
    record = {"row": row, "network": network, "seed": seed, "test": test, "curve": curve}
    return json.dumps(record | {"steps": 9, "cpu_seconds": 90.0, "parameters": 5})


def test_a_line_says_how_many_are_solved_and_when(tables, tmp_path):
    folder = tmp_path / "benchmarks/literature/bai2018"
    lines = [
        record("adding_t600", 0, 4e-4, [[100, 0.2], [200, 9e-4]]),
        record("adding_t600", 1, 0.165, [[100, 0.2], [200, 0.17]]),
        record("adding_t600", 2, 2e-4, [[100, 8e-4], [200, 7e-4]]),
    ]
    (folder / "runs.jsonl").write_text("\n".join(lines) + "\n")
    row = {"metric": "mse", "at_most": 1e-3, "seeds": {"lstm": 3, "gru": 2}, "published": "0.164"}
    rows = {"rows": {"adding_t600": row}, "pictures": {"adding": ["adding_t600"]}}
    (folder / "rows.yaml").write_text(json.dumps(rows))
    tables.main()
    page = tables.PAGE.read_text().splitlines()
    (place,) = (i for i, line in enumerate(page) if line.startswith("| `adding_t600`"))
    assert page[place : place + 2] == [
        "| `adding_t600` | mse <= 0.001 | 2 of 3 | 21 to 94 % | 150; 150 (100 to 200) | "
        "0.0004, 0.165 | 90 | 0.164 |",
        "| gru | mse <= 0.001 | not run |  |  |  |  |  |",
    ]
    text = (tmp_path / "conf/experiment/adding_t600.yaml").read_text()
    assert "# Time:    1.5 CPU minutes\n" in text
    assert (
        "# Figure:  mse 0.0004, 0.0002 to 0.165 over 3 seeds, 2 of them solved, after 100" in text
    )
    assert "# Source:" in text
    assert (folder / "adding.png").stat().st_size > 1000
