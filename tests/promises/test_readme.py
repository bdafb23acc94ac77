"""What the README and docs/ say is so: commands run as written, figures, tables, links."""

import contextlib
import io
import re
import shlex
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest
import torch
from browser import tensorboard
from documents import FILES, MINE, README, SHELL
from program import ROOT, SMALL, run, seqlab, write

#: The commands of each block, without what is said beside them.
BLOCKS = [
    [line.partition("  #")[0].strip() for line in block.splitlines() if line.strip()]
    for _, block in SHELL
]


@pytest.fixture
def project(tmp_path):
    """A copy of what a user has: the program, its config, the data, and the files of the docs."""
    shutil.copy(ROOT / "train.py", tmp_path)
    for folder in ("conf", "data"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return write(tmp_path, MINE)


def test_the_readme_has_commands_and_the_docs_have_files():
    assert sum(map(len, BLOCKS)) > 20
    assert sorted(Path(path).suffix for path in MINE) == [".py"] * 3 + [".yaml"] * 3


@pytest.mark.parametrize(("file", "block"), SHELL, ids=lambda value: getattr(value, "name", ""))
def test_bash_can_read_every_block(file, block):
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def execute(command, project):
    """Run one command; training gets a few overrides more, which make it small."""
    program, *words = shlex.split(command)
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert re.search(rf"^{words[0]}:", makefile, re.MULTILINE)
    elif program in ("uv", "pip", ".venv/bin/pip") or words[:2] == ["-m", "venv"]:
        pass  # a network is needed; .ci/run installs in this way on a new machine
    elif program == ".":
        assert words == [".venv/bin/activate"]
        assert "bin := .venv/bin\n" in (ROOT / "Makefile").read_text()
    elif program == "tensorboard":
        (project / "outputs").mkdir(exist_ok=True)
        with (
            tensorboard(*words, cwd=project) as address,
            urllib.request.urlopen(address) as page,
        ):
            assert page.status == 200
            assert b"TensorBoard" in page.read()
    elif program == "seqlab":
        result = seqlab(*words, cwd=project)
        assert result.code == 0, result.err
        written = [
            words[n + 1] for n, word in enumerate(words) if word in ("--output", "--picture")
        ]
        assert written or result.out
        for file in written:
            assert (project / file).stat().st_size > 0
    else:
        assert program in ("python", ".venv/bin/python")
        assert words.pop(0) == "train.py"
        small = SMALL[:1] if "data=series" in words else SMALL
        resumed = any(word.startswith("resume=") for word in words)  # as small as it was
        before = set(project.rglob("results.json"))
        more = [] if resumed else [*small, "callbacks.pictures=null"]
        result = run(*words, *more, cwd=project)
        assert result.code == 0, result.err
        jobs = set(project.rglob("results.json")) - before
        assert len(jobs) == (0 if resumed else 4 if "-m" in words else 1)
        for job in project.rglob("results.json"):
            assert '"status": "finished"' in job.read_text()


@pytest.mark.parametrize(
    "commands",
    [
        pytest.param(block, marks=[pytest.mark.slow] if "tune" in block[-1] else [])
        for block in BLOCKS
    ],
    ids=lambda commands: commands[-1],
)
def test_commands_run_as_written(commands, project):
    for command in commands:
        execute(command, project)


# the README


def test_it_is_short():
    assert README.count("\n") <= 200


def test_the_python_block_prints_what_stands_beside_it():
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "README.md", "exec"), names)
    beside = re.findall(r"^print\(.*\)  # (.+)$", block, re.MULTILINE)
    assert len(beside) == 4
    assert printed.getvalue().splitlines() == beside
    assert torch.equal(names["stm"][-1], names["out"][:, -1])


def test_the_gates_are_those_of_the_formula():
    from seqlab import LSTM

    torch.manual_seed(0)
    lstm, x = LSTM(n_inputs=5, n_hidden=4), torch.randn(2, 3, 5)
    (formula,) = re.findall(r"^\[i f g o\] = .*$", README, re.MULTILINE)
    assert formula.replace("\N{GREEK SMALL LETTER SIGMA}", "sigmoid").split(" " * 6) == [
        "[i f g o] = W x + U stm + b",
        "ltm = sigmoid(f) ltm + sigmoid(i) tanh(g)",
        "stm = sigmoid(o) tanh(ltm)",
    ]
    W, U, b_W, b_U = lstm.parameters()
    assert (W.shape, U.shape, b_W.shape, b_U.shape) == ((16, 5), (16, 4), (16,), (16,))
    stm, ltm = (state[0] for state in lstm.init_hidden(2))
    assert not stm.any()
    assert not ltm.any()
    for x_BF in x.unbind(1):
        i, f, g, o = (x_BF @ W.T + stm @ U.T + b_W + b_U).split(4, dim=1)
        ltm = f.sigmoid() * ltm + i.sigmoid() * g.tanh()
        stm = o.sigmoid() * ltm.tanh()
    _, (stm_LBH, ltm_LBH) = lstm(x)
    torch.testing.assert_close(stm_LBH[0], stm)
    torch.testing.assert_close(ltm_LBH[0], ltm)


def test_the_parameters_are_counted_as_it_says():
    from seqlab import LSTM

    layers = LSTM(n_inputs=5, n_hidden=4), LSTM(n_inputs=4, n_hidden=4)
    counts = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    sums = re.findall(r"(\d+)·(\d+) \+ (\d+)·(\d+) \+ (\d+)·(\d+) = (\d+)", README)
    for (a, b, c, d, e, f, total), count in zip(sums, counts, strict=True):
        assert int(a) * int(b) + int(c) * int(d) + int(e) * int(f) == int(total) == count


@pytest.mark.slow
def test_the_default_run_reaches_the_figures_shown(tmp_path):
    result = run(cwd=tmp_path)
    header, _, *lines = re.search(r"```\n( +test/mse.*?)```", README, re.DOTALL)[1].splitlines()
    names = header.split()
    shown = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines)
    rows = {"network": result.results["metrics"], **result.results["baselines"]}
    assert list(shown) == list(rows)
    for who, metrics in rows.items():
        for name, cell in zip(names, shown[who].split(), strict=True):
            if name in metrics:
                near = {"rel": 0.1} if who == "network" else {"rel": 1e-3, "abs": 1e-6}
                assert metrics[name] == pytest.approx(float(cell), **near), (who, name)
            else:
                assert cell == "-"
    assert re.search(r"\s+".join(names), result.out), "other columns are printed now"


LINKS = [
    (file, link)
    for file in FILES
    for link in re.findall(r"\]\(([^)#\s]+)\)", file.read_text())
    if "://" not in link
]


@pytest.mark.parametrize(("file", "link"), LINKS, ids=lambda value: getattr(value, "name", value))
def test_links_and_pictures_are_there(file, link):
    assert (file.parent / link).exists()


def test_every_page_and_picture_of_docs_is_linked():
    linked = {(file.parent / link).resolve() for file, link in LINKS}
    assert {file for file in (ROOT / "docs").iterdir() if file.is_file()} <= linked


def test_pictures_are_small_enough_to_clone():
    for picture in (ROOT / "docs").glob("*.png"):
        assert picture.stat().st_size < 200_000, picture.name


def test_the_tests_that_prove_a_promise_are_there():
    named = re.findall(r"`([\w/]+\.py)`", (ROOT / "docs/resume.md").read_text())
    assert len(named) > 10
    for name in named:
        assert (ROOT / "tests" / name).exists() or (ROOT / name).exists(), name


GROUPS = dict(re.findall(r"^\| `(\w+)` \| ((?:`\w+`(?:, )?)+) \|", README, re.MULTILINE))


#: Where runs go, `hydra`, is no choice of a user's.
CHOICES = sorted({path.name for path in (ROOT / "conf").glob("*/")} - {"hydra"})


@pytest.mark.parametrize("group", CHOICES)
def test_the_table_has_every_choice(group):
    files = {path.stem for path in (ROOT / "conf" / group).glob("[!_]*.yaml")}
    assert set(re.findall(r"\w+", GROUPS[group])) == files


def test_the_table_has_every_schedule():
    (listed,) = re.findall(r"`optim/schedule`: ((?:`\w+`(?:, )?)+)", README)
    files = {path.stem for path in (ROOT / "conf/optim/schedule").glob("*.yaml")}
    assert set(re.findall(r"\w+", listed)) == files


def test_the_reading_list_has_the_core_and_every_room():
    said = README[README.index("## The code") :]
    core = re.findall(r"^\d\. `(\w+\.py)`", said, re.MULTILINE)
    assert core == [
        f"{name}.py" for name in ("model", "objectives", "data", "tasks", "learner", "training")
    ]
    modules = {path.name for path in (ROOT / "src/seqlab").glob("[!_]*.py")}
    assert {*re.findall(r"`(\w+\.py)`", said)} == {*modules, "train.py"}
    rooms = {path.parent.name for path in (ROOT / "src/seqlab").glob("*/__init__.py")}
    assert {*re.findall(r"`(\w+)/`", said)} == {*rooms, "tests", "benchmarks"}
