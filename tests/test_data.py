import pytest
import torch
from program import set_up
from pydantic import ValidationError

from seqlab.data import ToyData
from seqlab.errors import UserError
from seqlab.objectives import Classes
from seqlab.seeds import seed_of
from seqlab.tasks import Adding, Copy, Random, Reber, Sine, Task, TemporalOrder


def data(epoch=0, task=None, rank=0, ranks=1, **changed):
    sizes = {"seq_len": 6, "n_train": 100, "n_val": 50, "n_test": 30, "batch_size": 8}
    rest = {"fresh": False, "accumulate": 1, "steps_per_call": 4, "seed": 0}
    made = ToyData(task or Random(n_inputs=2), **(sizes | rest | changed))
    return set_up(made, epoch, rank, ranks)


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
    made = data(n_val=20_000, n_test=20_000)
    loader = getattr(made, f"{split}_dataloader")()
    slices = list(loader)
    assert len(loader) == len(slices) == 4
    assert max(len(x) for x, _ in slices) <= 2**15 / 6  # steps in all
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


def test_processes_share_every_batch_and_every_split():
    alone = data(n_val=20_000)
    shares = [data(n_val=20_000, rank=rank, ranks=2) for rank in range(2)]
    batches = [
        [x for call in made.train_dataloader() for ((x, _),) in call] for made in (alone, *shares)
    ]
    for whole, first, second in zip(*batches, strict=True):
        assert torch.equal(whole, torch.cat([first, second]))
    halves = [list(made.val_dataloader()) for made in shares]
    assert len(halves[0]) == len(halves[1]) == 2
    parts = [x for pair in zip(*halves, strict=True) for x, _ in pair]
    assert torch.equal(torch.cat(parts), alone.splits["val"].x)


def test_an_epoch_goes_on_from_the_calls_it_has_had():
    whole, rest = data(), data()
    rest.trainer.fit_loop.epoch_loop.batch_progress.current.ready = 2
    calls = list(whole.train_dataloader())
    for call, expected in zip(rest.train_dataloader(), calls[2:], strict=True):
        for ((x, y),), ((expected_x, expected_y),) in zip(call, expected, strict=True):
            assert torch.equal(x, expected_x)
            assert torch.equal(y, expected_y)


def test_fresh_sequences_are_a_function_of_seed_and_epoch():
    epochs = [rows(epoch_of(data(epoch=epoch, fresh=True))) for epoch in range(4)]
    assert [len(found) for found in epochs] == [96] * 4
    assert len(set.union(*epochs)) == 4 * 96  # none is seen twice
    made = data(epoch=3, fresh=True)
    assert rows(epoch_of(made)) == epochs[3]
    assert not rows(epoch_of(made)) & rows(torch.cat([s.x for s in made.splits.values()]))
    assert rows(epoch_of(data(epoch=3, fresh=True, seed=1))).isdisjoint(epochs[3])
    generator = torch.Generator().manual_seed(seed_of(0, "fresh", 3))
    assert epochs[3] <= rows(Random(n_inputs=2).draw(100, 6, generator)[0])


def test_without_fresh_each_epoch_has_the_training_set():
    made = data(epoch=3)
    assert rows(epoch_of(made)) <= rows(made.splits["train"].x)


def test_lengths_go_with_their_sequences():
    made = data(task=TemporalOrder(2), seq_len=20)
    seen = [batch for call in made.train_dataloader() for step in call for batch in step]
    for x, y, lengths in seen:
        assert x.shape == (8, 22, 8)
        assert y.shape == lengths.shape == (8,)
        # the sequence ends with B
        assert torch.equal(x.argmax(2)[torch.arange(8), lengths - 1], torch.ones(8).long())
        assert not x[torch.arange(22) >= lengths[:, None]].any()
    for x, _, lengths in made.val_dataloader():
        assert not x[torch.arange(22) >= lengths[:, None]].any()


@pytest.mark.parametrize("task", [Adding(), Copy()])
def test_sequences_of_one_length_come_without_lengths(task):
    made = data(task=task, seq_len=24)
    assert {len(b) for call in made.train_dataloader() for step in call for b in step} == {2}


def test_the_reference_of_classes_is_a_cross_entropy():
    made = data(task=TemporalOrder(3), seq_len=20)
    assert made.reference_loss["val"] == pytest.approx(torch.tensor(8.0).log().item())
    assert "val" not in data(task=Reber(), seq_len=20).reference_loss  # it has no baseline


def test_a_sequence_too_short_for_the_task_is_refused():
    with pytest.raises(UserError, match=r"data\.seq_len=19: at least 20 for Reber"):
        data(task=Reber(), seq_len=19)


class Labels(Task):
    n_inputs, n_outputs, objective = 1, 3, Classes()
    dtype, lengths = torch.int64, None

    def draw(self, n, seq_len, generator):
        x = torch.rand(n, seq_len, 1, generator=generator)
        y = torch.zeros(n, dtype=self.dtype)
        return (x, y) if self.lengths is None else (x, y, self.lengths(n))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"dtype": torch.float32}, "torch.int64, got torch.float32 and torch.float32"),
        ({"lengths": lambda n: torch.full((n,), 7)}, "lengths .* 1 to 6"),
        ({"lengths": lambda n: torch.zeros(n).long()}, "lengths .* 1 to 6"),
        ({"lengths": lambda n: torch.ones(n)}, "lengths .* 1 to 6"),
        ({"lengths": lambda n: torch.ones(n - 1).long()}, "lengths .* 1 to 6"),
    ],
)
def test_wrong_targets_and_lengths_are_refused(wrong, said):
    with pytest.raises(UserError, match=f"Labels.draw .*{said}"):
        data(task=type("Labels", (Labels,), {k: staticmethod(v) if callable(v) and k == "lengths"
                                             else v for k, v in wrong.items()})())  # fmt: skip
