"""Logical names of array axes, and constraints on them that a model states without a mesh.

A model says `constrain(z, "activation_batch", "activation_length", None)`; what that means on the
devices at hand is known to whoever traces the model inside `use(mesh, rules)`. Outside, it means
nothing, so that a model can be applied without any mesh.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nrdm_jax.signatures import Array

# logical axis -> mesh axes that shard it
Rules = Mapping[str, tuple[str, ...]]
# In the place of a name: the compiler decides.
ANY = PartitionSpec.UNCONSTRAINED

_current: contextvars.ContextVar[tuple[Mesh, Rules] | None] = contextvars.ContextVar(
    "mesh_and_rules", default=None
)


@contextlib.contextmanager
def use(mesh: Mesh | None, rules: Rules) -> Iterator[None]:
    """`constrain` acts on this mesh within the context (that is, while something is traced); on
    none, nothing does."""
    token = _current.set(None if mesh is None else (mesh, rules))
    try:
        yield
    finally:
        _current.reset(token)


def spec_of(axes: tuple[Any, ...], rules: Rules) -> PartitionSpec:
    """The PartitionSpec of an array whose axes have these logical names; None is not divided.

    Raises:
      ValueError: a name is not in the rules, or two axes ask for the same mesh axis.
    """
    spec: list[Any] = []
    used: set[str] = set()
    for axis in axes:
        if axis is None or axis is ANY:
            spec.append(axis)
            continue
        if axis not in rules:
            raise ValueError(f"logical axis {axis!r} has no rule; known: {', '.join(rules)}")
        mesh_axes = rules[axis]
        if doubled := used.intersection(mesh_axes):
            raise ValueError(f"mesh axis {min(doubled)!r} would shard two of the axes {axes}")
        used.update(mesh_axes)
        spec.append(mesh_axes or None)
    return PartitionSpec(*spec)


def current() -> tuple[Mesh, Rules] | None:
    """What `use` was given, of more than one device."""
    found = _current.get()
    return None if found is None or found[0].size == 1 else found


def platform() -> str:
    """That of the mesh's devices, inside `use`; else the one at hand."""
    found = _current.get()
    return found[0].devices.flat[0].platform if found else jax.default_backend()


def mesh_axes(axis: str) -> tuple[str, ...]:
    """Those that divide a logical axis here; none outside `use`."""
    found = current()
    return found[1][axis] if found else ()


def size(axis: str) -> int:
    """Into how many parts a logical axis is divided here; 1 outside `use`."""
    found = current()
    return math.prod(found[0].shape[name] for name in mesh_axes(axis)) if found else 1


def constrain(x: Array, *axes: Any) -> Array:
    """Asks the compiler to lay `x` out by its logical axes; the identity outside `use`, and on one
    device."""
    found = current()
    if found is None:
        return x
    mesh, rules = found
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec_of(axes, rules)))
