"""Runs L blocks of one form by one scan over stacked parameters.

The program, and so its compile time, does not grow with depth; what the backward pass keeps is the
choice of a memory mode. A block is used as the pure function (params, z, condition) -> z, so that
any mode (and, later, a pipeline stage) can drive it without knowing what is inside.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nrdm_jax.models.conditioning import Condition
from nrdm_jax.sharding.axes import constrain
from nrdm_jax.signatures import Array

BlockFn = Callable[[Any, Array, Condition], Array]


def run(block: BlockFn, params: Any, z: Array, condition: Condition, memory: str) -> Array:
    """Applies `block` once for each leading index of `params`.

    Args:
      block: (one block's params, z, condition) -> z of the same shape.
      params: a tree whose every leaf has a leading axis of length L.
      z: the trunk, (B, *S, D) float32.
      condition: common to all blocks.
      memory: `none` keeps every activation for the backward pass; `remat` only each block's input,
        and computes the block again.
    """
    if memory == "remat":
        # Inside a scan nothing can be merged across the barrier that prevent_cse would insert.
        block = jax.checkpoint(block, prevent_cse=False)

    def body(z, block_params):
        return block(block_params, z, condition), None

    return jax.lax.scan(body, z, params)[0]


class Stack(nn.Module):
    """(z (B, *S, D), condition) -> z after `depth` blocks. Parameters: those of one block, stacked.

    Attributes:
      block: an unbound module, (z, condition) -> z.
      depth: number of blocks.
      memory: as in `run`.
    """

    block: nn.Module
    depth: int
    memory: str = "none"

    @nn.compact
    def __call__(self, z: Array, condition: Condition) -> Array:
        block = self.block.clone(parent=None, name=None)

        def init_one(key):
            example = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), (z, condition))
            return block.init(key, *example)["params"]

        def init_all(key):
            return jax.vmap(init_one)(jax.random.split(key, self.depth))

        def apply(params, z, condition):
            z = constrain(z, "activation_batch", *("activation_length",) * (z.ndim - 2), None)
            return block.apply({"params": params}, z, condition)

        return run(apply, self.param("blocks", init_all), z, condition, self.memory)
