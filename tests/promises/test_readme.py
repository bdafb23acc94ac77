import re
import shlex
import shutil
import urllib.request
from pathlib import Path

import pytest
from browser import tensorboard
from program import ROOT, SMALL, run, seqlab, write

README = (ROOT / "README.md").read_text()
OWN = (ROOT / "docs/your-own.md").read_text()
#: The commands of each block, without what is said beside them.
BLOCKS = [
    [line.partition("  #")[0].strip() for line in block.splitlines() if line.strip()]
    for block in re.findall(r"```sh\n(.*?)```", README + OWN, re.DOTALL)
]
#: The files of a network and a task of one's own, by the path that stands above each.
MINE = dict(re.findall(r"\n`(mine/[\w/.]+)`\n\n```\w+\n(.*?)```", OWN, re.DOTALL))


@pytest.fixture
def project(tmp_path):
    """A copy of what a user has: the program, its config, the data, and the files of the README."""
    shutil.copy(ROOT / "train.py", tmp_path)
    for folder in ("conf", "data"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return write(tmp_path, MINE)


def test_the_readme_has_commands_and_files():
    assert sum(map(len, BLOCKS)) > 10
    assert sorted(Path(path).suffix for path in MINE) == [".py", ".py", ".yaml", ".yaml"]


def execute(command, project):
    """Run one command; training gets a few overrides more, which make it small."""
    program, *words = shlex.split(command)
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert re.search(rf"^{words[0]}:", makefile, re.MULTILINE)
    elif program in ("uv", "pip", ".venv/bin/pip") or words[:2] == ["-m", "venv"]:
        pass  # a network is needed; .ci/run installs in this way on a new machine
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
        if "--output" in words:
            assert (project / words[words.index("--output") + 1]).stat().st_size > 0
        else:
            assert result.out
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


LINKS = [link for link in re.findall(r"\]\(([^)#\s]+)\)", README) if "://" not in link]


@pytest.mark.parametrize("link", LINKS)
def test_links_and_pictures_are_there(link):
    assert (ROOT / link).exists()


def test_pictures_are_small_enough_to_clone():
    for picture in (ROOT / "docs").glob("*.png"):
        assert picture.stat().st_size < 200_000, picture.name


def test_it_is_short():
    assert README.count("\n") < 250


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


def test_the_code_table_has_every_module():
    modules = {path.name for path in (ROOT / "src").glob("*/[!_]*.py")}
    listed = set(re.findall(r"[`/](\w+\.py)`", README[README.index("## The code") :]))
    assert listed == {*modules, "train.py"}
