"""Euler's method on the probability-flow ODE in t: order 1."""

import jax.numpy as jnp

from nrdm_jax.diffusion.predictions import velocity_of
from nrdm_jax.diffusion.samplers.previews import scan
from nrdm_jax.diffusion.schedules import Path
from nrdm_jax.signatures import Array, NoiseFn, PredictFn


def sample(predict: PredictFn, path: Path, x_init: Array, times: Array, noise: NoiseFn) -> Array:
    """x(t_{i+1}) = x + (t_{i+1} - t_i) dx/dt.

    Args:
      predict: (x_t, t (B,)) -> estimates (x0, eps).
      path: of the marginals.
      x_init: (B, *S, C) at times[0].
      times: (n,), decreasing.
      noise: number of a step -> standard normal (B, *S, C); for the solvers that add some.

    Returns:
      x at times[-1], where the network has not been evaluated.
    """
    del noise

    def step(x, pair):
        now, then = pair
        t_B = jnp.full(x.shape[:1], now)
        return x + (then - now) * velocity_of(path, *predict(x, t_B), t_B), None

    return scan(predict, step, x_init, (times[:-1], times[1:]))
