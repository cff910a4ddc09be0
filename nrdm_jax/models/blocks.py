"""The branches F of a transformer's residual units. Each is (u (B, N, E), condition) -> (B, N, D),
D = width: a norm, then what the name says. E may be more, where a unit reads a skip as well."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax.models.attention import AXES, GROUPED, KERNELS, attend
from nrdm_jax.models.conditioning import Condition
from nrdm_jax.models.norms import AdaptiveNorm, rms_norm
from nrdm_jax.models.positions import rotary, rotate
from nrdm_jax.models.quantized import dot_general
from nrdm_jax.sharding.axes import constrain
from nrdm_jax.signatures import Array

# Logical axes of an array, see `sharding.axes`.
Axes = tuple[str | None, ...]


def xavier(gain: float = 1.0):
    """Glorot & Bengio (2010), uniform, on the matrix of all inputs by all outputs."""
    return nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


class Attention(nn.Module):
    """Multi-head attention of queries from one sequence to keys and values of another: what self-
    and cross-attention have in common.

    Attributes:
      width: output channels; a head has width / heads.
      heads: attention heads.
      modulation: of the norm, see `AdaptiveNorm`.
      gain: factor on the start of the value and output kernels.
      qk_norm: RMSNorm with a learnt scale on queries and keys, over a head's channels (Dehghani et
        al., arXiv 2302.05442).
      dtype: compute type; the softmax is float32.
      kernel: of self-attention, a key of `attention.KERNELS`.
      quantize: of products with weights, see `quantized.dot_general`.
    """

    width: int
    heads: int
    modulation: str = "per_unit"
    gain: float = 1.0
    qk_norm: bool = False
    dtype: Any = jnp.float32
    kernel: str = "xla"
    quantize: str = "none"

    def normed(self, u: Array, condition: Condition) -> Array:
        return AdaptiveNorm(self.modulation, name="norm")(u, condition).astype(self.dtype)

    def attention(
        self,
        y_BNE: Array,
        source_BMG: Array | None = None,
        mask_BM: Array | None = None,
        angles: np.ndarray | None = None,
    ) -> Array:
        """-> (B, N, width). Without a source among the tokens y themselves, which may then be
        groups (B, G, N, E), whole on a device, of which mesh axes divide G and not N.

        `angles`: places to rotate queries and keys by, see `rotate`.
        """
        head_width = self.width // self.heads
        product = functools.partial(jnp.einsum, _dot_general=dot_general(self.quantize))
        # Of queries, keys and values: mesh axes divide the heads, and tokens or groups of them.
        own: Axes = AXES if y_BNE.ndim == 3 else GROUPED
        foreign: Axes = ("activation_batch", "activation_heads", None, None)

        def project(name: str, x: Array, gain: float, laid_out: Axes) -> Array:
            init = nn.initializers.variance_scaling(
                gain**2, "fan_avg", "uniform", in_axis=0, out_axis=(1, 2)
            )
            kernel = self.param(f"{name}_kernel", init, (x.shape[-1], self.heads, head_width))
            bias = self.param(f"{name}_bias", nn.initializers.zeros, (self.heads, head_width))
            out = product("...nd,dhk->...hnk", x, kernel.astype(self.dtype))
            out = out + bias.astype(self.dtype).reshape(*(1,) * (out.ndim - 3), self.heads, 1, -1)
            return constrain(out, *laid_out)

        def normed(name: str, x: Array) -> Array:
            scale = self.param(f"{name}_scale", nn.initializers.ones, (head_width,))
            return (rms_norm(x) * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(self.dtype)

        read_BMG, theirs = (y_BNE, own) if source_BMG is None else (source_BMG, foreign)
        q = project("query", y_BNE, 1.0, own)
        k = project("key", read_BMG, 1.0, theirs)
        v = project("value", read_BMG, self.gain, theirs)
        if self.qk_norm:
            q, k = normed("query", q), normed("key", k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        own_tokens = source_BMG is None
        out_BHNK = KERNELS[self.kernel](q, k, v) if own_tokens else attend(q, k, v, mask_BM)
        kernel_HKD = self.param(
            "out_kernel",
            nn.initializers.variance_scaling(
                self.gain**2, "fan_avg", "uniform", in_axis=(0, 1), out_axis=2
            ),
            (self.heads, head_width, self.width),
        )
        bias_D = self.param("out_bias", nn.initializers.zeros, (self.width,))
        return product(
            "...hnk,hkd->...nd", out_BHNK, kernel_HKD.astype(self.dtype)
        ) + bias_D.astype(self.dtype).reshape((1,) * (y_BNE.ndim - 1) + (-1,))


class SelfAttention(Attention):
    """Among the tokens of an example, (B, N, E) or (B, *S, E): all of them, or those that share a
    place on the axes of `grid` that are not in `axes` (the factorised blocks of Latte, arXiv
    2401.03048, attend along H, W within a frame, and along T at a place).

    Attributes:
      grid: tokens along each axis; of more tokens, the first ones are no patches.
      axes: of the grid, attended along; empty: all.
      rotary: rotate queries and keys by their places.
      reference: grid that the places span, see `positions.coordinates`; empty: `grid`.
    """

    grid: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()
    rotary: bool = False
    reference: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, u: Array, condition: Condition) -> Array:
        y = self.normed(u, condition)
        y = y.reshape(y.shape[0], -1, y.shape[-1])
        axes = self.axes or tuple(range(len(self.grid)))
        along, span = (tuple(g[a] for a in axes) for g in (self.grid, self.reference or self.grid))
        angles = rotary(along, self.width // self.heads, span) if self.rotary else None
        if not self.axes:
            return self.attention(y, angles=angles).reshape(*u.shape[:-1], self.width)
        others = tuple(a for a in range(len(self.grid)) if a not in self.axes)
        order = (0, *(1 + a for a in others), *(1 + a for a in self.axes), len(self.grid) + 1)
        y = y.reshape(y.shape[0], *self.grid, y.shape[-1]).transpose(order)
        groups = y.reshape(y.shape[0], -1, math.prod(along), y.shape[-1])
        groups = constrain(groups, "activation_batch", "activation_length", None, None)
        out = self.attention(groups, angles=angles)
        # Said on both sides: left to itself the partitioner laid the cotangent out over data and
        # context anew, and lost a part of the sum in the gradient of out_kernel.
        out = constrain(out, "activation_batch", "activation_length", None, None)
        out = out.reshape(*y.shape[:-1], self.width)
        back = sorted(range(len(order)), key=order.__getitem__)
        return out.transpose(back).reshape(*u.shape[:-1], self.width)


class CrossAttention(Attention):
    """From the tokens to the text, `condition.text_BTE`, its padding masked."""

    @nn.compact
    def __call__(self, u_BNE: Array, condition: Condition) -> Array:
        assert condition.text_BTE is not None
        text_BTE = condition.text_BTE.astype(self.dtype)
        return self.attention(self.normed(u_BNE, condition), text_BTE, condition.text_mask_BT)


class Mlp(nn.Module):
    """Norm, linear, GELU (tanh form), linear; works on any number of axes.

    Attributes:
      width: output channels.
      ratio: hidden channels over width.
      activation: `gelu`; or `swiglu`, SiLU(a) * b for two linears a, b of two thirds of the hidden
        channels, so that the parameters are as many (Shazeer, arXiv 2002.05202).
      modulation: see `AdaptiveNorm`.
      gain: factor on the start of the kernels.
      dtype: compute type.
      quantize: of products with weights, see `quantized.dot_general`.
    """

    width: int
    ratio: float = 4.0
    activation: str = "gelu"
    modulation: str = "per_unit"
    gain: float = 1.0
    dtype: Any = jnp.float32
    quantize: str = "none"

    @nn.compact
    def __call__(self, u: Array, condition: Condition) -> Array:
        y = AdaptiveNorm(self.modulation, name="norm")(u, condition).astype(self.dtype)
        hidden = int(self.ratio * self.width)
        if self.activation == "swiglu":
            hidden = max(1, round(2 * hidden / 3))

        def linear(features: int, name: str):
            return nn.Dense(
                features,
                kernel_init=xavier(self.gain),
                dtype=self.dtype,
                dot_general=dot_general(self.quantize),
                name=name,
            )

        a = linear(hidden, "hidden")(y)
        if self.activation == "swiglu":
            a = jax.nn.silu(a) * linear(hidden, "linear")(y)
        else:
            a = jax.nn.gelu(a, approximate=True)
        length = ("activation_length", *(None,) * (a.ndim - 3))
        a = constrain(a, "activation_batch", *length, "activation_mlp")
        return linear(self.width, "out")(a)
