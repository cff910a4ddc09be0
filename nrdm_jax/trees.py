"""Pytrees by path: what the sharding table, the optimizer and the parameter table share."""

from collections.abc import Callable
from typing import Any

import jax


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
