"""What published text encoders have in common: layers from a file, products, norms, attention.

T tokens, D width, H heads, K width of a head. Tokens are (B, T) int32: the vocabulary's own numbers
plus one, 0 behind the text, since 0 is a word in some vocabularies.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nrdm_jax.named_tensors import select
from nrdm_jax.signatures import Array, Params

# States are kept and compared across machines: no bfloat16 or TF32 products.
PRECISION = lax.Precision.HIGHEST

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """An encoder of one file.

    Attributes:
      params: numpy arrays; of `encode`.
      encode: (params, tokens (B, T) int32) -> (states (B, T, D) float32, pooled (B, D) float32);
        pure. Of a text with tokens neither depends on the padding behind it. `pooled` stands for
        the whole text: the mean of its states, or that of its last token, whichever the encoder was
        trained for, each state being `normal` first.
      width: D.
      longest: T at most; None: any.
    """

    params: Params
    encode: Callable[[Params, Array], tuple[Array, Array]]
    width: int
    longest: int | None


def layers(
    tensors: Mapping[str, np.ndarray],
    prefix: str,
    shapes: Mapping[str, tuple[int | None, ...]],
    of: str,
) -> dict[str, np.ndarray]:
    """{name: (L, *shape)} of all layers `prefix`N., float32, matrices as (inputs, outputs).

    Raises:
      ValueError: a tensor is missing or of another shape; each is named.
    """
    found = (re.match(re.escape(prefix) + r"(\d+)\.", name) for name in tensors)
    depth = 1 + max((int(match[1]) for match in found if match), default=0)
    if depth > len(tensors):
        raise ValueError(f"a tensor of layer {depth - 1} among {len(tensors)} tensors")
    wanted = {f"{prefix}{i}.{name}": shape for i in range(depth) for name, shape in shapes.items()}
    chosen = select(tensors, wanted, of)
    return {
        name: np.stack([_matrix(chosen[f"{prefix}{i}.{name}"]) for i in range(depth)])
        for name in shapes
    }


def _matrix(values: np.ndarray) -> np.ndarray:
    return values.T if values.ndim == 2 else values


def setting(settings: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """A field of config.json.

    Raises:
      ValueError: it is not there, and has no default.
    """
    value = settings.get(name, default)
    if value is None:
        raise ValueError(f"config.json has no {name}")
    return value


def natural(settings: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A field of config.json. Raises ValueError: it is not there, or no whole number above 0."""
    value = setting(settings, name, default)
    if type(value) is not int or value < 1:
        raise ValueError(f"config.json has {name}={str(value)[:60]}, which is no number above 0")
    return value


def positive(settings: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A field of config.json. Raises ValueError: it is not there, or no finite number above 0."""
    value = setting(settings, name, default)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ValueError(f"config.json has {name}={str(value)[:60]}, which is no number above 0")
    return value


def activation(settings: Mapping[str, Any], name: str, default: str | None = None):
    """Raises ValueError: config.json names one that is not known."""
    value = setting(settings, name, default)
    if not isinstance(value, str) or value not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"config.json has {name}={str(value)[:60]!r}, which is none of {known}")
    return ACTIVATIONS[value]


def split(tokens_BT: Array) -> tuple[Array, Array]:
    """(numbers of the vocabulary, whether it is text), (B, T) each; 0 where it is not."""
    return jnp.maximum(tokens_BT - 1, 0), tokens_BT > 0


def linear(layer: Params, name: str, x_BTD: Array) -> Array:
    y = jnp.matmul(x_BTD, layer[f"{name}.weight"], precision=PRECISION)
    bias = layer.get(f"{name}.bias")
    return y if bias is None else y + bias.reshape(1, 1, -1)


def layer_norm(layer: Params, name: str, x_BTD: Array, epsilon: float) -> Array:
    """(x - mean) / sqrt(var + epsilon), scaled and shifted (arXiv 1607.06450)."""
    x_BTD = x_BTD - x_BTD.mean(axis=-1, keepdims=True)
    y = rms_norm(layer[f"{name}.weight"], x_BTD, epsilon)
    return y + layer[f"{name}.bias"].reshape(1, 1, -1)


def rms_norm(scale: Array, x_BTD: Array, epsilon: float) -> Array:
    """x / sqrt(mean(x^2) + epsilon), scaled (arXiv 1910.07467)."""
    y = x_BTD * lax.rsqrt(jnp.square(x_BTD).mean(axis=-1, keepdims=True) + epsilon)
    return y * scale.reshape(1, 1, -1)


def attend(q_BTD: Array, k_BTD: Array, v_BTD: Array, heads: int, bias: Array) -> Array:
    """softmax(q k^T + bias) v -> (B, T, H K). `q` is scaled before, if it is; `bias` broadcasts to
    (B, H, T, T) and is very low where nothing is to be read."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q_BTD, k_BTD, v_BTD))
    logits = jnp.einsum("bnhk,bmhk->bhnm", q, k, precision=PRECISION)
    weights = jax.nn.softmax(logits + jnp.broadcast_to(bias, logits.shape))
    return jnp.einsum("bhnm,bmhk->bnhk", weights, v, precision=PRECISION).reshape(
        *q_BTD.shape[:2], -1
    )


def unread(read: Array | np.ndarray) -> Array:
    """Where True 0, else the lowest number: a bias for `attend`. Not -inf, which would make the
    padding of an empty text not a number."""
    return jnp.where(read, 0.0, jnp.finfo(jnp.float32).min)


def normal(states_BTD: Array) -> Array:
    """Each state at mean 0 and variance 1 over its channels: those of one encoder are of size 0.1,
    of another of size 10, and some tokens' are larger than others'."""
    centred = states_BTD - states_BTD.mean(axis=-1, keepdims=True)
    return rms_norm(jnp.ones(centred.shape[-1]), centred, 1e-6)


def mean_of_text(states_BTD: Array, mask_BT: Array) -> Array:
    """(B, D), 0 of an empty text."""
    known = jnp.where(mask_BT[..., None], states_BTD, 0.0)
    return known.sum(axis=1) / jnp.maximum(mask_BT.sum(axis=1, keepdims=True), 1)
