"""Weights of an AutoencoderKL in diffusers' layout: which network they are of, and its parameters.

A tensor `encoder.down_blocks.0.resnets.1.conv1.weight` is the parameter
encoder/down_blocks_0_resnets_1/conv1/kernel.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax.models.autoencoder import KLAutoencoder
from nrdm_jax.signatures import Params

# Names of diffusers before 0.15, and ours.
_FORMER = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out"))
_GROUPS = 32  # norm_num_groups of every published one: the tensors do not tell it


def network_of(tensors: Mapping[str, np.ndarray], groups: int = _GROUPS) -> KLAutoencoder:
    """The network that tensors of these names and shapes belong to.

    Args:
      tensors: by diffusers' names.
      groups: of its group norms.

    Raises:
      ValueError: they are of no AutoencoderKL; what is missing is named.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise ValueError(f"these are not the weights of an AutoencoderKL: {name} is missing")
        return tensors[name].shape

    def count(pattern: str) -> int:
        found = (re.match(pattern, name) for name in tensors)
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    levels = count(r"encoder\.down_blocks\.(\d+)\.")
    width, channels = shape("encoder.conv_in.weight")[:2]
    last = "encoder.down_blocks.{}.resnets.0.conv1.weight"
    return KLAutoencoder(
        channels=channels,
        latent_channels=shape("decoder.conv_in.weight")[1],
        width=width,
        channel_factors=tuple(shape(last.format(i))[0] // width for i in range(levels)),
        blocks=count(r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        attention="encoder.mid_block.attentions.0.group_norm.weight" in tensors,
        groups=groups,
        quantised="quant_conv.weight" in tensors,
    )


def params_of(tensors: Mapping[str, np.ndarray], network: KLAutoencoder) -> Params:
    """Its parameters, float32.

    Raises:
      ValueError: a tensor is missing, left over or of another shape.
    """
    side = 2 * network.factor
    shapes = jax.eval_shape(
        network.init, jax.random.key(0), jnp.zeros((1, side, side, network.channels))
    )["params"]
    wanted = flax.traverse_util.flatten_dict(shapes)
    made: dict[tuple[str, ...], Any] = {}
    for name, tensor in tensors.items():
        path = _path_of(name)
        leaf = wanted.get(path)
        if leaf is None:
            raise ValueError(f"the weights have {name} too, which an AutoencoderKL of {network} "
                             "does not have")  # fmt: skip
        value = np.asarray(tensor, np.float32)
        if path[-1] == "kernel":
            # (O, I, *window) -> (*window, I, O); a window of one place is a matrix here.
            value = np.moveaxis(value, (0, 1), (-1, -2))
            value = value.reshape(value.shape[-2:]) if leaf.ndim == 2 else value
        if value.shape != leaf.shape:
            raise ValueError(f"{name} has the shape {tensor.shape}, and its parameter {leaf.shape}")
        made[path] = jnp.asarray(value)
    missing = sorted("/".join(path) for path in wanted.keys() - made.keys())
    if missing:
        raise ValueError(f"the weights lack {', '.join(missing[:6])}")
    return flax.traverse_util.unflatten_dict(made)


def _path_of(name: str) -> tuple[str, ...]:
    """`encoder.mid_block.attentions.0.to_out.0.weight` -> (encoder, mid_block, attentions_0,
    to_out, kernel)."""
    for old, new in _FORMER:
        name = re.sub(rf"(attentions\.\d+)\.{old}\.", rf"\1.{new}.", name)
    name = name.replace(".to_out.0.", ".to_out.")
    *modules, leaf = name.split(".")
    joined = ".".join(modules)
    joined = re.sub(r"\.(\d+)", r"_\1", joined)  # lists: resnets.0 -> resnets_0
    joined = re.sub(r"((?:down|up)_blocks_\d+)\.", r"\1_", joined)
    joined = re.sub(r"(samplers_\d+)\.", r"\1_", joined)
    norm = re.search(r"norm", joined.rsplit(".", 1)[-1])
    kinds = {"weight": "scale" if norm else "kernel", "bias": "bias"}
    return (*joined.split("."), kinds.get(leaf, leaf))
