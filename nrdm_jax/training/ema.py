"""Exponential moving average of the weights, its half-life counted in images."""

import jax
import jax.numpy as jnp

from nrdm_jax.signatures import Array, Params


def decay(images_seen: Array, batch_size: int, halflife_images: float) -> Array:
    """0.5^(batch / halflife), the half-life ramped to at most 0.05 x images seen.

    EDM2's ramp (Karras et al., arXiv 2312.02696, training loop): an average that long ago began
    with random weights forgets them. `images_seen` includes the present batch.
    """
    halflife = jnp.minimum(halflife_images, 0.05 * images_seen)
    return 0.5 ** (batch_size / halflife)


def update(ema: Params, params: Params, decay: Array) -> Params:
    """decay * ema + (1 - decay) * params, leaf by leaf."""
    return jax.tree.map(lambda e, p: p + decay * (e - p), ema, params)
