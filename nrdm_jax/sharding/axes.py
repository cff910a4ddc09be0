"""Logical names of array axes, and constraints on them that a model states without a mesh.

A model says `constrain(z, "activation_batch", "activation_length", None)`; what that means on the
devices at hand is known to whoever traces the model inside `use(mesh, rules)`. Outside, it means
nothing, so that a model can be applied without any mesh.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nrdm_jax.signatures import Array

# logical axis -> mesh axes that shard it
Rules = Mapping[str, tuple[str, ...]]

_current: contextvars.ContextVar[tuple[Mesh, Rules] | None] = contextvars.ContextVar(
    "mesh_and_rules", default=None
)


@contextlib.contextmanager
def use(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """`constrain` acts on this mesh within the context (that is, while something is traced)."""
    token = _current.set((mesh, rules))
    try:
        yield
    finally:
        _current.reset(token)


def spec_of(axes: tuple[str | None, ...], rules: Rules) -> PartitionSpec:
    """The PartitionSpec of an array whose axes have these logical names.

    Raises:
      ValueError: a name is not in the rules, or two axes ask for the same mesh axis.
    """
    spec: list[tuple[str, ...] | None] = []
    used: set[str] = set()
    for axis in axes:
        if axis is None:
            spec.append(None)
            continue
        if axis not in rules:
            raise ValueError(f"logical axis {axis!r} has no rule; known: {', '.join(rules)}")
        mesh_axes = rules[axis]
        if doubled := used.intersection(mesh_axes):
            raise ValueError(f"mesh axis {min(doubled)!r} would shard two of the axes {axes}")
        used.update(mesh_axes)
        spec.append(mesh_axes or None)
    return PartitionSpec(*spec)


def constrain(x: Array, *axes: str | None) -> Array:
    """Asks the compiler to lay `x` out by its logical axes; the identity outside `use`."""
    current = _current.get()
    if current is None:
        return x
    mesh, rules = current
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec_of(axes, rules)))
