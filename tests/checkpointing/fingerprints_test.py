"""The fingerprint of a leaf: the same on every mesh and on the host, another for other contents."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from nrdm_jax.checkpointing import fingerprints

TYPES = (
    np.float32,
    ml_dtypes.bfloat16,
    np.float16,
    np.int32,
    np.uint32,
    np.uint8,
    np.int8,
    np.bool_,
)


def drawn(dtype, shape=(8, 6, 4), seed=0):
    draw = np.random.default_rng(seed)
    if dtype == np.bool_:
        return draw.random(shape) < 0.5
    size = np.dtype(dtype).itemsize
    return draw.integers(0, 256, (*shape, size)).astype(np.uint8).view(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", TYPES)
def test_meshes_and_the_host_agree(dtype):
    x = drawn(dtype)
    expected = fingerprints.of_array(x)
    assert fingerprints.of_tree({"a": jnp.asarray(x)}) == {"a": expected}
    for axes, spec in (((8,), P("a")), ((2, 4), P("a", None, "b")), ((4, 2), P(None, "b"))):
        mesh = jax.make_mesh(axes, ("a", "b")[: len(axes)])
        sharded = jax.device_put(x, NamedSharding(mesh, spec))
        assert fingerprints.of_tree([sharded, sharded]) == {"0": expected, "1": expected}


def test_leaves_are_named_by_their_paths_and_may_be_of_any_rank():
    tree = {"a": [jnp.float32(2.0), jnp.zeros((0, 3))], "b": jnp.ones(5)}
    found = fingerprints.of_tree(tree)
    assert found == {
        "a/0": fingerprints.of_array(np.asarray(np.float32(2.0))), "a/1": 0,
        "b": fingerprints.of_array(np.ones(5, np.float32)),
    }  # fmt: skip
    assert fingerprints.of_tree({}) == {}


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(TYPES[:-1]), st.integers(0, 8 * 6 * 4 - 1), st.data())
def test_every_flip_of_a_bit_is_seen(dtype, at, data):
    x = drawn(dtype)
    other = x.copy()
    bits = other.reshape(-1).view(np.uint8)
    size = x.dtype.itemsize
    bit = data.draw(st.integers(0, 8 * size - 1))
    bits[at * size + bit // 8] ^= np.uint8(1 << bit % 8)
    assert fingerprints.of_array(x) != fingerprints.of_array(other)


def test_what_compares_alike_or_has_only_moved_is_told_apart():
    same = [
        np.asarray([0.0, 1.0], np.float32), np.asarray([-0.0, 1.0], np.float32),
        np.asarray([1.0, 0.0], np.float32),
        np.asarray([0x7FC00000, 0x3F800000], np.uint32).view(np.float32),
        np.asarray([0x7FC00001, 0x3F800000], np.uint32).view(np.float32),
    ]  # fmt: skip
    assert len({fingerprints.of_array(x) for x in same}) == len(same)
    # Every exchange of two elements, of which some differ in their highest bit alone.
    x = np.asarray([1.0, -1.0, 2.0, -2.0, 0.0, -0.0, 3.0, 1.5], np.float32)
    found = {fingerprints.of_array(x)}
    for i, j in itertools.combinations(range(len(x)), 2):
        swapped = x.copy()
        swapped[[i, j]] = swapped[[j, i]]
        found.add(fingerprints.of_array(swapped))
    assert len(found) == 1 + 8 * 7 // 2


def test_blocks_do_not_change_it(monkeypatch):
    x = drawn(np.float32)
    expected = fingerprints.of_array(x)
    monkeypatch.setattr(fingerprints, "BLOCK", 7)
    assert fingerprints.of_array(x) == expected
