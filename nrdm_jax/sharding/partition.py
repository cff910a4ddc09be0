"""From the table of rules to the sharding of every leaf of a state."""

import math
import re

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nrdm_jax import trees
from nrdm_jax.sharding import rules as tables
from nrdm_jax.sharding.axes import Rules, spec_of


def logical_axes(path: str, ndim: int) -> tuple[str | None, ...]:
    """The logical name of each axis of the leaf at `path`.

    Raises:
      ValueError: no row of `rules.AXES` matches, or the row has another number of axes.
    """
    for pattern, axes in tables.AXES:
        if re.search(pattern, path):
            stacked = ("layers",) if "/blocks/" in path else ()
            if axes[0] is ...:
                axes = (None,) * (ndim - len(stacked) - len(axes) + 1) + axes[1:]
            named = stacked + axes
            if len(named) != ndim:
                raise ValueError(
                    f"parameter {path} has {ndim} axes, but the row {pattern!r} of "
                    f"sharding.rules.AXES names {len(named)}: {named}"
                )
            return named
    raise ValueError(f"parameter {path} matches no row of sharding.rules.AXES; add one")


def sharding_of(path: str, leaf, mesh: Mesh, rules: Rules = tables.RULES) -> NamedSharding:
    """Sharding of one leaf (anything with a shape); scalars and keys are replicated.

    Raises:
      ValueError: as `logical_axes` and `spec_of`, or an axis is not divisible by its mesh axes.
    """
    if leaf.ndim == 0 or path == "key":
        return NamedSharding(mesh, PartitionSpec())
    axes = logical_axes(path, leaf.ndim)
    try:
        spec = spec_of(axes, rules)
    except ValueError as error:
        raise ValueError(f"parameter {path}: {error}") from error
    for size, name in zip(leaf.shape, axes, strict=True):
        mesh_axes = rules[name] if name else ()
        devices = math.prod(mesh.shape[axis] for axis in mesh_axes)
        if size % devices:
            nearest = max(devices, round(size / devices) * devices)
            raise ValueError(
                f"parameter {path}: axis {name!r} of {size} is not divisible by the {devices} "
                f"devices of mesh axes {mesh_axes}; the nearest size that is: {nearest}"
            )
    return NamedSharding(mesh, spec)


def shardings(tree, mesh: Mesh, zero1: bool = False):
    """The sharding of every leaf of a (possibly abstract) state.

    `zero1`: the optimizer's state and the averages are divided over the axis `data` as well.
    """

    def of(path: str, leaf) -> NamedSharding:
        apart = zero1 and path.startswith(("opt/", "ema/", "averages/"))
        return sharding_of(path, leaf, mesh, tables.ZERO1 if apart else tables.RULES)

    return trees.map_with_path(of, tree)


def bytes_on_device(tree) -> int:
    """Of the shards on one device of the leaves of a tree, abstract or not."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def abstract(tree, tree_shardings):
    """ShapeDtypeStructs that carry their shardings, for lowering and restoring."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        tree_shardings,
    )
