"""Noise of which every bit is decided by the seed of its sample."""

import jax
import jax.numpy as jnp

from nrdm_jax.signatures import Array, NoiseFn


def noise_of_keys(keys_B: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal (B, *shape) float32, row i from key i alone."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys_B)


def noise_of_steps(seeds_B: Array, shape: tuple[int, ...]) -> NoiseFn:
    """Number of a step -> standard normal (B, *shape), of the seeds and the step alone, and other
    than `noise_of_seeds`."""
    keys_B = jax.vmap(jax.random.key)(seeds_B.astype(jnp.uint32))

    def noise(step: Array) -> Array:
        return noise_of_keys(jax.vmap(lambda key: jax.random.fold_in(key, step))(keys_B), shape)

    return noise


def noise_of_seeds(seeds_B: Array, shape: tuple[int, ...]) -> Array:
    """The same from integer seeds (B,): equal bits whatever the batch and the mesh."""
    return noise_of_keys(jax.vmap(jax.random.key)(seeds_B.astype(jnp.uint32)), shape)
