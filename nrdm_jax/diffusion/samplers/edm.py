"""EDM's stochastic sampler: Heun's method in sigma/alpha, some noise added before each step; of
order 2 where none is."""

import math

import jax.numpy as jnp

from nrdm_jax.diffusion.grids import LARGEST
from nrdm_jax.diffusion.samplers.exponential import SMALLEST_ALPHA, nodes
from nrdm_jax.diffusion.samplers.previews import scan
from nrdm_jax.diffusion.schedules import Path, time_at
from nrdm_jax.signatures import Array, NoiseFn, PredictFn


def sample(
    predict: PredictFn,
    path: Path,
    x_init: Array,
    times: Array,
    noise: NoiseFn,
    churn: float = 0.0,
    churn_min: float = 0.05,
    churn_max: float = 50.0,
    churn_noise: float = 1.003,
) -> Array:
    """Karras et al. (arXiv 2206.00364), algorithm 2, for any path: y = x / alpha has the noise
    s = sigma / alpha, and dy/ds = eps.

    Args:
      predict, path, x_init, times, noise: as in `euler.sample`.
      churn: S_churn, over all steps: each step's noise grows by churn / steps, at most sqrt(2) - 1,
        while s is in [churn_min, churn_max].
      churn_noise: S_noise, the standard deviation of what is added.
    """
    at = nodes(path, times)
    # N there counts the last step, to no noise, as the times do.
    gamma = min(churn / len(times), math.sqrt(2) - 1)
    largest = jnp.exp(-at.lam[0])

    def step(x, i):
        s, then = jnp.exp(-at.lam[i]), jnp.exp(-at.lam[i + 1])
        t = at.t[i]
        if gamma:
            grows = (s >= churn_min) & (s <= churn_max)
            more = jnp.where(grows, jnp.minimum(s * (1 + gamma), largest), s)
            y = x / jnp.maximum(at.alpha[i], SMALLEST_ALPHA)
            y = y + jnp.sqrt(more**2 - s**2) * churn_noise * noise(i)
            t = jnp.where(grows, time_at(path, -jnp.log(more)), t)
            x = jnp.where(grows, path.alpha(t) * y, x)
            s = more
        x0, eps = predict(x, jnp.full(x.shape[:1], t))
        # Euler's step in s, written so that alpha = 0 is no division.
        trial = at.alpha[i + 1] * x0 + at.sigma[i + 1] * eps
        _, eps_then = predict(trial, jnp.full(x.shape[:1], at.t[i + 1]))
        corrected = trial + at.alpha[i + 1] * (then - s) * 0.5 * (eps_then - eps)
        # From noise that hides the data a step in s is so long that the mean slope means nothing.
        return jnp.where(s <= LARGEST, corrected, trial), None

    return scan(predict, step, x_init, jnp.arange(len(times) - 1))
