"""What `--help` shows, and which key is meant by one that is not there."""

import functools
import re
from pathlib import Path

import pytest
import yaml
from program import ROOT, run, write

from seqlab.engine import usage
from seqlab.engine.usage import composed, places

OWN = """
_target_: mine.Network   # our own
n_channels: 7            # C, channels of the convolution, at least 1
n_layers: 3
"""
EVERY = [
    [],
    ["data=series", "model=gru", "optim/schedule=step", "trainer=debug"],
    ["data=mackey_glass", "trainer=ddp", "optim/schedule=plateau"],
    ["data=temporal_order", "optim/schedule=cosine", "experiment=copy_t10"],
]


def sections(text):
    """The groups by name with their choices; and the lines that show the keys."""
    groups, keys = re.search(
        r"Groups and their choices \(.*\):\n(.*)\n\nKeys and their values:\n(.*)\n\nWhere",
        text, re.DOTALL,
    ).groups()  # fmt: skip
    joined = re.sub(r"\n {17}", " ", groups)
    rows = [line.split(maxsplit=1) for line in joined.splitlines()]
    return {group: choices.split(", ") for group, choices in rows}, keys


def said_of(keys):
    """The comment of each key that has a value of its own."""
    lines, found = keys.splitlines(), {}
    for key, number in places(keys).items():
        more = (line for line in lines[number + 1 :])
        comment = [lines[number].partition(" # ")[2]]
        for line in more:
            if not line.lstrip().startswith("# "):
                break
            comment.append(line.strip()[2:])
        found[key] = " ".join(comment).strip()
    nested = {key.rpartition(".")[0] for key in found}
    return {key: comment for key, comment in found.items() if key not in nested}


@pytest.mark.parametrize("overrides", EVERY)
def test_help_shows_every_key_with_its_value_and_what_it_is(overrides, tmp_path):
    help, config = (run(*overrides, *words, cwd=tmp_path) for words in (["-h"], ["--cfg", "job"]))
    assert (help.code, help.err) == (0, "")
    _, keys = sections(help.out)
    shown = yaml.safe_load(config.out.replace(": ???", ": (to be given)"))
    assert yaml.safe_load(keys) == shown
    assert [key for key, comment in said_of(keys).items() if len(comment) < 4] == []
    assert "???" not in help.out
    long = [line for line in help.out.splitlines() if len(line) > 80]
    assert long == []


def test_help_shows_the_choices_and_the_keys_of_the_users_own_folder(tmp_path):
    own = {"model/mine": OWN, "model/broken": "a: {b", "augment/none": "", "data/_x": ""}
    write(tmp_path, {f"own/{name}.yaml": text for name, text in own.items()})
    groups, keys = sections(run("--help", "model=mine", "-cd", "own", cwd=tmp_path).out)
    assert groups["model"] == ["broken", "gru", "lstm", "mine", "minlstm", "transformer"]
    assert groups["augment"] == ["none"]
    assert "_x" not in groups["data"]
    assert not [group for group in groups if "hydra" in group]
    said = said_of(keys)
    assert said["model._target_"] == "our own"
    assert said["model.n_channels"] == "C, channels of the convolution, at least 1"
    assert said["model.n_layers"] == "L, layers one above the other"  # as ours says of that key


@pytest.mark.parametrize(
    ("choice", "said"),
    [("sine", "T, time steps in a sequence"), ("arrays", "T; null: read off the data, ")],
)
def test_a_key_is_explained_by_the_files_that_the_chosen_one_builds_on(choice, said, tmp_path):
    _, keys = sections(run("--help", f"data={choice}", cwd=tmp_path).out)
    assert said_of(keys)["data.seq_len"].startswith(said)


def test_files_that_build_on_each_other_or_are_damaged_hide_no_explanation(tmp_path):
    texts = {"a": "defaults: [_self_, b]", "b": "defaults: [a]", "c": "defaults:", "d": "a: {b"}
    write(tmp_path, {f"{name}.yaml": text for name, text in texts.items()})
    found = {name: usage.bases(tmp_path / f"{name}.yaml") for name in (*texts, "gone")}
    alone = {name: [name] for name in ("c", "d", "gone")}
    assert found == {"a": ["a", "_self_", "b"], "b": ["b", "a", "_self_"]} | alone


MEANT = {
    "model.n_hiden": "model.n_hidden",
    "lr": "optim.lr",
    "model.lr": "optim.lr",
    "epochs": "trainer.max_epochs",
    "modle": "model",
    "optim.shedule": "optim/schedule",
    "optim/shedule": "optim/schedule",
    "callbacks.pictures.every_n_steps": "callbacks.pictures.every_n_epochs",
    "data.path": None,
    "nope": None,
    "x": None,
}


def test_a_key_that_is_nearly_right_or_lacks_its_group_is_recognised(monkeypatch):
    once = functools.cache(lambda *typed: composed([Path(typed[0])], list(typed[1:])))
    monkeypatch.setattr(usage, "composed", lambda dirs, typed: once(str(dirs[0]), *typed))
    assert {key: usage.meant(key, ROOT / "conf", []) for key in MEANT} == MEANT


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("-m model=lstm,gru model.n_hiden=4,8", "model.n_hidden"),
        ("-cd own model=mine n_chanels=3", "model.n_channels"),
    ],
)
def test_the_one_line_says_so_and_what_else_there_is(typed, meant, tmp_path):
    write(tmp_path, {"own/model/mine.yaml": OWN})
    result = run(*typed.split(), cwd=tmp_path)
    key = typed.split()[-1].partition("=")[0]
    assert (result.code, result.out) == (2, "")
    line = rf"error: {key}: no such key; did you mean {meant}\? [\w, ]+ can be set here\n"
    assert re.fullmatch(line, result.err)
