"""The house: which room may import which, how large it may be, and what waits for torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "seqlab"
FILES = sorted(SOURCE.rglob("*.py"))
CORE = ("model", "objectives", "data", "tasks", "learner")

#: What of ours a file of each room may import.
MAY = {
    "seqlab": set(),  # its names are imported when they are asked for
    "core": {"core"},
    "training": {"core", "engine"},
    "series": {"core", "series"},
    "literature": {"core", "series", "sources"},
    "languages": {"core"},
    "losses": {"core"},
    "networks": {"core"},
    "sources": {"core"},
    "engine": {"core", "engine", "sources"},  # a plain LightningDataModule is made one of these
}
MAY["watch"] = {*MAY, "watch"}
MAY["tools"] = {*MAY, "watch", "tools"}


def room_of(module):
    """The room of `seqlab.engine.runs`, say: `engine`."""
    name = module.split(".")[1] if "." in module else "seqlab"
    return "core" if name in CORE else name


def is_module(name):
    path = SOURCE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def imports(file):
    """The modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}, line {node.lineno}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if node.module == "seqlab" and is_module(name) else node.module


def name_of(file):
    return file.relative_to(SOURCE).as_posix()


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_each_room_imports_what_it_may(file):
    room = room_of(f"seqlab.{name_of(file).removesuffix('.py').replace('/', '.')}")
    room = "seqlab" if room == "__init__" else room
    assert room in MAY, f"{name_of(file)} stands in no room of the house"
    found = {name for name in imports(file) if name.partition(".")[0] == "seqlab"}
    assert not {name for name in found if room_of(name) not in MAY[room]}


@pytest.mark.parametrize("name", CORE)
def test_the_core_needs_torch_and_lightning_alone(name):
    packages = {module.partition(".")[0] for module in imports(SOURCE / f"{name}.py")}
    assert packages - sys.stdlib_module_names <= {"seqlab", "torch", "lightning", "torchmetrics"}


def sizes(files):
    return {name_of(file): len(file.read_text().splitlines()) for file in files}


def test_the_core_is_read_in_twenty_minutes():
    found = sizes(SOURCE / f"{name}.py" for name in (*CORE, "training", "__init__"))
    assert not {name: n for name, n in found.items() if n > 230}
    assert sum(found.values()) <= 1100, found


def test_the_whole_is_no_larger_than_one_can_hold_in_mind():
    found = sizes(FILES)
    assert sum(found.values()) <= 9543, f"{sum(found.values())} lines: {found}"


@pytest.mark.parametrize(
    "folder", sorted({file.parent for file in FILES} - {SOURCE}), ids=lambda path: path.name
)
def test_each_folder_says_what_it_is_and_who_reads_it(folder):
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert text is not None
    assert len(text.splitlines()) == 2


@pytest.mark.parametrize(
    "module",
    [
        "seqlab",
        "seqlab.tools.cli",
        *(f"seqlab.engine.{name}" for name in ("runs", "multirun", "context", "usage")),
    ],
)
def test_what_runs_before_training_imports_nothing_heavy(module):
    heavy = ["torch", "lightning", "numpy", "matplotlib", "pydantic", "rich", "polars"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
