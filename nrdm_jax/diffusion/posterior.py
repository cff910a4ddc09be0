"""One step of the reverse process from t to s < t: its exact posterior, a variance that a network
learns for it, and the variational bound that it learns it from.

For x_t = alpha x0 + sigma eps and F = 1 - (alpha_t sigma_s)^2 / (alpha_s sigma_t)^2 (Kingma et al.,
arXiv 2107.00630, appendix A; Ho et al., arXiv 2006.11239, eq. 7, in the discrete case)

    q(x_s | x_t, x0) = N(alpha_s F x0 + sigma_s^2 alpha_t / (sigma_t^2 alpha_s) x_t,  sigma_s^2 F)

Its variance is that of data of which x0 is known, beta~; of data N(0, 1) it is larger by
(1 + SNR_s) / (1 + SNR_t), and is beta = 1 - alpha_t^2 / alpha_s^2 where alpha^2 + sigma^2 = 1 (Ho
et al., section 3.2). Between the two a network interpolates in the logarithm (Nichol & Dhariwal,
arXiv 2102.09672, eq. 15).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax.diffusion.known import mean_over
from nrdm_jax.diffusion.samplers.exponential import nodes
from nrdm_jax.diffusion.schedules import STEPS, Path, broadcast
from nrdm_jax.signatures import Array

# Of uint8 pixels in [-1, 1]: half of the distance between two values.
HALF_BIN = 1.0 / 255.0


class Step(NamedTuple):
    """Of the posterior of a step, each of the times' shape.

    Attributes:
      x0: coefficient of x0 in its mean.
      low: log beta~, its log variance.
      gap: log beta - log beta~.
    """

    x0: Array
    low: Array
    gap: Array


def step(path: Path, t: Array, s: Array) -> Step:
    """The step from t to s < t, of any shape; sigma_s > 0."""
    now, then = nodes(path, t), nodes(path, s)
    fresh = -jnp.expm1(-2.0 * (then.lam - now.lam))
    return Step(
        x0=then.alpha * fresh,
        low=2.0 * jnp.log(then.sigma) + jnp.log(fresh),
        gap=jax.nn.softplus(2.0 * then.lam) - jax.nn.softplus(2.0 * now.lam),
    )


def log_variance(of: Step, v: Array) -> Array:
    """log beta~ where v = -1, log beta where v = 1; a network's v is not bounded, as in DiT. `of`
    is a number, or one an example of v (B, *S, C)."""
    low, gap = (broadcast(x, v) if x.ndim else x for x in (of.low, of.gap))
    return low + 0.5 * (v + 1.0) * gap


def bound(
    path: Path,
    x0: Array,
    x0_hat: Array,
    v: Array,
    t_B: Array,
    pixels: bool,
    where: Array | None = None,
) -> Array:
    """The term of the variational bound of a thousand steps that t belongs to, (B,) in bits a
    number: KL(q(x_s | x_t, x0) || p(x_s | x_t)), s = t - 1/1000, and -log2 p(x0 | x_t) where s is
    before t_min (Nichol & Dhariwal, eq. 4 to 7, as in DiT).

    There the range of the variance is from the smallest beta~ of the steps of before to that of
    x0 itself (theirs: `posterior_log_variance_clipped` and beta_0).

    Args:
      path: sigma(t_min) > 0.
      x0, x0_hat, v: (B, *S, C), data, estimate and what the network says of the variance. Learns
        from it: v. The caller stops the gradient of the estimate.
      t_B: times in [t_min, t_max].
      pixels: x0 are uint8 pixels, see `log_likelihood`.
      where: the places that count, see `known.mean_over`.
    """
    s_B = t_B - 1.0 / STEPS
    last = s_B < path.t_min - 1e-3 / STEPS  # whole thousandths are not exact
    t_first = jnp.float32(path.t_min + 1.0 / STEPS)
    of = step(path, jnp.where(last, t_first, t_B), jnp.maximum(s_B, path.t_min))
    # To x0, of which sigma is 0 and alpha 1: beta = sigma_t^2 / (alpha_t^2 + sigma_t^2).
    high = -jax.nn.softplus(2.0 * nodes(path, t_B).lam)
    of = of._replace(gap=jnp.where(last, high - of.low, of.gap))
    log_var = log_variance(of, v)
    more = log_var - broadcast(of.low, v)
    squares = jnp.square(broadcast(of.x0, v) * (x0_hat - x0)) * jnp.exp(-log_var)
    kl = 0.5 * (more + jnp.expm1(-more) + squares)
    decoder = -log_likelihood(x0, x0_hat, log_var, pixels)
    nats = jnp.where(broadcast(last, v), decoder, kl)
    return mean_over(nats, where) / np.float32(np.log(2.0))


def log_likelihood(x0: Array, mean: Array, log_var: Array, pixels: bool) -> Array:
    """log p(x0) of a Gaussian, in nats for each number.

    Of pixels: the mass of the values' bins, the outer ones open (Ho et al., eq. 13). Of latents,
    which are of no bins: the density times a bin's width, to which the mass tends (DiT takes the
    mass, and bins of pixels, for latents as well); so of bins much narrower than the Gaussian.
    """
    inverse = jnp.exp(-0.5 * log_var)
    density = -0.5 * (jnp.square((x0 - mean) * inverse) + log_var + np.log(2 * np.pi))
    density = density + np.float32(np.log(2 * HALF_BIN))
    if not pixels:
        return density
    # There the difference of two masses would be lost in rounding, and its gradient not finite.
    narrow = HALF_BIN * inverse < 1e-3
    inverse = jnp.where(narrow, 1.0, inverse)
    upper = (x0 + HALF_BIN - mean) * inverse
    lower = (x0 - HALF_BIN - mean) * inverse
    # The mass between lies mirrored where lower > 0: of two tails the smaller is exact.
    mirrored = lower > 0
    a, b = jnp.where(mirrored, -upper, lower), jnp.where(mirrored, -lower, upper)
    log_b = jax.scipy.special.log_ndtr(b)
    inner = log_b + jnp.log(-jnp.expm1(jax.scipy.special.log_ndtr(a) - log_b))
    inner = jnp.where(narrow, density, inner)
    below = jax.scipy.special.log_ndtr(upper)
    above = jax.scipy.special.log_ndtr(-lower)
    return jnp.where(x0 < -0.999, below, jnp.where(x0 > 0.999, above, inner))
