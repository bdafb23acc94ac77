import pytest

from seqlab.data import seed_of


def test_equal_keys_give_the_same_seed_on_every_machine():
    assert seed_of(0, "train") == 9530098857764629447


@pytest.mark.parametrize("other", [(1, "train"), (0, "val"), (0, "train", 0), ("0", "train")])
def test_another_key_gives_another_seed(other):
    assert seed_of(0, "train") != seed_of(*other)


def test_seeds_of_many_steps_are_all_different_in_the_32_bits_that_cpu_generators_use():
    seeds = {seed_of(0, "dropout", step, 0) % 2**32 for step in range(10_000)}
    assert len(seeds) >= 9_999
