"""Normalisation over channels, in float32: plain, and modulated by the condition."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from nrdm_jax.models.conditioning import Condition
from nrdm_jax.signatures import Array

EPSILON = 1e-6


def layer_norm(z: Array) -> Array:
    """(z - mean) / sqrt(var + 1e-6) over the last axis, no parameters (arXiv 1607.06450)."""
    z = z.astype(jnp.float32)
    return rms_norm(z - jnp.mean(z, axis=-1, keepdims=True))


def rms_norm(z: Array) -> Array:
    """z / sqrt(mean(z^2) + 1e-6) over the last axis, no parameters (arXiv 1910.07467)."""
    z = z.astype(jnp.float32)
    return z * jax.lax.rsqrt(jnp.mean(z**2, axis=-1, keepdims=True) + EPSILON)


@jax.custom_jvp
def trunk_norm(z: Array) -> Array:
    """`rms_norm` for the trunk itself, whose cotangent passes through the norm of every unit.

    With its derivative, t - y mean(y t) for t = dz / rms(z), written out, XLA rounds the backward
    pass alike whether y was kept or computed again: over 128 units of mv_split the gradient under
    remat then differs from that under mode none by 3e-9 and not by 2e-6
    (`python -m benchmarks.gradient_agreement`).
    """
    return rms_norm(z)


@trunk_norm.defjvp
def _trunk_norm_jvp(primals, tangents):
    (z,), (dz,) = primals, tangents
    inverse = jax.lax.rsqrt(jnp.mean(z**2, axis=-1, keepdims=True) + EPSILON)
    y, t = z * inverse, inverse * dz
    return y, t - y * jnp.mean(y * t, axis=-1, keepdims=True)


def group_norm(z: Array, groups: int, epsilon: float = EPSILON) -> Array:
    """(z - mean) / sqrt(var + epsilon) over the places and a group of channels of each example, no
    parameters (arXiv 1803.08494). (B, *S, C); groups that do not divide C become fewer."""
    groups = math.gcd(groups, z.shape[-1])
    grouped = z.astype(jnp.float32).reshape(z.shape[0], -1, groups, z.shape[-1] // groups)
    grouped = grouped - jnp.mean(grouped, axis=(1, 3), keepdims=True)
    variance = jnp.mean(grouped**2, axis=(1, 3), keepdims=True)
    return (grouped * jax.lax.rsqrt(variance + epsilon)).reshape(z.shape)


class AdaptiveNorm(nn.Module):
    """norm(z) * (1 + scale(c)) + shift(c), both zero at start: adaLN (arXiv 2212.09748), and ADM's
    adaptive group norm (arXiv 2105.05233).

    Attributes:
      groups: of channels, for a group norm; 0 for a layer norm.
      modulation: `per_unit`, a kernel of its own; `shared`, the stack's kernel and a bias of its
        own; `none`, a bias only, that is, a plain affine norm that sees no condition.
    """

    modulation: str = "per_unit"
    groups: int = 0

    @nn.compact
    def __call__(self, z: Array, condition: Condition) -> Array:
        width = z.shape[-1]
        bias = self.param("bias", nn.initializers.zeros, (2, width), jnp.float32)
        normed = group_norm(z, self.groups) if self.groups else layer_norm(z)
        if self.modulation == "none":
            shift, scale = bias.reshape(2, *(1,) * (z.ndim - 1), width)
            return normed * (1.0 + scale) + shift
        if self.modulation == "per_unit":
            kernel = self.param(
                "kernel",
                nn.initializers.zeros,
                (condition.e_BD.shape[-1], 2, width),
                jnp.float32,
            )
            projected = jnp.einsum("bd,dse->sbe", condition.e_BD, kernel)
        else:
            projected = jnp.stack([condition.shared["shift"], condition.shared["scale"]])
        shift, scale = (projected + bias[:, None, :]).reshape(
            2, z.shape[0], *(1,) * (z.ndim - 2), width
        )
        return normed * (1.0 + scale) + shift
