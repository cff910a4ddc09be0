"""What solvers in the log-SNR have in common: the linear part of the probability-flow ODE solved
exactly, so that only the change of x0 along a step is approximated.

With lambda = log(alpha / sigma) and h = lambda' - lambda > 0 over a step from (alpha, sigma) to
(alpha', sigma'), and x0 as a function of lambda (Lu et al., arXiv 2211.01095, eq. 8),

    x' = sigma'/sigma x + sigma' \\int_lambda^lambda' e^l x0(l) dl
"""

from typing import NamedTuple

import jax.numpy as jnp

from nrdm_jax.diffusion.schedules import Path
from nrdm_jax.signatures import Array

# Where alpha is 0, as at t = 1 of a flow, lambda would be -inf: what is of this size in it has no
# weight in any step.
SMALLEST_ALPHA = 1e-5


class Nodes(NamedTuple):
    """Of the times of a sampler, (n,) each.

    Attributes:
      t: decreasing.
      alpha, sigma: of the path.
      lam: log(alpha / sigma), increasing.
    """

    t: Array
    alpha: Array
    sigma: Array
    lam: Array


def nodes(path: Path, times: Array) -> Nodes:
    alpha, sigma = path.alpha(times), path.sigma(times)
    lam = jnp.log(jnp.maximum(alpha, SMALLEST_ALPHA)) - jnp.log(sigma)
    return Nodes(times, alpha, sigma, lam)
