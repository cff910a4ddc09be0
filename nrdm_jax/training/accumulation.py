"""A gradient of a batch, from those of micro-batches that share a step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nrdm_jax.sharding.axes import constrain
from nrdm_jax.signatures import Array, Batch, Params

# (params, batch, keys) -> a tree of means over the examples
Gradient = Callable[[Params, Batch, Array], Any]


def accumulated(gradient: Gradient, micro_batches: int) -> Gradient:
    """`gradient` of so many parts of a batch one after the other, their mean; sums are float32.

    Part j takes the examples j, j + k, j + 2k, ...: each device keeps what it has.
    """
    if micro_batches == 1:
        return gradient

    def split(x: Array) -> Array:
        x = x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:]).swapaxes(0, 1)
        return constrain(x, None, "activation_batch", *(None,) * (x.ndim - 2))

    def mean(params: Params, batch: Batch, keys: Array):
        def add(total, part):
            examples, data = part
            found = gradient(params, examples, jax.random.wrap_key_data(data))
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, found), None

        shapes = jax.eval_shape(gradient, params, batch, keys)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)
        parts = jax.tree.map(split, (dict(batch), jax.random.key_data(keys)))
        total, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda x: x / micro_batches, total)

    return mean
