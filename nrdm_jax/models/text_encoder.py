"""A text encoder that is a part of the network and learns with it: a small transformer over the
tokens of a caption, such as its bytes.

Plain residual blocks, z <- z + attention(norm(z)), z <- z + mlp(norm(z)), then a norm: it is a few
blocks deep, and what is gated is the trunk.
"""

import flax.linen as nn
import jax.numpy as jnp

from nrdm_jax.models.blocks import Attention, Mlp
from nrdm_jax.models.conditioning import Condition
from nrdm_jax.models.norms import AdaptiveNorm, layer_norm
from nrdm_jax.models.positions import sincos
from nrdm_jax.sharding.axes import constrain
from nrdm_jax.signatures import Array


class TokenAttention(Attention):
    """Among the tokens of a text, its padding masked."""

    @nn.compact
    def __call__(self, z_BTE: Array, condition: Condition, mask_BT: Array) -> Array:
        y_BTE = self.normed(z_BTE, condition)
        return self.attention(y_BTE, y_BTE, mask_BT)


class TextEncoder(nn.Module):
    """tokens (B, T) int32, 0 behind the text -> (states (B, T, E), pooled (B, E)) float32. Neither
    depends on the padding behind a text; `pooled` is the mean of its states, each at mean 0 and
    variance 1, and zero of no text.

    Attributes:
      vocabulary: tokens are 0 .. vocabulary - 1.
      width: E.
      depth, heads: blocks, and attention heads of each.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int

    @nn.compact
    def __call__(self, tokens_BT: Array) -> tuple[Array, Array]:
        length = tokens_BT.shape[1]
        init = nn.initializers.normal(0.02)
        table = self.param("embedding", init, (self.vocabulary, self.width))
        # Whole before it is read: the batch takes the mesh axes that divide the table.
        z_BTE = jnp.take(constrain(table, None, None), tokens_BT, axis=0)
        # As large as what is drawn: places and words are told apart from the start.
        places_TE = 0.02 * jnp.asarray(sincos((length,), self.width))
        z_BTE = constrain(z_BTE + places_TE[None], "activation_batch", None, None)
        mask_BT = tokens_BT > 0
        unseen = Condition(jnp.zeros((tokens_BT.shape[0], 0)), {})  # norms are plain
        for i in range(self.depth):
            attention = TokenAttention(self.width, self.heads, "none", name=f"attention_{i}")
            z_BTE = z_BTE + attention(z_BTE, unseen, mask_BT)
            z_BTE = z_BTE + Mlp(self.width, modulation="none", name=f"mlp_{i}")(z_BTE, unseen)
        z_BTE = AdaptiveNorm("none", name="final_norm")(z_BTE, unseen)
        z_BTE = constrain(z_BTE, "activation_batch", None, None)
        normal = jnp.where(mask_BT[..., None], layer_norm(z_BTE), 0.0)
        count = jnp.maximum(jnp.sum(mask_BT, axis=1, keepdims=True), 1)
        return z_BTE, jnp.sum(normal, axis=1) / count
