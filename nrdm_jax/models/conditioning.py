"""What a network is told besides its input: the time, the class, and projections of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from nrdm_jax.sharding.axes import constrain
from nrdm_jax.signatures import Array


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
