"""Pytrees by path: what the sharding table, the optimizer and the parameter table share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def path_of(keys) -> str:
    """`blocks/attention/alpha/kernel` for the key path of a leaf."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def map_with_path(f: Callable[..., Any], tree, *rest):
    """`tree.map` whose function gets the path of the leaf first."""
    return jax.tree_util.tree_map_with_path(lambda k, *x: f(path_of(k), *x), tree, *rest)


def leaves_with_path(tree) -> list[tuple[str, Any]]:
    return [(path_of(k), leaf) for k, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def count(tree) -> int:
    """Number of elements of all leaves; works on shapes as on arrays."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))


def drawn_zeros(tree, key, std: float = 0.02):
    """The tree, its floating leaves that are all zero drawn from N(0, std^2): where gates and heads
    start at zero every gradient within the stack is 0, and a comparison would be of 0 with 0."""
    leaves, structure = jax.tree.flatten(tree)
    numbers = std * jax.random.normal(key, (count(tree),))  # at once: a draw is seconds to compile
    ends = np.cumsum([leaf.size for leaf in leaves])
    drawn = [
        jnp.where(jnp.any(leaf), leaf, numbers[end - leaf.size : end].reshape(leaf.shape)).astype(
            leaf.dtype
        )
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        else leaf
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)
