"""DDIM: exact where the estimates of x0 and eps do not change; order 1. With eta, noise takes the
place of some of eps; eta = 1 is DDPM's ancestral sampling."""

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
    eta: float = 0.0,
) -> Array:
    """x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s z, s = eta sigma' sqrt(1 - e^(-2h)), h the step
    in log(alpha / sigma).

    Song et al. (arXiv 2010.02502), eq. 12 and 16: for alpha^2 + sigma^2 = 1 their s. With eta = 1
    it is the posterior of DDPM with the smaller variance (Ho et al., arXiv 2006.11239, eq. 7).
    Arguments as in `euler.sample`.
    """
    at = nodes(path, times)

    def step(x, i):
        x0, eps = predict(x, jnp.full(x.shape[:1], at.t[i]))
        h = at.lam[i + 1] - at.lam[i]
        fresh = -jnp.expm1(-2 * h) * eta**2  # at most 1, and 1 after a long step with eta = 1
        x = at.alpha[i + 1] * x0 + at.sigma[i + 1] * jnp.sqrt(jnp.maximum(1 - fresh, 0.0)) * eps
        return (x + at.sigma[i + 1] * jnp.sqrt(fresh) * noise(i) if eta else x), None

    return scan(predict, step, x_init, jnp.arange(len(times) - 1))
