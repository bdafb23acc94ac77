"""Other systems and other versions of Python."""

import json
import re
import subprocess
import sys
import tomllib

import polars
import pytest
import yaml
from left import strict_json
from program import ROOT, TINY

#: Overrides of TINY that a series takes too.
WORDS = " ".join(TINY)


def test_on_windows_it_trains_resumes_sweeps_and_predicts(tmp_path):
    commands = [
        f"train {WORDS} hydra.run.dir=run",
        "train resume=run trainer.max_epochs=2",
        f"train -m {WORDS} seed=0,1 hydra.sweep.dir=sweep",
        "predict run/checkpoints/best.ckpt --output forecast.csv",
    ]
    done = subprocess.run(
        [sys.executable, ROOT / "tests/windows.py", *commands],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [code for code, _ in results] == [0, 0, 0, 0], (results, done.stderr)
    found = strict_json(tmp_path / "run/results.json")
    assert (found["status"], found["epochs"]) == ("finished", 2)
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["trainer"]["max_epochs"] == 2
    assert (tmp_path / "sweep/results.csv").read_text().count("finished") == 2
    assert polars.read_csv(tmp_path / "forecast.csv").height == 32


@pytest.mark.slow
def test_on_windows_every_test_is_found():
    """None fails when it is collected, and what is not there is named when a test needs it."""
    words = "pytest --collect-only -q -p no:cacheprovider -o filterwarnings="
    done = subprocess.run(
        [sys.executable, ROOT / "tests/windows.py", words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"^\d{4} tests collected", done.stdout, re.MULTILINE)


def test_the_workflow_runs_the_everyday_suite_on_three_systems_and_the_bounds_of_python():
    (file,) = (ROOT / ".github/workflows").iterdir()
    workflow = yaml.safe_load(file.read_text())
    assert workflow[True] == ["push", "pull_request"]  # YAML reads `on` so
    job = workflow["jobs"]["test"]
    matrix = job["strategy"]["matrix"]
    assert matrix["os"] == [f"{system}-latest" for system in ("ubuntu", "macos", "windows")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest, after = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"]).groups()
    assert matrix["python"] == [f"3.{oldest}", f"3.{int(after) - 1}"]
    assert job["runs-on"] == "${{ matrix.os }}"
    commands = [step.get("run", step.get("uses")) for step in job["steps"]]
    assert job["steps"][1]["with"] == {"python-version": "${{ matrix.python }}"}
    (everyday,) = re.findall(r"pytest (-q .*not slow.*)", (ROOT / "Makefile").read_text())
    assert commands[-1] == f"python -m pytest {everyday}"
    assert everyday in (ROOT / "docs/install.md").read_text()
    for command in commands:
        assert re.fullmatch(r"actions/[\w-]+@v\d+|(python -m )?[\w-]+ [\w .=\"\[\]-]+", command)
