import grain
import numpy as np
import pytest

from nrdm_jax.data import order

# Over an epoch's end, and over the end of what 32 bits hold.
NUMBERS = np.concatenate([np.arange(2000), 2**32 + np.arange(-20, 20), [2**33, 2**40 + 17]])


@pytest.mark.parametrize("seed", [0, 77, 2**32 - 1])
def test_many_records_at_once_are_mirrored_as_numpy_says_of_each(seed):
    each = [
        bool(np.random.SeedSequence([seed, int(r), 1]).generate_state(1)[0] & 1) for r in NUMBERS
    ]
    np.testing.assert_array_equal(order.are_flipped(NUMBERS, seed), each)


@pytest.mark.parametrize("count", [700, 1500])
def test_many_records_at_once_are_where_grain_says_of_each(count):
    def place(record):
        epoch, position = divmod(int(record), count)
        of_epoch = int(np.random.SeedSequence([5, epoch]).generate_state(1)[0])
        return grain.experimental.index_shuffle(position, count - 1, of_epoch, 4)

    np.testing.assert_array_equal(order.indices_of(NUMBERS, count, 5), list(map(place, NUMBERS)))


def test_golden_order():
    """A run goes on in the order in which it began; changing this needs a reason."""
    assert order.indices_of(np.arange(8, 16), 10, 3).tolist() == [9, 8, 4, 6, 9, 7, 5, 3]
    assert np.flatnonzero(order.are_flipped(np.arange(12), 3)).tolist() == [1, 8, 10, 11]


def test_seed_decides_the_order():
    a, b = (order.indices_of(np.arange(100), 100, seed).tolist() for seed in (0, 1))
    assert sorted(a) == sorted(b) == list(range(100)) and a != b
    assert order.indices_of(np.arange(3), 1, 0).tolist() == [0, 0, 0]


def test_half_of_the_records_are_mirrored():
    assert 0.48 < order.are_flipped(np.arange(10_000), 2).mean() < 0.52
