"""The published tasks are as published."""

import math
import re
from collections import Counter

import numpy as np
import pytest
import torch
from program import SMALL, run, seqlab

from seqlab.literature import (
    Adding,
    AddingHS97,
    AddingUniform,
    Copy,
    LongLag,
    MackeyGlass,
    Multiplication,
    Reber,
    TemporalOrder,
    TwoSequence,
    mackey_glass,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("task", [Adding(), AddingUniform()])
def test_addings_target_is_the_sum_of_the_two_marked_values(task):
    x, y = task.draw(2000, 30, generator())
    for values_F, target in zip(x, y, strict=True):
        marked = [value for value, marker in values_F.tolist() if marker == 1]
        assert len(marked) == 2
        assert target.item() == pytest.approx(sum(marked))
    assert set(x[:, :, 1].unique().tolist()) == {0, 1}
    assert 0 <= x[:, :, 0].min() < x[:, :, 0].max() < 1


def test_adding_marks_one_step_in_each_half_and_uniform_any_two():
    x, _ = Adding().draw(20_000, 9, generator())
    assert (x[:, :4, 1].sum(1) == 1).all()
    assert (x[:, 4:, 1].sum(1) == 1).all()
    x, _ = AddingUniform().draw(20_000, 9, generator())
    pairs = Counter(tuple(row.nonzero()[:, 0].tolist()) for row in x[:, :, 1])
    assert len(pairs) == 9 * 8 / 2
    assert min(pairs.values()) > 0.8 * 20_000 / 36


def words_of(symbols, p, names):
    """Sequences of symbols as lists of words, a1 to a(p) and then the names."""
    words = [f"a{i + 1}" for i in range(p)] + names
    return [[words[symbol] for symbol in row] for row in symbols.tolist()]


@pytest.mark.parametrize("variant", ["2a", "2b"])
def test_long_lag_asks_for_every_next_symbol_and_the_first_again_at_the_end(variant):
    T = p = 8
    x, y = LongLag(variant, p).draw(4000, T, generator())
    assert x.shape == (4000, T, p + 1)
    assert torch.equal(x.sum(2), torch.ones(4000, T))
    seen = words_of(x.argmax(2), p - 1, ["x", "y"])
    asked = words_of(y, p - 1, ["x", "y"])
    counts = Counter()
    for before, after in zip(seen, asked, strict=True):
        assert before[1:] == after[:-1]
        assert before[0] == after[-1]
        assert before[0] in ("x", "y")
        between = before[1:]
        assert set(between) <= {f"a{i}" for i in range(1, p)}
        if variant == "2a":
            assert between == [f"a{i}" for i in range(1, p)]
        counts.update(enumerate(before))
    assert counts[0, "x"] / 4000 == pytest.approx(1 / 2, rel=0.05)
    if variant == "2b":  # at each step each of the p - 1 symbols, alike
        for t in range(1, T):
            for i in range(1, p):
                assert counts[t, f"a{i}"] / 4000 == pytest.approx(1 / (p - 1), rel=0.2)


def test_2c_is_long_and_ends_with_e_before_the_second_symbol_comes_again():
    p, q = 5, 30
    x, y, lengths = LongLag("2c", p).draw(20_000, q, generator())
    assert x.shape[1:] == (lengths.max(), p + 4)
    longer = (lengths - (q + 3)).double()  # by k, with the chance 0.1 * 0.9^k
    for k in range(4):
        assert (longer == k).double().mean() == pytest.approx(0.1 * 0.9**k, rel=0.1)
    assert longer.min() == 0
    assert longer.mean() == pytest.approx(9, rel=0.05)
    counts = Counter()
    kept = torch.arange(x.shape[1]) < lengths[:, None]
    assert torch.equal(x.sum(2), kept.float())
    for row, n, is_y in zip(x[:2000].argmax(2), lengths.tolist(), y.tolist(), strict=False):
        ((b, second, *between, e),) = words_of(row[None, :n], p, ["e", "b", "x", "y"])
        assert (b, e) == ("b", "e")
        assert second == "xy"[is_y]
        counts.update(between)
    assert set(counts) == {f"a{i}" for i in range(1, p + 1)}
    assert min(counts.values()) > 0.9 * max(counts.values())
    assert y.double().mean() == pytest.approx(1 / 2, rel=0.05)


@pytest.mark.parametrize(
    ("variant", "steps", "bound"), [("2a", [0, 1, 2], 0.25), ("2b", [2], 0.25), ("2c", [-1], 0.2)]
)
def test_success_at_a_long_lag_is_that_every_output_is_near_its_target(variant, steps, bound):
    task = LongLag(variant, 3)
    y = torch.tensor([[0, 1, 3]] if task.every_step else [1])

    def within(step, chance):
        """Whether it is success, where the right symbol has this chance at a step."""
        right = torch.full(y.shape, 0.99)
        right.view(-1)[step] = chance
        prediction = ((1 - right) / (task.n_outputs - 1)).unsqueeze(-1).repeat(1, 1, task.n_outputs)
        prediction = prediction.view(*y.shape, task.n_outputs)
        prediction = prediction.scatter(-1, y.unsqueeze(-1), right.unsqueeze(-1)).log()
        (figure,) = task.objective.figures.values()
        return figure(prediction, y).tolist()

    for step in range(y.numel()):
        decides = step in steps or variant == "2c"
        assert within(step, 1 - bound + 0.01) == [1]
        assert within(step, 1 - bound - 0.01) == [0 if decides else 1]


def test_the_end_weighs_more_in_the_loss_alone():
    plain, task = LongLag("2b", 5), LongLag("2b", 5, end_weight=10.0)
    _, y = task.draw(50, 8, generator())
    prediction = torch.randn(50, 8, 6, generator=generator())
    each = torch.nn.functional.cross_entropy(prediction.mT, y, reduction="none")
    assert plain.objective.loss(prediction, y) == pytest.approx(each.mean().item())
    expected = each.mean() + 10 * each[:, -1].mean()
    assert task.objective.loss(prediction, y) == pytest.approx(expected.item())
    assert task.objective.errors(prediction, y).mean() == pytest.approx(each.mean().item())


@pytest.mark.parametrize("variant", ["3a", "3b", "3c"])
@pytest.mark.parametrize("N", [1, 3])
def test_two_sequence_says_the_class_first_and_then_is_noise(variant, N):
    T, task = 30, TwoSequence(variant, N)
    x, y, lengths = task.draw(20_000, T, generator())
    assert Counter(lengths.tolist()).keys() == {30, 31, 32, 33}
    first, rest = x[:, :N, 0], x[:, N:T, 0]
    assert rest.mean() == pytest.approx(0, abs=0.005)
    assert rest.var() == pytest.approx(0.2, rel=0.02)
    assert (x[:, :, 0][torch.arange(33) >= lengths[:, None]] == 0).all()
    targets = torch.tensor([0.8, 0.2] if variant == "3c" else [0.0, 1.0])
    is_one = (y[:, -1:] - targets).abs().argmin(1, keepdim=True)
    torch.testing.assert_close(y[:, -1:], targets[is_one])
    assert is_one.double().mean() == pytest.approx(1 / 2, rel=0.05)
    noise = first - (2 * is_one - 1)
    if variant == "3b":
        assert noise.mean() == pytest.approx(0, abs=0.01)
        assert noise.var() == pytest.approx(0.2, rel=0.03)
    else:
        assert not noise.any()


def test_3c_is_trained_on_noisy_targets_and_measured_without_the_noise():
    task = TwoSequence("3c")
    objective = task.objective
    _, y, _ = task.draw(20_000, 30, generator())
    noise = y[:, 0] - y[:, 1]
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.var() == pytest.approx(0.1, rel=0.03)
    # what is best for the noisy targets is the target without noise, and its loss is the variance
    clean = y[:, 1:]
    assert objective.loss(clean, y) == pytest.approx(0.1, rel=0.03)
    metrics = objective.metrics("test")
    objective.measure(metrics, clean + torch.tensor([[0.09]]), y)
    values = objective.values("test", metrics)
    assert values["test/mae"] == pytest.approx(0.09)
    assert values["test/mse"] == pytest.approx(0.09**2)
    assert values["test/within"] == 1
    assert torch.equal(objective.truth(y), clean.double())


@pytest.mark.parametrize(("variant", "bound"), [("3a", 0.2), ("3b", 0.2), ("3c", 0.1)])
def test_success_of_two_sequence_is_a_small_error(variant, bound):
    (within,) = TwoSequence(variant).objective.figures.values()
    y = torch.tensor([[0.2], [0.8], [0.8]])
    prediction = y + torch.tensor([[bound - 0.01], [0.01 - bound], [bound + 0.01]])
    assert within(prediction, y).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: LongLag("2d", 5), "variant=2d: 2a, 2b or 2c"),
        (lambda: LongLag("2a", 1), "p=1: at least 2"),
        (lambda: TwoSequence("2a"), "variant=2a: 3a, 3b or 3c"),
        (lambda: TwoSequence("3a", 0), "n_first=0: at least 1"),
    ],
)
def test_other_variants_are_refused(made, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        made()


def first_chosen(T):
    """The chance that the first step is one of the two marked ones."""
    return 0.1 + 0.9 / (T // 2 - 1)


@pytest.mark.parametrize("task", [AddingHS97(), Multiplication()])
def test_the_tasks_of_1997_are_as_published(task):
    T, adding = 40, type(task) is AddingHS97
    x, y, lengths = task.draw(4000, T, generator())
    firsts = 0
    for sequence, target, length in zip(x.tolist(), y, lengths.tolist(), strict=True):
        marked = [t for t in range(1, length - 1) if sequence[t][1] == 1]
        assert sequence[0][1] == sequence[length - 1][1] == -1
        assert all(sequence[t][1] == 0 for t in range(1, length - 1) if t not in marked)
        values = [sequence[t][0] for t in marked]
        if len(marked) == 1:  # the first step was chosen, and has the value that changes nothing
            firsts += 1
            values.append(sequence[0][0])
            assert values[1] == (0 if adding else 1)
        assert len(values) == 2
        assert marked[0] < 10 or len(marked) == 1
        assert marked[-1] < T // 2
        expected = 0.5 + sum(values) / 4 if adding else math.prod(values)
        assert target.item() == pytest.approx(expected, abs=1e-6)
    assert firsts / 4000 == pytest.approx(first_chosen(T), rel=0.15)
    assert Counter(lengths.tolist()).keys() == set(range(40, 45))


@pytest.mark.parametrize("markers", [2, 3])
def test_temporal_orders_class_is_the_order(markers):
    x, y, lengths = TemporalOrder(markers).draw(2000, 100, generator())
    spans = {2: [(10, 20), (50, 60)], 3: [(10, 20), (33, 43), (66, 76)]}[markers]
    for sequence, target, length in zip(x.argmax(2), y, lengths, strict=True):
        symbols = ["EBabcdXY"[symbol] for symbol in sequence[:length]]
        assert (symbols[0], symbols[-1]) == ("E", "B")
        places = [t for t, symbol in enumerate(symbols) if symbol in "XY"]
        for t, (low, high) in zip(places, spans, strict=True):
            assert low <= t <= high
        assert set(symbols[1:-1]) <= set("abcdXY")
        word = "".join(symbols[t] for t in places)
        assert target == int(word.replace("X", "0").replace("Y", "1"), 2)
    assert y.bincount().min() > 0.8 * 2000 / 2**markers


#: The Reber grammar as a regular expression, between B and E.
INNER = "B(TS*(XS|XX(T|VPX)*VV|XX(T|VPX)*VPS)|P(T|VPX)*(VV|VPS))E"


def strings_of(y, lengths):
    return ["B" + "".join("BTPSXVE"[s] for s in row[:n]) for row, n in zip(y, lengths, strict=True)]


def test_reber_strings_are_those_of_the_embedded_grammar():
    x, y, lengths = Reber().draw(5000, 40, generator())
    found = strings_of(y, lengths)
    for string in found:
        assert re.fullmatch(f"B(T{INNER}T|P{INNER}P)E", string), string
    assert torch.equal(x.argmax(2)[:, 1:][y[:, 1:] != -100], y[:, :-1][y[:, 1:] != -100])
    assert all((y[i, n:] == -100).all() for i, n in enumerate(lengths.tolist()))
    # a short string of few choices: B (T|P) B TXS E (T|P) E, each arc with chance 1/2
    share = sum(s in ("BTBTXSETE", "BPBTXSEPE") for s in found) / len(found)
    assert share == pytest.approx(1 / 8, rel=0.15)


def test_legal_wants_every_legal_symbol_above_every_other():
    task = Reber()
    _, y, lengths = task.draw(200, 40, generator())
    follows = {}  # by what came before: what was seen to follow
    _, more, n_more = task.draw(20_000, 40, generator(1))
    for string in strings_of(more, n_more) + strings_of(y, lengths):
        for t in range(1, len(string)):
            follows.setdefault(string[:t], set()).add(string[t])
    best = torch.zeros(*y.shape, 7)
    for i, string in enumerate(strings_of(y, lengths)):
        for t in range(1, len(string)):
            for symbol in follows[string[:t]]:
                best[i, t - 1, "BTPSXVE".index(symbol)] = 1.0
    # prefixes that are rare were not seen with all that may follow them
    right = task.legal(best, y) == 1
    assert right.double().mean() > 0.9
    noise = 0.1 * torch.rand(best.shape, generator=generator())
    assert (task.legal(best + noise, y)[right] == 1).all()
    assert task.legal(-best, y).sum() == 0
    worse = best.clone()
    worse[:, 3] = 0.0  # one step that ranks nothing
    assert task.legal(worse, y).sum() == 0


def test_copy_asks_for_what_was_said():
    x, y = Copy().draw(500, 35, generator())
    said = x.argmax(2)
    assert torch.equal(said[:, :10], y[:, -10:])
    assert said[:, :10].max() == 7
    assert (said[:, 24] == 9).all()
    assert (said[:, 10:24] == 8).all()
    assert (said[:, 25:] == 8).all()
    assert (y[:, :-10] == 8).all()


@pytest.mark.parametrize(
    ("task", "T", "figure"),
    [
        (Adding(), 50, 1 / 6),
        (AddingUniform(), 50, 1 / 6),
        (AddingHS97(), 100, (2 - first_chosen(100)) / 48),
        (Multiplication(), 100, 7 / 144 + 7 * first_chosen(100) / 72),
        (TemporalOrder(2), 100, math.log(4)),
        (TemporalOrder(3), 100, math.log(8)),
        (Copy(), 30, 10 * math.log(8) / 30),
        (LongLag("2a", 20), 20, math.log(2) / 20),
        (LongLag("2b", 20), 20, (19 * math.log(19) + math.log(2)) / 20),
        (LongLag("2c", 5), 20, math.log(2)),
        (TwoSequence("3a"), 20, 1 / 4),
        (TwoSequence("3b"), 20, 1 / 4),
        (TwoSequence("3c"), 20, 0.09),
    ],
)
def test_doing_nothing_has_the_stated_loss(task, T, figure):
    x, y, *_ = task.draw(20_000, T, generator())
    (baseline,) = task.baselines(x).values()
    errors = task.objective.errors(*task.objective.select(baseline.double(), y))
    assert errors.mean() == pytest.approx(figure, rel=0.03)


def test_success_in_1997_is_an_error_below_0_04():
    y = torch.tensor([[0.5], [0.5], [0.5]])
    prediction = torch.tensor([[0.53], [0.45], [0.5]])
    (within,) = AddingHS97().objective.figures.values()
    assert within(prediction, y).tolist() == [1, 0, 1]


# Mackey-Glass


def test_mackey_glass_is_deterministic_and_bounded():
    first = mackey_glass(2000, 17)
    assert first.shape == (2000,)
    assert np.array_equal(first, mackey_glass(2000, 17))
    assert np.array_equal(first[:100], mackey_glass(100, 17))
    assert 0.2 < first.min() < 0.5
    assert 1.2 < first.max() < 1.5


def between_units(x, per_unit):
    """A smooth series `per_unit` times finer, by the degree-9 polynomial through ten neighbours."""
    nodes, at = np.arange(-4, 6), np.arange(per_unit) / per_unit
    weights = [np.prod([(at - m) / (n - m) for m in nodes if m != n], axis=0) for n in nodes]
    fine = [x[i + nodes] @ weights for i in range(4, len(x) - 5)]
    return np.concatenate(fine), 4


def test_mackey_glass_agrees_with_a_finer_integration_of_its_own_past():
    tau, per_unit, n = 17, 100, 40
    x = mackey_glass(80, tau)
    fine, first = between_units(x, per_unit)
    start = 30  # the time up to which the past is given; the rest is integrated
    past = (start - first) * per_unit + 1
    h, delay, fine = 1 / per_unit, tau * per_unit, list(fine[:past])
    for i in range(past - 1, past - 1 + n * per_unit):
        k = 0.0
        slopes = []
        for part, then in (
            (0, fine[i - delay]),
            (0.5, None),
            (0.5, None),
            (1, fine[i - delay + 1]),
        ):
            then = (fine[i - delay] + fine[i - delay + 1]) / 2 if then is None else then
            k = 0.2 * then / (1 + then**10) - 0.1 * (fine[i] + part * h * k)
            slopes.append(k)
        fine.append(fine[i] + h / 6 * np.dot([1, 2, 2, 1], slopes))
    np.testing.assert_allclose(x[start : start + n], fine[past - 1 :: per_unit][:n], atol=1e-4)


SIZES = {"seq_len": 30, "horizon": 1, "lead": 6, "season": None, "predict": "level", "calendar": []}
SIZES |= {"batch_size": 8, "accumulate": 1, "steps_per_call": 4, "seed": 0}


def test_an_autoregression_on_mackey_glass_has_the_known_error():
    made = MackeyGlass(5000, 17, 0.7, 0.85, **SIZES)
    made.prepare(torch.device("cpu"))
    x, y = made.splits["test"][:]
    # targets are in units of the training part's deviation, so this is the normalised error
    error = (made.baselines(x)["AR(30)"] - y).double().square().mean()
    assert 0.0122 < error < 0.0135


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"n": 0}, "n=0: at least 1"),
        ({"tau": -1}, "tau=-1: at least 1"),
        ({"val_from": 0.0}, r"val_from=0.0: a fraction in \(0, 1\)"),
        ({"test_from": 1.0}, r"test_from=1.0: a fraction in \(0, 1\)"),
    ],
)
def test_arguments_out_of_range_are_refused(changed, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        MackeyGlass(
            **({"n": 500, "tau": 17, "val_from": 0.7, "test_from": 0.85} | changed), **SIZES
        )


@pytest.mark.slow
def test_the_recipe_of_2a_learns_a_short_lag(tmp_path):
    sizes = ["data.seq_len=10", "trainer.max_epochs=3", "data.n_test=100"]
    result = run("experiment=hs97_2a", *sizes, cwd=tmp_path)
    assert result.code == 0, result.err
    assert result.results["metrics"]["test/within"] == 1
    assert result.results["steps"] * result.config["data"]["batch_size"] == 1500


@pytest.mark.slow
def test_predictions_of_3c_stand_beside_the_targets_without_noise(tmp_path):
    words = ["data=two_sequence", "data.task.variant=3c", "data.seq_len=10", "seed=1"]
    result = run(*SMALL, *words, "callbacks.pictures.every_n_epochs=1", cwd=tmp_path)
    assert result.code == 0, result.err
    checkpoint = str(result.folder / "checkpoints/best.ckpt")
    found = seqlab("predict", checkpoint, cwd=tmp_path)
    assert found.code == 0, found.err
    forecasts = [[float(word) for word in line.split(",")[2:]] for line in found.out.split()[1:]]
    assert {round(truth, 6) for _, truth in forecasts} == {0.2, 0.8}
    mae = np.mean([abs(forecast - truth) for forecast, truth in forecasts])
    assert mae == pytest.approx(result.results["metrics"]["test/mae"], rel=1e-4)


@pytest.mark.parametrize("variant", ["2a", "2b"])
def test_a_long_lag_ends_where_its_sequence_does(variant):
    """Padded to a common length, as sequences of several lengths are."""
    task = LongLag(variant, p=8)
    x, y = task.draw(50, 8, generator())
    longer = torch.cat([x, torch.zeros(50, 5, 9)], 1), torch.cat([y, torch.full((50, 5), -100)], 1)
    baseline, padded = (task.baselines(each)["x or y"] for each in (x, longer[0]))
    assert torch.equal(padded[:, :8], baseline)
    prediction = torch.full((50, 13, 9), -20.0).scatter(2, longer[1].clamp(min=0)[..., None], 20.0)
    prediction[0, 7], prediction[1, 2] = -prediction[0, 7], -prediction[1, 2]
    near = task.within(prediction, longer[1])
    assert torch.equal(near, task.within(prediction[:, :8], y))
    assert near.tolist() == [0.0, float(variant == "2b"), *[1.0] * 48]
