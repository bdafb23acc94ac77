import re
from copy import copy

import pytest
import torch

from seqlab.data import Chunks, Slices, seed_of
from seqlab.literature import Adding, Copy, Reber, TemporalOrder
from seqlab.objectives import NO_TARGET, Classes
from seqlab.tasks import Random, Sine, Task, TaskData


def data(task=None, **changed):
    """Prepared on the CPU."""
    sizes = {"seq_len": 6, "n_train": 100, "n_val": 50, "n_test": 30, "batch_size": 8}
    rest = {"fresh": False, "accumulate": 1, "steps_per_call": 4, "seed": 0}
    rest |= dict.fromkeys(["min_len", "val_len", "test_len", "test_task"])
    made = TaskData(task or Random(n_inputs=2), **(sizes | rest | changed))
    made.prepare(torch.device("cpu"))
    return made


def chunks_of(made, epoch=0, rank=0, ranks=1, first=(0, 0)):
    chunks = Chunks(made, rank, ranks, first)
    chunks.set_epoch(epoch)
    return chunks


def batches_of(chunks):
    """The batches of an epoch in order, whatever chunks they came in."""
    return [
        batch
        for chunk in chunks
        for step in zip(*chunk, strict=True)
        for batch in zip(*step, strict=True)
    ]


def epoch_of(made, epoch=0):
    """All training inputs of an epoch in order."""
    return torch.cat([x for x, *_ in batches_of(chunks_of(made, epoch))])


def references(made):
    return copy(made.objective).attach(made).references


def sequences(x):
    """As a set, to compare."""
    return {tuple(sequence.flatten().tolist()) for sequence in x}


def test_splits_have_their_sizes_and_share_no_sequence():
    made = data()
    sets = [sequences(made.splits[split].x) for split in ("train", "val", "test")]
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
    for batch_x, batch_y in batches_of(chunks_of(made)):
        assert batch_x.shape == (8, 6, 2)
        for a, b in zip(batch_x, batch_y, strict=True):
            seen.append(tuple(a.flatten().tolist()))
            assert target[seen[-1]] == b.item()
    assert len(seen) == len(set(seen)) == 96


def test_the_order_is_a_function_of_seed_and_epoch():
    assert torch.equal(epoch_of(data(), 3), epoch_of(data(), 3))
    assert not torch.equal(epoch_of(data(), 3), epoch_of(data(), 4))
    # what is left over differs from epoch to epoch
    assert sequences(epoch_of(data(), 3)) != sequences(epoch_of(data(), 4))
    # the order alone, over the same sequences
    made, other = data(), data()
    other.seed = 1
    assert not torch.equal(epoch_of(made, 3), epoch_of(other, 3))


def test_the_order_does_not_depend_on_how_many_steps_a_chunk_takes():
    assert torch.equal(epoch_of(data(steps_per_call=1)), epoch_of(data(steps_per_call=5)))


@pytest.mark.parametrize("batch_size", [1, 8, 100])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("steps_per_call", [1, 4, 1000])
def test_chunks_hold_steps_and_steps_hold_batches(batch_size, accumulate, steps_per_call):
    sizes = {"accumulate": accumulate, "steps_per_call": steps_per_call}
    made = data(batch_size=batch_size, **sizes)
    chunks = list(chunks_of(made))
    for x, y in chunks:
        S, A = x.shape[:2]
        assert x.shape == (S, A, batch_size, 6, 2)
        assert y.shape == (S, A, batch_size, 1)
    steps = [step for x, _ in chunks for step in x]
    assert len(chunks) == len(chunks_of(made))
    assert len(steps) == made.steps_per_epoch
    assert sum(map(len, steps)) == 100 // batch_size
    assert {len(step) for step in steps[:-1]} <= {accumulate}
    assert len(steps[-1]) <= accumulate
    # as many steps as asked for, but for what is left at the end: whole steps, then a smaller one
    whole, rest = divmod(100 // batch_size, accumulate)
    full, left = divmod(whole, steps_per_call)
    lengths = [steps_per_call] * full + [left] * (left > 0) + [1] * (rest > 0)
    assert [len(x) for x, _ in chunks] == lengths


def test_the_batches_of_a_chunk_are_views_of_one_tensor():
    made = data()
    (chunk, *_) = chunks_of(made)
    assert all(isinstance(part, torch.Tensor) for part in chunk)
    batches = batches_of([chunk])
    assert len({x.untyped_storage().data_ptr() for x, _ in batches}) == 1
    assert {x.untyped_storage().data_ptr() for x, _ in batches} == {chunk[0].data_ptr()}


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_sees_every_sequence_once_in_order(split):
    made = data(n_val=20_000, n_test=20_000)
    loader = made.whole(split)
    slices = list(loader)
    assert len(loader) == len(slices) == 4
    assert max(len(x) for x, _ in slices) <= 2**15 / 6  # steps in all
    x, y = (torch.cat(parts) for parts in zip(*slices, strict=True))
    assert torch.equal(x, made.splits[split].x)
    assert torch.equal(y, made.splits[split].y)


def test_skill_is_measured_against_the_first_baseline():
    made = data(task=Sine(noise=0.1))
    x, y = made.splits["val"][:]
    assert references(made)["val"] == pytest.approx((x[:, -1] - y).square().mean().item())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"n_train": 7}, "n_train=7: at least batch_size=8"),
        ({"n_val": 1}, "n_val=1: at least 2"),
        ({"n_test": 1}, "n_test=1: at least 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changed, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        data(**changed)


SIZES = ["seq_len", "n_train", "n_val", "n_test", "batch_size", "accumulate", "steps_per_call"]


@pytest.mark.parametrize("key", SIZES)
def test_sizes_below_one_are_refused(key):
    with pytest.raises(ValueError, match=f"^{key}=0: at least 1$"):
        data(**{key: 0})


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", [8.0, "8", True, None])
def test_sizes_that_are_no_integers_are_refused(key, value):
    with pytest.raises(TypeError, match=f"^{key}={value}: an integer of at least 1$"):
        data(**{key: value})


def test_a_task_of_other_shapes_than_it_says_is_refused():
    class Wrong(Task):
        n_inputs, n_outputs = 1, 2

        def draw(self, n, seq_len, generator):
            return torch.rand(n, seq_len, 1), torch.rand(n)

    with pytest.raises(ValueError, match=r"Wrong.draw .* \(100, 2\), got .* \(100,\)"):
        data(task=Wrong())


def test_processes_share_every_batch_and_every_split():
    made = data(n_val=20_000)
    whole, first, second = (
        [x for x, _ in batches_of(chunks_of(made, rank=rank, ranks=ranks))]
        for rank, ranks in ((0, 1), (0, 2), (1, 2))
    )
    for batch, *shares in zip(whole, first, second, strict=True):
        assert torch.equal(batch, torch.cat(shares))
    val = made.splits["val"]
    halves = [list(Slices(val, made.eval_size, rank, 2)) for rank in range(2)]
    assert len(halves[0]) == len(halves[1]) == len(Slices(val, made.eval_size, 0, 2)) == 2
    parts = [x for pair in zip(*halves, strict=True) for x, _ in pair]
    assert torch.equal(torch.cat(parts), val.x)


def test_an_epoch_goes_on_from_the_chunks_it_has_had():
    made = data()
    chunks, rest = list(chunks_of(made, epoch=5)), chunks_of(made, epoch=5, first=(5, 2))
    assert len(chunks) == len(rest) == 3
    for chunk, expected in zip(rest, chunks[2:], strict=True):
        assert all(map(torch.equal, chunk, expected))
    # the next epoch is whole
    rest.set_epoch(6)
    for chunk, expected in zip(rest, chunks_of(made, epoch=6), strict=True):
        assert all(map(torch.equal, chunk, expected))


def test_chunks_begin_with_the_epoch_that_they_are_told():
    made = data()
    assert torch.equal(
        torch.cat([x for x, _ in batches_of(Chunks(made, first=(3, 0)))]), epoch_of(made, 3)
    )


def test_fresh_sequences_are_a_function_of_seed_and_epoch():
    made = data(fresh=True)
    epochs = [sequences(epoch_of(made, epoch)) for epoch in range(4)]
    assert [len(found) for found in epochs] == [96] * 4
    assert len(set.union(*epochs)) == 4 * 96  # none is seen twice
    assert sequences(epoch_of(data(fresh=True), 3)) == epochs[3]
    assert not epochs[3] & sequences(torch.cat([s.x for s in made.splits.values()]))
    assert sequences(epoch_of(data(fresh=True, seed=1), 3)).isdisjoint(epochs[3])
    generator = torch.Generator().manual_seed(seed_of(0, "fresh", 3))
    assert epochs[3] <= sequences(Random(n_inputs=2).draw(100, 6, generator)[0])


class Counted(Sine):
    """Leaves behind whether it was asked to draw elsewhere, and refuses that if told so."""

    def __init__(self, refuses=False):
        super().__init__()
        self.refuses, self.seen = refuses, []

    def draw(self, n, seq_len, generator):
        x, y = super().draw(n, seq_len, generator)
        there = torch.get_default_device() == torch.device("cpu", 0)
        self.seen.append((n, there))
        if there and self.refuses:
            raise TypeError("can't convert to numpy")
        return x, y


@pytest.mark.parametrize("refuses", [False, True])
def test_fresh_sequences_are_drawn_where_they_are_used_if_the_task_can(refuses, caplog):
    """On a GPU `there` is set; here the CPU stands for it. The splits are the same everywhere."""
    task = Counted(refuses)
    made = data(task=task, fresh=True)
    made.there, made.device = True, torch.device("cpu", 0)  # the default's name is plain cpu
    assert [there for _, there in task.seen] == [False] * 3
    with caplog.at_level("INFO", "seqlab"):
        drawn = [epoch_of(made, epoch) for epoch in (1, 2)]
    said = "fresh sequences are drawn on the CPU: can't convert to numpy"
    assert caplog.messages == [said] * refuses
    where = [True, False, False] if refuses else [True, True]
    assert task.seen[3:] == [(100, there) for there in where]
    for epoch, found in zip((1, 2), drawn, strict=True):
        assert torch.equal(found, epoch_of(data(task=Sine(), fresh=True), epoch))


def test_without_fresh_each_epoch_has_the_training_set():
    made = data()
    assert sequences(epoch_of(made, 3)) <= sequences(made.splits["train"].x)


def test_lengths_go_with_their_sequences():
    made = data(task=TemporalOrder(2), seq_len=20)
    for x, y, lengths in batches_of(chunks_of(made)):
        assert x.shape == (8, 22, 8)
        assert y.shape == lengths.shape == (8,)
        # the sequence ends with B
        assert torch.equal(x.argmax(2)[torch.arange(8), lengths - 1], torch.ones(8).long())
        assert not x[torch.arange(22) >= lengths[:, None]].any()
    for x, _, lengths in made.whole("val"):
        assert not x[torch.arange(22) >= lengths[:, None]].any()


@pytest.mark.parametrize("task", [Adding(), Copy()])
def test_sequences_of_one_length_come_without_lengths(task):
    made = data(task=task, seq_len=24)
    assert {len(batch) for batch in chunks_of(made)} == {2}


def test_the_reference_of_classes_is_a_cross_entropy():
    made = data(task=TemporalOrder(3), seq_len=20)
    assert references(made)["val"] == pytest.approx(torch.tensor(8.0).log().item())
    assert "val" not in references(data(task=Reber(), seq_len=20))  # it has no baseline


def test_a_sequence_too_short_for_the_task_is_refused():
    with pytest.raises(ValueError, match=r"^seq_len=19: at least 20 for Reber"):
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
    wrong = {k: staticmethod(v) if k == "lengths" else v for k, v in wrong.items()}
    with pytest.raises(ValueError, match=f"^Labels.draw .*{said}"):
        data(task=type("Labels", (Labels,), wrong)())


def test_a_task_at_every_step_is_asked_for_targets_at_every_step():
    class EveryStep(Labels):
        every_step = True

    with pytest.raises(ValueError, match=re.escape("(100, 6), got (100, 6, 1) and (100,)")):
        data(task=EveryStep())


def test_splits_are_loaded_once():
    made = data()
    before = made.splits
    made.prepare(torch.device("cpu"))
    assert made.splits is before


def lengths_of(made, epoch=0):
    """The lengths in each training batch of an epoch."""
    return [set(lengths.tolist()) for *_, lengths in batches_of(chunks_of(made, epoch))]


@pytest.mark.parametrize("fresh", [False, True])
def test_each_training_batch_has_one_length(fresh):
    made = data(seq_len=9, min_len=5, n_train=8003, fresh=fresh)
    found = lengths_of(made)
    assert len(found) == 1000
    assert all(len(each) == 1 for each in found)
    counts = [found.count({length}) for length in range(5, 10)]
    assert sum(counts) == 1000
    # uniform: each length has 200 batches, give or take four standard deviations
    assert all(abs(n - 200) < 4 * (1000 * 0.2 * 0.8) ** 0.5 for n in counts)
    assert lengths_of(made, 1) != found
    assert lengths_of(data(seq_len=9, min_len=5, n_train=8003, fresh=fresh)) == found
    for x, y, lengths in batches_of(chunks_of(made))[:20]:
        n = int(lengths[0])
        assert x.shape == (8, 9, 2)
        assert not x[:, n:].any()
        torch.testing.assert_close(y, x[:, :n].mean(dim=(1, 2)).unsqueeze(1))


def test_each_process_has_its_part_of_a_batch_of_one_length():
    made = data(seq_len=9, min_len=2, n_train=800, fresh=True)
    parts = [batches_of(chunks_of(made, rank=rank, ranks=2)) for rank in (0, 1)]
    for (x, _, lengths), (other, _, others) in zip(*parts, strict=True):
        assert x.shape == other.shape == (4, 9, 2)
        assert set(lengths.tolist()) == set(others.tolist())
        assert len(set(lengths.tolist())) == 1
        assert sequences(x).isdisjoint(sequences(other))


def test_an_epoch_of_several_lengths_is_taken_up_where_it_was_left():
    made = data(seq_len=9, min_len=2, n_train=800, fresh=True)
    whole, rest = chunks_of(made, 2), chunks_of(made, 2, first=(2, 7))
    for one, other in zip([*whole][7:], rest, strict=True):
        assert all(map(torch.equal, one, other))


def test_validation_and_test_are_spread_evenly_over_their_lengths():
    made = data(seq_len=9, val_len=(4, 13), test_len=(20, 39), n_val=50, n_test=100)
    assert made.splits["train"].lengths is None
    for split, low, high, each in (("val", 4, 13, 5), ("test", 20, 39, 5)):
        lengths = made.splits[split].lengths.tolist()
        assert lengths == sorted(lengths)
        assert [lengths.count(n) for n in range(low, high + 1)] == [each] * (high - low + 1)
    # without a range of their own they have that of training
    made = data(seq_len=9, min_len=5)
    assert made.splits["test"].lengths.unique().tolist() == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("task", [Copy(), Reber(), TemporalOrder(2), Sine()])
def test_what_a_task_draws_is_only_padded(task):
    made = data(task=task, seq_len=24, test_len=(24, 40), n_test=34)
    x, y, lengths = made.splits["test"][:]
    generator = torch.Generator().manual_seed(seed_of(0, "test"))
    for i, length in enumerate(range(24, 41)):
        drawn, target, *ends = task.draw(2, length, generator)
        here, T = slice(2 * i, 2 * i + 2), drawn.shape[1]
        assert torch.equal(x[here, :T], drawn)
        assert not x[here, T:].any()
        assert lengths[here].tolist() == (ends[0].tolist() if ends else [T, T])
        assert torch.equal(y[here, :T] if task.every_step else y[here], target)
        if task.every_step:
            assert (y[here, T:] == NO_TARGET).all()


def test_numbers_at_every_step_are_padded_with_nan():
    class Sums(Sine):
        every_step = True

        def draw(self, n, seq_len, generator):
            x = torch.rand(n, seq_len, 1, generator=generator)
            return x, x.cumsum(1)

    y = data(task=Sums(), test_len=(3, 5), n_test=6).splits["test"].y
    assert y[:, :, 0].isfinite().sum(1).tolist() == [3, 3, 4, 4, 5, 5]
    assert y.isnan().sum() == 6


def test_the_test_may_be_of_another_task():
    made = data(task=Sine(noise=0.0), test_task=Sine(noise=5.0), n_test=2000)
    assert made.splits["val"].x.abs().max() <= 1
    assert made.splits["test"].x.std() == pytest.approx((25 + 0.5) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"min_len": 0}, "min_len=0: from 1 to seq_len=6"),
        ({"min_len": 7}, "min_len=7: from 1 to seq_len=6"),
        ({"test_len": (9, 5)}, r"test_len=\[9, 5\]: shortest and longest, from 1 on"),
        ({"val_len": (0, 5)}, r"val_len=\[0, 5\]: shortest and longest, from 1 on"),
        ({"task": Reber(), "seq_len": 30, "min_len": 19}, "min_len=19: from 20 to seq_len=30"),
        ({"task": Reber(), "seq_len": 30, "test_len": (19, 40)}, "from 20 on"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        data(**changed)


def test_the_ten_symbols_of_copying_are_counted_wherever_a_sequence_ends():
    _, y, _ = data(task=Copy(), seq_len=40, min_len=21).splits["train"][:]
    right = torch.nn.functional.one_hot(y.clamp(min=0), 9).float()
    assert Copy().recalled(right, y).tolist() == [1.0] * len(y)
    assert not Copy().recalled(-right, y).any()
    ends = (y >= 0).sum(1)
    for n, end in enumerate(ends.tolist()):
        right[n, end - 1 - n % 10 : end] *= -1  # from one wrong symbol on to all ten
    shares = [(9 - n % 10) / 10 for n in range(len(y))]
    assert Copy().recalled(right, y).tolist() == pytest.approx(shares)
