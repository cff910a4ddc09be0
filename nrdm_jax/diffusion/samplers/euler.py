"""Euler's method on the probability-flow ODE: order 1."""

import jax
import jax.numpy as jnp

from nrdm_jax.diffusion.predictions import velocity_of
from nrdm_jax.diffusion.schedules import Path
from nrdm_jax.signatures import Array, PredictFn


def sample(predict: PredictFn, path: Path, x_init: Array, times: Array) -> Array:
    """x(t_{i+1}) = x + (t_{i+1} - t_i) dx/dt.

    Args:
      predict: (x_t, t (B,)) -> estimates (x0, eps).
      path: of the marginals.
      x_init: (B, *S, C) at times[0].
      times: decreasing, to 0; the network is not evaluated at the last one.
    """

    def step(x, pair):
        now, then = pair
        t_B = jnp.full(x.shape[:1], now)
        return x + (then - now) * velocity_of(path, *predict(x, t_B), t_B), None

    return jax.lax.scan(step, x_init, (times[:-1], times[1:]))[0]
