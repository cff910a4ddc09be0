"""Heun's method on the probability-flow ODE: order 2, two evaluations a step."""

import jax
import jax.numpy as jnp

from nrdm_jax.diffusion.predictions import velocity_of
from nrdm_jax.diffusion.schedules import Path
from nrdm_jax.signatures import Array, PredictFn


def sample(predict: PredictFn, path: Path, x_init: Array, times: Array) -> Array:
    """Karras et al. (arXiv 2206.00364), algorithm 1: a trial Euler step, then the mean of both
    slopes; the last step, to t = 0, is Euler's alone, so that nothing is evaluated there.

    Arguments as in `euler.sample`.
    """

    def slope(x, t):
        t_B = jnp.full(x.shape[:1], t)
        return velocity_of(path, *predict(x, t_B), t_B)

    def step(x, pair):
        now, then = pair
        first = slope(x, now)
        second = slope(x + (then - now) * first, then)
        return x + (then - now) * 0.5 * (first + second), None

    x, _ = jax.lax.scan(step, x_init, (times[:-2], times[1:-1]))
    return x + (times[-1] - times[-2]) * slope(x, times[-2])
