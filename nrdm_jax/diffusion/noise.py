"""Noise of which every bit is decided by the seed of its sample."""

import jax
import jax.numpy as jnp

from nrdm_jax.signatures import Array, NoiseFn


def noise_of_keys(keys_B: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal (B, *shape) float32, row i from key i alone."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys_B)


def keys_of_seeds(seeds_B: Array) -> Array:
    """Keys of integer seeds (B,), for what belongs to an example beside its noise."""
    return _keys_beside(seeds_B, 2)


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


def uniform_of_seeds(seeds_B: Array, shape: tuple[int, ...]) -> Array:
    """Uniform in [0, 1), (B, *shape), independent of `noise_of_seeds` of the same seeds."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(_keys_beside(seeds_B, 0))


def signs_of_seeds(seeds_B: Array, shape: tuple[int, ...], count: int) -> Array:
    """-1 or 1, (count, B, *shape), independent of the above."""
    keys_B = _keys_beside(seeds_B, 1)
    signs = jax.vmap(lambda key: jax.random.rademacher(key, (count, *shape), jnp.float32))(keys_B)
    return jnp.swapaxes(signs, 0, 1)


def _keys_beside(seeds_B: Array, number: int) -> Array:
    """Keys of the seeds, apart from the ones that samples begin with."""
    keys_B = jax.vmap(jax.random.key)(seeds_B.astype(jnp.uint32))
    return jax.vmap(lambda key: jax.random.fold_in(key, 2**31 + number))(keys_B)
