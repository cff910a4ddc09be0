"""A number for the contents of each leaf, by which damage on disk is found.

Of an array it is the sum modulo 2^32, over its elements, of a mixture of an element's bits and its
place. A sum has no order, so that it is the same on any mesh; the mixture is a bijection of the
bits at each place (the finaliser of MurmurHash3, Appleby), so that any change of one element
changes it, and any other change does but once in 2^32.
"""

import collections
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nrdm_jax import trees
from nrdm_jax.signatures import Array

PLACE = 2654435761  # 2^32 over the golden ratio (Knuth), odd: places stay apart
BLOCK = 1 << 22  # elements that are mixed at a time on the host


def of_tree(tree: Any) -> dict[str, int]:
    """{path: fingerprint} of all leaves, arrays on devices; the work is done there, and on all
    processes that hold a part of them."""
    placed: dict[Any, dict[str, Array]] = collections.defaultdict(dict)
    for path, leaf in trees.leaves_with_path(tree):
        mesh = leaf.sharding.mesh if isinstance(leaf.sharding, NamedSharding) else None
        placed[mesh or leaf.sharding][path] = leaf  # one program is of one set of devices
    found: dict[str, int] = {}
    for where, leaves in placed.items():
        mesh = where if isinstance(where, Mesh) else None
        numbers = np.asarray(_compiled(mesh)(list(leaves.values())))
        found |= {path: int(n) for path, n in zip(leaves, numbers, strict=True)}
    return found


@functools.lru_cache(maxsize=4)
def _compiled(mesh: Mesh | None):
    def numbers(leaves: list[Array]) -> Array:
        return jnp.stack([_of_leaf(leaf) for leaf in leaves])

    return jax.jit(numbers, out_shardings=mesh and NamedSharding(mesh, PartitionSpec()))


def _of_leaf(leaf: Array) -> Array:
    words = _words(leaf)
    place = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place = place + along * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(_mixed(words, place), dtype=jnp.uint32)


def _words(leaf: Array) -> Array:
    """The bits of the elements, uint32; of 8 bytes two along a last axis, the lower first."""
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    size = leaf.dtype.itemsize
    if size > 4:
        return jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[size]
    return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)


def of_array(array: np.ndarray) -> int:
    """The same of an array on the host, a block at a time."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if array.dtype == np.bool_:
        flat = flat.view(np.uint8)
    size = min(array.dtype.itemsize, 4)
    flat = flat.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[size])
    total = 0
    for first in range(0, len(flat), BLOCK):
        words = flat[first : first + BLOCK].astype(np.uint32)
        place = np.arange(first, first + len(words), dtype=np.uint64).astype(np.uint32)
        total += int(_mixed(words, place).sum(dtype=np.uint64))
    return total % 2**32


def _mixed(words, place):
    """Of numpy's or JAX's arrays, uint32."""
    h = words ^ (place * np.uint32(PLACE))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    return h ^ (h >> np.uint32(16))


def bytes_of(leaf) -> int:
    """Of an array, or of what says its shape and type."""
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
