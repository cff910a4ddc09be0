import itertools

import numpy as np
import pytest

from nrdm_jax.data import order
from nrdm_jax.data.errors import DataError
from nrdm_jax.data.loader import Loader, in_order
from nrdm_jax.data.sources import ArraySource, synthetic


def counting(count):
    """Record i holds i in every pixel but the leftmost column, which holds 255."""
    x = np.broadcast_to(
        np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 2, 3, 1)
    ).copy()
    x[:, :, 0] = 255
    return ArraySource(x, np.arange(count) % 3, num_classes=3, fingerprint="counting")


def read(batch):
    return [int(row[0, 1, 0]) for row in np.asarray(batch["x"])]


def test_each_record_once_an_epoch_and_batches_span_its_end():
    loader = Loader(counting(10), batch_size=4, seed=3)
    order = list(itertools.chain.from_iterable(read(loader.batch_at(4 * i)) for i in range(10)))
    epochs = [order[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4  # another order each time


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_read_disjoint_parts_of_the_same_batch(processes):
    whole = Loader(counting(10), batch_size=8, seed=1, flip=True).batch_at(16)
    parts = [
        Loader(counting(10), batch_size=8, seed=1, flip=True, rows=rows).batch_at(16)
        for rows in np.split(np.arange(8), processes)
    ]  # fmt: skip
    for name in ("x", "label"):
        np.testing.assert_array_equal(whole[name], np.concatenate([p[name] for p in parts]))


@pytest.mark.parametrize("threads", [1, 3])
def test_iterating_is_seeking(threads):
    loader = Loader(counting(10), batch_size=4, seed=0, flip=True, threads=threads, prefetch=3)
    for i, batch in enumerate(itertools.islice(loader.iterate(12), 9)):
        expected = loader.batch_at(12 + 4 * i)
        np.testing.assert_array_equal(batch["x"], expected["x"])
        np.testing.assert_array_equal(batch["label"], expected["label"])


def test_order_does_not_depend_on_the_batch_size():
    small, large = (Loader(counting(10), batch_size=b, seed=5, flip=True) for b in (2, 6))
    a = np.concatenate([small.batch_at(2 * i)["x"] for i in range(6)])
    b = np.concatenate([large.batch_at(6 * i)["x"] for i in range(2)])
    np.testing.assert_array_equal(a, b)


def test_flips_mirror_half_of_the_records_as_their_number_says():
    loader = Loader(counting(10), batch_size=10, seed=2, flip=True)
    batch = np.asarray(loader.batch_at(30)["x"])
    mirrored = [bool(row[0, 2, 0] == 255 and row[0, 0, 0] != 255) for row in batch]
    assert mirrored == order.are_flipped(np.arange(30, 40), 2).tolist()
    assert 0 < sum(mirrored) < 10


def test_source_is_not_changed_by_flipping():
    source = counting(10)
    before = source.x.copy()
    Loader(source, batch_size=10, seed=2, flip=True).batch_at(0)
    np.testing.assert_array_equal(source.x, before)


def test_fewer_records_than_a_batch():
    with pytest.raises(DataError, match=r"10 records are fewer than train.batch_size=11"):
        Loader(counting(10), batch_size=11, seed=0)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_named(label):
    with pytest.raises(DataError, match=rf"record 1 has label {label}, outside 0..2"):
        ArraySource(np.zeros((2, 1, 1, 1)), np.asarray([0, label]), num_classes=3, fingerprint="")


def test_an_empty_source_is_refused():
    with pytest.raises(DataError, match="0 examples"):
        ArraySource(np.zeros((0, 1, 1, 1)), np.zeros(0), num_classes=3, fingerprint="")


@pytest.mark.parametrize(("limit", "expected"), [(0, list(range(10))), (5, [0, 2, 4, 6, 8])])
def test_held_out_records_are_read_once_in_order(limit, expected):
    seen = []
    for batch in in_order(counting(10), 4, limit=limit):
        assert len(batch["label"]) == 4
        seen += list(itertools.compress(read(batch), batch["mask"]))
    assert seen == expected


def test_synthetic_classes_differ_in_any_number_of_axes():
    for shape in ((8, 8, 3), (4, 6, 6, 2)):
        source = synthetic(shape, 4, "train")
        means = [source.x[source.label == c].mean(axis=tuple(range(len(shape)))) for c in range(4)]
        assert np.ptp(np.asarray(means), axis=0).max() > 20
        assert source.fingerprint != synthetic(shape, 4, "heldout").fingerprint
