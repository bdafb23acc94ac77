from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from seqlab.data import ToyData
from seqlab.errors import UserError
from seqlab.tasks import Random, Sine, Task


def data(epoch=0, task=None, **changed):
    sizes = {"seq_len": 6, "n_train": 100, "n_val": 50, "n_test": 30, "batch_size": 8}
    rest = {"fresh": False, "accumulate": 1, "steps_per_call": 4, "seed": 0}
    made = ToyData(task or Random(n_inputs=2), **(sizes | rest | changed))
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    made.trainer = SimpleNamespace(current_epoch=epoch, strategy=strategy)
    made.setup("fit")
    return made


def rows(x):
    return {tuple(row.flatten().tolist()) for row in x}


def epoch_of(made):
    return torch.cat([x for call in made.train_dataloader() for step in call for x, _ in step])


def test_splits_have_their_sizes_and_share_no_sequence():
    made = data()
    sets = [rows(made.splits[split].x) for split in ("train", "val", "test")]
    assert [len(s) for s in sets] == [100, 50, 30]
    assert len(set.union(*sets)) == 180


def test_the_seed_fixes_the_data():
    first, again, other = data(), data(), data(seed=1)
    for split in ("train", "val", "test"):
        assert torch.equal(first.splits[split].x, again.splits[split].x)
        assert not torch.equal(first.splits[split].x, other.splits[split].x)


def test_a_longer_training_set_leaves_the_others_as_they_were():
    first, longer = data(), data(n_train=200)
    for split in ("val", "test"):
        assert torch.equal(first.splits[split].y, longer.splits[split].y)


def test_an_epoch_has_whole_batches_of_different_sequences_with_their_targets():
    made = data()
    x, y = made.splits["train"][:]
    target = {tuple(a.flatten().tolist()): b.item() for a, b in zip(x, y, strict=True)}
    seen = []
    for call in made.train_dataloader():
        for step in call:
            for batch_x, batch_y in step:
                assert batch_x.shape == (8, 6, 2)
                for a, b in zip(batch_x, batch_y, strict=True):
                    seen.append(tuple(a.flatten().tolist()))
                    assert target[seen[-1]] == b.item()
    assert len(seen) == len(set(seen)) == 96


def test_the_order_is_a_function_of_seed_and_epoch():
    assert torch.equal(epoch_of(data(epoch=3)), epoch_of(data(epoch=3)))
    assert not torch.equal(epoch_of(data(epoch=3)), epoch_of(data(epoch=4)))
    # what is left over differs from epoch to epoch
    assert rows(epoch_of(data(epoch=3))) != rows(epoch_of(data(epoch=4)))


def test_the_order_does_not_depend_on_how_many_steps_a_call_takes():
    assert torch.equal(epoch_of(data(steps_per_call=1)), epoch_of(data(steps_per_call=5)))


@pytest.mark.parametrize("batch_size", [1, 8, 100])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("steps_per_call", [1, 4, 1000])
def test_calls_hold_steps_and_steps_hold_batches(batch_size, accumulate, steps_per_call):
    sizes = {"accumulate": accumulate, "steps_per_call": steps_per_call}
    made = data(batch_size=batch_size, **sizes)
    calls = list(made.train_dataloader())
    steps = [step for call in calls for step in call]
    assert len(calls) == len(made.train_dataloader())
    assert len(steps) == made.steps_per_epoch
    assert sum(map(len, steps)) == 100 // batch_size
    assert {len(call) for call in calls[:-1]} <= {steps_per_call}
    assert {len(step) for step in steps[:-1]} <= {accumulate}


def test_the_batches_of_a_call_are_views_of_one_tensor():
    (call, *_) = data().train_dataloader()
    assert len({x.untyped_storage().data_ptr() for step in call for x, _ in step}) == 1


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_sees_every_sequence_once_in_order(split):
    made = data()
    loader = getattr(made, f"{split}_dataloader")()
    slices = list(loader)
    assert len(loader) == len(slices)
    x, y = (torch.cat(parts) for parts in zip(*slices, strict=True))
    assert torch.equal(x, made.splits[split].x)
    assert torch.equal(y, made.splits[split].y)


def test_skill_is_measured_against_the_first_baseline():
    made = data(task=Sine(noise=0.1))
    x, y = made.splits["val"][:]
    assert made.reference_loss["val"] == pytest.approx((x[:, -1] - y).square().mean().item())


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"n_train": 7}, "data.n_train=7"), ({"n_val": 1}, "data.n_val=1"), ({"n_test": 1}, "=1")],
)
def test_sizes_that_do_not_fit_are_refused(changed, said):
    with pytest.raises(UserError, match=said):
        data(**changed)


@pytest.mark.parametrize("key", ["seq_len", "batch_size", "accumulate", "steps_per_call"])
def test_sizes_below_one_are_refused(key):
    with pytest.raises(ValidationError, match=key):
        data(**{key: 0})


def test_a_task_of_other_shapes_than_it_says_is_refused():
    class Wrong(Task):
        n_inputs, n_outputs = 1, 2

        def draw(self, n, seq_len, generator):
            return torch.rand(n, seq_len, 1), torch.rand(n)

    with pytest.raises(UserError, match=r"Wrong.draw .* \(100, 2\), got .* \(100,\)"):
        data(task=Wrong())
