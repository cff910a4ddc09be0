"""What can be seen of a stack from outside: the sensitivity of the loss to the trunk z_i between
units, and the health of the trunk there.

z_0 goes into the first unit, z_i comes out of the i-th. All that reads z_i, the next unit, the skip
of a U-shaped stack, the change of width between its levels, reads it behind its tap, so that s_i is
dL/dz_i whole.

Both come out of the ordinary forward and backward pass: nothing is computed twice, and the memory
is a few numbers a unit.
"""

import jax
import jax.numpy as jnp

from nrdm_jax.models.unit import token_mean
from nrdm_jax.signatures import Array

# The trunk of a stack of one stream (z,) or two (x1, x2); each (B, *S, D) float32.
Streams = tuple[Array, ...]


@jax.custom_vjp
def tap(streams: Streams, dummy: Array) -> Streams:
    """The identity in `streams`. The "gradient" with respect to `dummy`, a scalar of any value, is
    defined as |s|^2, s = dL/d(streams), summed over everything (Neural-RDM's residual sensitivity,
    arXiv 2406.13215)."""
    return streams


def _tap_forward(streams, dummy):
    return streams, None


def _tap_backward(_, cotangents):
    return cotangents, sum(jnp.sum(jnp.square(s.astype(jnp.float32))) for s in cotangents)


tap.defvjp(_tap_forward, _tap_backward)


def health(streams: Streams, prefix: int = 0) -> Array:
    """(2,): mean square of the token mean Jz, and of the deviation from it Pz = z - Jz.

    Means over examples, tokens, channels and streams, so that they average over micro-batches. The
    trunk's RMS is the root of their sum, the token-mean share |Jz|/|Pz| the root of their quotient.
    `prefix` tokens in front are left out. No gradient flows.
    """
    squares = []
    for z in streams:
        z = jax.lax.stop_gradient(z)[:, prefix:]
        mean = token_mean(z)
        squares.append(jnp.stack([jnp.mean(mean**2), jnp.mean((z - mean) ** 2)]))
    return jnp.mean(jnp.stack(squares), axis=0)


def tapped(
    streams: Streams, taps: Array | None, prefix: int = 0
) -> tuple[Streams, Array | None]:  # fmt: skip
    """The streams behind the first of `taps`, and their health (1, 2); without taps, None."""
    if taps is None:
        return streams, None
    streams = tap(streams, taps[0])
    return streams, health(streams, prefix)[None]
