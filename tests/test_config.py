import copy
import functools
import inspect

import numpy as np
import pytest
import read_once
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import OmegaConf
from program import ROOT, ours

from seqlab.engine.build import build
from seqlab.engine.context import RunContext
from seqlab.engine.runs import register_resolvers
from seqlab.model import RecurrentNetwork
from seqlab.tasks import Task

CONF = ROOT / "conf"
FILES = [path.relative_to(CONF).with_suffix("").as_posix() for path in ours("conf/**/*.yaml")]
BASES = [file for file in FILES if file.rpartition("/")[2].startswith("_")]

#: What the file leaves open.
NEEDS = {
    "data/series": ["data.path=data/sunspots.csv", "data.target=sunspots"],
    "loss/cross_entropy": ["data=copy"],
}


@pytest.fixture(scope="module", autouse=True)
def arrays(tmp_path_factory):
    """A file for `data=arrays`, which asks for one."""
    path = tmp_path_factory.mktemp("arrays") / "a.npz"
    shapes = {"x": (32, 4, 1), "y": (32, 1)}
    parts = [(f"{s}_{p}", shapes[p]) for s in ("train", "val", "test") for p in shapes]
    np.savez(path, **{name: np.zeros(shape, np.float32) for name, shape in parts})
    NEEDS["data/arrays"] = [f"data.path={path}"]


@functools.cache
def composed_once(file):
    register_resolvers()
    group, _, name = file.rpartition("/")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [*([f"{group}={name}"] if group else []), *NEEDS.get(file, [])])


def composed(file):
    return copy.deepcopy(composed_once(file))


def raw(file):
    return OmegaConf.to_container(OmegaConf.load(CONF / f"{file}.yaml"))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["model=gru", "data.seq_len=8", "+model.more={a: 1}"],
        ["experiment=adding_t50", "~callbacks.last"],
        ["optim/schedule=cosine", "data=copy", "hydra/launcher=joblib"],
    ],
    ids=" ".join,
)
def test_what_the_tests_remember_of_the_files_is_what_hydra_composes(words, monkeypatch):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        first, again = (compose("config", words, return_hydra_config=True) for _ in range(2))
        loader = read_once.config_loader_impl
        monkeypatch.setattr(loader, "create_defaults_list", read_once.create_defaults_list)
        merge = "_compose_config_from_defaults_list"
        monkeypatch.setattr(loader.ConfigLoaderImpl, merge, read_once.merge)
        expected = compose("config", words, return_hydra_config=True)
    for found in (first, again):
        assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(expected)
        assert OmegaConf.is_struct(found) == OmegaConf.is_struct(expected)
        assert OmegaConf.is_readonly(found.hydra) == OmegaConf.is_readonly(expected.hydra)
        assert OmegaConf.get_type(found.hydra) == OmegaConf.get_type(expected.hydra)


@pytest.mark.parametrize("file", [file for file in FILES if file not in BASES])
def test_every_config_file_composes_and_builds(file, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost")  # or it makes a database here
    threads = torch.get_num_threads()
    cfg = composed(file)
    if file == "trainer/gpu" and not torch.cuda.is_available():
        pytest.skip("there is no GPU here to build the trainer for")
    for size in ("n_train", "n_val", "n_test") if "task" in cfg.data else ():
        cfg.data[size] = min(cfg.data[size], 20 * cfg.data.batch_size)  # drawing takes seconds
    run = build(cfg, RunContext(tmp_path, []))
    assert not OmegaConf.missing_keys(cfg)
    assert sum(p.numel() for p in run.learner.network.parameters()) > 0
    assert run.trainer.max_epochs == cfg.trainer.max_epochs
    assert torch.get_num_threads() == cfg.threads
    torch.set_num_threads(threads)


@pytest.mark.parametrize("file", [file for file in FILES if file not in BASES])
def test_every_value_of_a_config_file_is_in_the_composed_config(file):
    cfg = OmegaConf.to_container(composed(file))
    group = file.rpartition("/")[0]
    text = (CONF / f"{file}.yaml").read_text()
    if not group or file.startswith("hydra/") or "@package" in text:
        group = "optim" if file == "optim/schedule/none" else ""
    for key in filter(None, group.split("/")):
        cfg = cfg[key]

    def assert_in(expected, found, path):
        for key, value in expected.items():
            if key in ("defaults", "hydra"):
                continue
            assert key in found, f"{path}.{key}"
            if isinstance(value, dict):
                assert_in(value, found[key], f"{path}.{key}")
            elif f"{group}.{key}" not in [o.partition("=")[0] for o in NEEDS.get(file, [])]:
                assert found[key] == value, f"{path}.{key}"

    assert_in({} if file.startswith("hydra/") else raw(file), cfg, file)


@pytest.mark.parametrize("file", BASES)
def test_every_shared_config_file_is_named_in_the_defaults_of_another(file):
    group, _, name = file.rpartition("/")
    users = [other for other in FILES if other.startswith(f"{group}/") and other != file]
    assert any(name in raw(other).get("defaults", []) for other in users)


def nodes(cfg):
    """Every node of a config that names a class."""
    if isinstance(cfg, dict):
        if "_target_" in cfg:
            yield cfg
        for value in cfg.values():
            yield from nodes(value)


def arguments(constructor):
    """The arguments of a constructor, those that it passes on to its bases included."""
    for cls in constructor.__mro__:
        if "__init__" in vars(cls):
            parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
            yield from (p for p in parameters if "VAR" not in p.kind.name)
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                return


#: Arguments that are no config key: the engine gives them to a network, to a callback, and to the
#: data of a checkpoint; `source` is what SeriesData and MackeyGlass give to their base.
GIVEN = {"n_inputs", "n_outputs", "every_step", "config", "sizes", "overrides", "mode"}
GIVEN |= {"fitted", "source", "optimizer"}


@pytest.mark.parametrize("file", [file for file in FILES if file not in BASES])
def test_every_value_of_a_run_has_one_home_the_config(file):
    for node in nodes(OmegaConf.to_container(composed(file))):
        if not node["_target_"].startswith("seqlab."):
            continue
        found = get_class(node["_target_"])
        defaults = {p.name: p.default for p in arguments(found)}
        keys = {key for key in node if not key.startswith("_")}
        # all stand in the config, so no default of a constructor decides anything in a run
        assert keys <= defaults.keys() <= keys | GIVEN, found
        # and only what is meant for use from Python, too, has any
        if not issubclass(found, (RecurrentNetwork, Task)):
            assert {defaults[key] for key in keys} <= {inspect.Parameter.empty}, found
