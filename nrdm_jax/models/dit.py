"""DiT: a flow-shaped stack of gated residual units over N-D patches (arXiv 2212.09748).

Image, video and volume are shapes of one network. adaLN-Zero DiT is the setting `gated`, alpha =
cond and zero at start, beta off.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from nrdm_jax.models.blocks import UNITS_PER_BLOCK, XAVIER, AdaptiveNorm, TransformerBlock
from nrdm_jax.models.conditioning import (
    Condition,
    LabelEmbedding,
    SharedProjections,
    TimeEmbedding,
)
from nrdm_jax.models.patches import grid_of, patchify, unpatchify
from nrdm_jax.models.positions import sincos
from nrdm_jax.models.stack import Stack
from nrdm_jax.models.unit import VARIANTS, Gates
from nrdm_jax.signatures import Array


class DiT(nn.Module):
    """(x (B, *S, C) float32, t (B,) in [0, 1], label (B,) int32) -> (B, *S, C), or 2C channels.

    Attributes:
      shape: (*S, C) of one example.
      patch: side of a patch, one number or one a spatial axis.
      depth, width, heads: blocks, trunk channels, attention heads; see `sizes.DIT`.
      num_classes: labels are 0 .. num_classes - 1; `num_classes` itself is the null class.
      mlp_ratio: hidden width of the MLP over the width.
      learn_variance: twice the output channels.
      variant: the form of every residual unit, a key of `unit.VARIANTS`.
      gate_shape, gate_condition, alpha_start, beta, beta_bound: see `unit.Gates`.
      modulation: `per_unit` or `shared`, see `blocks.AdaptiveNorm`.
      branch_dtype: compute type of the branches; trunk, gates and norms stay float32.
      memory: see `stack.run`.
    """

    shape: tuple[int, ...]
    patch: int | tuple[int, ...] = 2
    depth: int = 12
    width: int = 384
    heads: int = 6
    num_classes: int = 1000
    mlp_ratio: float = 4.0
    learn_variance: bool = False
    variant: str = "gated"
    gate_shape: str = "channel"
    gate_condition: str = "cond"
    alpha_start: str | float = "auto"
    beta: bool = True
    beta_bound: bool = True
    modulation: str = "per_unit"
    branch_dtype: str = "float32"
    memory: str = "none"

    @nn.compact
    def __call__(self, x: Array, t_B: Array, label_B: Array) -> Array:
        axes = len(self.shape) - 1
        patch = (self.patch,) * axes if isinstance(self.patch, int) else tuple(self.patch)
        grid = grid_of(self.shape, patch)
        gates = Gates(
            units=UNITS_PER_BLOCK * self.depth,
            shape=self.gate_shape,
            condition=self.gate_condition,
            beta=self.beta,
            alpha_start=self.alpha_start,
            beta_bound=self.beta_bound,
        )

        z_BND = nn.Dense(self.width, kernel_init=XAVIER, name="patch_embed")(
            patchify(x.astype(jnp.float32), patch)
        )
        z_BND = z_BND + jnp.asarray(sincos(grid, self.width))[None]
        c_BD = TimeEmbedding(self.width, name="time")(t_B)
        c_BD = c_BD + LabelEmbedding(self.num_classes, self.width, name="label")(label_B)
        e_BD = jax.nn.silu(c_BD)
        names = self._shared_names(gates)
        shared = SharedProjections(names, name="shared")(e_BD) if names else {}
        condition = Condition(e_BD, shared)

        block = TransformerBlock(
            gates,
            self.variant,
            self.heads,
            self.mlp_ratio,
            self.modulation,
            jnp.dtype(self.branch_dtype),
            parent=None,
        )
        z_BND = Stack(block, self.depth, self.memory, name="stack")(z_BND, condition)

        z_BND = AdaptiveNorm(name="final_norm")(z_BND, condition)
        channels = self.shape[-1] * (2 if self.learn_variance else 1)
        features = channels * math.prod(patch)
        y_BNP = nn.Dense(features, kernel_init=nn.initializers.zeros, name="final")(z_BND)
        return unpatchify(y_BNP, grid, patch)

    def _shared_names(self, gates: Gates) -> tuple[str, ...]:
        """Which projections of the condition the stack has in common."""
        gates = VARIANTS[self.variant].gates(gates)
        names = []
        if gates.condition == "cond_shared":
            names += [name for name in ("alpha", "beta") if getattr(gates, name)]
        if self.modulation == "shared":
            names += ["shift", "scale"]
        return tuple(names)
