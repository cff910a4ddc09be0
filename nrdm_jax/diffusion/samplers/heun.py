"""Heun's method on the probability-flow ODE in t: order 2, two evaluations a step."""

import jax.numpy as jnp

from nrdm_jax.diffusion.predictions import velocity_of
from nrdm_jax.diffusion.samplers.previews import scan
from nrdm_jax.diffusion.schedules import Path
from nrdm_jax.signatures import Array, NoiseFn, PredictFn


def sample(predict: PredictFn, path: Path, x_init: Array, times: Array, noise: NoiseFn) -> Array:
    """Karras et al. (arXiv 2206.00364), algorithm 1, in t: a trial Euler step, then the mean of
    both slopes.

    Arguments as in `euler.sample`.
    """
    del noise

    def slope(x, t):
        t_B = jnp.full(x.shape[:1], t)
        return velocity_of(path, *predict(x, t_B), t_B)

    def step(x, pair):
        now, then = pair
        first = slope(x, now)
        second = slope(x + (then - now) * first, then)
        return x + (then - now) * 0.5 * (first + second), None

    return scan(predict, step, x_init, (times[:-1], times[1:]))
