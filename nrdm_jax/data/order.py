"""Which record comes when, and which are mirrored: hashes of a seed, alike on every machine.

Record number r of a run (from 0, over all epochs) over N records is record permutation_{seed, r //
N}(r mod N) of them: any position is known without those before it.
"""

import grain
import numpy as np

_ROUNDS = 4  # of grain's index shuffle, a Feistel-like cipher: O(1) memory for any N


def indices_of(numbers: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(n,) int64 indices, in a source of `count` records, of records (n,) of a run."""
    epochs, positions = np.divmod(np.asarray(numbers, np.int64), count)
    found = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = np.flatnonzero(epochs == epoch)
        found[here] = _permuted(positions[here], count, seed_of(seed, int(epoch)))
    return found


def permutation(count: int, seed: int) -> np.ndarray:
    """(count,) int64."""
    return _permuted(np.arange(count), count, seed)


def spread(count: int, total: int) -> np.ndarray:
    """So many numbers of records, evenly from the first to the last; again, if they are few."""
    return (np.arange(count) * max(total, count) // count) % total


def seed_of(*parts: int) -> int:
    """A seed of its own for each list of whole numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _permuted(positions: np.ndarray, count: int, seed: int) -> np.ndarray:
    if count == 1:
        return positions
    shuffle, last = grain.experimental.index_shuffle, count - 1
    places = (shuffle(position, last, seed, _ROUNDS) for position in positions.tolist())
    return np.fromiter(places, np.int64, len(positions))


def are_flipped(numbers: np.ndarray, seed: int) -> np.ndarray:
    """(n,) bool, whether records (n,) of a run are mirrored: half of them, by a hash,
    `seed_of(seed, number, 1)`, of which this takes the last bit."""
    high, low = np.divmod(np.asarray(numbers, np.uint64), 2**32)
    # A number from 2^32 on is two words of a seed sequence, and what follows comes later.
    two = high > 0
    words = (np.full_like(low, seed), low, np.where(two, high, 1), np.where(two, 1, 0))
    return (_first_word(*(word.astype(np.uint32) for word in words)) & 1).astype(bool)


def _first_word(*words: np.ndarray) -> np.ndarray:
    """What `numpy.random.SeedSequence(words).generate_state(1)` gives, for arrays (n,) of four
    words: O'Neill's seed_seq_fe, a pool in which each word is hashed and mixed into all others.
    numpy, which keeps these values from version to version, does one list at a time, in 7 us."""
    pool = _hashed(np.stack(words), _KEYS[:5])
    for source, others in enumerate(_OTHERS):
        hashes = _hashed(pool[source], _KEYS[4 + 3 * source :][:4])
        mixed: np.ndarray = np.uint32(0xCA01F9DD) * pool[others] - np.uint32(0x4973F715) * hashes
        pool[others] = mixed ^ mixed >> np.uint32(16)
    last = (pool[0] ^ np.uint32(0x8B51F9DD)) * np.uint32(0x8B51F9DD * 0x58F38DED % 2**32)
    return last ^ last >> np.uint32(16)


def _hashed(words: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(m, n) or (n,) words, by m keys and the one after -> (m, n)."""
    words = (words ^ keys[:-1]) * keys[1:]
    return words ^ words >> np.uint32(16)


# Of its 16 hashes in turn, and one more: (17, 1). Those of four words, or of one for the three
# others, are made at once, since batches are small and each operation of numpy takes a microsecond.
_KEYS = np.asarray([[0x43B0D7E5 * pow(0x931E8875, i, 2**32) % 2**32] for i in range(17)], np.uint32)
_OTHERS = [[target for target in range(4) if target != source] for source in range(4)]
