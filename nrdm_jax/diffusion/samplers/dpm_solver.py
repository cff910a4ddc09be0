"""DPM-Solver++(2M), and its SDE form: two-step methods in the log-SNR on the estimate of x0, one
evaluation a step; order 2."""

import jax.numpy as jnp

from nrdm_jax.diffusion.samplers.exponential import nodes
from nrdm_jax.diffusion.samplers.previews import scan
from nrdm_jax.diffusion.schedules import Path
from nrdm_jax.signatures import Array, NoiseFn, PredictFn


def sample(
    predict: PredictFn,
    path: Path,
    x_init: Array,
    times: Array,
    noise: NoiseFn,
    stochastic: bool = False,
) -> Array:
    """x' = sigma'/sigma x + alpha' (1 - e^-h) D, D = x0 + (x0 - x0_before) h / (2 h_before), and
    D = x0 in the first step (Lu et al., arXiv 2211.01095, algorithm 2).

    `stochastic`: x' = sigma'/sigma e^-h x + alpha' (1 - e^-2h) D + sigma' sqrt(1 - e^-2h) z
    (the same, eq. 13 ff., SDE-DPM-Solver++(2M)). Other arguments as in `euler.sample`.
    """
    at = nodes(path, times)

    def step(carry, i):
        x, before = carry
        x0, _ = predict(x, jnp.full(x.shape[:1], at.t[i]))
        h = at.lam[i + 1] - at.lam[i]
        h_before = at.lam[i] - at.lam[jnp.maximum(i - 1, 0)]
        ratio = jnp.where(i > 0, h / jnp.where(i > 0, h_before, 1.0), 0.0)
        estimate = x0 + 0.5 * ratio * (x0 - before)
        left = at.sigma[i + 1] / at.sigma[i]
        if stochastic:
            part = -jnp.expm1(-2 * h)
            x = left * jnp.exp(-h) * x + at.alpha[i + 1] * part * estimate
            x = x + at.sigma[i + 1] * jnp.sqrt(part) * noise(i)
        else:
            x = left * x - at.alpha[i + 1] * jnp.expm1(-h) * estimate
        return (x, x0), None

    start = (x_init, jnp.zeros_like(x_init))
    return scan(predict, step, start, jnp.arange(len(times) - 1))[0]
