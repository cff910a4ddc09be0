"""A KL autoencoder: a Gaussian of few numbers for a picture, a clip or a volume, and the way back
(Kingma & Welling, arXiv 1312.6114; the convolutional form of Rombach et al., arXiv 2112.10752).

2-D and 3-D by the number of spatial axes. In 2-D it is the network that diffusers calls
AutoencoderKL, layer for layer, so that its weights fit (`autoencoder_weights`).

Shape suffixes: B examples, *S places, C channels, L latent channels, N places in one axis.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nrdm_jax.models import convolution
from nrdm_jax.models.norms import group_norm
from nrdm_jax.signatures import Array

LOG_VARIANCE = (-30.0, 20.0)  # limits, as in Rombach et al.'s code


class Gaussian(NamedTuple):
    """Of independent numbers: mean and log of the variance, (B, *S, L) each."""

    mean: Array
    log_variance: Array

    @property
    def std(self) -> Array:
        return jnp.exp(0.5 * self.log_variance)

    def drawn(self, noise: Array) -> Array:
        """mean + std * noise, noise (B, *S, L) standard normal."""
        return self.mean + self.std * noise

    def divergence(self) -> Array:
        """KL(N(mean, var) || N(0, 1)) of each example, in nats (B,): the sum over its numbers of
        (mean^2 + var - 1 - log var) / 2 (arXiv 1312.6114, appendix B)."""
        each = self.mean**2 + jnp.exp(self.log_variance) - 1.0 - self.log_variance
        return 0.5 * jnp.sum(each, axis=tuple(range(1, each.ndim)))


Convolution = functools.partial(convolution.Convolution, looped=False)


class GroupNorm(nn.Module):
    """Group norm with scale and bias; `groups` that do not divide the channels become fewer."""

    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        scale, bias = (v.reshape((1,) * (x.ndim - 1) + (-1,)) for v in (scale, bias))
        return group_norm(x, self.groups) * scale + bias


class ResidualBlock(nn.Module):
    """x W + conv(silu(norm(conv(silu(norm(x)))))), W the identity where the channels stay."""

    width: int
    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = jax.nn.silu(GroupNorm(self.groups, name="norm1")(x))
        y = Convolution(self.width, name="conv1")(y)
        y = jax.nn.silu(GroupNorm(self.groups, name="norm2")(y))
        y = Convolution(self.width, name="conv2")(y)
        if x.shape[-1] != self.width:
            x = nn.Dense(self.width, name="conv_shortcut")(x)
        return x + y


class PlaceAttention(nn.Module):
    """x + attention of one head among all places of norm(x)."""

    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        u_BNC = GroupNorm(self.groups, name="group_norm")(x).reshape(x.shape[0], -1, width)
        q, k, v = (nn.Dense(width, name=name)(u_BNC) for name in ("to_q", "to_k", "to_v"))
        weight_BNN = jax.nn.softmax(jnp.einsum("bnc,bmc->bnm", q, k) / math.sqrt(width), axis=-1)
        y_BNC = jnp.einsum("bnm,bmc->bnc", weight_BNN, v)
        return x + nn.Dense(width, name="to_out")(y_BNC).reshape(x.shape)


class Middle(nn.Module):
    """A block, attention where it is asked for, a block."""

    attention: bool
    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = ResidualBlock(x.shape[-1], self.groups, name="resnets_0")(x)
        if self.attention:
            x = PlaceAttention(self.groups, name="attentions_0")(x)
        return ResidualBlock(x.shape[-1], self.groups, name="resnets_1")(x)


class Encoder(nn.Module):
    """(B, *S, C) -> (B, *S / 2^(levels - 1), outputs): each level but the last ends in a
    convolution of stride 2."""

    widths: tuple[int, ...]
    blocks: int
    outputs: int
    attention: bool
    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Convolution(self.widths[0], name="conv_in")(x)
        for i, width in enumerate(self.widths):
            for j in range(self.blocks):
                x = ResidualBlock(width, self.groups, name=f"down_blocks_{i}_resnets_{j}")(x)
            if i < len(self.widths) - 1:
                x = Convolution(width, stride=2, name=f"down_blocks_{i}_downsamplers_0_conv")(x)
        x = Middle(self.attention, self.groups, name="mid_block")(x)
        x = jax.nn.silu(GroupNorm(self.groups, name="conv_norm_out")(x))
        return Convolution(self.outputs, name="conv_out")(x)


class Decoder(nn.Module):
    """The way back: each level but the last ends in a doubling of every axis and a convolution;
    it has a block more than the encoder's."""

    widths: tuple[int, ...]
    blocks: int
    outputs: int
    attention: bool
    groups: int

    @nn.compact
    def __call__(self, z: Array) -> Array:
        x = Convolution(self.widths[-1], name="conv_in")(z)
        x = Middle(self.attention, self.groups, name="mid_block")(x)
        for i, width in enumerate(reversed(self.widths)):
            for j in range(self.blocks + 1):
                x = ResidualBlock(width, self.groups, name=f"up_blocks_{i}_resnets_{j}")(x)
            if i < len(self.widths) - 1:
                x = Convolution(width, name=f"up_blocks_{i}_upsamplers_0_conv")(doubled(x))
        x = jax.nn.silu(GroupNorm(self.groups, name="conv_norm_out")(x))
        return Convolution(self.outputs, name="conv_out")(x)


def doubled(x: Array) -> Array:
    """(B, *S, C) -> (B, *2S, C): every place twice along every axis."""
    for axis in range(1, x.ndim - 1):
        x = jnp.repeat(x, 2, axis=axis)
    return x


class KLAutoencoder(nn.Module):
    """(x (B, *S, C), noise (B, *S / factor, L) or None) -> (reconstruction (B, *S, C), Gaussian),
    of the mean where there is no noise. Values in [-1, 1].

    Attributes:
      channels: C.
      latent_channels: L.
      width: channels at the first level.
      channel_factors: of each level over `width`; each level has half the size of the one before
        along every axis.
      blocks: residual blocks of a level on the way to the latents.
      attention: whether the middle attends.
      groups: of the group norms.
      quantised: a linear map behind the encoder and one before the decoder ("quant_conv").
    """

    channels: int
    latent_channels: int
    width: int
    channel_factors: tuple[int, ...]
    blocks: int
    attention: bool = True
    groups: int = 32
    quantised: bool = True

    @property
    def factor(self) -> int:
        """By which every axis shrinks."""
        return 2 ** (len(self.channel_factors) - 1)

    def setup(self) -> None:
        settings: dict[str, Any] = {
            "widths": tuple(self.width * factor for factor in self.channel_factors),
            "blocks": self.blocks,
            "attention": self.attention,
            "groups": self.groups,
        }
        self.encoder = Encoder(outputs=2 * self.latent_channels, **settings)
        self.decoder = Decoder(outputs=self.channels, **settings)
        if self.quantised:
            self.quant_conv = nn.Dense(2 * self.latent_channels)
            self.post_quant_conv = nn.Dense(self.latent_channels)

    def encode(self, x: Array) -> Gaussian:
        moments = self.encoder(x)
        if self.quantised:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return Gaussian(mean, jnp.clip(log_variance, *LOG_VARIANCE))

    def decode(self, z: Array) -> Array:
        return self.decoder(self.post_quant_conv(z) if self.quantised else z)

    def __call__(self, x: Array, noise: Array | None = None) -> tuple[Array, Gaussian]:
        found = self.encode(x)
        return self.decode(found.mean if noise is None else found.drawn(noise)), found
