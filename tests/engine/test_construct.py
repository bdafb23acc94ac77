"""What a config names is imported only if it is trusted, called only if it is of the right kind,
and given only what it takes; whatever is wrong is one line that begins with the key."""

import copy
import sys
from datetime import timedelta
from itertools import product

import lightning as L
import pytest
import torch
from program import write
from torch import nn

from seqlab.engine.construct import (
    KINDS,
    construct,
    construct_data,
    network_of,
    objective_of,
    prepare,
    sizes_of,
)
from seqlab.engine.errors import UserError
from seqlab.model import LSTMNetwork
from seqlab.objectives import Classes, Values
from seqlab.tasks import Sine, TaskData

SIZES = {"n_inputs": 5, "n_outputs": 2, "every_step": False}
MODEL = {"_target_": "seqlab.model.LSTMNetwork", "n_hidden": 4}
TASK = {"_target_": "seqlab.tasks.Sine", "noise": 0.1}
DATA = {"_target_": "seqlab.tasks.TaskData", "task": TASK, "seq_len": 6, "fresh": False, "seed": 0}
DATA |= {"n_train": 64, "n_val": 32, "n_test": 32, "batch_size": 8}
DATA |= {"accumulate": 1, "steps_per_call": 4}
DATA |= dict.fromkeys(["min_len", "val_len", "test_len", "test_task"])
QUIET = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
WEIGHTS = [nn.Parameter(torch.zeros(1))]

#: For each group of the config: a node, and what its constructor is given.
NODES = {
    "data": (DATA, {}),
    "model": (MODEL, SIZES),
    "loss": ({"_target_": "seqlab.objectives.Values"}, {}),
    "optim.optimizer": ({"_target_": "torch.optim.SGD", "lr": 0.1}, {"params": WEIGHTS}),
    "optim.schedule": (
        {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 3},
        {"optimizer": torch.optim.SGD(WEIGHTS, 0.1), "mode": "min"},
    ),
    "trainer": ({"_target_": "lightning.Trainer", "accelerator": "cpu", **QUIET}, {}),
    "callbacks.x": ({"_target_": "seqlab.watch.pictures.Pictures", "every_n_epochs": 5}, {}),
}


def kinds_of(path):
    return KINDS.get(path) or KINDS[path.partition(".")[0]]


def make(path, node, trust=None, **given):
    """Construct a node of a group, with what the group is given."""
    return construct(node, kinds_of(path), path, trust, **(NODES[path][1] | given))


def refusal(path, node, trust=None, **given):
    """The one line that it is refused with."""
    before = copy.deepcopy(node)
    with pytest.raises(UserError) as caught:
        make(path, node, trust, **given)
    assert node == before
    line = str(caught.value)
    assert line.isprintable(), line
    assert line.startswith(path), line
    return line


@pytest.mark.parametrize("path", NODES)
@pytest.mark.parametrize("trust", [None, ()])
def test_what_each_group_names_is_constructed_and_the_config_left_as_it_is(path, trust):
    node = NODES[path][0]
    before = copy.deepcopy(node)
    made = make(path, node, trust)
    assert type(made).__name__ == node["_target_"].rpartition(".")[2]
    assert isinstance(made, kinds_of(path))
    assert node == before


# what is no class of the kind is never called

MARKER = """
from pathlib import Path


def touch(*args, **kwargs):
    Path("called").touch()


class Touch:
    __init__ = __call__ = __new__ = touch


class Meta(type):
    __call__ = touch


class Made(metaclass=Meta):
    make = classmethod(touch)


instance = object.__new__(Touch)
"""
HARMFUL = [
    *(f"mine.marker.{name}" for name in ("touch", "Touch", "Made", "Made.make", "instance")),
    *("mine.marker.Path", "mine.marker", "mine", "mine.", "os.system", "builtins.eval"),
    *("torch.save", "torch.hub.load", "torch.utils.collect_env.run", "lightning.seed_everything"),
    *("seqlab.engine.checkpoint.write", "seqlab.engine.checkpoint.os.system", "seqlab", "seqlab."),
    *(".seqlab.model.LSTMNetwork", "seqlab..model.LSTMNetwork", "seqlabs.model.LSTMNetwork"),
    *("", None, 3, ["mine.marker.touch"], {"_target_": "mine.marker.touch"}, "datetime.timedelta"),
]
#: Where a node may stand inside another, and its key there.
PLACES = {
    ".extra": lambda bad: {"extra": bad},
    ".extra.deep.deeper": lambda bad: {"extra": {"deep": {"deeper": bad}}},
    ".extra[1]": lambda bad: {"extra": [1, bad]},
    ".extra[0][1]": lambda bad: {"extra": [[1, bad]]},
    ".extra[0].deep[0]": lambda bad: {"extra": [{"deep": [bad]}]},
    ".a.b": lambda bad: {"a.b": bad},
    ".a[0]": lambda bad: {"a[0]": bad},
    ".extra.a.b": lambda bad: {"extra": {"a.b": bad}},
    ".extra.a[0][0]": lambda bad: {"extra": {"a[0]": [bad]}},
}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A package of the user's, in the current folder, imported anew."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/marker.py").write_text(MARKER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "mine"
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


@pytest.mark.parametrize("path", NODES)
def test_a_target_that_is_no_class_of_the_kind_is_not_called(path, mine):
    for target, trust in product(HARMFUL, (None, (), ("mine", "os", "builtins"))):
        line = refusal(path, NODES[path][0] | {"_target_": target}, trust)
        assert line.startswith(f"{path}._target_={target}: "), line
    assert not (mine.parent / "called").exists()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("path", NODES)
def test_nor_is_one_inside_of_an_argument(path, place, mine):
    for target, trust in product(HARMFUL, (None, (), ("mine", "os", "builtins"))):
        if (path, target) == ("trainer", "datetime.timedelta"):
            continue  # a strategy's timeout is one
        bad = {"_target_": target, "command": "touch called", "source": "open('called', 'w')"}
        line = refusal(path, NODES[path][0] | PLACES[place](bad), trust)
        assert line.startswith(f"{path}{place}._target_={target}: "), line
    assert not (mine.parent / "called").exists()


@pytest.mark.parametrize("place", PLACES)
def test_nor_is_one_inside_of_a_nested_node(place, mine):
    bad = {"_target_": "mine.marker.touch"}
    line = refusal("data", DATA | {"task": TASK | PLACES[place](bad)})
    assert line.startswith(f"data.task{place}._target_=mine.marker.touch: "), line
    assert not (mine.parent / "called").exists()


@pytest.mark.parametrize("other", NODES)
@pytest.mark.parametrize("path", NODES)
def test_a_class_of_another_group_is_refused(path, other):
    target = NODES[other][0]["_target_"]
    if path != other:
        line = refusal(path, NODES[path][0] | {"_target_": target})
        assert "must be a subclass of" in line
    if (path, other) not in {("model", "model"), ("data", "model")}:
        line = refusal(path, NODES[path][0] | {"extra": NODES[other][0]})
        assert line.startswith(f"{path}.extra._target_={target}: ")


def test_the_kinds_that_would_do_are_named():
    line = refusal("model", MODEL | {"_target_": "seqlab.tasks.Sine"})
    kind = "torch.nn.modules.module.Module"
    assert line == f"model._target_=seqlab.tasks.Sine: must be a subclass of {kind}"
    line = refusal("loss", NODES["loss"][0] | {"extra": MODEL})
    assert line.endswith("no class is expected here")


@pytest.mark.parametrize("node", [None, 3, "seqlab.model.LSTMNetwork", [], {}, {"n_hidden": 4}])
@pytest.mark.parametrize("path", NODES)
def test_a_part_that_names_no_class_is_refused(path, node):
    way = "optim/schedule chooses a file" if path == "optim.schedule" else "give it a _target_"
    assert refusal(path, node) == f"{path}={node}: names no class; {way}"


# keys of Hydra's that would change how a class is called

SPECIAL = {"_partial_": True, "_args_": [1], "_convert_": "all", "_recursive_": False}


@pytest.mark.parametrize("key", SPECIAL)
@pytest.mark.parametrize("path", NODES)
def test_hydras_other_special_keys_are_refused_wherever_they_stand(path, key):
    value = SPECIAL[key]
    line = refusal(path, NODES[path][0] | {key: value})
    assert line == f"{path}.{key}={value}: no key to set"
    for place, put in PLACES.items():
        line = refusal(path, NODES[path][0] | put({key: value}))
        assert line == f"{path}{place}.{key}={value}: no key to set"


@pytest.mark.parametrize("key", SPECIAL)
def test_they_are_refused_in_nested_nodes_too(key):
    line = refusal("data", DATA | {"task": TASK | {key: SPECIAL[key]}})
    assert line == f"data.task.{key}={SPECIAL[key]}: no key to set"


# what is not trusted is not imported

NOTED = """
from pathlib import Path

from torch import nn

from seqlab.tasks import Sine

Path("imported").touch()


class Net(nn.Module):
    pass


class Task(Sine):
    pass
"""


@pytest.mark.parametrize(
    "trust", [(), ("min",), ("mines",), ("mine.other",), ("mine.noted.Net",), ("other", "")]
)
@pytest.mark.parametrize("place", ["", ".inside", ".inside[0]"])
def test_what_is_not_trusted_is_not_imported(trust, place, mine):
    (mine / "noted.py").write_text(NOTED)
    node = {"_target_": "mine.noted.Net"}
    if place:
        node = MODEL | {"inside": [node] if "[" in place else node}
    line = refusal("model", node, trust)
    assert line.startswith(f"model{place}._target_=mine.noted.Net: not trusted; --trust mine")
    assert "mine.noted" not in sys.modules
    assert not (mine.parent / "imported").exists()


@pytest.mark.parametrize("trust", [None, ("mine",), ("other", "mine.noted")])
def test_what_is_trusted_is_imported(trust, mine):
    (mine / "noted.py").write_text(NOTED)
    made = make("data", DATA | {"task": TASK | {"_target_": "mine.noted.Task"}}, trust)
    assert type(made.task).__module__ == "mine.noted"
    assert (mine.parent / "imported").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nowhere_at_all", "No module named 'nowhere_at_all'"),
        ("raise RuntimeError('first\\n\\nsecond')", "first"),
        ("x = (", "'(' was never closed (broken.py, line 1)"),
        ("raise KeyError", "KeyError()"),
        ("", "module 'mine.broken' has no attribute 'Net'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(text, said, mine):
    (mine / "broken.py").write_text(text)
    line = refusal("model", MODEL | {"_target_": "mine.broken.Net"})
    assert line == f"model._target_=mine.broken.Net: {said}"


# what is given


def test_given_arguments_fill_what_is_left_out_or_null():
    made = make("model", MODEL | {"n_outputs": None})
    assert (made.head.out_features, made.rnn.cells.input_size) == (2, 5)
    assert make("model", MODEL | {"n_outputs": 3}).head.out_features == 3
    assert make("model", MODEL | {"every_step": True}).every_step is True
    assert make("model", MODEL | {"every_step": False}, every_step=True).every_step is False


def test_only_what_the_constructor_takes_is_given():
    made = make("model", {"_target_": "torch.nn.Linear", "in_features": 5, "out_features": 2})
    assert isinstance(made, nn.Linear)
    step, plateau = (
        make("optim.schedule", {"_target_": f"torch.optim.lr_scheduler.{name}", **rest}, mode="max")
        for name, rest in (("StepLR", {"step_size": 3}), ("ReduceLROnPlateau", {}))
    )
    assert (hasattr(step, "mode"), plateau.mode) == (False, "max")


def test_what_a_constructor_passes_on_to_its_base_class_is_given_too(mine):
    (mine / "derived.py").write_text(
        "from seqlab.model import LSTMNetwork\n"
        "class Net(LSTMNetwork):\n"
        "    def __init__(self, width: int, **rest):\n"
        "        super().__init__(n_hidden=2 * width, **rest)\n"
    )
    made = make("model", {"_target_": "mine.derived.Net", "width": 2, "n_layers": 2})
    cells = made.rnn.cells
    assert (cells.input_size, cells.hidden_size, cells.num_layers) == (5, 4, 2)
    assert made.head.out_features == 2


def test_a_null_that_nothing_is_given_for_stays_null():
    made = make("model", MODEL | {"t_max": None})
    assert made.rnn.cells.hidden_size == 4
    assert refusal("model", MODEL | {"n_hidden": None}).startswith("model.n_hidden=None: ")


def test_what_is_given_goes_to_the_outermost_alone(mine):
    (mine / "own.py").write_text(OWN)
    node = {"_target_": "mine.own.Net", "layers": [{"_target_": "mine.own.Part"}]}
    assert refusal("model", node).startswith("model.layers[0].n_inputs: not given")
    node["layers"][0]["n_inputs"] = 7
    made = make("model", node)
    assert (made.n_inputs, made.layers[0].n_inputs) == (5, 7)


# what is wrong with the arguments is one line

OWN = """
from torch import nn


class Part(nn.Module):
    def __init__(self, n_inputs: int, width: int = 3):
        super().__init__()
        if width < 1:
            raise ValueError(f"width={width}: at least 1")
        self.n_inputs = n_inputs


class Net(nn.Module):
    def __init__(self, n_inputs, layers=(), depth: int = 0, error=None, **rest):
        super().__init__()
        self.n_inputs, self.layers, self.rest = n_inputs, layers, rest
        if depth < 0:
            raise ValueError(f"depth={depth}: at least 0")
        if error:
            raise ERRORS[error]


ERRORS = {
    "with =": ValueError("layers=[]: at least one\\nand more"),
    "with :": ValueError("layers: at least one"),
    "other": ValueError("the layers do not fit: 3 = 4"),
    "longer": ValueError("layers_of=3: not an argument"),
    "none": ValueError(),
    "type": TypeError("layers=3: a list"),
    "lines": RuntimeError("\\n  first line\\nsecond line"),
    "arithmetic": ZeroDivisionError("division by zero"),
    "file": FileNotFoundError(2, "No such file or directory", "weights.pt"),
    "memory": MemoryError("too large"),
}
"""


@pytest.mark.parametrize(
    ("path", "changed", "said"),
    [
        ("model", {"n_hidden": "abc"}, "model.n_hidden=abc: it should be a valid integer"),
        ("model", {"n_hidden": 4.5}, "model.n_hidden=4.5: "),
        ("model", {"n_hidden": "4"}, "model.n_hidden=4: it should be a valid integer"),
        ("model", {"n_hidden": True}, "model.n_hidden=True: "),
        ("model", {"n_hidden": [4]}, "model.n_hidden=[4]: "),
        ("model", {"n_hidden": {"a": 4}}, "model.n_hidden={'a': 4}: "),
        ("model", {"n_hidden": None}, "model.n_hidden=None: "),
        ("model", {"dropout": "much"}, "model.dropout=much: it should be a valid number"),
        (
            "model",
            {"init": "nope"},
            "model.init=nope: it should be 'default', 'forget' or 'chrono'",
        ),
        ("model", {"n_inputs": "5"}, "model.n_inputs=5: it should be a valid integer"),
        ("data", {"n_train": "many"}, "data.n_train=many: it should be a valid integer"),
        ("data", {"fresh": "maybe"}, "data.fresh=maybe: it should be a valid boolean"),
        ("data", {"task": 3}, "data.task=3: it should be an instance of Task"),
        ("data", {"task": None}, "data.task=None: it should be an instance of Task"),
        ("data", {"task": "seqlab.tasks.Sine"}, "data.task=seqlab.tasks.Sine: it should be an"),
        ("data", {"task": [TASK]}, "data.task="),
        ("data", {"task": {"noise": 0.1}}, "data.task={'noise': 0.1}: "),
        (
            "data",
            {"task": TASK | {"noise": "loud"}},
            "data.task.noise=loud: it should be a valid n",
        ),
        ("callbacks.x", {"every_n_epochs": "often"}, "callbacks.x.every_n_epochs=often: it should"),
        ("optim.optimizer", {"lr": "abc"}, "optim.optimizer.lr=abc: "),
        ("optim.schedule", {"step_size": "abc"}, "optim.schedule.step_size=abc: "),
        ("trainer", {"max_epochs": "abc"}, "trainer.max_epochs=abc: "),
    ],
)
def test_an_argument_of_a_wrong_type_is_named_with_its_value(path, changed, said):
    assert refusal(path, NODES[path][0] | changed).startswith(said)


@pytest.mark.parametrize("path", [path for path in NODES if path != "loss"])
def test_an_unknown_argument_is_named_with_those_that_there_are(path):
    node, given = NODES[path]
    line = refusal(path, node | {"nope": 1})
    name = node["_target_"].rpartition(".")[2]
    assert line.startswith(f"{path}.nope: no such argument; {name} takes ")
    takes, _, way = line.partition(" takes ")[2].partition("; ")
    takes, key = takes.split(", "), f"{path}.nope"
    assert way == f"~{key} leaves it out"
    assert set(node) - {"_target_"} <= set(takes)
    assert not set(given) & set(takes)


def test_an_unknown_argument_of_a_nested_node_is_named_with_its_key():
    line = refusal("data", DATA | {"task": TASK | {"nope": 1}})
    assert line.startswith("data.task.nope: no such argument; Sine takes noise; ~data.task.nope ")


def test_a_figure_of_an_objective_that_is_no_function_is_refused():
    assert refusal("loss", NODES["loss"][0] | {"nope": 1}).startswith("loss.nope")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"nope": 1}, "data.nope: no such argument; MackeyGlass takes batch_size, accumulate, "),
        ({"batch_size": "abc"}, "data.batch_size=abc: "),
        ({"batch_size": None}, "data.batch_size=None: "),
        ({"horizon": 0}, "data.horizon=0: at least 1"),
        ({"horizon": ...}, "data.horizon: not given, and it has no default"),
        ({"seed": ...}, "data.seed: not given, and it has no default"),
    ],
)
def test_arguments_that_are_passed_on_to_a_base_class_are_named_too(changed, said):
    node = {"_target_": "seqlab.literature.MackeyGlass", "n": 300, "tau": 17, "val_from": 0.6}
    node |= {
        "test_from": 0.8,
        "seq_len": 5,
        "horizon": 1,
        "lead": 1,
        "season": None,
        "predict": "level",
        "calendar": [],
    }
    node |= {"batch_size": 8, "accumulate": 1, "steps_per_call": 4, "seed": 0}
    make("data", node)
    node = {key: value for key, value in (node | changed).items() if value is not ...}
    assert refusal("data", node).startswith(said)


@pytest.mark.parametrize("key", sorted(set(DATA) - {"_target_"}))
def test_a_missing_argument_is_named(key):
    node = {name: value for name, value in DATA.items() if name != key}
    assert refusal("data", node) == f"data.{key}: not given, and it has no default"


def test_a_missing_argument_that_others_are_given_for_is_named():
    with pytest.raises(UserError, match=r"^model\.n_inputs: not given, and it has no default$"):
        construct(MODEL, KINDS["model"], "model", None, n_outputs=1)


def test_a_constructor_that_takes_any_argument_is_given_any(mine):
    (mine / "own.py").write_text(OWN)
    made = make("model", {"_target_": "mine.own.Net", "anything": [1, {"a": 2}]})
    assert made.rest == {"anything": [1, {"a": 2}]}


@pytest.mark.parametrize(
    ("path", "changed", "said"),
    [
        ("model", {"n_hidden": 0}, "model.n_hidden=0: at least 1"),
        ("model", {"dropout": 1.5}, "model.dropout=1.5: at least 0 and below 1"),
        (
            "data",
            {"task": TASK | {"noise": -1}},
            "data.task.noise=-1: a finite number of at least 0",
        ),
        ("data", {"n_train": 7}, "data.n_train=7: at least batch_size=8"),
        ("data", {"n_val": 1}, "data.n_val=1: at least 2"),
        (
            "data",
            {"task": {"_target_": "seqlab.literature.Reber"}, "seq_len": 19},
            "data.seq_len=19: at least 20 for Reber",
        ),
        ("callbacks.x", {"every_n_epochs": 0}, "callbacks.x.every_n_epochs=0: at least 1"),
        # an argument that the config leaves to its default
        ("model", {"init": "chrono"}, "model.t_max=None: an integer of at least 1"),
        # an argument that is given
        ("model", {"n_outputs": 0}, "model.n_outputs=0: at least 1"),
    ],
)
def test_an_error_that_begins_with_an_argument_gets_the_key_in_front(path, changed, said):
    assert refusal(path, NODES[path][0] | changed) == said


def test_an_error_that_begins_with_a_given_argument_gets_the_key_in_front():
    assert refusal("model", MODEL, n_outputs=0) == "model.n_outputs=0: at least 1"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("with =", "model.layers=[]: at least one"),
        ("with :", "model.layers: at least one"),
        ("other", "model: the layers do not fit: 3 = 4"),
        ("longer", "model: layers_of=3: not an argument"),
        ("none", "model: ValueError()"),
        ("type", "model.layers=3: a list"),
        ("lines", "model: first line"),
        ("arithmetic", "model: division by zero"),
        ("file", "model: [Errno 2] No such file or directory: 'weights.pt'"),
        ("memory", "model: too large"),
    ],
)
def test_any_error_of_a_constructor_is_one_line_under_the_key(error, said, mine):
    (mine / "own.py").write_text(OWN)
    node = {"_target_": "mine.own.Net", "layers": [], "error": error}
    assert refusal("model", node) == said


def test_a_network_too_large_for_the_memory_is_one_line():
    assert refusal("model", MODEL | {"n_hidden": 10**8}).startswith("model: ")


@pytest.mark.parametrize(
    ("path", "changed", "said"),
    [
        ("optim.optimizer", {"lr": -1}, "optim.optimizer={'lr': -1}: Invalid learning rate"),
        ("trainer", {"accelerator": "abc"}, "trainer={"),
    ],
)
def test_an_error_in_the_words_of_a_library_quotes_what_it_was_given(path, changed, said):
    line = refusal(path, NODES[path][0] | changed)
    assert line.startswith(said)
    for key, value in changed.items():
        assert f"{key!r}: {value!r}" in line


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([{"width": 0}], "model.layers[0].width=0: at least 1"),
        (
            [{"width": 1}, {"width": "abc"}],
            "model.layers[1].width=abc: it should be a valid integer",
        ),
        ([{}, {"nope": 1}], "model.layers[1].nope: no such argument; Part takes n_inputs, width"),
        ([[{}, {"width": -2}]], "model.layers[0][1].width=-2: at least 1"),
        ({"a": {"b": {"width": -2}}}, "model.layers.a.b.width=-2: at least 1"),
    ],
)
def test_a_nested_node_has_its_own_key_in_front(layers, said, mine):
    def named(value):
        if isinstance(value, list):
            return [named(each) for each in value]
        if set(value) & {"a", "b"}:
            return {key: named(each) for key, each in value.items()}
        return {"_target_": "mine.own.Part", "n_inputs": 1, **value}

    (mine / "own.py").write_text(OWN)
    assert refusal("model", {"_target_": "mine.own.Net", "layers": named(layers)}).startswith(said)


def test_an_error_of_the_users_that_is_raised_inside_is_passed_on(mine):
    (mine / "told.py").write_text(
        "from torch import nn\nfrom seqlab.engine.errors import UserError\n"
        "class Net(nn.Module):\n"
        "    def __init__(self): raise UserError('model.part=3: as it stands')\n"
    )
    assert refusal("model", {"_target_": "mine.told.Net"}) == "model.part=3: as it stands"


def test_nested_nodes_are_constructed_in_dicts_and_lists(mine):
    (mine / "own.py").write_text(OWN)
    part = {"_target_": "mine.own.Part", "n_inputs": 1}
    node = {"_target_": "mine.own.Net", "layers": [part, [part, 3]], "more": {"a": {"b": part}}}
    made = make("model", node)
    first, (second, three) = made.layers
    found = [type(each).__name__ for each in (first, second, made.rest["more"]["a"]["b"])]
    assert (found, three) == (["Part"] * 3, 3)
    assert first is not second


def test_a_strategy_with_its_timeout_is_constructed():
    strategy = {
        "_target_": "lightning.pytorch.strategies.DDPStrategy",
        "timeout": {"_target_": "datetime.timedelta", "seconds": 30},
    }
    made = make("trainer", NODES["trainer"][0] | {"strategy": strategy}, ())
    assert isinstance(made, L.Trainer)
    assert made.strategy._timeout == timedelta(seconds=30)


# what uses it


def test_the_objective_is_a_copy_of_the_datas_or_the_one_named():
    data = make("data", DATA)
    own = objective_of(None, data, ())
    assert type(own) is Values
    assert own is not data.objective
    assert objective_of(NODES["loss"][0], data, ()) is not own


def test_an_objective_is_told_the_outputs_and_keeps_the_metrics_of_the_data():
    data = make("data", DATA)
    data.n_outputs, data.objective = 3, Values(near=torch.sub, far=torch.add)
    node = {"_target_": "seqlab.losses.Quantile", "levels": [0.2, 0.8]}
    found = objective_of(node, data, ())
    assert (found.n_outputs, found.n_values) == (3, 2)
    assert found.figures == {"near": torch.sub, "far": torch.add}
    sizes = sizes_of(data, found)
    assert (sizes["n_outputs"], sizes["n_values"]) == (3, 2)
    assert sizes_of(data, Values())["n_values"] == 1
    assert network_of(MODEL, sizes, ()).head.out_features == 6
    # those of a checkpoint from before there were several
    del sizes["n_values"]
    assert network_of(MODEL, sizes, ()).head.out_features == 3


def test_an_objective_for_targets_of_another_type_is_refused():
    with pytest.raises(UserError, match=r"^loss=seqlab.objectives.Classes: .*int64.*float32$"):
        objective_of({"_target_": "seqlab.objectives.Classes"}, make("data", DATA), ())
    assert Classes.dtype == torch.int64


@pytest.mark.parametrize("value", [5, [1], "41,500"])
def test_a_pair_is_asked_for_with_an_example(value):
    said = f"data.test_len={value}: it should be two values, as in [1,2]"
    assert refusal("data", DATA | {"test_len": value}) == said


def test_an_objective_for_targets_of_another_shape_is_refused():
    task = {"_target_": "seqlab.literature.TwoSequence", "variant": "3c", "n_first": 3}
    data = make("data", DATA | {"task": task, "seq_len": 20})
    with pytest.raises(UserError, match=r"^loss=seqlab.losses.MAE: for targets \(1,\); loss=task"):
        objective_of({"_target_": "seqlab.losses.MAE"}, data, ())


def test_data_of_an_older_run_have_no_lengths_of_their_own():
    older = {key: value for key, value in DATA.items() if not key.endswith("_len")}
    older = {**older, "seq_len": 6}
    del older["test_task"]
    assert construct_data(older, ()).ranges == dict.fromkeys(("train", "val", "test"), (6, 6))


def test_what_is_wrong_with_the_data_themselves_is_one_line():
    class Wrong(Sine):
        def draw(self, n, seq_len, generator):
            return torch.rand(n, 1), torch.rand(n, 1)

    rest = {key: value for key, value in DATA.items() if key not in ("_target_", "task")}
    data = TaskData(Wrong(), **rest)
    with pytest.raises(UserError, match=r"^data: Wrong.draw must return inputs"):
        prepare(data, Values(), torch.device("cpu"))


def test_data_and_objective_are_prepared_together():
    data = make("data", DATA)
    objective = objective_of(None, data, ())
    prepare(data, objective, torch.device("cpu"))
    assert set(objective.references) == {"train", "val", "test"}
    assert isinstance(make("model", MODEL), LSTMNetwork)


def test_of_a_package_in_this_folder_the_line_says_how_it_is_found(tmp_path, monkeypatch):
    write(tmp_path, {"away/net.py": ""})
    monkeypatch.chdir(tmp_path)
    for target, said in (
        ("away.net.Net", "No module named 'away'; PYTHONPATH=. has Python look in this folder"),
        ("nowhere_at_all.Net", "No module named 'nowhere_at_all'"),
    ):
        with pytest.raises(UserError) as raised:
            construct({"_target_": target}, (nn.Module,), "model", None)
        assert str(raised.value) == f"model._target_={target}: {said}"


DEEPER = """
from torch import nn


class Net(nn.Module):
    def __init__(self, n_inputs, n_outputs, n_hidden):
        super().__init__()
        if n_hidden > 8:
            self.cells = nn.Linear(n_inputs, n_hidden, nope=1)
        self.head = nn.Linear(n_hidden)
"""


@pytest.mark.parametrize(
    ("n_hidden", "said"), [(4, "missing 1 required"), (9, "got an unexpected keyword")]
)
def test_an_argument_that_is_wrong_deeper_inside_is_no_key(n_hidden, said, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(write(tmp_path, {"deeper/net.py": DEEPER}))
    node, sizes = (
        {"_target_": "deeper.net.Net", "n_hidden": n_hidden},
        {"n_inputs": 1, "n_outputs": 1},
    )
    with pytest.raises(UserError) as caught:
        construct(node, KINDS["model"], "model", ("deeper",), **sizes)
    assert str(caught.value).startswith(f"model: Linear.__init__() {said}")
