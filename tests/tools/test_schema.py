"""`seqlab schema`: what an editor is told of the config files."""

import json
import re

import pytest
from jsonschema import Draft7Validator
from omegaconf import OmegaConf
from program import ROOT, ours, seqlab, write

CONF = ROOT / "conf"
FILES = [path.relative_to(CONF).as_posix() for path in ours("conf/**/*.yaml")]
FILES = [file for file in FILES if not file.startswith("hydra/")]

#: A network of a user's.
MINE = {
    "described.py": "from torch import nn\n"
    "class Conv(nn.Module):\n"
    "    def __init__(self, n_inputs: int, n_outputs: int, width: int, kind: str = 'a'): ...\n",
    "conf/model/conv.yaml": "_target_: described.Conv\nwidth: 8  # steps that it sees\n",
}


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    folder = tmp_path_factory.mktemp("schema")
    found = seqlab("schema", "--output", "a.json", cwd=folder)
    n = len(json.loads((folder / "a.json").read_text())["definitions"])
    assert (found.code, found.out, found.err) == (0, "", f"a.json: {n} definitions\n")
    return json.loads((folder / "a.json").read_text())


def group_of(file):
    """The name of a file's definition, as one writes it behind `#/definitions/`."""
    package = re.match("# @package (\\S+)", (CONF / file).read_text())
    group = package[1] if package else file.rpartition("/")[0].replace("/", ".")
    return "" if group == "_global_" else group


def mistakes(schema, group, text):
    """What is wrong with the text of a file of a group; "" is a whole config."""
    part = {"definitions": schema["definitions"], "$ref": f"#/definitions/{group}"}
    part = part if group else schema
    content = OmegaConf.to_container(OmegaConf.create(text))
    return " ".join(error.message for error in Draft7Validator(part).iter_errors(content))


@pytest.mark.parametrize("file", FILES)
def test_each_config_file_is_as_the_schema_says(schema, file):
    assert mistakes(schema, group_of(file), (CONF / file).read_text()) == ""


@pytest.mark.parametrize(
    ("group", "text"),
    [
        ("model", "_target_: seqlab.model.LSTMNetwork\nn_hidden: many"),
        ("model", "_target_: seqlab.model.LSTMNetwork\nn_hiden: 8"),
        ("model", "defaults: [lstm]\ninit: crono"),
        ("model", "defaults: [lstm]\ncolour: red"),
        ("model", "_target_: seqlab.model.LSTMNetwork\nn_outputs: 1"),  # follows from the data
        ("data", "defaults: [_toy]\ntask: {_target_: seqlab.tasks.Sine, noise: loud}"),
        ("data", "defaults: [_toy]\ntask: {_target_: seqlab.tasks.Sine, noice: 0.1}"),
        ("data", "seq_len: 2.5"),
        ("loss", "_target_: seqlab.losses.Huber\ndelta: wide"),
        ("optim", "lr: 0"),
        ("optim", "on_nonfinite: go"),
        ("optim", "optimizer: {_target_: torch.optim.SGD, momentum: big}"),
        ("optim.schedule", "_target_: torch.optim.lr_scheduler.StepLR\nstep_sizes: 3"),
        ("callbacks", "last: {_target_: seqlab.engine.last.Last, every_n_steps: often}"),
        ("trainer", "max_epochs: long"),
        ("", "seed: -1"),
        ("", "sead: 1"),
        ("", "defaults: [{data: cosine}]"),
        ("", "defaults: [{override /optim/schedule: cosin}]"),
        ("", "model: {init: crono}"),
    ],
)
def test_a_wrong_type_and_an_unknown_key_are_not(schema, group, text):
    assert mistakes(schema, group, text) != ""


@pytest.mark.parametrize(
    ("group", "text"),
    [
        ("model", "_target_: described.Other\nwhatever: 3"),
        ("model", "defaults: [lstm]\nn_hidden: ${oc.env:HIDDEN}"),
        ("data", "defaults: [_toy]\ntask: {_target_: described.Task, whatever: 3}"),
        ("", "defaults: [{override /data: copy}, {override /logger: [tensorboard, csv]}]"),
        ("", "callbacks: {early_stopping: null, mine: {_target_: described.Callback, a: 1}}"),
        ("", "optim: {optimizer: {_target_: torch.optim.Adam, betas: [0.9, 0.99]}, lr: 1e-3}"),
    ],
)
def test_what_else_one_may_write_is(schema, group, text):
    assert mistakes(schema, group, text) == ""


def test_it_is_a_schema(schema):
    Draft7Validator.check_schema(schema)


def test_it_says_what_a_key_is_for(schema):
    keys = schema["definitions"]["model"]["then"]["allOf"]
    (lstm,) = [each["then"] for each in keys if "'seqlab.model.LSTMNetwork'" in str(each["if"])]
    assert lstm["properties"]["dropout"]["description"] == "between the layers, while training"
    assert lstm["properties"]["init"]["anyOf"][0]["enum"] == ["default", "forget", "chrono"]
    # PyTorch's arguments are described where it documents them
    said = json.dumps(schema["definitions"]["optim.optimizer"])
    assert re.search("coefficients used for computing running averages", said)


def test_it_knows_a_users_classes_and_choices(tmp_path, schema):
    write(tmp_path, MINE)
    text = seqlab("schema", "--config-dir", "conf", cwd=tmp_path).out
    found, whole = json.loads(text), "defaults: [{override /model: conv}]"
    file = MINE["conf/model/conv.yaml"]
    assert mistakes(found, "model", file) == mistakes(found, "", whole) == ""
    assert "steps that it sees" in text
    assert mistakes(found, "model", file.replace("8", "wide")) != ""
    assert mistakes(found, "model", file + "widht: 8") != ""
    # without the folder the class may have any arguments, but its file is no choice
    assert mistakes(schema, "model", file + "widht: 8") == ""
    assert mistakes(schema, "", whole) != ""


def test_a_folder_that_is_not_there_is_told(tmp_path):
    found = seqlab("schema", "--config-dir", "gone", cwd=tmp_path)
    assert (found.code, found.err) == (2, "error: --config-dir=gone: no such folder\n")
