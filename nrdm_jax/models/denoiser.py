"""What all denoising networks have in common: their settings, their condition, their gates."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from nrdm_jax.models.conditioning import (
    Condition,
    LabelEmbedding,
    SharedProjections,
    TextEmbedding,
    TimeEmbedding,
)
from nrdm_jax.models.patches import grid_of
from nrdm_jax.models.text_encoder import TextEncoder
from nrdm_jax.models.unit import VARIANTS, Gates
from nrdm_jax.sharding.axes import constrain
from nrdm_jax.signatures import Array, Given


class Denoiser(nn.Module):
    """(x (B, *S, C) float32, t (B,) in [0, 1], given) -> (B, *S, C), or 2C channels; `given` is a
    `signatures.Given`.

    With `taps` (units + 1,) also the health (units + 1, 2) of the trunk z_i at the stack's start
    and behind every unit, where the next unit, and a skip if there is one, reads it; the gradient
    with respect to the taps is |dL/dz_i|^2 (see `probe`).

    Attributes:
      shape: (*S, C) of one example. No parameter depends on S.
      reference: shape that positions span, see `positions.coordinates`, and by whose levels a U-Net
        attends; empty: `shape`.
      patch: side of a patch, one number or one a spatial axis.
      depth, width, heads: blocks, trunk channels, attention heads; see `sizes.DIT`.
      num_classes: labels are 0 .. num_classes - 1; `num_classes` itself is the null class.
      text_width: channels E of the states of a text that is given; 0: none is. What is pooled of
        them is a part of the condition, and blocks of a transformer have a cross-attention unit to
        them.
      text_vocabulary, text_depth, text_heads: of an encoder of its own, whose tokens are given in
        the place of states, see `text_encoder.TextEncoder`; 0: it has none.
      learn_variance: twice the output channels; the second half is no prediction.
      variant: the form of every residual unit, a key of `unit.VARIANTS`.
      gate_shape, gate_condition, alpha_start, alpha_bound, beta, beta_start, beta_bound: see
        `unit.Gates`.
      modulation: `per_unit`, `shared` or `none`, see `norms.AdaptiveNorm`.
      qk_norm: see `blocks.Attention`.
      attention_kernel: of self-attention, a key of `attention.KERNELS`.
      quantize: of a transformer's branches, see `quantized.dot_general`.
      branch_dtype: compute type of the branches; trunk, gates and norms stay float32.
      memory, remat_policy: see `stack.Stack`.
    """

    shape: tuple[int, ...]
    patch: int | tuple[int, ...] = 2
    depth: int = 12
    width: int = 384
    heads: int = 6
    num_classes: int = 1000
    text_width: int = 0
    reference: tuple[int, ...] = ()
    text_vocabulary: int = 0
    text_depth: int = 0
    text_heads: int = 0
    learn_variance: bool = False
    variant: str = "gated"
    gate_shape: str = "channel"
    gate_condition: str = "cond"
    alpha_start: str | float = "auto"
    alpha_bound: bool = True
    beta: bool = True
    beta_start: str | float = "auto"
    beta_bound: bool = True
    modulation: str = "per_unit"
    qk_norm: bool = False
    attention_kernel: str = "xla"
    quantize: str = "none"
    branch_dtype: str = "float32"
    memory: str = "none"
    remat_policy: str = "nothing"

    @property
    def layout(self) -> tuple[tuple[str, int, tuple[str, ...]], ...]:
        """(stack, blocks that are scanned, units of such a block), in the order of depth."""
        raise NotImplementedError

    @property
    def scanned_units(self) -> int:
        """Residual units that have weights."""
        return sum(blocks * len(names) for _, blocks, names in self.layout)

    @property
    def units(self) -> int:
        """Residual units of the whole network, as the probe counts them."""
        return self.scanned_units

    def backwards(self, stack: str) -> bool:
        """Whether its blocks run from the last to the first, as those do that read skips."""
        return False

    def depth_in_words(self) -> str:
        """`2,000 residual units: stack 1,000 x (attention, mlp)`."""
        stacks = ", ".join(
            f"{stack} {blocks:,} x ({', '.join(names)})" for stack, blocks, names in self.layout
        )
        return f"{self.scanned_units:,} residual units: {stacks}"

    @property
    def blocks(self) -> int:
        """After how many blocks the trunk can be read, at most."""
        return sum(blocks for _, blocks, _ in self.layout)

    @property
    def trunk_size(self) -> int:
        """Numbers of the trunk of an example, at the stack's start."""
        grid = grid_of(self.shape, self.patch_sides)
        return (math.prod(grid) + self.prefix) * self.width

    @property
    def prefix(self) -> int:
        """Tokens in front of the patches."""
        return 0

    @property
    def gates(self) -> Gates:
        """As asked for; the variant may change them."""
        return Gates(
            units=self.units,
            shape=self.gate_shape,
            condition=self.gate_condition,
            beta=self.beta,
            beta_start=self.beta_start,
            alpha_start=self.alpha_start,
            alpha_bound=self.alpha_bound,
            beta_bound=self.beta_bound,
            prefix=self.prefix,
        )

    @property
    def kernel_gain(self) -> float:
        """Factor on the start of value, output and MLP kernels."""
        return VARIANTS[self.variant].kernel_gain(self.units)

    @property
    def patch_sides(self) -> tuple[int, ...]:
        axes = len(self.shape) - 1
        return (self.patch,) * axes if isinstance(self.patch, int) else tuple(self.patch)

    @property
    def reference_grid(self) -> tuple[int, ...]:
        """Patches along each axis of the reference."""
        return grid_of(self.reference or self.shape, self.patch_sides)

    @property
    def patch_features(self) -> int:
        """Output channels of a whole patch."""
        channels = self.shape[-1] * (2 if self.learn_variance else 1)
        return channels * math.prod(self.patch_sides)

    @nn.compact
    def embed(self, t_B: Array, given: Given) -> tuple[Condition, Array, Array]:
        """The condition, and the embeddings it is made of, (B, D) each: of the time, and of what is
        given, class and text."""
        # Laid out as the trunk is, or every device would embed and project the whole batch.
        time_BD = TimeEmbedding(self.width, name="time")(constrain(t_B, "activation_batch"))
        given_BD = LabelEmbedding(self.num_classes, self.width, name="label")(given["label"])
        text, mask = None, None
        if self.text_width:
            encoded = self._encoded(given)
            text, mask, text_BD = TextEmbedding(self.width, name="text")(*encoded)
            given_BD = given_BD + text_BD
        e_BD = constrain(jax.nn.silu(time_BD + given_BD), "activation_batch", None)
        widths = self._shared_widths()
        shared = SharedProjections(widths, name="shared")(e_BD) if widths else {}
        return Condition(e_BD, shared, text, mask), time_BD, given_BD

    def _encoded(self, given: Given) -> tuple[Array, Array, Array]:
        """States (B, T, E) of what is given of a text, where it is no padding, and pooled
        (B, E)."""
        if not self.text_vocabulary:
            return given["text"], given["text_mask"], given["text_pooled"]
        encoder = TextEncoder(
            self.text_vocabulary, self.text_width, self.text_depth, self.text_heads,
            name="text_encoder",
        )  # fmt: skip
        tokens_BT = given["tokens"]
        states, pooled = encoder(tokens_BT)
        return states, tokens_BT > 0, pooled

    def input_of(self, x: Array, given: Given) -> Array:
        """(B, *S, C + K) float32: x_t, and what is seen at each place."""
        x = x.astype(jnp.float32)
        return jnp.concatenate([x, given["seen"]], axis=-1) if "seen" in given else x

    def _shared_widths(self) -> tuple[tuple[str, int], ...]:
        """Which projections of the condition the stack has in common, and their channels."""
        gates = VARIANTS[self.variant].gates(self.gates)
        widths = []
        if gates.condition == "cond_shared":
            width = self.width if gates.shape == "channel" else 1
            widths += [(name, width) for name in ("alpha", "beta") if getattr(gates, name)]
        if self.modulation == "shared":
            widths += [("shift", self.width), ("scale", self.width)]
        return tuple(widths)
