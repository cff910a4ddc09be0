"""DiT: a flow-shaped stack of gated residual units over N-D patches (arXiv 2212.09748).

Image, video and volume are shapes of one network. adaLN-Zero DiT is the setting `gated`, alpha =
cond, zero at start and not bounded, beta off; Latte (arXiv 2401.03048) is that on (T, H, W) with
factorised attention.
"""

import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax.models.blocks import CrossAttention, Mlp, SelfAttention, xavier
from nrdm_jax.models.conditioning import Condition
from nrdm_jax.models.denoiser import Denoiser
from nrdm_jax.models.norms import AdaptiveNorm
from nrdm_jax.models.patches import grid_of, patchify, unpatchify
from nrdm_jax.models.positions import sincos
from nrdm_jax.models.probe import Streams, tapped
from nrdm_jax.models.stack import Block, Passed, Schedule, Stack, merged, mirrored
from nrdm_jax.models.unit import ResidualUnit
from nrdm_jax.signatures import Array, Given

PREFIX = (
    2  # tokens in front of the patches, where asked for: the time's, and that of class and text
)


class DiT(Denoiser):
    """A `Denoiser` whose block is an attention unit, with `text_width` a cross-attention unit, and
    an MLP unit.

    With `after`, numbers of blocks, the result is what the head makes of the trunk after each:
    (len(after), B, *S, C or 2C). Blocks that are factorised count in pairs, as they are scanned.

    Attributes:
      prefix_tokens: time, and what is given, are two tokens in front of the patches, too.
      attention: `joint`; or `factorised`, where blocks within a frame (all axes but the first) and
        across frames (the first axis) take turns, so that the scanned form is two blocks.
      positions: `sincos`, added to the trunk; or `rotary`, in attention.
      mlp, mlp_ratio: `gelu` or `swiglu`, and hidden channels over width, see `blocks.Mlp`.
      streams: 1; or 2, the trunk twice: units write the one and read the other, the output is the
        mean of both.
      schedule: of a pipeline, see `stack.Stack`.
    """

    prefix_tokens: bool = False
    attention: str = "joint"
    positions: str = "sincos"
    mlp: str = "gelu"
    mlp_ratio: float = 4.0
    streams: int = 1
    schedule: Schedule = Schedule()

    @property
    def layout(self) -> tuple[tuple[str, int, tuple[str, ...]], ...]:
        pairs = self.attention == "factorised"
        if pairs and self.depth % 2:
            raise ValueError(f"depth is {self.depth}, and factorised blocks come in pairs")
        return (("stack", self.depth // 2 if pairs else self.depth, self.unit_names),)

    @property
    def unit_names(self) -> tuple[str, ...]:
        """Of the form that is scanned: one block, or two where attention is factorised."""
        kinds = ("attention", "cross_attention", "mlp") if self.text_width else ("attention", "mlp")
        parts = ("",) if self.attention == "joint" else ("within_", "across_")
        return tuple(part + kind for part in parts for kind in kinds)

    @property
    def prefix(self) -> int:
        return PREFIX if self.prefix_tokens else 0

    @nn.compact
    def __call__(
        self,
        x: Array,
        t_B: Array,
        given: Given,
        taps: Array | None = None,
        after: tuple[int, ...] | None = None,
    ):
        grid = grid_of(self.shape, self.patch_sides)
        z_BND = nn.Dense(self.width, kernel_init=xavier(), name="patch_embed")(
            patchify(self.input_of(x, given), self.patch_sides)
        )
        if self.positions == "sincos":
            z_BND = z_BND + jnp.asarray(sincos(grid, self.width, self.reference_grid))[None]
        condition, time_BD, given_BD = self.embed(t_B, given)
        if self.prefix_tokens:
            z_BND = jnp.concatenate([jnp.stack([time_BD, given_BD], axis=1), z_BND], axis=1)

        streams, first = tapped((z_BND,) * self.streams, taps, self.prefix)
        passed = self._trunk(streams, grid, condition, taps, keep=after is not None)
        if after is not None:
            assert passed.kept is not None, f"memory mode {self.memory} keeps no trunk"
            trunks = jnp.concatenate([z_BND[None], passed.kept])[np.asarray(after)]
            # One batch for the head, examples first, so that each device keeps what it has.
            several = trunks.swapaxes(0, 1).reshape(-1, *z_BND.shape[1:])
            repeated = jax.tree.map(lambda c: jnp.repeat(c, len(after), axis=0), condition)
            y = self._head(several, repeated, grid)
            return y.reshape(-1, len(after), *y.shape[1:]).swapaxes(0, 1)
        y = self._head(merged(passed.streams), condition, grid)
        return y if first is None else (y, jnp.concatenate([first, cast(Array, passed.health)]))

    def _head(self, z_BND: Array, condition: Condition, grid: tuple[int, ...]) -> Array:
        modulation = "none" if self.modulation == "none" else "per_unit"
        norm = AdaptiveNorm(modulation, name="final_norm")
        linear = nn.Dense(self.patch_features, kernel_init=nn.initializers.zeros, name="final")
        y_BNP = linear(norm(z_BND[:, self.prefix :], condition))
        return unpatchify(y_BNP, grid, self.patch_sides)

    def _trunk(
        self,
        streams: Streams,
        grid: tuple[int, ...],
        condition: Condition,
        taps: Array | None,
        keep: bool,
    ) -> Passed:
        """The whole stack; its health, behind every unit, is (units, 2)."""
        ((name, depth, _),) = self.layout
        if taps is not None:
            taps = taps[1:].reshape(depth, -1)
        stack = Stack(
            self._block(grid),
            depth,
            self.memory,
            self.remat_policy,
            keep,
            self.schedule,
            name=name,
        )
        passed = stack(streams, condition, taps)
        rows = jax.tree.map(lambda h: h.reshape(-1, 2), passed.health)
        return passed._replace(health=rows)

    def _block(self, grid: tuple[int, ...], skip: str = "") -> Block:
        """The form that is scanned. With a skip, `inside` or `project`, it is the mirrored block of
        a U-shaped stack."""
        dtype = jnp.dtype(self.branch_dtype)
        settings: dict[str, Any] = {
            "modulation": self.modulation,
            "gain": self.kernel_gain,
            "dtype": dtype,
            "quantize": self.quantize,
        }
        heads: dict[str, Any] = {
            "heads": self.heads,
            "qk_norm": self.qk_norm,
            "kernel": self.attention_kernel,
        }
        mlp = Mlp(self.width, self.mlp_ratio, self.mlp, **settings, parent=None)
        cross_attention = CrossAttention(self.width, **heads, **settings, parent=None)

        def attention(*axes: int) -> SelfAttention:
            return SelfAttention(
                self.width,
                **heads,
                **settings,
                grid=grid,
                axes=axes,
                rotary=self.positions == "rotary",
                reference=self.reference_grid,
                parent=None,
            )

        branches: dict[str, nn.Module] = {
            "attention": attention(),
            "within_attention": attention(*range(1, len(grid))),
            "across_attention": attention(0),
            **{f"{part}cross_attention": cross_attention for part in ("", "within_", "across_")},
            **{f"{part}mlp": mlp for part in ("", "within_", "across_")},
        }
        return mirrored(
            [
                (name, functools.partial(ResidualUnit, branches[name], self.gates, self.variant))
                for name in self.unit_names
            ],
            skip,
            self.prefix,
        )
