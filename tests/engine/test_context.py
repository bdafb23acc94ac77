"""The commands that a run prints, in shells of several kinds."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from program import ROOT, TINY, run, seqlab, write

from seqlab.engine.context import RunContext, as_typed, command, quoted


@pytest.fixture
def shell(monkeypatch):
    """A shell in which the environment is not active."""
    monkeypatch.setenv("PATH", os.defpath)


def test_programs_are_called_by_name_where_the_environment_is_active():
    assert command("tensorboard", "--logdir", "a b") == "tensorboard --logdir 'a b'"
    assert command("train.py", "seed=1") == "python train.py seed=1"


def test_and_by_their_path_where_it_is_not(shell):
    program, *words = shlex.split(command("seqlab", "results", "runs, all"))
    assert Path(program).samefile(Path(sys.executable).with_name("seqlab"))
    assert words == ["results", "runs, all"]


@pytest.mark.parametrize("folder", ["run", "a b", "2-model.n_hidden=8,optim.lr=0.01", "it's"])
def test_the_command_that_goes_on_names_the_folder_so_that_hydra_reads_it(folder, tmp_path):
    context = RunContext(tmp_path / folder, [], trust=("mine",))
    *_, resume, trust = shlex.split(context.go_on())
    assert resume == f"resume={quoted(os.path.relpath(tmp_path / folder))}"
    assert trust == "trust=[mine]"


@pytest.mark.needs("bash")
def test_bash_reads_what_a_run_prints_as_the_words_that_do_it(shell, tmp_path):
    """Without an active environment, in a folder with a space in its name."""
    cwd = tmp_path / "my runs"
    cwd.mkdir()
    result = run(*TINY, "hydra.run.dir='a b'", cwd=cwd)
    assert result.code == 0, result.err
    found = {}
    for line in result.out.splitlines():
        if ":  " in line:
            key, _, command = line.partition(":  ")
            words = ["bash", "-c", f"printf '%s\\n' {command}"]
            said = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=True).stdout
            program, *found[key] = said.splitlines()
            assert os.access(cwd / program, os.X_OK), program
    assert found.keys() == {"Look at it", "Over five seeds", "Use it"}
    assert found["Look at it"] == ["--logdir_spec", "a b:a b"]
    used = seqlab(*found["Use it"], cwd=cwd)
    assert used.code == 0, used.err
    assert used.out.startswith("case,step,forecast,truth\n")
    script, *words = found["Over five seeds"]
    assert Path(script).samefile(ROOT / "train.py")
    seeds = run(*words, "hydra.sweep.dir=sweep", cwd=cwd)
    assert seeds.code == 0, seeds.err
    assert len(list(cwd.glob("sweep/*/results.json"))) == 5


@pytest.mark.slow
@pytest.mark.needs("bash")
def test_what_a_run_prints_can_be_pasted_where_it_was_started(tmp_path):
    """In bash, without an active environment, in a folder with a space in its name."""
    cwd = tmp_path / "my runs"
    cwd.mkdir()
    plain = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    plain |= {"PATH": os.defpath}

    def bash(line):
        return subprocess.run(
            ["bash", "-c", line], cwd=cwd, env=plain, capture_output=True, text=True, timeout=120
        )

    words = [sys.executable, str(ROOT / "train.py"), *TINY, "hydra.run.dir='a b'"]
    result = bash(shlex.join(words))
    assert result.returncode == 0, result.stderr
    lines = dict(line.split(":  ", 1) for line in result.stdout.splitlines() if ":  " in line)
    commands = {key: value.strip() for key, value in lines.items()}
    assert commands.keys() == {"Look at it", "Over five seeds", "Use it"}
    used = bash(commands["Use it"])
    assert used.returncode == 0, used.stderr
    assert used.stdout.startswith("case,step,forecast,truth\n")
    looked = bash(commands["Look at it"].replace("--logdir", "--version --logdir"))
    assert looked.returncode == 0, looked.stderr
    seeds = bash(f"{commands['Over five seeds']} hydra.sweep.dir=sweep")
    assert seeds.returncode == 0, seeds.stderr
    assert len(list(cwd.glob("sweep/*/results.json"))) == 5


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("model.n_hidden=4", "model.n_hidden=4"),
        ("optim.lr=1e-2,1e-3", "optim.lr=1e-2,1e-3"),
        ("seed=range(0,4)", "seed=range(0,4)"),
        ("~callbacks.pictures", "~callbacks.pictures"),
        ("data.path='a b.csv'", "data.path='a b.csv'"),
        ("data.path=a=b.csv", "data.path='a=b.csv'"),
        ("data.target=^GSPC", "data.target='^GSPC'"),
        ("data.target=température", "data.target='température'"),
        ("+data.target=it's", r"+data.target='it\'s'"),
        ("resume=outputs/sizes/2-model.n_hidden=8,optim.lr=0.01",
         "resume='outputs/sizes/2-model.n_hidden=8,optim.lr=0.01'"),
        ("nonsense", "nonsense"),
    ],
)  # fmt: skip
def test_a_value_that_hydra_cannot_read_is_taken_as_it_stands(typed, read):
    assert as_typed([typed]) == [read]


def test_the_name_of_a_file_that_is_there_is_no_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert as_typed(["data.path=a,b.csv"]) == ["data.path=a,b.csv"]
    Path("a,b.csv").touch()
    assert as_typed(["data.path=a,b.csv"]) == ["data.path='a,b.csv'"]


def test_options_may_stand_between_overrides():
    typed = ["seed=1", "--config-dir", "mine/conf", "model=conv", "-m", "--cfg=job", "lr=1"]
    assert as_typed(typed) == [
        "--config-dir", "mine/conf", "-m", "--cfg=job", "seed=1", "model=conv", "lr=1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (["seed=0,1", "-m", "lr=1"], ["-m", "seed=0,1", "lr=1"]),
        (["seed=0", "--config-dir=mine"], ["--config-dir=mine", "seed=0"]),
        (["seed=0", "-cd", "mine", "lr=1"], ["-cd", "mine", "seed=0", "lr=1"]),
        (["seed=0", "--cfg", "job", "lr=1"], ["--cfg", "job", "seed=0", "lr=1"]),
        (["seed=0", "-c", "job", "--resolve"], ["-c", "job", "--resolve", "seed=0"]),
    ],
)
def test_every_way_to_write_an_option_may_stand_there(typed, read):
    assert as_typed(typed) == read


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("--n_hidden=4", "--n_hidden=4: overrides have no dashes; model.n_hidden=4"),
        ("-lr 0.1", "-lr: overrides have no dashes; optim.lr=VALUE"),
        ("--nope=4", "--nope=4: overrides have no dashes; nope=4"),
        ("seed=1 -x", "-x: no such option; --help shows what can be given"),
        ("--mutlirun", "--mutlirun: no such option; did you mean --multirun?"),
        ("--cfg", "--cfg: give it a value"),
        ("--cfg jobs", "--cfg=jobs: job, hydra or all"),
        ("--config-dir=gone --help", "--config-dir=gone: no such folder"),
    ],
)
def test_what_is_no_option_is_one_line(typed, line, tmp_path):
    result = run(*typed.split(), cwd=tmp_path)
    assert (result.code, result.out, result.err) == (2, "", f"error: {line}\n")


def test_a_job_of_a_multirun_is_resumed_by_its_own_name_and_shown(tmp_path):
    words = ["-m", *TINY, "model.n_hidden=2,3", "optim.lr=0.01,0.1", "hydra.sweep.dir=sizes"]
    assert run(*words, cwd=tmp_path).code == 0
    folder = "sizes/2-model.n_hidden=3,optim.lr=0.01"
    result = run(f"resume={folder}", "trainer.max_epochs=2", cwd=tmp_path)
    assert result.code == 0, result.err
    shown = seqlab("shapes", f"{folder}/checkpoints/best.ckpt", cwd=tmp_path)
    assert shown.code == 0, shown.err
    assert "(2, 32, 3)" in shown.out


@pytest.mark.parametrize("column", ["température", "^GSPC", "0", "a=b", "it's"])
def test_a_column_is_named_as_it_is_called(column, tmp_path):
    values = "\n".join(f"{i % 7 + i / 50}" for i in range(60))
    name = f'"{column}"' if "," in column else column
    write(tmp_path, {"a=b.csv": f"{name}\n{values}\n"})
    series = ["data=series", "data.path=a=b.csv", f"data.target={column}", "data.seq_len=3"]
    words = [word for word in TINY if "data." not in word]
    result = run(*words, *series, "data.batch_size=4", cwd=tmp_path)
    assert result.code == 0, result.err
    assert result.config["data"]["target"] in (column, 0)
