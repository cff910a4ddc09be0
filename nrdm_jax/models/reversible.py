"""A scan over blocks of two streams that keeps no activation: inputs are computed backwards.

A unit takes (a, b) to (b, a + delta(b)) (Gomez et al., arXiv 1707.04585; two units make the usual
block y1 = x1 + F(x2), y2 = x2 + G(y1)). From its output (b, y) the input is a = y - delta(b), and
the same evaluation of delta gives its derivatives, so that the whole costs a forward pass more than
mode none, and memory does not depend on depth. In floating point (a + delta) - delta is a within
rounding; see `python -m benchmarks.gradient_agreement`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nrdm_jax.models.conditioning import Condition
from nrdm_jax.models.probe import Streams, health
from nrdm_jax.signatures import Array

# (name, (a unit's params, z, u, condition) -> the next z), in the order of a block. Additive: the
# next z is z + delta, so that the unit applied to z = 0 is delta.
Units = tuple[tuple[str, Callable[[Any, Array, Array, Condition], Array]], ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def scan(units: Units, prefix: int, params: Any, streams: Streams, condition: Condition, taps):
    """Runs the blocks; differentiable once, in reverse.

    Args:
      units: of one block.
      prefix: leading tokens that `probe.health` leaves out.
      params: {unit: params}, every leaf with the leading axis of the blocks.
      streams: (x1, x2).
      condition: common to all blocks.
      taps: (L, units of a block), dummies: their gradient is |s|^2 at each unit's output, see
        `probe.tap`; None for no probe.

    Returns:
      The streams after the last block, and the health at each unit's output, (L, units, 2), or
      None.
    """

    def body(streams, x):
        block, taps = x
        seen = []
        for name, unit in units:
            a, b = streams
            streams = (b, unit(block[name], a, b, condition))
            if taps is not None:
                seen.append(health(streams, prefix))
        return streams, jnp.stack(seen) if seen else None

    return jax.lax.scan(body, streams, (params, taps))


def _forward(units, prefix, params, streams, condition, taps):
    out = scan(units, prefix, params, streams, condition, taps)
    return out, (params, out[0], condition, taps)


def _backward(units, prefix, kept, cotangents):
    params, streams, condition, taps = kept
    # Masks have no derivative; what has, is summed over the blocks.
    leaves = jax.tree.leaves(condition)
    structure = jax.tree.structure(condition)
    smooth = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def with_smooth(values):
        values = iter(values)
        return jax.tree.unflatten(
            structure,
            [next(values) if s else leaf for s, leaf in zip(smooth, leaves, strict=True)],
        )

    floats = [leaf for s, leaf in zip(smooth, leaves, strict=True) if s]

    def body(carry, x):
        streams, s, condition_cotangent = carry
        block, taps = x
        gradients, squares = {}, []
        for name, unit in reversed(units):
            b, y = streams
            s_b, s_y = s
            squares.append(sum(jnp.sum(jnp.square(part)) for part in s))

            def delta(p, u, c, unit=unit):
                return unit(p, jnp.zeros_like(u), u, with_smooth(c))

            value, pull_back = jax.vjp(delta, block[name], b, floats)
            gradients[name], from_delta, from_condition = pull_back(s_y)
            streams, s = (y - value, b), (s_y, s_b + from_delta)
            condition_cotangent = jax.tree.map(jnp.add, condition_cotangent, from_condition)
        out = (gradients, None if taps is None else jnp.stack(squares[::-1]))
        return (streams, s, condition_cotangent), out

    start = (streams, cotangents[0], jax.tree.map(jnp.zeros_like, floats))
    (_, s, from_condition), (gradients, squares) = jax.lax.scan(
        body, start, (params, taps), reverse=True
    )
    summed = iter(from_condition)
    condition_cotangent = jax.tree.unflatten(
        structure, [next(summed) if s else None for s in smooth]
    )
    return gradients, s, condition_cotangent, squares


scan.defvjp(_forward, _backward)
