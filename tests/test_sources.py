"""Data of one's own: those of docs/your-own.md, through everything that a run goes through, and
what the ways have in common."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from documents import MINE
from left import left, strict_json
from program import ROOT, Kill, forked, process, run, seqlab, write

BEST = "checkpoints/best.ckpt"
OWN = ["--config-dir", "mine/conf", "callbacks.pictures=null", "model.n_hidden=8"]
DOCS = (ROOT / "docs/your-own.md").read_text()


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder outside of the project, with the docs' `mine/` and `walks.npz` in it."""
    folder = write(tmp_path_factory.mktemp("own"), MINE)
    (block,) = re.findall(r"```python\n((?:(?!```).)*np\.savez.*?)```", DOCS, re.DOTALL)
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        exec(compile(block, "your-own.md", "exec"), {})
        patch.syspath_prepend(folder)
        yield folder


WAYS = {
    "arrays": (["data=arrays", "data.path=walks.npz"], "always the mean", 2),
    "walks": (["data=walks"], "always the mean", 2),
    "clips": (["data=clips"], "class frequencies", 1),
    "signs": (["data=signs"], "class frequencies", 1),
}


@pytest.fixture(scope="module")
def trained(own):
    """Each of the docs' ways, trained once, by name."""
    found = {}

    def ask(way):
        if way not in found:
            folder = f"hydra.run.dir=runs/{way}"
            found[way] = run(*OWN, *WAYS[way][0], folder, "trainer.max_epochs=6", cwd=own)
        assert found[way].code == 0, found[way].err
        return found[way], own / "runs" / way

    return ask


@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_the_docs_learns_and_says_so(way, trained):
    result, folder = trained(way)
    baseline = WAYS[way][1]
    left = strict_json(folder / "results.json")
    loss = "test/mse" if "mean" in baseline else "test/ce"
    network, other = left["metrics"][loss], left["baselines"][baseline][loss]
    assert network < 0.8 * other
    assert left["metrics"]["test/skill"] == pytest.approx(1 - network / other, rel=1e-6)
    assert f"The network beats {baseline}: " in result.out
    assert left["steps"] == 6 * (600 // 32 if way in ("arrays", "walks") else 19)


@pytest.mark.parametrize("way", WAYS)
def test_evaluate_gives_the_metrics_of_training_and_predict_a_row_for_each_value(way, trained, own):
    _, folder = trained(way)
    trust = [] if way == "arrays" else ["--trust", "mine"]
    found = seqlab("evaluate", str(folder / BEST), "--json", *trust, cwd=own)
    assert found.code == 0, found.err
    left, rows = strict_json(folder / "results.json"), json.loads(found.out)
    for name, value in rows.pop("network").items():
        assert value == pytest.approx(left["metrics"][name], rel=1e-6), name
    assert rows == {name: pytest.approx(row) for name, row in left["baselines"].items()}
    found = seqlab("predict", str(folder / BEST), *trust, cwd=own)
    assert found.code == 0, found.err
    header, *lines = found.out.splitlines()
    assert (header, len(lines)) == ("case,step,forecast,truth", 200 * WAYS[way][2])
    forecast, truth = torch.tensor([[*map(float, row.split(",")[2:])] for row in lines]).T
    if WAYS[way][1] == "always the mean":
        mse = ((forecast - truth) ** 2).mean().item()
        assert mse == pytest.approx(left["metrics"]["test/mse"], rel=1e-5)
    else:
        right = (forecast == truth).double().mean().item()
        assert right == pytest.approx(left["metrics"]["test/accuracy"])
    if trust:
        refused = seqlab("predict", str(folder / BEST), cwd=own)
        line = rf"error: data\._target_=mine\.{way}\.\w+: not trusted; --trust mine[^\n]+\n"
        assert (refused.code, bool(re.fullmatch(line, refused.err))) == (2, True), refused.err


@pytest.mark.parametrize(
    "way", ["clips", *(pytest.param(w, marks=pytest.mark.slow) for w in WAYS if w != "clips")]
)
def test_a_resume_takes_each_further_and_a_multirun_sweeps_it(way, own, trained):
    cwd = own / f"{way}-more"
    shutil.copytree(own / "mine", cwd / "mine")
    shutil.copy(own / "walks.npz", cwd)
    words = [*OWN, *WAYS[way][0], "hydra.run.dir=run"]
    assert run(*words, "trainer.max_epochs=1", cwd=cwd).code == 0
    resumed = run(*OWN[:2], "resume=run", "trust=[mine]", "trainer.max_epochs=2", cwd=cwd)
    assert resumed.code == 0, resumed.err
    whole = run(*words[:-1], "hydra.run.dir=whole", "trainer.max_epochs=2", cwd=cwd)
    assert whole.code == 0, whole.err
    found, expected = left(cwd / "run"), left(cwd / "whole")
    assert {k: v for k, v in found.items() if found[k] != expected[k]} == {}
    sweep = ["-m", "optim.lr=1e-2,1e-3", "trainer.max_epochs=1", "hydra.sweep.dir=sweep"]
    swept = run(*sweep, *words[:-1], cwd=cwd)
    assert swept.code == 0, swept.err
    table = (cwd / "sweep/results.csv").read_text().splitlines()
    assert len(table) == 3
    assert all("finished" in row for row in table[1:])


def test_another_file_of_arrays_is_evaluated_on_its_test_part(own, trained):
    _, folder = trained("arrays")
    file = dict(np.load(own / "walks.npz"))
    x, y = file["test_x"][:50], file["test_y"][:50]
    np.savez(own / "other.npz", test_x=x, test_y=y)
    found = seqlab("evaluate", str(folder / BEST), "--data", "other.npz", "--json", cwd=own)
    assert found.code == 0, found.err
    rows = json.loads(found.out)
    mean = file["train_y"].mean(axis=0)
    assert rows["always the mean"]["test/mse"] == pytest.approx(((y - mean) ** 2).mean(), rel=1e-5)


def test_arrays_of_another_content_are_not_the_run_s(own):
    cwd, words = own / "changed", [*OWN[2:], "data=arrays", "data.path=walks.npz"]
    cwd.mkdir()
    shutil.copy(own / "walks.npz", cwd)
    assert run(*words, "trainer.max_epochs=1", "hydra.run.dir=run", cwd=cwd).code == 0
    file = dict(np.load(cwd / "walks.npz"))
    file["val_x"][7, 3, 1] += 1e-3
    np.savez(cwd / "walks.npz", **file)
    refused = run("resume=run", "trainer.max_epochs=2", cwd=cwd)
    said = "error: data: no longer those of the run: digest differs from run/checkpoints/last.ckpt"
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert refused.err.startswith(said)


# the same data in each of the ways

SAME = """
import lightning as L
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, RandomSampler

from seqlab.data import SequenceData, Split
from seqlab.sources import ArrayData, LoaderData

NUMBERS = {"train": range(44), "val": range(44, 64), "test": range(64, 84)}


class Sums(Dataset):
    def __init__(self, split, differ, noise=0.0):
        self.numbers, self.differ, self.noise = NUMBERS[split], differ, noise

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, i):
        generator = np.random.default_rng(self.numbers[i])
        x = generator.random((generator.integers(3, 9) if self.differ else 6, 2))
        return torch.tensor(x) + self.noise * torch.rand(1), torch.tensor(x.mean(0))


def pad(items):
    xs, ys = zip(*items)
    return pad_sequence(xs, batch_first=True), torch.stack(ys), torch.tensor([*map(len, xs)])


class Arrays(ArrayData):
    def __init__(self, differ: bool, **rest):
        super().__init__(**rest)
        self.differ = differ

    def arrays(self):
        found = {s: pad([*Sums(s, self.differ)]) for s in NUMBERS}
        return {s: parts if self.differ else parts[:2] for s, parts in found.items()}


class Tensors(SequenceData):
    # what `Arrays` gives, by way of what data must have at least

    def __init__(self, seq_len: int, **rest):
        super().__init__(**rest)
        self.n_inputs, self.n_outputs, self.seq_len, self.n_train = 2, 2, seq_len, 44

    def load(self, device):
        parts = {s: pad([*Sums(s, False)])[:2] for s in NUMBERS}
        return {s: Split(x.float().to(device), y.float().to(device)) for s, (x, y) in parts.items()}


def loader(split, batch_size, differ=False, workers=0, noise=0.0, shuffle=None):
    data = Sums(split, differ, noise)
    # the order of `ArrayData`
    own = RandomSampler(data, generator=torch.Generator()) if split == "train" else None
    return DataLoader(
        data, batch_size, sampler=None if shuffle else own, shuffle=shuffle, num_workers=workers,
        drop_last=split == "train", collate_fn=pad if differ else None,
        multiprocessing_context="fork" if workers else None,
    )


class Loaders(LoaderData):
    def __init__(self, differ: bool = False, workers: int = 0, noise: float = 0.0, **rest):
        super().__init__(**rest)
        self.given = differ, workers, noise

    def loader(self, split):
        return loader(split, self.batch_size, *self.given)


class Shuffled(Loaders):
    def loader(self, split):
        return loader(split, self.batch_size, *self.given, shuffle=split == "train")


class Stream(Loaders):
    generator = np.random.default_rng(0)  # goes on from epoch to epoch, whatever is seeded

    def loader(self, split):
        found = super().loader(split)
        if split == "train":
            found = DataLoader(found.dataset, 8, sampler=Endless(), drop_last=True)
        return found


class Endless:
    def __len__(self):
        return 44

    def __iter__(self):
        return iter(Stream.generator.permutation(44).tolist())


class Module(L.LightningDataModule):
    def __init__(self, batch_size: int):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return loader("train", self.batch_size)

    def val_dataloader(self):
        return loader("val", self.batch_size)

    def test_dataloader(self):
        return loader("test", self.batch_size)
"""
_ARRAYS = "defaults: [_arrays]\n_target_: mine.same.Arrays\n"
_OWN = "defaults: [_own]\nbatch_size: 8\n_target_: mine.same."
SAMES = {
    "plain": _ARRAYS + "differ: false",
    "padded": _ARRAYS + "differ: true",
    "tensors": "defaults: [_batches]\n_target_: mine.same.Tensors\nseq_len: 6",
    "loaders": _OWN + "Loaders",
    "lengths": _OWN + "Loaders\ndiffer: true",
    "module": _OWN + "Module",
    "shuffled": _OWN + "Shuffled",
    "stream": _OWN + "Stream",
}
FILES = {"mine/same.py": SAME} | {f"mine/conf/data/{n}.yaml": text for n, text in SAMES.items()}
SHORT = ["data.batch_size=8", "trainer.max_epochs=3", "model.dropout=0.3", "hydra.run.dir=run"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The weights at the end and the best ones, the metrics and the validation errors that
    intervals are made of, of a run by its words."""
    folder = write(tmp_path_factory.mktemp("same"), FILES)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)

        def ask(*words):
            cwd = write(tmp_path_factory.mktemp("run"), FILES)
            result = run(*OWN, *SHORT, *words, cwd=cwd)
            assert result.code == 0, result.err
            found = left(cwd / "run")
            saved = torch.load(cwd / "run" / BEST, weights_only=True)
            return found["last"], found["best"], found["metrics"], saved["errors"]

        yield ask


def same(found, expected):
    """Weights to the bit, and metrics but for the order in which they are summed."""
    assert found[:2] == expected[:2]
    assert found[3].shape == (20, 2)
    torch.testing.assert_close(found[3], expected[3])
    for name, value in expected[2].items():
        if "skill" not in name:  # the baseline is of the batches that were looked at
            assert found[2][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_the_same_batches_give_the_same_weights_whichever_way_they_come(weights):
    expected = weights("data=plain")
    same(weights("data=tensors"), expected)
    same(weights("data=loaders"), expected)
    same(weights("data=module"), expected)
    same(weights("data=loaders", "+data.workers=2"), expected)


def test_batches_padded_by_themselves_give_the_weights_of_arrays_that_are_padded(weights):
    expected = weights("data=padded")
    found = weights("data=lengths")
    same(found, expected)
    assert weights("data=plain")[0] != expected[0]


def test_what_a_plain_shuffle_and_a_dataset_draw_follows_from_the_seed(weights):
    words = ["data=shuffled", "+data.noise=0.1"]
    found = weights(*words)
    assert weights(*words)[:3] == found[:3]
    assert weights(*words, "seed=1")[0] != found[0]
    assert weights("data=loaders", "+data.noise=0.1")[0] != found[0]
    # the order is drawn before any noise is, and workers draw theirs by themselves
    still = weights("data=shuffled")
    assert weights("data=shuffled", "+data.workers=1")[:2] == still[:2]


# killed and resumed

BATCH_START = "seqlab.engine.last:Last.on_train_batch_start"
#: Within the second epoch of five batches, in front of its third.
KILL = Kill(BATCH_START, 8)
SAVED = [*OWN, *SHORT, "callbacks.last.every_n_steps=1"]
PATHS = f"import runpy\n\nrunpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"


def killed_and_resumed(cwd, *words):
    """What is left of a run that is killed within an epoch, and of the same one undisturbed."""
    for folder in (cwd / "killed", cwd / "whole"):
        write(folder, FILES | {"train.py": PATHS})
    assert forked(*SAVED, *words, cwd=cwd / "killed", kills=[KILL]).code == -9
    saved = torch.load(cwd / "killed/run/checkpoints/last.ckpt", weights_only=True)
    assert (saved["first"], saved["global_step"]) == ([1, 2], 7)
    resumed = forked("resume=run", "trust=[mine]", cwd=cwd / "killed")
    assert resumed.code == 0, resumed.err
    whole = forked(*SAVED, *words, cwd=cwd / "whole")
    assert whole.code == 0, whole.err
    return left(cwd / "killed/run"), left(cwd / "whole/run")


RESUMED = {
    "a shuffle and noise": ["data=shuffled", "+data.noise=0.1"],
    "workers": ["data=shuffled", "+data.noise=0.1", "+data.workers=2"],
    "lengths": ["data=lengths"],
    "module": ["data=module"],
    "arrays": ["data=plain", "data.steps_per_call=1"],
}


@pytest.mark.parametrize(
    "way", [*RESUMED][:1] + [pytest.param(w, marks=pytest.mark.slow) for w in [*RESUMED][1:]]
)
def test_killed_within_an_epoch_it_ends_the_same_to_the_bit(way, tmp_path):
    found, expected = killed_and_resumed(tmp_path, *RESUMED[way])
    for name in expected:
        assert found[name] == expected[name], name


@pytest.mark.slow
def test_a_loader_that_goes_on_by_itself_is_resumed_with_other_batches(tmp_path):
    found, expected = killed_and_resumed(tmp_path, "data=stream")
    for name in ("steps", "epochs", "status", "files", "texts"):
        assert found[name] == expected[name], name
    steps = {tag: [step for step, _ in points] for tag, points in expected["points"].items()}
    assert {tag: [step for step, _ in p] for tag, p in found["points"].items()} == steps
    assert found["last"] != expected["last"]


# what is wrong is one line


def arrays_with(**changed):
    """Twenty sequences of four steps of two features in each split, with some of them changed."""
    generator = np.random.default_rng(0)
    shapes = {"x": (20, 4, 2), "y": (20, 3)}
    found = {
        f"{split}_{part}": generator.random(shape)
        for split in ("train", "val", "test")
        for part, shape in shapes.items()
    }
    found |= changed
    return {name: part for name, part in found.items() if part is not None}


def spoilt(shape, value):
    found = np.random.default_rng(0).random(shape)
    found[3, 2, 1] = value
    return found


INTEGERS = np.arange(20) % 3
WRONG = {
    "has no val": {"val_x": None, "val_y": None},
    "test: must be (x, y) or (x, y, lengths), got 1 parts": {"test_y": None},
    "train: inputs must be (N, T, F), got (20, 4)": {"train_x": np.ones((20, 4))},
    "train: 1 values are NaN or infinite": {"train_x": spoilt((20, 4, 2), np.nan)},
    "val: 1 values are NaN or infinite": {"val_x": spoilt((20, 4, 2), np.inf)},
    "test: 60 values are NaN or infinite": {"test_y": np.full((20, 3), np.nan)},
    "val: must be (20, 4, 2), (20, 3) of torch.float32, and lengths (20,) if they differ, "
    "got (20, 5, 2), (20, 3) of torch.float32": {"val_x": np.ones((20, 5, 2))},
    "train: must be (20, 4, 2), (20, 3) of torch.float32, and lengths (20,) if they differ, "
    "got (20, 4, 2), (19, 3) of torch.float32": {"train_y": np.ones((19, 3))},
    "test: must be (20, 4, 2), (20, 3) of torch.float32, and lengths (20,) if they differ, "
    "got (20, 4, 2), (20,) of torch.int64": {"test_y": INTEGERS},
    "train: lengths must be from 1 to 4, got 0 to 19": {"train_lengths": np.arange(20)},
    "train has 7 sequences, at least 8": {"train_x": np.ones((7, 4, 2)), "train_y": np.ones(7)}
    | {f"{split}_y": np.ones(20) for split in ("val", "test")},
    "val: classes must be from 0 to 2, got -1 to 2": {
        f"{split}_y": INTEGERS - (split == "val") * (np.arange(20) == 0)
        for split in ("train", "val", "test")
    },
}


@pytest.mark.parametrize("said", WRONG, ids=str)
def test_arrays_that_do_not_fit_are_refused(said, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays_with(**WRONG[said]))
    words = ["data=arrays", "data.path=a.npz", "data.batch_size=8"]
    refused = run(*words, cwd=tmp_path)
    assert (refused.code, refused.err) == (2, f"error: data: {tmp_path}/a.npz: {said}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


# of loaders, what is wrong is found before the run has a folder
WRONG_LOADER = """
import lightning as L
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from seqlab import SequenceData
from seqlab.sources import LoaderData


class Wrong(L.LightningDataModule):
    def __init__(self, what: str):
        super().__init__()
        self.what = what

    def train_dataloader(self):
        x = torch.rand(20, 6, 1)
        batches = {
            "empty": [],
            "dicts": [{"x": x}],
            "numbers": [(x, x[:, 0])] * 2,
            "classes": [(x, torch.arange(20))] * 2,
            "unequal": [(x, x[:, 0]), (x[:, 1:], x[:, 0])],
            "no length": (each for each in [(x, x[:, 0])]),
        }
        return batches.get(self.what, batches["numbers"])

    def val_dataloader(self):
        found = [(torch.rand(4, 6, 1), torch.rand(4, 1))] * 2
        return [DataLoader(found), DataLoader(found)] if self.what == "several" else found

    def test_dataloader(self):
        return super().test_dataloader() if self.what == "no test" else self.val_dataloader()


class Loaderless(LoaderData):
    pass


class Unset(SequenceData):
    def __init__(self, seq_len: int, **rest):
        super().__init__(**rest)
        self.n_inputs, self.n_outputs, self.seq_len = 1, 1, seq_len
"""
TAKES = "must be (20, 6, 1), (20, 1) of torch.float32, and lengths (20,) if they differ, got"
#: By what the run says: what the module does, and other settings.
AT_START = {
    ".n_classes=None: the targets of batch 1 of train go up to 19; say how many classes": "classes",
    ".n_classes=2: the targets of batch 1 of train are numbers": "numbers data.n_classes=2",
    ": batch 1 of train: classes must be from 0 to 8, got 0 to 19": "classes data.n_classes=9",
    ": `test_dataloader` must be implemented": "no test",
    ": ModuleData: the loader of train has no batch": "empty",
    ": batch 1 of train: must be (x, y) or (x, y, lengths), got dict": "dicts",
    ": batch 1 of val: must be (x, y) or (x, y, lengths), got DataLoader": "several",
    f": batch 2 of train: {TAKES} (20, 5, 1), (20, 1) of torch.float32": "unequal",
    ": object of type 'generator' has no len()": "no length",
    ": Loaderless needs a method loader(split)": "Loaderless",
    ": 'Unset' object has no attribute 'n_train'": "Unset",
    "._target_=lightning.pytorch.demos.mnist_datamodule.MNISTDataModule: no data of your own": "",
}


@pytest.mark.parametrize("said", AT_START, ids=lambda said: AT_START[said])
def test_loaders_that_do_not_fit_are_refused_before_a_run_has_a_folder(said, tmp_path, monkeypatch):
    texts = {
        "wrong": "defaults: [_own]\n_target_: mine.wrong.Wrong\n",
        "Loaderless": "defaults: [_own]\n_target_: mine.wrong.Loaderless\nbatch_size: 4\n",
        "Unset": "defaults: [_batches]\n_target_: mine.wrong.Unset\nseq_len: 6\n",
        "lightning": f"defaults: [_own]\n_target_: {said.partition('=')[2].partition(':')[0]}\n",
    }
    files = {f"mine/conf/data/{name}.yaml": text for name, text in texts.items()}
    monkeypatch.syspath_prepend(write(tmp_path, files | {"mine/wrong.py": WRONG_LOADER}))
    what, *more = AT_START[said].rsplit(" data", 1)
    words = [f"data={what}"] if what in texts else ["data=wrong", f"+data.what='{what}'"]
    words = words if what else ["data=lightning"]
    refused = run(*OWN[:2], *words, *(f"data{word}" for word in more), cwd=tmp_path)
    assert refused.err.startswith(f"error: data{said}")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slow
def test_several_processes_share_arrays_and_not_loaders(weights, tmp_path):
    write(tmp_path, FILES)
    two = [*OWN, *SHORT, "model.dropout=0", "trainer=ddp", "trainer.devices=2"]
    refused = process(*two, "data=loaders", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    said = "trainer.devices=2: the loaders of the data are read by one process; "
    assert (refused.code, refused.err.count("\n")) == (2, 1), refused.err
    assert refused.err.startswith(f"error: {said}")
    assert not (tmp_path / "run").exists()
    shared = process(*two, "data=plain", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert shared.code == 0, shared.err
    expected = weights("data=plain", "model.dropout=0")[2]
    found = strict_json(tmp_path / "run/results.json")["metrics"]
    assert found["test/mse"] == pytest.approx(expected["test/mse"], rel=1e-4)


# a signal to all processes, workers too


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="there are no groups of processes")
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_run_and_its_workers_lets_it_save(sign, tmp_path):
    write(tmp_path, FILES)
    words = [*SAVED, "data=loaders", "+data.workers=2", "trainer.max_epochs=1000"]
    command = [sys.executable, ROOT / "train.py", *words, "callbacks.early_stopping=null"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    started = subprocess.Popen(
        command, cwd=tmp_path, env=environment, start_new_session=True, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    for line in started.stderr:
        if line.startswith("epoch 3/"):
            break
    os.killpg(started.pid, sign)
    *_, last = started.communicate(timeout=120)[1].splitlines()
    assert (started.returncode, last[:10]) == (128 + sign, "stopped by"), last
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] >= 15


# a target at every step, in sequences of different lengths

EVERY = """
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from seqlab.sources import ArrayData, LoaderData


def items(split, numbers):
    found = []
    for i in range({"train": 0, "val": 100, "test": 200}[split], 300)[:40]:
        x = torch.tensor(np.random.default_rng(i).random((2 + i % 5, 1)), dtype=torch.float32)
        sums = x.cumsum(0)
        found.append((x, sums if numbers else (sums[:, 0] > 1).long()))
    return found


def pad(found):
    xs, ys = zip(*found)
    fill = float("nan") if ys[0].is_floating_point() else -100
    y = pad_sequence(ys, batch_first=True, padding_value=fill)
    return pad_sequence(xs, batch_first=True), y, torch.tensor([*map(len, xs)])


class Arrays(ArrayData):
    def __init__(self, numbers: bool, **rest):
        super().__init__(**rest)
        self.numbers = numbers

    def arrays(self):
        return {s: pad(items(s, self.numbers)) for s in ("train", "val", "test")}


class Loaders(LoaderData):
    def __init__(self, numbers: bool, **rest):
        super().__init__(**rest)
        self.numbers = numbers

    def loader(self, split):
        return DataLoader(items(split, self.numbers), self.batch_size, collate_fn=pad)
"""


@pytest.mark.parametrize("kind", ["Arrays", "Loaders"])
@pytest.mark.parametrize("numbers", [True, False])
def test_a_target_at_every_step_of_sequences_of_different_lengths(
    kind, numbers, tmp_path, monkeypatch
):
    base = "_arrays" if kind == "Arrays" else "_own"
    text = f"defaults: [{base}]\n_target_: mine.every.{kind}\nbatch_size: 8\nnumbers: {numbers}\n"
    text += "" if numbers or kind == "Arrays" else "n_classes: 2\n"
    files = {"mine/every.py": EVERY, "mine/conf/data/every.yaml": text}
    monkeypatch.syspath_prepend(write(tmp_path, files))
    result = run(*OWN, "data=every", "trainer.max_epochs=8", "optim.lr=0.02", cwd=tmp_path)
    assert result.code == 0, result.err
    saved = torch.load(result.folder / BEST, weights_only=True)
    assert (saved["sizes"]["every_step"], saved["sizes"]["n_outputs"]) == (True, 2 - numbers)
    left = result.results
    loss, name = ("mse", "always the mean") if numbers else ("ce", "class frequencies")
    assert left["metrics"][f"test/{loss}"] < 0.7 * left["baselines"][name][f"test/{loss}"]
    # by hand, over the steps that have a target
    sums = [torch.tensor(np.random.default_rng(i).random(2 + i % 5)).cumsum(0) for i in range(300)]
    train, test = torch.cat(sums[:40]), torch.cat(sums[200:240])
    if numbers:
        by_hand = (test - train.mean()).square().mean()
    else:
        counts = (train > 1).long().bincount(minlength=2) + 1
        logs = (counts / counts.sum()).log()
        by_hand = -logs[(test > 1).long()].mean()
    assert left["baselines"][name][f"test/{loss}"] == pytest.approx(by_hand.item(), rel=1e-5)
    # a row for each step of the longest sequence, and a truth where there is one
    said = seqlab("predict", str(result.folder / BEST), "--trust", "mine", cwd=tmp_path)
    rows = [line.split(",") for line in said.out.splitlines()[1:]]
    assert len(rows) == 40 * 6
    assert sum(row[-1] != "" for row in rows) == len(test)
    shown = seqlab("shapes", str(result.folder / BEST), "--trust", "mine", cwd=tmp_path)
    assert (shown.code, "rnn.cells" in shown.out) == (0, True), shown.err


LATE = """
import torch
from seqlab.sources import LoaderData

class Late(LoaderData):
    def loader(self, split):
        x = torch.rand(20, 6, 1)
        late = [(x / 0, x[:, 0])] if split == "train" else []
        return [(x, x[:, 0])] * 55 + late
"""


def test_a_batch_that_is_wrong_only_later_is_one_line_too(tmp_path, monkeypatch):
    text = "defaults: [_own]\n_target_: mine.late.Late\nbatch_size: 20\n"
    files = {"mine/late.py": LATE, "mine/conf/data/late.yaml": text}
    monkeypatch.syspath_prepend(write(tmp_path, files))
    result = run(*OWN, "data=late", cwd=tmp_path)
    said = "error: data: batch 56 of train: 120 values are NaN or infinite\n"
    assert (result.code, result.err.splitlines(keepends=True)[-1]) == (2, said)
    assert result.results["status"] == "failed"
