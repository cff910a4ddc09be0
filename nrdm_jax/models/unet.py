"""U-Net: residual units of convolutions and attention at several resolutions (Ronneberger et al.,
arXiv 1505.04597; its diffusion form, Ho et al., arXiv 2006.11239, and ADM, arXiv 2105.05233).

2-D and 3-D by the number of spatial axes. Each level is a scan on the way down and one on the way
up; blocks on the way up are mirrored: each reads what its partner on the way down gave.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nrdm_jax.models.blocks import SelfAttention
from nrdm_jax.models.conditioning import Condition
from nrdm_jax.models.convolution import Convolution
from nrdm_jax.models.denoiser import Denoiser
from nrdm_jax.models.norms import AdaptiveNorm
from nrdm_jax.models.patches import grid_of, patchify, unpatchify
from nrdm_jax.models.probe import tapped
from nrdm_jax.models.stack import Block, Stack, mirrored
from nrdm_jax.models.unit import ResidualUnit
from nrdm_jax.signatures import Array, Given

GROUPS = 32  # of channels, normalised together; fewer where they do not divide the channels


class Convolutions(nn.Module):
    """(u (B, *S, E), condition) -> (B, *S, width): group norm, SiLU, convolution, adaptive group
    norm, SiLU, convolution, as in ADM; a window is 3 along each axis.

    Attributes:
      width: output channels.
      modulation: of the second norm, see `AdaptiveNorm`.
      gain: factor on the start of the kernels.
      dtype: compute type of the convolutions.
    """

    width: int
    modulation: str = "per_unit"
    gain: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, u: Array, condition: Condition) -> Array:
        def convolution(name: str, y: Array) -> Array:
            init = nn.initializers.variance_scaling(self.gain**2, "fan_avg", "uniform")
            return Convolution(self.width, kernel_init=init, dtype=self.dtype, name=name)(y)

        y = jax.nn.silu(AdaptiveNorm("none", GROUPS, name="first_norm")(u, condition))
        y = convolution("hidden", y)
        y = jax.nn.silu(AdaptiveNorm(self.modulation, GROUPS, name="norm")(y, condition))
        return convolution("out", y)


class UNet(Denoiser):
    """A `Denoiser` whose block is a unit of convolutions and, at some levels, one of attention.

    Attributes:
      depth: blocks of a level, on the way down and as many on the way up.
      heads: attention heads of `width` channels; wider levels have more.
      channel_factors: trunk channels of each level over `width`; each level has half the size of
        the one before along every axis.
      attention_at: sizes, of the longest axis, of the levels that attend; the middle does always.
      skip: see `uvit.UViT`.
    """

    channel_factors: tuple[int, ...] = (1, 2, 2)
    attention_at: tuple[int, ...] = (8,)
    skip: str = "inside"

    def backwards(self, stack: str) -> bool:
        return stack.startswith("up_")

    @property
    def layout(self) -> tuple[tuple[str, int, tuple[str, ...]], ...]:
        levels = range(len(self.channel_factors))
        down = [(f"down_{i}", self.depth, self._unit_names(i)) for i in levels]
        up = [(f"up_{i}", self.depth, self._unit_names(i)) for i in reversed(levels)]
        return (*down, ("middle", 1, self._unit_names(levels[-1], attends=True)), *up)

    def _unit_names(self, level: int, attends: bool = False) -> tuple[str, ...]:
        attends = attends or self._attends(level)
        return ("convolution", "attention") if attends else ("convolution",)

    def _attends(self, level: int) -> bool:
        return max(self.reference_grid) // 2**level in self.attention_at

    @nn.compact
    def __call__(self, x: Array, t_B: Array, given: Given, taps: Array | None = None):
        grid = grid_of(self.shape, self.patch_sides)
        condition, _, _ = self.embed(t_B, given)
        y = patchify(self.input_of(x, given), self.patch_sides)
        z = Convolution(self._channels(0), name="patch_embed")(y.reshape(y.shape[0], *grid, -1))

        (z,), first = tapped((z,), taps)
        z, seen = self._trunk(z, condition, taps)
        z = jax.nn.silu(AdaptiveNorm("none", GROUPS, name="final_norm")(z, condition))
        zeros = nn.initializers.zeros
        y = Convolution(self.patch_features, kernel_init=zeros, name="final")(z)
        y = unpatchify(y.reshape(y.shape[0], -1, y.shape[-1]), grid, self.patch_sides)
        return y if first is None else (y, jnp.concatenate([first, *seen]))

    def _trunk(
        self, z: Array, condition: Condition, taps: Array | None
    ) -> tuple[Array, list[Array]]:
        """All levels, down and up: (z, health behind every unit (units of a stack, 2), a stack
        each, where there are taps)."""
        last = len(self.channel_factors) - 1
        seen, used = [], 1

        def run(block: Block, depth: int, name: str, z: Array, skips: Array | None = None):
            nonlocal used
            first, used = used, used + depth * len(block.units)
            part = None if taps is None else taps[first:used].reshape(depth, -1)
            stack = Stack(
                block, depth, self.memory, self.remat_policy, name.startswith("down"), name=name
            )
            passed = stack((z,), condition, part, skips)
            if passed.health is not None:
                seen.append(passed.health.reshape(-1, 2))
            return passed.streams[0], passed.kept

        kept = []
        for level in range(last + 1):
            z, outputs = run(self._level_block(level), self.depth, f"down_{level}", z)
            kept.append(outputs)
            if level < last:
                z = Convolution(self._channels(level + 1), stride=2, name=f"shrink_{level}")(z)
        z, _ = run(self._level_block(last, attends=True), 1, "middle", z)
        for level in reversed(range(last + 1)):
            block = self._level_block(level, skip=self.skip)
            z, _ = run(block, self.depth, f"up_{level}", z, kept[level])
            if level:
                size = (z.shape[0], *(2 * n for n in z.shape[1:-1]), z.shape[-1])
                z = jax.image.resize(z, size, "nearest")
                z = Convolution(self._channels(level - 1), name=f"grow_{level}")(z)
        return z, seen

    def _channels(self, level: int) -> int:
        return self.width * self.channel_factors[level]

    def _level_block(self, level: int, attends: bool = False, skip: str = "") -> Block:
        width, factor = self._channels(level), self.channel_factors[level]
        dtype = jnp.dtype(self.branch_dtype)
        settings: dict[str, Any] = {
            "modulation": self.modulation,
            "gain": self.kernel_gain,
            "dtype": dtype,
        }
        branches: dict[str, nn.Module] = {
            "convolution": Convolutions(width, **settings, parent=None),
            "attention": SelfAttention(
                width,
                self.heads * factor,
                qk_norm=self.qk_norm,
                kernel=self.attention_kernel,
                **settings,
                parent=None,
            ),
        }
        return mirrored(
            [
                (name, functools.partial(ResidualUnit, branches[name], self.gates, self.variant))
                for name in self._unit_names(level, attends)
            ],
            skip,
        )
