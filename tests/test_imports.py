import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "seqlab"

#: What of ours each module may import: arrows point from the bottom of this list to its top.
MAY = {
    "__init__": {"checkpoint"},
    "arguments": set(),
    "errors": set(),
    "pictures": set(),
    "seeds": set(),
    "signals": set(),
    "usage": set(),
    "model": {"arguments"},
    "objectives": set(),
    "tasks": {"arguments", "objectives"},
    "runs": {"errors"},
    "results": {"errors", "runs", "signals"},
    "series": {"errors"},
    "data": {"arguments", "errors", "objectives", "seeds", "series", "tasks"},
    "evaluation": {"data"},
    "learner": {"arguments", "data", "errors", "evaluation", "seeds"},
    "checkpoint": {"data", "errors", "series", "tasks"},
    "callbacks": {"arguments", "checkpoint", "data", "model", "pictures", "runs", "signals"},
    "launch": {"errors"},
    "resume": {"checkpoint", "errors", "runs"},
    "build": {
        *("callbacks", "checkpoint", "data", "errors", "launch", "learner", "runs", "tasks"),
    },
    "forecast": {"checkpoint", "data", "objectives", "series"},
    "export": {"checkpoint", "errors"},
    "shapes": {"checkpoint", "data", "errors", "model", "pictures"},
    "tune": {"errors", "runs", "shapes", "training"},
    "training": {
        *("build", "callbacks", "checkpoint", "errors", "evaluation", "learner"),
        *("launch", "model", "results", "resume", "runs", "signals"),
    },
    "cli": {
        "checkpoint",
        "errors",
        "evaluation",
        "export",
        "forecast",
        "pictures",
        "results",
        "runs",
        "shapes",
        "tune",
    },
}


@pytest.mark.parametrize("file", sorted(SOURCE.glob("*.py")), ids=lambda file: file.stem)
def test_imports_point_one_way(file):
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("seqlab"):
            name = node.module.partition(".")[2]
            found |= {name} if name else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.startswith("seqlab")}
    assert found <= MAY[file.stem]


@pytest.mark.parametrize(
    "module", ["seqlab", "seqlab.cli", "seqlab.runs", "seqlab.results", "seqlab.usage"]
)
def test_what_runs_before_training_imports_nothing_heavy(module):
    heavy = ["torch", "lightning", "numpy", "matplotlib", "pydantic", "rich", "polars"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
