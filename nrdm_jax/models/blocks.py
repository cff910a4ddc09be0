"""The branches F of the residual units of a transformer, and the block they make."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nrdm_jax.models.attention import attend
from nrdm_jax.models.conditioning import Condition
from nrdm_jax.models.unit import Gates, ResidualUnit
from nrdm_jax.signatures import Array

# Glorot & Bengio (2010), on the matrix of all input by all output features, heads included.
XAVIER = nn.initializers.xavier_uniform()


def layer_norm(z: Array, epsilon: float = 1e-6) -> Array:
    """(z - mean) / sqrt(var + epsilon) over the last axis, in float32, no parameters."""
    z = z.astype(jnp.float32)
    centred = z - jnp.mean(z, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + epsilon)


class AdaptiveNorm(nn.Module):
    """LN(z) * (1 + scale(c)) + shift(c), both zero at start: adaLN (arXiv 2212.09748).

    Attributes:
      modulation: `per_unit`, a kernel of its own; `shared`, the stack's kernel and a bias of its
      own.
    """

    modulation: str = "per_unit"

    @nn.compact
    def __call__(self, z: Array, condition: Condition) -> Array:
        width = z.shape[-1]
        bias = self.param("bias", nn.initializers.zeros, (2, width), jnp.float32)
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
        return layer_norm(z) * (1.0 + scale) + shift


class SelfAttention(nn.Module):
    """(z (B, N, D), condition) -> (B, N, D): adaptive norm, multi-head attention, projection."""

    heads: int
    modulation: str = "per_unit"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z_BND: Array, condition: Condition) -> Array:
        width = z_BND.shape[-1]
        head_width = width // self.heads
        y_BND = AdaptiveNorm(self.modulation, name="norm")(z_BND, condition).astype(self.dtype)
        matrix = nn.initializers.variance_scaling(
            1.0, "fan_avg", "uniform", in_axis=0, out_axis=(1, 2)
        )
        q, k, v = (
            jnp.einsum(
                "bnd,dhk->bhnk",
                y_BND,
                self.param(f"{name}_kernel", matrix, (width, self.heads, head_width)).astype(
                    self.dtype
                ),
            )
            + self.param(f"{name}_bias", nn.initializers.zeros, (self.heads, head_width)).astype(
                self.dtype
            )[None, :, None, :]
            for name in ("query", "key", "value")
        )
        out_BHNK = attend(q, k, v)
        kernel_HKD = self.param(
            "out_kernel",
            nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=(0, 1), out_axis=2),
            (self.heads, head_width, width),
        )
        bias_D = self.param("out_bias", nn.initializers.zeros, (width,))
        return (
            jnp.einsum("bhnk,hkd->bnd", out_BHNK, kernel_HKD.astype(self.dtype))
            + bias_D.astype(self.dtype)[None, None, :]
        )


class Mlp(nn.Module):
    """(z (B, *S, D), condition) -> the same shape: adaptive norm, linear, GELU, linear."""

    ratio: float = 4.0
    modulation: str = "per_unit"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array, condition: Condition) -> Array:
        width = z.shape[-1]
        y = AdaptiveNorm(self.modulation, name="norm")(z, condition).astype(self.dtype)
        hidden = nn.Dense(
            int(self.ratio * width), kernel_init=XAVIER, dtype=self.dtype, name="hidden"
        )(y)
        return nn.Dense(width, kernel_init=XAVIER, dtype=self.dtype, name="out")(
            jax.nn.gelu(hidden, approximate=True)
        )


class TransformerBlock(nn.Module):
    """(z (B, N, D), condition) -> z: an attention unit, then an MLP unit."""

    gates: Gates
    variant: str
    heads: int
    mlp_ratio: float
    modulation: str
    dtype: Any

    @nn.compact
    def __call__(self, z_BND: Array, condition: Condition) -> Array:
        attention = SelfAttention(self.heads, self.modulation, self.dtype, parent=None)
        z_BND = ResidualUnit(attention, self.gates, self.variant, name="attention")(
            z_BND, condition
        )
        mlp = Mlp(self.mlp_ratio, self.modulation, self.dtype, parent=None)
        return ResidualUnit(mlp, self.gates, self.variant, name="mlp")(z_BND, condition)


UNITS_PER_BLOCK = 2
