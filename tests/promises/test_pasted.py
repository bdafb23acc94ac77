"""Every command of the README and docs/, and every one that a program prints, goes through bash as
it stands, in a folder with a space in its name."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from documents import FILES, MINE, choices, one_of_each, overrides, typed
from hydra import compose, initialize_config_dir
from left import strict_json
from program import ROOT, write
from shell import PRINTED, Shell, checkout, installed

from seqlab.engine.context import as_typed
from seqlab.engine.runs import register_resolvers
from seqlab.tools.cli import commands

#: What stands in capitals for something of the reader's, in the order in which it is put in.
STANDS_FOR = {
    "--data FILE": "--data data/co2.csv",
    "--output FILE": "--output 'a forecast.csv'",
    "--picture FILE.png": "--picture picture.png",
    "--picture FILE": "--picture picture.png",
    "data.path=FILE data.target=COLUMN": "data.path=data/sunspots.csv data.target=sunspots",
    "--steps N": "--steps 3",
    "CKPT": "best.ckpt",
    "DIR...": "outputs/sizes outputs/2*",
    "FOLDER": "'outputs/not done'",
    "PACKAGE": "mine",
    "NAME": "main",
}

#: What cannot be run here, and why.
NOT_HERE = {
    'pip install -e ".[export]"': "needs the network: test_newcomer.py runs it",
    'pip install -e ".[loggers]"': "needs the network: the tests have it",
    "pip install mlflow": "needs the network",
    'pip install -e ".[tune,cluster]"': "needs the network: test_newcomer.py runs it",
    "python3 -m venv .venv": "test_newcomer.py runs it, with the installation that follows",
    '.venv/bin/pip install -e ".[dev]" -c constraints.txt': "test_newcomer.py runs it",
    ".venv/bin/pip install torch==2.13.0": "needs the index of the reader's own CUDA",
    'uv venv && uv pip install -e ".[dev]" -c constraints.txt --torch-backend cpu': "uv is no part",
    "torchrun --nnodes=2 ... train.py trainer=ddp": "two hosts: cluster/test_hosts.py runs it",
    "python benchmarks/literature/run.py": "hours of one core",
    "python benchmarks/literature/run.py ROW": "minutes of one core",
    "seqlab evaluate": "the name of a command",
    "seqlab export": "the name of a command",
    "seqlab stream": "the name of a command",
    "seqlab tune": "the name of a command",
}

#: What `make test` and `make test-slow` run here; each of them has other tests.
A_FEW_TESTS = [
    "tests/test_seeds.py",
    "tests/promises/test_launchers.py::test_a_job_that_fails_stops_no_other",
]

COMMANDS = [(file, text) for file in FILES for kind, text in typed(file) if kind != "python"]
#: What a person types to have it done at once, and what goes on for some seconds.
QUICK = "data.n_train=64 data.n_val=32 data.n_test=32 data.seq_len=4 callbacks.pictures=null"
LONG = f"{QUICK} trainer.max_epochs=200 callbacks.early_stopping=null"


def filled(command: str, **here: str) -> list[str]:
    """The commands for which one of a text stands, with a reader's own files in them; `here`, of
    this place in the text."""
    found = []
    for form in choices(command):
        for name, value in (STANDS_FOR | here).items():
            form = form.replace(name, value)
        found.append(form)
    return found


def newest_checkpoint(project: Path) -> str:
    """The best checkpoint of the last run, as one types it in the project."""
    found = max(project.rglob("best.ckpt"), key=lambda path: path.stat().st_mtime, default=None)
    return str(found.relative_to(project)) if found else "none"


def test_all_kinds_of_commands_are_found():
    found = [text for _, text in COMMANDS]
    assert len(found) > 40
    assert {text.split()[0] for text in found} >= {"make", "python", "seqlab", "."}
    assert not set(NOT_HERE) - set(found), "no text has these now"


@pytest.mark.needs("bash")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_bash_can_read_every_command(file):
    lines = [form for f, text in COMMANDS if f == file for form in filled(text)]
    done = subprocess.run(["bash", "-n"], input="\n".join(lines), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    languages = re.findall(r"^```(\w+)$", file.read_text(), re.MULTILINE)
    assert set(languages) <= {"sh", "python", "yaml"}


def test_every_command_knows_its_keys_and_options(tmp_path):
    """What `--cfg job` would say of each command, and of the settings in sentences together."""
    write(tmp_path, MINE)
    lines = [form for _, text in COMMANDS if text not in NOT_HERE for form in filled(text)]
    lists, parent = [], commands.context_class(commands, **commands.context_settings)
    for line in dict.fromkeys(lines):
        program, *words = shlex.split(line.replace("\\\n", ""))
        if program == "make":
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif program == "seqlab":
            commands.commands[words[0]].make_context(words[0], words[1:], parent=parent)
        if words[0] in ("train.py", "tune", "shapes"):
            lists.append([word for word in words if "=" in word])
    within = [word for text in overrides() for word in shlex.split(filled(text)[0])]
    experiments = {word.partition("=")[2] for word in within if word.startswith("experiment=")}
    assert experiments <= {path.stem for path in (ROOT / "conf/experiment").glob("*.yaml")}
    settings = {word.partition("=")[0]: word for word in within if "experiment=" not in word}
    lists.append(["data=series", *settings.values()])
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for words in map(list, dict.fromkeys(map(tuple, lists))):
            given = one_of_each(as_typed(words))
            compose("config", [*given, f"hydra.searchpath=[{tmp_path.as_posix()}/mine/conf]"])
    assert len(lists) > 15
    assert len(within) > 15


@pytest.fixture
def project(tmp_path):
    """The project as its reader has it, installed, with the files of the docs."""
    return write(installed(checkout(tmp_path / "a folder")), MINE)


def goes_on(shell: Shell, command: str, whole: bool = True) -> None:
    """Paste a printed command, to its end; if not `whole`, one over five seeds to its first job's
    end, where Ctrl-C is pressed."""
    if Path(shlex.split(command)[0]).name == "tensorboard":
        shell.opens(command)
    elif whole or "seed=0,1,2,3,4" not in command:
        shell.types(command)
    else:
        shell.types(command, until=lambda said: "seed=0: best " in said)


def interrupted(shell: Shell, command: str) -> str:
    """Run a command, and press Ctrl-C when its training has begun."""
    before = set(shell.cwd.rglob("last.ckpt"))
    return shell.types(command, until=lambda said: set(shell.cwd.rglob("last.ckpt")) - before)


@pytest.mark.slow
@pytest.mark.needs("bash")
@pytest.mark.parametrize(
    "file", [f for f in FILES if any(file == f for file, _ in COMMANDS)], ids=lambda f: f.name
)
def test_a_text_is_followed_to_its_end(file, project):
    """Every line in the order of the text, in one shell; and then whatever the programs printed."""
    shell, said = Shell(project, PYTEST_ADDOPTS=" ".join(A_FEW_TESTS)), ""
    if file.name != "README.md":
        shell.types(". .venv/bin/activate")
    for kind, text in typed(file):
        here = {"CKPT": newest_checkpoint(project)}
        if file.name == "series.md":
            here |= {"--data FILE": "--data data/sunspots.csv"}
        forms = [text] if kind == "python" else filled(text, **here)
        for form in forms if text not in NOT_HERE else []:
            if "FOLDER" in text:
                words = f"python train.py {LONG} hydra.run.dir=\"'outputs/not done'\""
                interrupted(shell, words)
            said += shell.follows(kind, form)
    results = [strict_json(path) for path in project.rglob("outputs/**/results.json")]
    assert {result["status"] for result in results} <= {"finished", "pruned"}
    for command in dict.fromkeys(PRINTED.findall(said)):
        goes_on(shell, command, whole=False)


@pytest.fixture(params=["active", "not active"])
def person(project, request):
    """Whoever stands in the project, with its environment active or not: a shell, and the path of
    the programs that are typed in it."""
    shell = Shell(project)
    if request.param == "active":
        shell.types(". .venv/bin/activate")
        return shell, ""
    return shell, ".venv/bin/"


def printed(said: str, *programs: str) -> list[str]:
    """The printed commands, which must be of these programs."""
    found = PRINTED.findall(said)
    assert [Path(shlex.split(command)[0]).name for command in found] == list(programs), said
    return found


AFTER_A_RUN = ("tensorboard", "python", "seqlab")


@pytest.mark.slow
@pytest.mark.needs("bash")
def test_what_a_run_of_ones_own_code_prints(person):
    shell, bin = person
    words = (
        f"--config-dir mine/conf model=conv data=summary loss=log_cosh {QUICK} trainer.max_epochs=1"
    )
    commands = printed(shell.types(f"{bin}python train.py {words}"), *AFTER_A_RUN)
    assert [command.partition(" ")[0] for command in commands] == [bin + p for p in AFTER_A_RUN]
    for command in commands:
        goes_on(shell, command)
    assert len(list(shell.cwd.glob("outputs/*/*/*seed=*/results.json"))) == 5


@pytest.mark.slow
@pytest.mark.needs("bash")
@pytest.mark.parametrize(
    ("line", "then"),
    [
        ("python train.py {own} {long} hydra.run.dir=\"'my runs, all/a=1,b=2'\"", AFTER_A_RUN),
        ("python train.py -m {own} {long} seed=0,1 hydra.sweep.dir=\"'my runs, all/a=1'\"",
         ("tensorboard",)),
        ("seqlab tune {long} 'model.n_hidden=range(2,4)' --trials 2", ("python",)),
    ],
    ids=["run", "multirun", "tune"],
)  # fmt: skip
def test_where_ctrl_c_was_pressed_the_printed_command_goes_on_to_the_end(line, then, person):
    """Also in folders with commas, spaces and `=` in their names, and with one's own code."""
    shell, bin = person
    own = "--config-dir mine/conf model=conv data=summary loss=log_cosh"
    said = interrupted(shell, bin + line.format(own=own, long=LONG))
    (go_on,) = printed(said, line.partition(" ")[0])
    for command in printed(shell.types(go_on), *then):
        goes_on(shell, command, whole=False)
    status = [strict_json(path)["status"] for path in shell.cwd.rglob("results.json")]
    assert "finished" in status


@pytest.fixture
def elsewhere(project, tmp_path):
    """A shell in a folder beside the project, its environment active."""
    shell = Shell(project)
    shell.types(". .venv/bin/activate")
    shell.cwd = tmp_path / "another folder"
    shell.cwd.mkdir()
    return shell


@pytest.mark.slow
@pytest.mark.needs("bash")
def test_what_a_run_prints_in_another_folder(project, elsewhere):
    """A run, and one that was interrupted."""
    train = f'python "{project}/train.py" experiment=sunspots callbacks.pictures=null'
    for command in printed(elsewhere.types(f"{train} trainer.max_epochs=2"), *AFTER_A_RUN):
        goes_on(elsewhere, command)
    said = interrupted(elsewhere, f"{train} trainer.max_epochs=60 callbacks.early_stopping=null")
    (go_on,) = printed(said, "python")
    assert len(printed(elsewhere.types(go_on), *AFTER_A_RUN)) == 3


@pytest.mark.slow
@pytest.mark.needs("bash")
def test_what_a_search_prints_in_another_folder(elsewhere):
    words = f"{QUICK} trainer.max_epochs=1 'model.n_hidden=range(2,4)' --trials 2"
    (again,) = printed(elsewhere.types(f"seqlab tune {words}"), "python")
    goes_on(elsewhere, again)
