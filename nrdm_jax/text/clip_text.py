"""CLIP's text encoder (Radford et al., arXiv 2103.00020) and OpenCLIP's in the same layout:
z <- z + attention(norm(z)), z <- z + mlp(norm(z)), then a norm; each token reads itself and those
before it, and the last one, the end of the text, stands for all of it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax.named_tensors import select
from nrdm_jax.signatures import Array, Params
from nrdm_jax.text import transformer
from nrdm_jax.text.transformer import Network, linear, natural, positive

OF = "a CLIP text encoder"


def build(tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Network:
    """The network of a file's tensors and its config.json; other tensors are left (the images'
    encoder, the projection).

    Raises:
      ValueError: a tensor is missing or of another shape; each is named. Or the settings are not
        those of such a network.
    """
    settings = settings.get("text_config", settings)  # of a file with the images' encoder
    if not isinstance(settings, Mapping):
        raise ValueError("config.json has a text_config that is no object")
    heads, epsilon = natural(settings, "num_attention_heads"), positive(settings, "layer_norm_eps")
    activate = transformer.activation(settings, "hidden_act")
    prefix = "text_model." if any(name.startswith("text_model.") for name in tensors) else ""
    words, places = (f"{prefix}embeddings.{n}_embedding.weight" for n in ("token", "position"))
    found = select(tensors, {words: (None, None), places: (None, None)}, OF)
    width = found[words].shape[1]
    norm = f"{prefix}final_layer_norm"
    found |= select(
        tensors, {places: (None, width), f"{norm}.weight": (width,), f"{norm}.bias": (width,)}, OF
    )
    shapes: dict[str, tuple[int | None, ...]] = {}
    for name, outputs, inputs in (
        *((f"self_attn.{n}_proj", width, width) for n in ("q", "k", "v", "out")),
        ("mlp.fc1", None, width),
        ("mlp.fc2", width, None),
    ):
        shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    for name in ("layer_norm1", "layer_norm2"):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    params: dict[str, Any] = {
        "words": found[words],
        "places": found[places],
        "norm.weight": found[f"{norm}.weight"],
        "norm.bias": found[f"{norm}.bias"],
        "layers": transformer.layers(tensors, f"{prefix}encoder.layers.", shapes, OF),
    }
    if width % heads:
        raise ValueError(f"config.json has num_attention_heads={heads}, and the width is {width}")

    def run_layer(z_BTD: Array, bias: Array, layer: Params) -> Array:
        y = transformer.layer_norm(layer, "layer_norm1", z_BTD, epsilon)
        q, k, v = (linear(layer, f"self_attn.{name}_proj", y) for name in "qkv")
        read = transformer.attend(q * (width // heads) ** -0.5, k, v, heads, bias)
        z_BTD = z_BTD + linear(layer, "self_attn.out_proj", read)
        y = transformer.layer_norm(layer, "layer_norm2", z_BTD, epsilon)
        return z_BTD + linear(layer, "mlp.fc2", activate(linear(layer, "mlp.fc1", y)))

    def encode(params: Params, tokens_BT: Array) -> tuple[Array, Array]:
        words, mask = transformer.split(tokens_BT)
        length = words.shape[1]
        z_BTD = jnp.take(params["words"], words, axis=0) + params["places"][None, :length]
        # The padding is behind the text, where no token of it reads.
        bias = transformer.unread(np.tri(length, dtype=bool))[None, None]
        z_BTD, _ = jax.lax.scan(
            lambda z, layer: (run_layer(z, bias, layer), None), z_BTD, params["layers"]
        )
        z_BTD = transformer.layer_norm(params, "norm", z_BTD, epsilon)
        last = jnp.maximum(mask.sum(axis=1) - 1, 0)
        end_B1D = jnp.take_along_axis(z_BTD, last[:, None, None], axis=1)
        return z_BTD, transformer.normal(end_B1D)[:, 0]

    return Network(params, encode, width, len(params["places"]))
