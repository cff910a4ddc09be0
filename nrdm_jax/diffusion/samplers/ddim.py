"""DDIM without noise: order 1, exact where the estimates of x0 and eps do not change."""

import jax
import jax.numpy as jnp

from nrdm_jax.diffusion.schedules import Path
from nrdm_jax.signatures import Array, PredictFn


def sample(predict: PredictFn, path: Path, x_init: Array, times: Array) -> Array:
    """x(t_{i+1}) = alpha(t_{i+1}) x0 + sigma(t_{i+1}) eps (Song et al., arXiv 2010.02502, eq. 12,
    sigma_t = 0).

    Arguments as in `euler.sample`.
    """

    def step(x, pair):
        now, then = pair
        x0, eps = predict(x, jnp.full(x.shape[:1], now))
        return path.alpha(then) * x0 + path.sigma(then) * eps, None

    return jax.lax.scan(step, x_init, (times[:-1], times[1:]))[0]
