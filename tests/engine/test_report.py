import shlex
from types import SimpleNamespace

import pytest
import torch
from program import write

from seqlab.engine.context import RunContext
from seqlab.engine.report import layers, print_end, shapes
from seqlab.model import GRUNetwork, LSTMNetwork
from seqlab.objectives import Values


def test_layers_lists_parts_shapes_and_parameters():
    net = LSTMNetwork(5, 1, 4, 2)
    rows = layers(net, torch.rand(10, 3, 5))
    assert rows == [
        ["rnn.cells", "LSTM", "(10, 3, 4), ((2, 10, 4), (2, 10, 4))", 336],
        ["head", "Linear", "(10, 1)", 5],
    ]
    assert net.training


def test_layers_leaves_no_hook_and_no_mode_behind():
    net = GRUNetwork(5, 1, 4).eval()
    rows = layers(net, torch.rand(10, 3, 5))
    assert [row[2] for row in rows] == ["(10, 3, 4), (1, 10, 4)", "(10, 1)"]
    assert not net.training
    net(torch.rand(10, 3, 5))
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(2, 3), "(2, 3)"),
        ((torch.zeros(2), torch.zeros(3)), "(2,), (3,)"),
        ((torch.zeros(2), (torch.zeros(3), torch.zeros(4))), "(2,), ((3,), (4,))"),
        ((torch.zeros(2), None), "(2,), None"),
        (None, "None"),
    ],
)
def test_shapes_are_quoted_as_they_are_nested(value, said):
    assert shapes(value) == said


MLFLOW = "lightning.pytorch.loggers.MLFlowLogger"


def test_the_end_of_a_run_is_whole_in_a_narrow_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    names = ["network", "persistence", "seasonal naive", "AR(52)", "LSTM (Bai et al. 2018)"]
    rows = {n: {f"test/{metric}": -1234567.0 for metric in Values().better()} for n in names}
    results = {"metrics": rows.pop("network"), "baselines": rows, "epochs": 1, "steps": 2}
    results |= {
        "seconds": 3,
        "stopped": None,
        "advice": None,
        "best_checkpoint": "checkpoints/best.ckpt",
    }
    folder = tmp_path / ("a long name " * 6)
    write(folder, {"events.out.tfevents.1": ""})
    typed = ["data.path=a b.csv", *(f"data.key_{n}={n}" for n in range(9))]
    config = {"model": {"_target_": "mine.Net"}, "logger": {"a": {"_target_": MLFLOW}}}
    run = SimpleNamespace(objective=Values(), config=config)
    print_end(run, results | {"overrides": typed}, RunContext(folder, typed))
    _, _, *lines = capsys.readouterr().out.splitlines()
    end = lines.index("")
    table = lines[:end]
    assert max(map(len, table)) <= 80
    assert "…" not in "".join(table)
    # the forecasters are the columns, since six metrics do not fit
    assert [line.split()[0] for line in table[3:]] == list(results["metrics"])
    assert all(line.split()[1:] == ["-1.235e+06"] * 5 for line in table[3:])
    commands = [shlex.split(line.partition(":")[2]) for line in lines if ":  " in line]
    # TensorBoard is opened on the folder above
    assert [each[2].count("a long name") for each in commands] == [0, 0, 6]
    assert commands[1][-11:] == [*typed, "seed=0,1,2,3,4"]
    assert commands[2][-2:] == ["--trust", "mine"]  # predictions need no logger
