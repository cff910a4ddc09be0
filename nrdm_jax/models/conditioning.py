"""What a network is told besides its input: the time, the class, and projections of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from nrdm_jax.sharding.axes import constrain
from nrdm_jax.signatures import Array, Given


@struct.dataclass
class Condition:
    """Attributes:
    e_BD: e(c) = SiLU(c) of the sum c of all embeddings, float32.
    shared: projections that all units of a stack have in common, by name: (B, D), or (B, 1) for
      scalar gates.
    text_BTE: states of a text encoder, for cross-attention.
    text_mask_BT: True where a text token is no padding.
    """

    e_BD: Array
    shared: dict[str, Array]
    text_BTE: Array | None = None
    text_mask_BT: Array | None = None


def nothing(given: Given, num_classes: int) -> Given:
    """The same without class and text; what is seen stays."""
    empty = dict(given, label=jnp.full_like(given["label"], num_classes))
    for name in ("text_mask", "text_pooled", "tokens"):
        if name in given:
            empty[name] = jnp.zeros_like(given[name])
    return empty


class TimeEmbedding(nn.Module):
    """t (B,) in [0, 1] -> (B, width): sinusoids of 1000 t, then a two-layer MLP.

    Vaswani et al. (arXiv 1706.03762), section 3.5, as in DiT (arXiv 2212.09748).
    """

    width: int
    frequencies: int = 256

    @nn.compact
    def __call__(self, t_B: Array) -> Array:
        half = self.frequencies // 2
        omega = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / half)
        angle = 1000.0 * t_B.astype(jnp.float32)[:, None] * omega[None, :]
        features = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        init = nn.initializers.normal(0.02)
        # Laid out as the trunk is: devices then gather kernels, and not everybody's features.
        hidden = nn.Dense(self.width, kernel_init=init, name="hidden")(_of_examples(features))
        return nn.Dense(self.width, kernel_init=init, name="out")(jax.nn.silu(_of_examples(hidden)))


def _of_examples(x_BD: Array) -> Array:
    return constrain(x_BD, "activation_batch", None)


class LabelEmbedding(nn.Module):
    """label (B,) int32 in [0, num_classes] -> (B, width); `num_classes` is the null class.

    Flax reads a label that is too large as NaN and -1 as the null class, silently: labels are
    checked on the host, by the data sources and by sampling.
    """

    num_classes: int
    width: int

    @nn.compact
    def __call__(self, label_B: Array) -> Array:
        table = nn.Embed(
            self.num_classes + 1, self.width, embedding_init=nn.initializers.normal(0.02)
        )
        # Whole before it is read: the batch takes the mesh axes that divide the table.
        return jnp.take(constrain(table.embedding, None, None), label_B, axis=0)


class TextEmbedding(nn.Module):
    """(text (B, T, E), mask (B, T) bool, pooled (B, E)) -> (states (B, T + 1, E), mask (B, T + 1),
    embedding (B, width)): what blocks attend to, and what the whole condition has of it.

    In front of the text is a learnt state that is always there: an example without text attends to
    it alone. The embedding is a linear of what the encoder pools of the text, scaled and shifted,
    and zero without text.
    """

    width: int

    @nn.compact
    def __call__(
        self, text_BTE: Array, mask_BT: Array, pooled_BE: Array
    ) -> tuple[Array, Array, Array]:
        init = nn.initializers.normal(0.02)
        text_BTE = constrain(text_BTE.astype(jnp.float32), "activation_batch", None, None)
        start_E = self.param("start", init, text_BTE.shape[-1:])
        start = jnp.broadcast_to(start_E[None, None], (text_BTE.shape[0], 1, start_E.shape[0]))
        # A padded state may be anything, and nothing times NaN is NaN.
        known = jnp.where(mask_BT[..., None], text_BTE, 0.0)
        told_B1 = jnp.any(mask_BT, axis=1, keepdims=True)
        pooled_BE = jnp.where(told_B1, _of_examples(pooled_BE.astype(jnp.float32)), 0.0)
        moved_BE = jnp.where(told_B1, Affine(name="norm")(pooled_BE), 0.0)
        embed = nn.Dense(self.width, use_bias=False, kernel_init=init, name="pooled")
        states = jnp.concatenate([start, known], axis=1)
        mask = jnp.concatenate([jnp.ones_like(mask_BT[:, :1]), mask_BT], axis=1)
        return states, mask, embed(moved_BE)


class Affine(nn.Module):
    """scale * x + bias, (B, E): of a norm, of what is normalised already."""

    @nn.compact
    def __call__(self, x_BE: Array) -> Array:
        scale_E = self.param("scale", nn.initializers.ones, x_BE.shape[-1:])
        bias_E = self.param("bias", nn.initializers.zeros, x_BE.shape[-1:])
        return x_BE * scale_E[None] + bias_E[None]


class SharedProjections(nn.Module):
    """e (B, D) -> {name: (B, width)}, zero at start: one kernel for the whole stack.

    A kernel for each unit costs D^2; in a stack of a thousand blocks that is most of the network.

    Attributes:
      widths: (name, width) of each.
    """

    widths: tuple[tuple[str, int], ...]

    @nn.compact
    def __call__(self, e_BD: Array) -> dict[str, Array]:
        return {
            name: nn.Dense(width, use_bias=False, kernel_init=nn.initializers.zeros, name=name)(
                e_BD
            )
            for name, width in self.widths
        }
