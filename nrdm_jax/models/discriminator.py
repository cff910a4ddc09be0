"""A patch discriminator: says of each place of a picture, clip or volume whether it is real (Isola
et al., arXiv 1611.07004)."""

import flax.linen as nn
import jax

from nrdm_jax.models.autoencoder import Convolution, GroupNorm
from nrdm_jax.signatures import Array

SLOPE = 0.2  # of the leaky ReLU below 0


class PatchDiscriminator(nn.Module):
    """(B, *S, C) -> (B, *S / 2^levels): above 0 is real. Convolutions of stride 2, group norm but
    at the first level, leaky ReLU.

    Attributes:
      width: channels of the first level; each has twice those of the one before.
      levels: of them.
      groups: of the group norms.
    """

    width: int
    levels: int = 2
    groups: int = 8

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for level in range(self.levels):
            x = Convolution(self.width * 2**level, stride=2, name=f"shrink_{level}")(x)
            if level:
                x = GroupNorm(self.groups, name=f"norm_{level}")(x)
            x = jax.nn.leaky_relu(x, SLOPE)
        return Convolution(1, name="verdict")(x)[..., 0]
