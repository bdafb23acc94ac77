"""The strings and the flip-flop are as published, against references that go symbol by symbol."""

import math
from collections import Counter

import pytest
import torch
from program import run
from torch.nn.functional import cross_entropy, one_hot

from seqlab.languages import (
    BucketSort,
    CycleNavigation,
    DuplicateString,
    EvenPairs,
    FlipFlop,
    ModularArithmetic,
    OddsFirst,
    Parity,
    ReverseString,
    StackManipulation,
)
from seqlab.objectives import NO_TARGET


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def parity(text):
    return 0 if text.count("b") % 2 == 0 else 1


def even_pairs(text):
    pairs = [text[i : i + 2] for i in range(len(text) - 1)]
    return (pairs.count("ab") + pairs.count("ba")) % 2


def cycle_navigation(text):
    place = 0
    for step in text:
        place += {"<": -1, ".": 0, ">": 1}[step]
    return place % 5


def modular_arithmetic(text):
    return eval(text) % 5


def stack_manipulation(text):
    stack = []
    for symbol in text:
        if symbol in "ab":
            stack.append("ab".index(symbol))
        elif symbol in "AB":
            stack.append("AB".index(symbol))
        elif stack:
            stack.pop()
    answer = [*stack[::-1], 2]
    return answer + [NO_TARGET] * (len(text) + 1 - len(answer))


def numbers(text):
    return ["ab".index(symbol) for symbol in text]


#: For each task its symbols, its number of classes and the answer to a string.
STRINGS = {
    Parity: ("ab", 2, parity),
    EvenPairs: ("ab", 2, even_pairs),
    CycleNavigation: ("<.>", 5, cycle_navigation),
    ModularArithmetic: ("01234+-*", 5, modular_arithmetic),
    BucketSort: ("01234", 5, lambda text: sorted(map(int, text))),
    ReverseString: ("ab", 2, lambda text: numbers(reversed(text))),
    DuplicateString: ("ab", 2, lambda text: numbers(text + text)),
    OddsFirst: ("ab", 2, lambda text: numbers(text[0::2] + text[1::2])),
    StackManipulation: ("ab-AB", 3, stack_manipulation),
}
EACH = pytest.mark.parametrize("kind", STRINGS, ids=lambda kind: kind.__name__)


def drawn(kind, n, seq_len, seed=0):
    """The strings as text, with the answers as lists or single classes."""
    symbols = STRINGS[kind][0]
    x, y, lengths = kind().draw(n, seq_len, generator(seed))
    assert (x.sum(2) == 1).all()
    assert ((x == 0) | (x == 1)).all()
    assert (lengths == x.shape[1]).all()
    assert x.shape[2] == kind().n_inputs == len(symbols) + 1
    empty = x[:, :, -1].bool()
    S = int((~empty[0]).sum())
    assert (empty == (torch.arange(x.shape[1]) >= S)).all()  # after the string, and only there
    texts = ["".join(symbols[i] for i in row) for row in x[:, :S].argmax(2).tolist()]
    if kind().every_step:
        assert y.shape == x.shape[:2]
        assert (y[:, :S] == NO_TARGET).all()
        y = y[:, S:]
    return texts, y.tolist()


@EACH
@pytest.mark.parametrize("seq_len", [1, 2, 3, 8, 31])
def test_the_answer_is_that_of_a_reference(kind, seq_len):
    _, n_outputs, answer = STRINGS[kind]
    texts, answers = drawn(kind, 300, seq_len)
    for text, found in zip(texts, answers, strict=True):
        assert found == answer(text), text
        # the paper's strings of arithmetic are odd
        assert len(text) == seq_len + (kind is ModularArithmetic and seq_len % 2 == 0)
    assert kind().n_outputs == n_outputs
    given = torch.tensor(answers)
    assert (given != NO_TARGET).reshape(300, -1).any(1).all()  # no sequence without a target


@EACH
def test_a_draw_depends_on_the_generator_alone(kind):
    torch.manual_seed(1)
    first = kind().draw(20, 12, generator(3))
    torch.manual_seed(2)
    again, other = kind().draw(20, 12, generator(3)), kind().draw(20, 12, generator(4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@EACH
def test_every_symbol_is_drawn_as_often_as_it_should(kind):
    symbols = STRINGS[kind][0]
    texts, _ = drawn(kind, 4000, 9)
    counts = Counter("".join(texts))
    if kind is ModularArithmetic:  # five numbers, four signs
        share = dict.fromkeys("01234", 5 / 9 / 5) | dict.fromkeys("+-*", 4 / 9 / 3)
    elif kind is StackManipulation:  # a stack of 1 to 8, so of 4.5 in the mean
        share = dict.fromkeys("ab", 4.5 / 9 / 2) | dict.fromkeys("-AB", 4.5 / 9 / 3)
    else:
        share = dict.fromkeys(symbols, 1 / len(symbols))
    for symbol in symbols:
        assert counts[symbol] / (4000 * 9) == pytest.approx(share[symbol], rel=0.05), symbol


def test_a_stack_has_at_least_one_symbol_and_one_action():
    texts, _ = drawn(StackManipulation, 4000, 5)
    sizes = Counter(len(text.rstrip("-AB")) for text in texts)
    assert sizes.keys() == {1, 2, 3, 4}
    assert min(sizes.values()) / 4000 == pytest.approx(1 / 4, rel=0.1)


def test_strings_of_the_papers():
    """The examples that the papers and their code give."""
    assert even_pairs("aabbba") == 0
    assert even_pairs("abababb") == 1
    assert cycle_navigation("><.<<") == 3
    assert modular_arithmetic("0*1+4*3-2") == 0
    assert modular_arithmetic("1-1-1") == 4
    assert stack_manipulation("abbaB--") == [1, 1, 0, 2] + [NO_TARGET] * 4
    assert stack_manipulation("bba---") == [2] + [NO_TARGET] * 6


@EACH
def test_the_baseline_takes_all_classes_for_alike(kind):
    x, y, _ = kind().draw(50, 7, generator())
    logits = kind().baselines(x)["all alike"]
    assert logits.shape == (*y.shape, STRINGS[kind][1])
    loss = cross_entropy(logits.flatten(0, -2), y.flatten(), ignore_index=NO_TARGET)
    assert loss.item() == pytest.approx(math.log(STRINGS[kind][1]))


def test_of_sorted_strings_a_baseline_knows_what_stands_where():
    """Strings of two: the first is 0 unless both are above, the second is 4 unless both are below.
    Strings of 500 are nearly the same fifths."""
    x, _, _ = BucketSort().draw(4, 2, generator())
    first, second = BucketSort().baselines(x)["by place"][0, 2:].exp()
    exact = torch.tensor([9, 7, 5, 3, 1]) / 25
    assert first.sum() == pytest.approx(1, abs=1e-4)
    assert torch.allclose(first, exact, atol=0.08)
    assert torch.allclose(first, second.flip(0), atol=1e-5)

    long, y, _ = BucketSort().draw(40, 500, generator())
    logits = BucketSort().baselines(long)["by place"]
    assert logits[0, 500::100].argmax(1).tolist() == [0, 1, 2, 3, 4]
    found = logits.argmax(2)[:, 500:]
    assert 0.9 < (found == y[:, 500:]).double().mean() < 0.97
    assert logits.isfinite().all()

    padded = torch.cat([x, torch.zeros(4, 3, 6)], 1)  # as among longer ones
    assert torch.equal(
        BucketSort().baselines(padded)["by place"][:, :4], BucketSort().baselines(x)["by place"]
    )


def flip_flops(p_ignore, n, seq_len, seed=0):
    """Sequences as texts such as w1i0r1, and the targets as lists."""
    x, y = FlipFlop(p_ignore).draw(n, seq_len, generator(seed))
    assert x.shape == (n, seq_len, 5)
    assert y.shape == (n, seq_len)
    assert (x.sum(2) == 1).all()
    assert ((x == 0) | (x == 1)).all()
    return ["".join("wir01"[i] for i in row) for row in x.argmax(2).tolist()], y.tolist()


@pytest.mark.parametrize("p_ignore", [0.0, 0.1, 0.8, 1.0])
def test_a_read_gives_the_bit_that_was_last_written(p_ignore):
    texts, targets = flip_flops(p_ignore, 300, 40)
    told, bits = Counter(), Counter()
    for text, y in zip(texts, targets, strict=True):
        assert text[0] == "w"
        assert text[-2] == "r"
        for at in range(0, 40, 2):
            instruction, bit = text[at : at + 2]
            if instruction == "w":
                memory = bit
            if instruction == "r":
                assert bit == memory
                assert y[at] == int(bit)
            else:
                bits[instruction, bit] += 1
                assert y[at] == NO_TARGET
            assert y[at + 1] == NO_TARGET
            if 0 < at < 38:
                told[instruction] += 1
    chances = {"w": (1 - p_ignore) / 2, "i": p_ignore, "r": (1 - p_ignore) / 2}
    for instruction, chance in chances.items():
        assert told[instruction] / (300 * 18) == pytest.approx(chance, abs=0.02)
    for (instruction, _), count in bits.items():
        both = bits[instruction, "0"] + bits[instruction, "1"]
        assert count / both == pytest.approx(1 / 2, abs=0.08)


def test_several_chances_share_the_reads():
    """Of 30,000 sequences of 512 tokens there are over 100,000 reads of each kind; here a tenth."""
    _, y = FlipFlop([0.98, 0.1]).draw(3000, 512, generator())
    reads = (y != NO_TARGET).sum(1).tolist()
    few, many = [r for r in reads if r <= 32], [r for r in reads if r > 32]
    expected = (1 / 3.54) / (1 / 3.54 + 1 / 115.3)  # 1 + 254 * 0.02 / 2 and 1 + 254 * 0.9 / 2
    assert len(few) == round(3000 * expected) == 2911
    assert min(many) > 60 > 20 > max(few)
    assert sum(few) > 10_000
    assert sum(many) > 10_000
    assert reads == few + many  # a share is a number of sequences, no chance


def test_the_figures_of_flip_flop_are_those_of_sparse_and_of_dense_sequences():
    _, y = FlipFlop([0.98, 0.1]).draw(600, 512, generator())
    known, first_dense = y != NO_TARGET, 582
    prediction = one_hot(y.clamp(min=0), 2).double()
    sequences, steps = known.nonzero().T
    for of_kind, wrong in ((sequences < first_dense, 1), (sequences >= first_dense, 3)):
        at = sequences[of_kind][:wrong], steps[of_kind][:wrong]
        prediction[at] = 1 - prediction[at]
    figures = FlipFlop().objective.figures
    sparse, dense = figures["sparse"](prediction, y), figures["dense"](prediction, y)
    assert len(sparse) == known[:first_dense].sum()
    assert len(dense) == known[first_dense:].sum()
    assert (1 - sparse).sum() == 1
    assert (1 - dense).sum() == 3


def test_flip_flop_depends_on_the_generator_alone_and_has_a_baseline():
    first, again = (FlipFlop(0.8).draw(20, 12, generator(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    x, y = first
    assert not torch.equal(x, FlipFlop(0.8).draw(20, 12, generator(4))[0])
    logits = FlipFlop().baselines(x)["all alike"]
    loss = cross_entropy(logits.flatten(0, -2), y.flatten(), ignore_index=NO_TARGET)
    assert loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("p_ignore", [-0.1, 1.5, [], [0.5, 2.0], math.nan])
def test_a_chance_is_from_0_to_1(p_ignore):
    with pytest.raises(ValueError, match=r"p_ignore=.*: one or several from 0 to 1"):
        FlipFlop(p_ignore)


def test_a_flip_flop_is_of_pairs():
    with pytest.raises(ValueError, match="seq_len=7: an even number for FlipFlop"):
        FlipFlop().draw(2, 7, generator())


def trained(tmp_path, experiment, *words):
    """The results of an experiment, made smaller."""
    result = run(f"experiment={experiment}", *words, cwd=tmp_path)
    assert result.code == 0, result.err
    return result.results


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["parity", "even_pairs"])
def test_what_is_learned_on_short_strings_holds_for_long_ones(experiment, tmp_path):
    lengths = ["data.seq_len=12", "data.test_len=[13,100]", "data.n_test=880", "data.n_val=240"]
    found = trained(tmp_path, experiment, *lengths, "trainer.max_epochs=10")
    assert found["metrics"]["test/accuracy"] >= 0.999
    assert found["baselines"]["all alike"]["test/accuracy"] < 0.6
    assert sorted(map(int, found["by_length"])) == list(range(13, 101))
    assert min(found["by_length"].values()) >= 0.9


@pytest.mark.slow
def test_flip_flops_of_both_kinds_are_read_without_an_error(tmp_path):
    sizes = ["data.seq_len=64", "data.n_val=100", "data.n_test=2000"]
    found = trained(tmp_path, "flip_flop", *sizes, "trainer.max_epochs=8")
    metrics = found["metrics"]
    assert metrics["test/sparse"] == metrics["test/dense"] == metrics["test/solved"] == 1
