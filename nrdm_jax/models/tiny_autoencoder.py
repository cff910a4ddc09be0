"""The tiny autoencoders that stand in for large ones (TAESD and its kin, by Ollin Boer Bohan, MIT;
https://github.com/madebyollin/taesd): convolutions and ReLU, no variance. TAEF2 is of the latents
of FLUX.2: 8 times smaller along both axes, 32 channels.

Tensors are named by the place of their layer in a list, `3.conv.0.weight`; what a layer is follows
from the names and shapes, what layers without tensors are from the gaps: see `decode`.
Pictures in [0, 1]; (B, H, W, C).
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax.models.autoencoder import doubled
from nrdm_jax.models.convolution import native, sum_of_products
from nrdm_jax.models.norms import group_norm
from nrdm_jax.signatures import Array, Params

LIMIT = 3.0  # latents are held within it on their way into the decoder
POOL_GROUPS, POOL_EPSILON = 4, 1e-5  # of the group norm of a block's pool
_NAMES = re.compile(
    r"(\d+)\.(weight|bias|conv\.[024]\.(?:weight|bias)|skip\.weight|pool\.[03]\.weight"
    r"|pool\.1\.(?:weight|bias))"
)


def params_of(tensors: Mapping[str, np.ndarray]) -> Params:
    """{"layer_03": {"conv.0": {"kernel", "bias"}, ...}, ...} of an encoder's or a decoder's
    tensors, float32; the layer that is one convolution has it under "".

    Raises:
      ValueError: a tensor that no such network has.
    """
    layers: dict[str, dict[str, dict[str, Any]]] = {}
    for name, tensor in tensors.items():
        found = _NAMES.fullmatch(name)
        if not found or tensor.ndim not in (1, 4):
            raise ValueError(f"{name} {tensor.shape} is of no tiny autoencoder")
        part, _, leaf = found[2].rpartition(".")
        value = np.asarray(tensor, np.float32)
        if value.ndim == 4:  # (O, I, 3, 3) -> (3, 3, I, O)
            value, leaf = np.moveaxis(value, (0, 1), (-1, -2)), "kernel"
        layer = layers.setdefault(f"layer_{int(found[1]):02d}", {})
        layer.setdefault(part, {})[leaf] = jnp.asarray(value)
    if not layers:
        raise ValueError("there are no tensors")
    return {name: layers[name] for name in sorted(layers)}


def encode(params: Params, x_BHWC: Array) -> Array:
    """(B, H, W, C) in [0, 1] -> latents (B, H / factor, W / factor, L). A convolution without bias
    is of stride 2."""
    for name in sorted(params):
        x_BHWC = _run(params[name], x_BHWC, 1 if _has_bias(params[name]) else 2)
    return x_BHWC


def decode(params: Params, z_BHWL: Array) -> Array:
    """Latents -> (B, H, W, C) near [0, 1]: 3 tanh(z / 3) first, a ReLU behind the first
    convolution, every axis doubled before a convolution without bias."""
    x_BHWC = LIMIT * jnp.tanh(z_BHWL / LIMIT)
    for i, name in enumerate(sorted(params)):
        if not _has_bias(params[name]):
            x_BHWC = doubled(x_BHWC)
        x_BHWC = _run(params[name], x_BHWC)
        if i == 0:
            x_BHWC = jax.nn.relu(x_BHWC)
    return x_BHWC


def factor_of(encoder: Params) -> int:
    """By which height and width shrink."""
    return 2 ** sum(not _has_bias(layer) for layer in encoder.values())


def latent_channels_of(encoder: Params) -> int:
    return encoder[max(encoder)][""]["kernel"].shape[-1]


def _has_bias(layer: Params) -> bool:
    return "" not in layer or "bias" in layer[""]


def _run(layer: Params, x: Array, stride: int = 1) -> Array:
    return _convolve(layer[""], x, stride) if "" in layer else _run_block(layer, x)


def _run_block(block: Params, x: Array) -> Array:
    """relu(x + three convolutions with ReLU between them); first, where there is a pool, x gets a
    group-normed product of its places' channels with themselves added."""
    if "pool.0" in block:
        y = _convolve(block["pool.0"], x)
        norm = block["pool.1"]
        scale, bias = (norm[leaf].reshape(1, 1, 1, -1) for leaf in ("weight", "bias"))
        y = jax.nn.relu(group_norm(y, POOL_GROUPS, POOL_EPSILON) * scale + bias)
        x = x + _convolve(block["pool.3"], y)
    y = jax.nn.relu(_convolve(block["conv.0"], x))
    y = jax.nn.relu(_convolve(block["conv.2"], y))
    y = _convolve(block["conv.4"], y)
    skip = _convolve(block["skip"], x) if "skip" in block else x
    return jax.nn.relu(y + skip)


def _convolve(convolution: Params, x: Array, stride: int = 1) -> Array:
    """Padded by one on either side, as torch does: not XLA's "SAME" where the stride is 2."""
    kernel = convolution["kernel"]
    pad = kernel.shape[0] // 2
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    y = jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: sum_of_products(x, kernel, stride),
        default=lambda x, kernel: native(x, kernel, stride),
    )
    return y + convolution["bias"].reshape(1, 1, 1, -1) if "bias" in convolution else y
