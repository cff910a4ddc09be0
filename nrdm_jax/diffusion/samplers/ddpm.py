"""DDPM's ancestral sampling (Ho et al., arXiv 2006.11239): each step draws from the posterior of
the estimated x0."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nrdm_jax.diffusion import posterior
from nrdm_jax.diffusion.samplers import ddim
from nrdm_jax.diffusion.samplers.exponential import nodes
from nrdm_jax.diffusion.samplers.previews import scan
from nrdm_jax.diffusion.schedules import Path
from nrdm_jax.signatures import Array, NoiseFn, PredictFn

# (x_t (B, *S, C), t (B,)) -> (x0, eps, v): v of the learned variance, see `posterior.log_variance`
PredictVarianceFn = Callable[[Array, Array], tuple[Array, Array, Array]]


def sample(
    predict: PredictFn,
    path: Path,
    x_init: Array,
    times: Array,
    noise: NoiseFn,
    predict_variance: PredictVarianceFn | None = None,
) -> Array:
    """DDIM with eta = 1, of variance beta~; or with the variance that the network has learned, its
    range being that of the steps of this grid (Nichol & Dhariwal, arXiv 2102.09672, section 4).

    Arguments as in `euler.sample`; `predict_variance` takes the place of `predict`.
    """
    if predict_variance is None:
        return ddim.sample(predict, path, x_init, times, noise, eta=1.0)
    at = nodes(path, times)
    steps = posterior.step(path, times[:-1], times[1:])

    def step(x, i):
        x0, eps, v = predict_variance(x, jnp.full(x.shape[:1], at.t[i]))
        decay = jnp.exp(at.lam[i] - at.lam[i + 1])
        mean = at.alpha[i + 1] * x0 + at.sigma[i + 1] * decay * eps
        log_var = posterior.log_variance(jax.tree.map(lambda a: a[i], steps), v)
        return mean + jnp.exp(0.5 * log_var) * noise(i), None

    return scan(predict_variance, step, x_init, jnp.arange(len(times) - 1))
