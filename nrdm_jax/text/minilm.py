"""BERT (Devlin et al., arXiv 1810.04805) as sentence encoders have it: all-MiniLM-L6-v2, trained
so that the mean of its tokens' states is the sentence (Reimers & Gurevych, arXiv 1908.10084). There
the mean is brought to unit length, to be compared by its angle; what is pooled here is not: how
long it is says how much the tokens agree.

Layers normalise after the sum: z <- norm(z + attention(z)), z <- norm(z + mlp(z)).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax.named_tensors import select
from nrdm_jax.signatures import Array, Params
from nrdm_jax.text import transformer
from nrdm_jax.text.transformer import Network, linear, natural, positive, setting

OF = "a BERT encoder (all-MiniLM-L6-v2)"


def build(tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Network:
    """The network of a file's tensors and its config.json; other tensors are left (the pooler).

    Raises:
      ValueError: a tensor is missing or of another shape; each is named. Or the settings are those
        of another network.
    """
    kind = setting(settings, "position_embedding_type", "absolute")
    if kind != "absolute":
        raise ValueError(f"config.json has position_embedding_type={kind!r}; {OF} has absolute")
    heads, epsilon = natural(settings, "num_attention_heads"), positive(settings, "layer_norm_eps")
    activate = transformer.activation(settings, "hidden_act")
    start = "embeddings."
    tables = select(
        tensors,
        {
            f"{start}word_embeddings.weight": (None, None),
            f"{start}position_embeddings.weight": (None, None),
        },
        OF,
    )
    width = tables[f"{start}word_embeddings.weight"].shape[1]
    tables |= select(
        tensors,
        {
            f"{start}position_embeddings.weight": (None, width),
            f"{start}token_type_embeddings.weight": (None, width),
            f"{start}LayerNorm.weight": (width,),
            f"{start}LayerNorm.bias": (width,),
        },
        OF,
    )
    shapes: dict[str, tuple[int | None, ...]] = {}
    for name, outputs, inputs in (
        ("attention.self.query", width, width),
        ("attention.self.key", width, width),
        ("attention.self.value", width, width),
        ("attention.output.dense", width, width),
        ("intermediate.dense", None, width),
        ("output.dense", width, None),
    ):
        shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    for name in ("attention.output.LayerNorm", "output.LayerNorm"):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    params = {
        "words": tables[f"{start}word_embeddings.weight"],
        # A sentence of its own is of type 0 throughout.
        "places": tables[f"{start}position_embeddings.weight"]
        + tables[f"{start}token_type_embeddings.weight"][:1],
        "norm.weight": tables[f"{start}LayerNorm.weight"],
        "norm.bias": tables[f"{start}LayerNorm.bias"],
        "layers": transformer.layers(tensors, "encoder.layer.", shapes, OF),
    }
    if width % heads:
        raise ValueError(f"config.json has num_attention_heads={heads}, and the width is {width}")

    def run_layer(z_BTD: Array, bias: Array, layer: Params) -> Array:
        q, k, v = (linear(layer, f"attention.self.{n}", z_BTD) for n in ("query", "key", "value"))
        read = transformer.attend(q * (width // heads) ** -0.5, k, v, heads, bias)
        z_BTD = transformer.layer_norm(
            layer,
            "attention.output.LayerNorm",
            z_BTD + linear(layer, "attention.output.dense", read),
            epsilon,
        )
        hidden = activate(linear(layer, "intermediate.dense", z_BTD))
        return transformer.layer_norm(
            layer, "output.LayerNorm", z_BTD + linear(layer, "output.dense", hidden), epsilon
        )

    def encode(params: Params, tokens_BT: Array) -> tuple[Array, Array]:
        words, mask = transformer.split(tokens_BT)
        z_BTD = jnp.take(params["words"], words, axis=0)
        z_BTD = z_BTD + params["places"][None, : words.shape[1]]
        z_BTD = transformer.layer_norm(params, "norm", z_BTD, epsilon)
        bias = transformer.unread(mask[:, None, None, :])
        z_BTD, _ = jax.lax.scan(
            lambda z, layer: (run_layer(z, bias, layer), None), z_BTD, params["layers"]
        )
        return z_BTD, transformer.mean_of_text(transformer.normal(z_BTD), mask)

    return Network(params, encode, width, len(params["places"]))
