"""What src uses of Lightning, Hydra, Optuna and PyTorch beyond their documented names: each with
its reason, each tried out on the installed version. Fewer each time.

A scan of src finds the names that begin with an underscore, so a new one must be listed here. Names
without one that no documentation promises are listed by hand.
"""

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lightning as L
import optuna
import pytest
import torch
from fitting import fit, parts
from hydra import compose, errors, initialize_config_dir
from hydra.core.override_parser import types
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import OmegaConf
from omegaconf.resolvers import oc
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig
from torch.utils.tensorboard.summary import hparams

from seqlab.engine.context import runs_here
from seqlab.engine.steps import HOOKS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "seqlab"

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
]


class Fitted(NamedTuple):
    """A trainer after two epochs of three chunks, what it saved at the end, the epochs that its
    loader was told, and TensorBoard's writer."""

    trainer: L.Trainer
    checkpoint: dict
    epochs: list[int]
    file_writer: object


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder, epochs = tmp_path_factory.mktemp("fitted"), []
    data, learner = parts()
    whole = data.train_dataloader

    def loader():
        chunks = whole()
        told = chunks.set_epoch
        chunks.set_epoch = lambda epoch: (epochs.append(epoch), told(epoch))
        return chunks

    data.train_dataloader = loader
    best = ModelCheckpoint(folder / "checkpoints", monitor="val/mse")
    logger = TensorBoardLogger(folder, name="", version="")
    writer = logger.experiment.file_writer
    trainer = fit(data, learner, callbacks=[best], enable_checkpointing=True, logger=logger)
    trainer.save_checkpoint(folder / "last.ckpt")
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    return Fitted(trainer, checkpoint, epochs, writer)


class Use(NamedTuple):
    """Where src uses a name, as it stands there; why; and whether it does what it is used for."""

    file: str
    text: str
    reason: str
    works: Callable[[Fitted], bool]


def counts_optimiser_steps(fitted):
    progress = fitted.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
    before = fitted.trainer.global_step
    progress.increment_ready()
    progress.increment_completed()
    counted = fitted.trainer.global_step - before
    progress.total.ready = progress.total.completed = before
    return (before, counted, fitted.trainer.global_step) == (24, 1, 24)


def tells_which_hooks_are_empty(_):
    for hook in HOOKS:
        for kind in (L.Callback, L.LightningModule):
            own = type("Own", (kind,), {hook: lambda *args: None})
            if is_overridden(hook, kind()) or not is_overridden(hook, own()):
                return False
    return True


def has_counters(fitted):
    counts = fitted.checkpoint["loops"]["fit_loop"]
    batches = counts["epoch_loop.batch_progress"]
    validation = counts["epoch_loop.val_loop.batch_progress"]
    four = {"ready", "started", "processed", "completed"}
    return (
        all(set(p[part]) == four for p in (batches, validation) for part in ("total", "current"))
        and all(set(counts["epoch_progress"][part]) == four for part in ("total", "current"))
        and batches["is_last_batch"] is True
        and batches["total"] == dict.fromkeys(four, 6)
        and batches["current"] == dict.fromkeys(four, 3)
        and validation["total"] == dict.fromkeys(four, 1)
        and counts["epoch_progress"]["total"]["completed"] == 2
    )


def keeps_metrics_put_in(fitted):
    fitted.trainer.callback_metrics.update(put=torch.ones(()))
    return fitted.trainer.callback_metrics.pop("put") == 1


def names_files(fitted):
    (state,) = fitted.checkpoint["callbacks"].values()
    return isinstance(state["dirpath"], str) and all(
        path.startswith(state["dirpath"])
        for path in (*state["best_k_models"], state["best_model_path"])
    )


def launchers():
    """Hydra's launcher nodes, by the names under which they are chosen."""
    found = {}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for name in ("basic", "joblib", "submitit_slurm"):
            cfg = compose("config", [f"hydra/launcher={name}"], return_hydra_config=True)
            found[name] = cfg.hydra.launcher
    return found


def names_its_class(_):
    basic, joblib, slurm = launchers().values()
    return (
        basic._target_.endswith("BasicLauncher")
        and joblib._target_.endswith("JoblibLauncher")
        and "n_jobs" in joblib
        and slurm._target_.endswith("SlurmLauncher")
        and list(map(runs_here, (basic, joblib, slurm))) == [True, False, False]
    )


def parse(*words):
    return OverridesParser.create().parse_overrides(list(words))


def parses_overrides(_):
    plain, choice, span, tagged = parse(
        "+a.b=3", "c=x,y", "d=range(1,9,2)", "e=tag(log,interval(1e-4,1e-1))"
    )
    interval = tagged.value()
    return (
        (plain.get_key_element(), plain.input_line, plain.is_sweep_override())
        == ("+a.b", "+a.b=3", False)
        and (plain.key_or_group, plain.value()) == ("a.b", 3)
        and isinstance(choice.value(), types.ChoiceSweep)
        and isinstance(choice.value(), types.Sweep)
        and list(choice.sweep_string_iterator()) == ["x", "y"]
        and isinstance(span.value(), types.RangeSweep)
        and (span.value().start, span.value().stop, span.value().step) == (1, 9, 2)
        and list(span.value().range()) == [1, 3, 5, 7]
        and isinstance(interval, types.IntervalSweep)
        and (interval.start, interval.end, interval.tags) == (1e-4, 1e-1, {"log"})
    )


def leaves_weights_that_are_not_to_change():
    """Whether fused optimisers take no step where `found_inf` is 1, and one where it is 0."""
    found = []
    for kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD):
        for bad in (1.0, 0.0):
            weight = torch.nn.Parameter(torch.ones(3))
            weight.grad = torch.ones(3)
            optimizer = kind([weight], lr=0.1, fused=True)
            optimizer.found_inf = torch.tensor(bad)
            optimizer.step()
            found.append(torch.equal(weight, torch.ones(3)) == bool(bad))
    return all(found)


def refused(words):
    with (
        initialize_config_dir(str(ROOT / "conf"), version_base="1.3"),
        pytest.raises(errors.HydraException) as caught,
    ):
        compose("config", words)
    return caught.value


def says_what_is_missing(_):
    error = refused(["model=nope"])
    return error.missing_cfg_file == "model/nope" and {"gru", "lstm"} <= set(error.options)


def says_what_was_typed(_):
    return refused(["model.n_hidden=[1"]).override == "model.n_hidden=[1"


def says_which_key(_):
    cause = refused(["model.n_hiden=4"]).__cause__
    return cause.full_key == "model.n_hiden" and "n_hidden" in cause.parent_node


def takes_launch_settings(_):
    used = {"min_nodes", "max_nodes", "nproc_per_node", "run_id", "rdzv_backend"}
    used |= {"rdzv_endpoint", "max_restarts", "signals_to_handle"}
    return used <= set(inspect.signature(LaunchConfig).parameters)


USES = [
    # Lightning
    Use(
        "engine/steps.py",
        "trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress",
        "Lightning counts optimiser steps there, and there is no public way to count one",
        counts_optimiser_steps,
    ),
    Use(
        "engine/steps.py",
        'getattr(trainer.precision_plugin, "scaler", None)',
        "a loss scale needs Lightning's own step, and nothing else tells whether there is one",
        lambda fitted: (
            "scaler" in inspect.signature(MixedPrecision).parameters
            and getattr(fitted.trainer.precision_plugin, "scaler", None) is None
        ),
    ),
    Use(
        "engine/steps.py",
        "is_overridden(hook, owner)",
        "Lightning's own step is left out where these do nothing, which Lightning tells",
        tells_which_hooks_are_empty,
    ),
    Use(
        "engine/last.py",
        'checkpoint["loops"]["fit_loop"]',
        "a run is resumed between two batches, or before a validation, which Lightning cannot: its "
        "counters are set back to where the next call is that batch or that validation",
        has_counters,
    ),
    Use(
        "engine/last.py",
        'counts["epoch_loop.state_dict"]["_batches_that_stepped"]',
        "Lightning counts the same batch twice after a validation within an epoch",
        lambda fitted: (
            fitted.checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]
            == {"_batches_that_stepped": 6}
        ),
    ),
    Use(
        "engine/last.py",
        "trainer.callback_metrics.update(known)",
        "an epoch that is resumed after its validation asks for the metrics of that",
        keeps_metrics_put_in,
    ),
    Use(
        "engine/last.py",
        'state.get("dirpath")',
        "a run's folder may be moved, and Lightning would go on to write to the old one",
        names_files,
    ),
    Use(
        "engine/steps.py",
        "learner.trainer.fit_loop.batch_idx",
        "the number of the chunk in the epoch, for a message",
        lambda fitted: fitted.trainer.fit_loop.batch_idx == 2,
    ),
    Use(
        "engine/graph.py",
        "optimizer.found_inf = bad",
        "a fused optimiser then takes no step, which the host need not decide; GradScaler sets it",
        lambda _: leaves_weights_that_are_not_to_change(),
    ),
    Use(
        "watch/progress.py",
        "trainer.fit_loop.total_batch_idx",
        "how many chunks the whole fit has had, for the bar of a resumed run",
        lambda fitted: fitted.trainer.fit_loop.total_batch_idx == 5,
    ),
    Use(
        "data.py",
        "self.sampler = self",
        "Lightning calls `sampler.set_epoch` of whatever it iterates over",
        lambda fitted: sorted(set(fitted.epochs)) == [0, 1],
    ),
    Use(
        "engine/loggers.py",
        "logger.NAME_HPARAMS_FILE",
        "Lightning would write a second, empty file of settings beside config.yaml",
        lambda fitted: (
            Path(fitted.trainer.logger.log_dir, TensorBoardLogger.NAME_HPARAMS_FILE).exists()
            and "log_hyperparams" in vars(TensorBoardLogger)
        ),
    ),
    Use(
        "engine/last.py",
        "metric.metric_state",
        "the sums of the epoch's metrics so far, of torchmetrics",
        lambda fitted: all(
            torch.is_tensor(value)
            for metric in fitted.trainer.lightning_module.metrics["train"].values()
            for value in metric.metric_state.values()
        ),
    ),
    # Hydra
    Use(
        "engine/context.py",
        'launcher._target_.endswith("BasicLauncher")',
        "whether the jobs run in this process, which Hydra does not say otherwise",
        names_its_class,
    ),
    Use(
        "engine/multirun.py",
        'launcher._target_.endswith("JoblibLauncher")',
        "each launcher has settings of its own to check before jobs are started",
        names_its_class,
    ),
    Use(
        "tools/tune.py",
        "from hydra.core.override_parser",
        "a search space is written in Hydra's words for a sweep",
        parses_overrides,
    ),
    Use(
        "watch/record.py",
        "override.key_or_group",
        "the keys that a run was started with are the columns of the HParams page",
        parses_overrides,
    ),
    Use(
        "engine/errors.py",
        "error.missing_cfg_file",
        "the choice that there is not, and those that there are",
        says_what_is_missing,
    ),
    Use("engine/errors.py", "error.override", "the text that is no override", says_what_was_typed),
    Use(
        "engine/errors.py",
        "error.parent_node",
        "the key that there is not, and those that there are (OmegaConf)",
        says_which_key,
    ),
    Use(
        "engine/settings.py",
        "oc.env, replace=True",
        "a value from the environment may be a secret, and is written down as a name (OmegaConf)",
        lambda _: callable(oc.env) and OmegaConf.has_resolver("oc.env"),
    ),
    # Optuna
    Use(
        "engine/outcome.py",
        '"TrialPruned"',
        "a pruned trial is no error, and Optuna may not be installed",
        lambda _: optuna.TrialPruned.__name__ == "TrialPruned",
    ),
    # PyTorch
    Use(
        "engine/steps.py",
        "torch.default_generator",
        "seeding it costs 1 us, torch.manual_seed 250",
        lambda _: isinstance(torch.default_generator, torch.Generator),
    ),
    Use(
        "engine/steps.py",
        "torch.cuda.default_generators",
        "the same on a GPU",
        lambda _: isinstance(torch.cuda.default_generators, tuple),
    ),
    Use(
        "watch/record.py",
        "hparams(",
        "`SummaryWriter.add_hparams` would write to a folder of its own, and the columns too",
        lambda _: (
            [summary.value[0].tag.rpartition("/")[2] for summary in hparams({"lr": 0.1}, {})]
            == ["experiment", "session_start_info", "session_end_info"]
        ),
    ),
    Use(
        "watch/record.py",
        "experiment.file_writer.add_summary",
        "to write those",
        lambda fitted: "summary" in inspect.signature(fitted.file_writer.add_summary).parameters,
    ),
    Use(
        "engine/processes.py",
        "LaunchConfig(",
        "several processes without a second command; torchrun is made of it",
        takes_launch_settings,
    ),
    Use(
        "engine/processes.py",
        "stop.sigval",
        "the signal that ended the processes",
        lambda _: SignalException("", 15).sigval == 15,
    ),
    Use(
        "engine/processes.py",
        "error.get_first_failure()",
        "which process failed, and how",
        lambda _: callable(ChildFailedError.get_first_failure),
    ),
]


@pytest.mark.parametrize("use", USES, ids=lambda use: f"{use.file}: {use.text}")
def test_what_is_listed_is_used_and_is_there(use, fitted):
    assert use.text in (SOURCE / use.file).read_text(), "no longer used: take it off the list"
    assert use.works(fitted), use.reason


# the scan

#: Python's own, documented with its underscore.
DOCUMENTED = {"os._exit"}
#: The key that names a class in a config: the config files are ours.
OURS = {"_target_"}
PRIVATE = re.compile(r"(\w+\.)*_[a-zA-Z]\w*(\.\w+)*")


def private_names(text):
    """The private names of others in a program, with their lines: attributes, texts that are one,
    imports, and methods that may replace one of a base class."""
    tree = ast.parse(text)
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    own = {node.attr for node in attributes if isinstance(node.ctx, ast.Store) and is_own(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and PRIVATE.fullmatch(node.attr):
            if not (is_own(node) and node.attr in own) and ast.unparse(node) not in DOCUMENTED:
                yield node.attr, node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if PRIVATE.fullmatch(node.value) and node.value not in OURS:
                yield node.value, node.lineno
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            yield from ((name, node.lineno) for name in names if PRIVATE.fullmatch(name))
        elif isinstance(node, ast.ClassDef):
            methods = (part for part in node.body if isinstance(part, ast.FunctionDef))
            yield from ((m.name, m.lineno) for m in methods if PRIVATE.fullmatch(m.name))


def is_own(node):
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def test_every_private_name_in_src_is_listed():
    listed = {(use.file, name) for use in USES for name in re.findall(r"\b_[a-z]\w*", use.text)}
    found = {}
    for file in (*sorted(SOURCE.rglob("*.py")), ROOT / "train.py"):
        where = file.relative_to(SOURCE if SOURCE in file.parents else ROOT).as_posix()
        for name, line in private_names(file.read_text()):
            found[where, name] = line
    unlisted = {f"{file}:{line}: {name}" for (file, name), line in found.items()
                if (file, name) not in listed}  # fmt: skip
    assert not unlisted, "find a public name, or list it with its reason"
    assert listed <= set(found)


def test_no_config_file_names_a_private_module():
    for file in (ROOT / "conf").rglob("*.yaml"):
        assert not re.findall(r"[\w.]*\._\w+", file.read_text()), file


@pytest.mark.parametrize(
    "text",
    [
        "trainer._results.reset()",
        "self.trainer._logger_connector",
        "self._results",
        "super()._run_stage()",
        "from torch._C import Generator",
        "from torch import _dynamo",
        "import torch._dynamo.config",
        "import torch._dynamo as dynamo",
        "def f():\n    from hydra._internal.hydra import Hydra",
        'getattr(trainer, "_results")',
        'counts["_batches_that_stepped"]',
        'import_module("hydra._internal.utils")',
        "class Mine(Trainer):\n    def _run(self): pass",
    ],
)
def test_the_scan_finds(text):
    assert list(private_names(text))


@pytest.mark.parametrize(
    "text",
    [
        "self._seen = 1\nself._seen += 1",
        "_count = 3\n_count + 1",
        "for _ in range(3): pass",
        "'a text with _emphasis_ in it'",
        "node['_target_']",
        "x.__class__.__name__",
        "os._exit(1)",
    ],
)
def test_the_scan_passes_over(text):
    assert not list(private_names(text))
