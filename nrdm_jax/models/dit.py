"""DiT: a flow-shaped stack of gated residual units over N-D patches (arXiv 2212.09748).

Image, video and volume are shapes of one network. adaLN-Zero DiT is the setting `gated`, alpha =
cond and zero at start, beta off; Latte (arXiv 2401.03048) is that on (T, H, W) with factorised
attention.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from nrdm_jax.models.blocks import CrossAttention, Mlp, SelfAttention, xavier
from nrdm_jax.models.conditioning import (
    Condition,
    LabelEmbedding,
    SharedProjections,
    TimeEmbedding,
)
from nrdm_jax.models.norms import AdaptiveNorm
from nrdm_jax.models.patches import grid_of, patchify, unpatchify
from nrdm_jax.models.positions import sincos
from nrdm_jax.models.probe import Streams, health, tap
from nrdm_jax.models.stack import Block, Stack
from nrdm_jax.models.unit import VARIANTS, Gates, ResidualUnit
from nrdm_jax.signatures import Array

PREFIX = 2  # tokens in front of the patches, where asked for: the time's and the class's


class DiT(nn.Module):
    """(x (B, *S, C) float32, t (B,) in [0, 1], label (B,) int32) -> (B, *S, C), or 2C channels.

    With `taps` (units + 1,) also the health (units + 1, 2) of the trunk at every unit's input and
    at the stack's end; the gradient with respect to the taps is |dL/dz_i|^2 there (see `probe`).
    `text` (B, T, E) and `text_mask` (B, T), True where there is text, are for `text_width`.

    Attributes:
      shape: (*S, C) of one example.
      patch: side of a patch, one number or one a spatial axis.
      depth, width, heads: blocks (attention and MLP), trunk channels, attention heads; see
        `sizes.DIT`.
      num_classes: labels are 0 .. num_classes - 1; `num_classes` itself is the null class.
      learn_variance: twice the output channels.
      variant: the form of every residual unit, a key of `unit.VARIANTS`.
      gate_shape, gate_condition, alpha_start, beta, beta_bound: see `unit.Gates`.
      modulation: `per_unit`, `shared` or `none`, see `norms.AdaptiveNorm`.
      prefix_tokens: time and class are two tokens in front of the patches, too.
      attention: `joint`; or `factorised`, where blocks within a frame (all axes but the first) and
        across frames (the first axis) take turns, so that the scanned form is two blocks.
      positions: `sincos`, added to the trunk; or `rotary`, in attention.
      qk_norm: see `blocks.Attention`.
      mlp, mlp_ratio: `gelu` or `swiglu`, and hidden channels over width, see `blocks.Mlp`.
      text_width: channels of the text states, each block has a cross-attention unit; 0: no text.
      streams: 1; or 2, the trunk twice: units write the one and read the other, the output is the
        mean of both.
      branch_dtype: compute type of the branches; trunk, gates and norms stay float32.
      memory, remat_policy: see `stack.Stack`.
    """

    shape: tuple[int, ...]
    patch: int | tuple[int, ...] = 2
    depth: int = 12
    width: int = 384
    heads: int = 6
    num_classes: int = 1000
    learn_variance: bool = False
    variant: str = "gated"
    gate_shape: str = "channel"
    gate_condition: str = "cond"
    alpha_start: str | float = "auto"
    beta: bool = True
    beta_bound: bool = True
    modulation: str = "per_unit"
    prefix_tokens: bool = False
    attention: str = "joint"
    positions: str = "sincos"
    qk_norm: bool = False
    mlp: str = "gelu"
    mlp_ratio: float = 4.0
    text_width: int = 0
    streams: int = 1
    branch_dtype: str = "float32"
    memory: str = "none"
    remat_policy: str = "nothing"

    @property
    def units(self) -> int:
        """Residual units of the whole network."""
        return self.depth * (3 if self.text_width else 2)

    @nn.compact
    def __call__(
        self,
        x: Array,
        t_B: Array,
        label_B: Array,
        taps: Array | None = None,
        text: Array | None = None,
        text_mask: Array | None = None,
    ):
        axes = len(self.shape) - 1
        patch = (self.patch,) * axes if isinstance(self.patch, int) else tuple(self.patch)
        grid = grid_of(self.shape, patch)

        z_BND = nn.Dense(self.width, kernel_init=xavier(), name="patch_embed")(
            patchify(x.astype(jnp.float32), patch)
        )
        if self.positions == "sincos":
            z_BND = z_BND + jnp.asarray(sincos(grid, self.width))[None]
        time_BD = TimeEmbedding(self.width, name="time")(t_B)
        class_BD = LabelEmbedding(self.num_classes, self.width, name="label")(label_B)
        if self.prefix_tokens:
            z_BND = jnp.concatenate([jnp.stack([time_BD, class_BD], axis=1), z_BND], axis=1)
        e_BD = jax.nn.silu(time_BD + class_BD)
        names = self._shared_names()
        shared = SharedProjections(names, name="shared")(e_BD) if names else {}
        condition = Condition(e_BD, shared, text if self.text_width else None, text_mask)

        streams, seen = self._trunk((z_BND,) * self.streams, grid, condition, taps)
        if taps is not None:
            streams = tap(streams, taps[-1])
            seen = jnp.concatenate([seen, health(streams, self._prefix)[None]])
        z_BND = sum(streams)[:, self._prefix :] / self.streams

        plain = "none" if self.modulation == "none" else "per_unit"
        z_BND = AdaptiveNorm(plain, name="final_norm")(z_BND, condition)
        channels = self.shape[-1] * (2 if self.learn_variance else 1)
        features = channels * math.prod(patch)
        y_BNP = nn.Dense(features, kernel_init=nn.initializers.zeros, name="final")(z_BND)
        y = unpatchify(y_BNP, grid, patch)
        return y if taps is None else (y, seen)

    def _trunk(
        self, streams: Streams, grid: tuple[int, ...], condition: Condition, taps: Array | None
    ) -> tuple[Streams, Array | None]:
        """The stack: (streams, health (units, 2))."""
        block = self._block(grid)
        per_block = len(block.units)
        if taps is not None:
            taps = taps[:-1].reshape(-1, per_block)
        stack = Stack(
            block, self.units // per_block, self.memory, self.remat_policy, name="stack"
        )  # fmt: skip
        passed = stack(streams, condition, taps)
        return passed.streams, None if passed.health is None else passed.health.reshape(-1, 2)

    def _block(self, grid: tuple[int, ...], skip: str = "") -> Block:
        """The form that is scanned: one block, or two where attention is factorised.

        With a skip, `inside` or `project`, it is the mirrored block of a U-shaped stack.
        """
        gates = self._gates()
        gain = VARIANTS[self.variant].kernel_gain(gates.units)
        dtype = jnp.dtype(self.branch_dtype)
        self_attention = SelfAttention(
            self.width, self.heads, self.modulation, gain, self.qk_norm, dtype,
            grid, (), self.positions == "rotary", parent=None,
        )  # fmt: skip
        cross = CrossAttention(
            self.width, self.heads, self.modulation, gain, self.qk_norm, dtype, parent=None
        )
        mlp = Mlp(self.width, self.mlp_ratio, self.mlp, self.modulation, gain, dtype, parent=None)

        def block(prefix: str, axes: tuple[int, ...]):
            branches = {"attention": self_attention.clone(axes=axes, parent=None)}
            if self.text_width:
                branches["cross_attention"] = cross
            branches["mlp"] = mlp
            return [(prefix + name, branch) for name, branch in branches.items()]

        if self.attention == "factorised":
            within = tuple(range(1, len(grid)))
            branches = [*block("within_", within), *block("across_", (0,))]
        else:
            branches = block("", ())
        units = tuple(
            (
                name,
                functools.partial(
                    ResidualUnit, branch, gates, self.variant, skip == "inside" and i == 0
                ),
            )
            for i, (name, branch) in enumerate(branches)
        )
        return Block(units, skip == "project", self._prefix, parent=None)

    @property
    def _prefix(self) -> int:
        return PREFIX if self.prefix_tokens else 0

    def _gates(self) -> Gates:
        return Gates(
            units=self.units,
            shape=self.gate_shape,
            condition=self.gate_condition,
            beta=self.beta,
            alpha_start=self.alpha_start,
            beta_bound=self.beta_bound,
            prefix=self._prefix,
        )

    def _shared_names(self) -> tuple[str, ...]:
        """Which projections of the condition the stack has in common."""
        gates = VARIANTS[self.variant].gates(self._gates())
        names = []
        if gates.condition == "cond_shared":
            names += [name for name in ("alpha", "beta") if getattr(gates, name)]
        if self.modulation == "shared":
            names += ["shift", "scale"]
        return tuple(names)
