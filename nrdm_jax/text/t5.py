"""T5's encoder (Raffel et al., arXiv 1910.10683), of v1.0, of v1.1 and its kin, whose MLP is gated
(Shazeer, arXiv 2002.05202): z <- z + attention(norm(z)), z <- z + mlp(norm(z)), then a norm.

Places are told by a bias of attention alone: a learnt number for each head and each bucket of the
distance between two tokens, the same in all layers. Queries are not scaled.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax.named_tensors import select
from nrdm_jax.signatures import Array, Params
from nrdm_jax.text import transformer
from nrdm_jax.text.transformer import Network, linear, natural, positive

OF = "a T5 encoder"
ATTENTION, MLP = "layer.0.SelfAttention", "layer.1.DenseReluDense"
BUCKETS = f"encoder.block.0.{ATTENTION}.relative_attention_bias.weight"


def build(tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Network:
    """The network of a file's tensors and its config.json; other tensors are left (the decoder).

    Raises:
      ValueError: a tensor is missing or of another shape; each is named. Or each layer has a bias
        of its own, which makes it another network (UMT5).
    """
    if f"encoder.block.1.{ATTENTION}.relative_attention_bias.weight" in tensors:
        raise ValueError("each of these layers has a relative_attention_bias; T5 has one for all")
    # Both are the same table, and files have either.
    table = "encoder.embed_tokens.weight" if "shared.weight" not in tensors else "shared.weight"
    found = select(tensors, {table: (None, None), BUCKETS: (None, None)}, OF)
    width, heads = found[table].shape[1], found[BUCKETS].shape[1]
    norm = "encoder.final_layer_norm.weight"
    found |= select(tensors, {norm: (width,)}, OF)
    gated = f"encoder.block.0.{MLP}.wi_0.weight" in tensors
    inner = ("wi_0", "wi_1") if gated else ("wi",)
    shapes: dict[str, tuple[int | None, ...]] = {
        **{f"{ATTENTION}.{name}.weight": (None, width) for name in "qkv"},
        f"{ATTENTION}.o.weight": (width, None),
        "layer.0.layer_norm.weight": (width,),
        **{f"{MLP}.{name}.weight": (None, width) for name in inner},
        f"{MLP}.wo.weight": (width, None),
        "layer.1.layer_norm.weight": (width,),
    }
    params = {
        "words": found[table],
        "buckets": found[BUCKETS],
        "norm": found[norm],
        "layers": transformer.layers(tensors, "encoder.block.", shapes, OF),
    }
    epsilon = positive(settings, "layer_norm_epsilon", 1e-6)
    distance = natural(settings, "relative_attention_max_distance", 128)
    activate = transformer.activation(settings, "dense_act_fn", "gelu_new" if gated else "relu")

    def run_layer(z_BTD: Array, bias: Array, layer: Params) -> Array:
        y = transformer.rms_norm(layer["layer.0.layer_norm.weight"], z_BTD, epsilon)
        q, k, v = (linear(layer, f"{ATTENTION}.{name}", y) for name in "qkv")
        read = transformer.attend(q, k, v, heads, bias)
        z_BTD = z_BTD + linear(layer, f"{ATTENTION}.o", read)
        y = transformer.rms_norm(layer["layer.1.layer_norm.weight"], z_BTD, epsilon)
        hidden = activate(linear(layer, f"{MLP}.{inner[0]}", y))
        if gated:
            hidden = hidden * linear(layer, f"{MLP}.wi_1", y)
        return z_BTD + linear(layer, f"{MLP}.wo", hidden)

    def encode(params: Params, tokens_BT: Array) -> tuple[Array, Array]:
        words, mask = transformer.split(tokens_BT)
        length = words.shape[1]
        places = buckets(length, len(params["buckets"]), distance)
        bias_HTT = jnp.moveaxis(jnp.take(params["buckets"], places, axis=0), -1, 0)
        bias = bias_HTT[None] + transformer.unread(mask[:, None, None, :])
        z_BTD, _ = jax.lax.scan(
            lambda z, layer: (run_layer(z, bias, layer), None),
            jnp.take(params["words"], words, axis=0),
            params["layers"],
        )
        z_BTD = transformer.rms_norm(params["norm"], z_BTD, epsilon)
        return z_BTD, transformer.mean_of_text(transformer.normal(z_BTD), mask)

    return Network(params, encode, width, None)


@functools.cache
def buckets(length: int, count: int, distance: int) -> np.ndarray:
    """(length, length): the bucket of each distance, key less query.

    Half of the `count` are for keys behind the query. Of each half, the first half are one a
    distance, the others grow with its logarithm, up to `distance`; section 2.1 of the paper.
    """
    apart = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = count // 2
    near = half // 2
    size = np.abs(apart)
    # float32, and each step rounded by itself, as the published code has it: some distances lie
    # on the edge of a bucket.
    ratio = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(near))
    far = near + (ratio / np.float32(math.log(distance / near)) * (half - near)).astype(np.int32)
    return np.where(apart > 0, half, 0) + np.where(size < near, size, np.minimum(far, half - 1))
