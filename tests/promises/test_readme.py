"""What the README and docs/ say is so: figures, formulas, tables, links."""

import contextlib
import importlib.util
import inspect
import io
import math
import re
from pathlib import Path

import pytest
import torch
from documents import FILES, MINE, README
from program import ROOT, ours, run


def test_the_docs_have_files_of_ones_own():
    assert sorted(Path(path).suffix for path in MINE) == [".py"] * 6 + [".yaml"] * 6


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


# docs/promises.md

PROMISES = (ROOT / "docs/promises.md").read_text()


def test_the_tests_that_prove_a_promise_are_there():
    named = re.findall(r"`([\w/]+\.py)`", PROMISES)
    assert len(named) > 20
    for name in named:
        assert (ROOT / "tests" / name).exists(), name


def load_test(file):
    spec = importlib.util.spec_from_file_location(Path(file).stem, ROOT / "tests" / file)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


@pytest.mark.parametrize(
    ("file", "counts"),
    {
        "promises/test_resume.py": {
            "kills at {} batches": "test_killed_at_each_batch",
            "{} kills: ": "test_killed_anywhere_and_resumed_it_ends_the_same",
            "{} chains of up to 12 kills": "test_a_chain_of_kills_at_random_times",
            "other settings | each part of the data; {} settings": (
                "test_another_knob_is_refused_with_the_difference"
            ),
            "{} payloads in its config": "test_nothing_that_a_foreign_folder_names_is_called",
            "; {} in its checkpoint": "test_a_checkpoint_runs_nothing_of_its_own",
            "{} folders to write to": "test_a_foreign_folder_writes_nothing_outside_of_itself",
            "{} files to remove": "test_a_foreign_folder_removes_nothing_outside_of_itself",
            "; {} of a series": "test_a_series_with_a_base_ends_the_same_too",
            ": {} settings (": lambda test: len(test.OPTIONS),
            ") at {} places": lambda test: len(test.POINTS),
        },
        "promises/test_continue.py": {
            "| {} places; ": lambda test: len(test.POINTS),
            "; {} chains of 3 kills": "test_killed_again_and_again",
        },
        "promises/test_signals.py": {
            "{} signals at": lambda test: len(test.CODES),
            "signals at {} places": lambda test: (
                cases(test.test_it_ends_with_a_checkpoint_of_that_step_and_can_be_taken_up)
                // len(test.CODES)
            ),
            "at {} places before training": lambda test: (
                cases(test.test_before_training_it_ends_and_leaves_nothing) // len(test.CODES)
            ),
        },
        "promises/test_durable.py": {
            "{} kills during writes": lambda test: within(
                test.test_killed_a_hundred_and_fifty_times_none_is_torn_and_none_leaked
            ),
            "{} pairs started at once": lambda test: within(
                test.test_ten_pairs_started_at_once_never_share_a_folder
            ),
        },
        "promises/test_nonfinite.py": {
            "{} ways to spoil": "test_in_the_data_it_stops_the_run",
            "{} learning rates": "test_a_learning_rate_beyond_reason_stops_the_run",
        },
        "promises/test_foreign.py": {
            "{} altered": lambda test: len(test.CASES) + len(test.OF_SERIES)
        },
        "tools/test_tune.py": {
            "{} spaces": "test_a_study_of_somebody_elses_runs_nothing_of_its_own"
        },
        "promises/test_bad_input.py": {"{} mistakes": lambda test: len(test.CASES)},
        "engine/test_checkpoint.py": {
            "a kill at {} steps": "test_killed_at_any_step_it_leaves_the_old_file",
            "{} flipped bits": lambda test: within(test.test_every_flipped_bit_is_noticed),
            "{} truncations": lambda test: within(test.test_every_truncation_is_noticed) + 7,
            "{} pickles": "test_a_pickle_that_calls_is_not_run",
        },
        "engine/test_construct.py": {
            "{} targets": lambda test: len(test.HARMFUL),
            "targets at {} places": "test_nor_is_one_inside_of_an_argument",
        },
        "tools/test_cli.py": {"{} payloads in `": "test_no_command_runs_what_a_checkpoint_names"},
        "test_literature.py": {"{} of the lit": "test_evaluate_gives_the_metrics_of_training"},
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_numbers_of_cases_are_those_of_the_tests(file, counts):
    test = load_test(file)
    for said, count in counts.items():
        number = cases(getattr(test, count)) if isinstance(count, str) else count(test)
        assert said.format(number) in PROMISES, (said, number)


def test_the_number_of_random_lists_is_that_of_the_tests():
    text = (ROOT / "tests/promises/test_overrides.py").read_text()  # its import takes seconds
    few, many = re.search(r'"examples", \[(\d+), pytest.param\((\d+)', text).groups()
    assert f"{int(few) + int(many)} lists of overrides" in PROMISES


def cases(test):
    """How many cases a test has."""
    marks = (mark for mark in test.pytestmark if mark.name == "parametrize")
    return math.prod(len(mark.args[1]) for mark in marks)


def within(test):
    """How many rounds the first loop in a test has that counts them with a number."""
    return int(re.search(r"in range\((\d+)\)", inspect.getsource(test))[1])


GROUPS = dict(re.findall(r"^\| `(\w+)` \| ((?:`\w+`(?:, )?)+) \|", README, re.MULTILINE))


#: Where runs go, `hydra`, is no choice of a user's.
CHOICES = sorted({path.parent.name for path in ours("conf/*/*.yaml")} - {"hydra"})


@pytest.mark.parametrize("group", CHOICES)
def test_the_table_has_every_choice(group):
    files = {path.stem for path in ours(f"conf/{group}/[!_]*.yaml")}
    assert set(re.findall(r"\w+", GROUPS[group])) == files


def test_the_table_has_every_schedule():
    (listed,) = re.findall(r"`optim/schedule`: ((?:`\w+`(?:, )?)+)", README)
    files = {path.stem for path in ours("conf/optim/schedule/*.yaml")}
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
