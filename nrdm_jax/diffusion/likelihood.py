"""Exact likelihood of data, by the instantaneous change of variables along the probability-flow ODE
(Song et al., arXiv 2011.13456, section 4.3; Chen et al., arXiv 1806.07366, theorem 1)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax.diffusion.predictions import velocity_of
from nrdm_jax.diffusion.schedules import Path
from nrdm_jax.signatures import Array, PredictFn

# (velocity of x (B, *S, C), x) -> (velocity, its divergence (B,))
Divergence = Callable[[Callable[[Array], Array], Array], tuple[Array, Array]]


def exact(velocity: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    """The trace of the Jacobian, one product with it for each number of an example."""
    shape = x.shape[1:]
    size = int(np.prod(shape))

    def along(i):
        unit = jnp.zeros(size, x.dtype).at[i].set(1.0).reshape(1, *shape)
        _, out = jax.jvp(velocity, (x,), (jnp.broadcast_to(unit, x.shape),))
        return out.reshape(x.shape[0], -1)[:, i]

    return velocity(x), jnp.sum(jax.lax.map(along, jnp.arange(size)), axis=0)


def hutchinson(probes: Array) -> Divergence:
    """E[e^T J e] for probes e (P, B, *S, C) of independent signs: one product for each of the P
    (Hutchinson, 1989; Grathwohl et al., arXiv 1810.01367, eq. 7). The same probes at every time, so
    that the ODE is one."""

    def divergence(velocity, x):
        def one(probe):
            value, out = jax.jvp(velocity, (x,), (probe,))
            return value, jnp.sum(out * probe, axis=tuple(range(1, x.ndim)))

        values, traces = jax.lax.map(one, probes)
        return values[0], jnp.mean(traces, axis=0)

    return divergence


def bits_per_dim(
    predict: PredictFn,
    path: Path,
    x: Array,
    divergence: Divergence = exact,
    *,
    steps: int = 200,
    pixel: float = 1.0,
) -> Array:
    """-log2 p(x) / numbers of an example, (B,), of x (B, *S, C) at t_min.

    Args:
      predict: (x_t, t (B,)) -> estimates (x0, eps).
      path: of the marginals; at t_max x_t is taken to be N(0, sigma^2).
      x: data, which at t_min counts as x_t.
      divergence: `exact`, or `hutchinson` of probes.
      steps: of a Runge-Kutta method of order 4 from t_min to t_max, its nodes denser
        near both ends, where velocities change most.
      pixel: width of a quantisation step of x, for integer data that were dequantised: 2/255 for
        pixels in [-1, 1]. The result is then of the integers.
    """
    times = _nodes(path, steps)
    axes = tuple(range(1, x.ndim))

    def rates(x, t):
        t_B = jnp.full(x.shape[:1], t, x.dtype)
        return divergence(lambda y: velocity_of(path, *predict(y, t_B), t_B), x)

    def step(carry, ends):
        x, log_change = carry
        now, then = ends
        dt = then - now
        k1, d1 = rates(x, now)
        k2, d2 = rates(x + 0.5 * dt * k1, now + 0.5 * dt)
        k3, d3 = rates(x + 0.5 * dt * k2, now + 0.5 * dt)
        k4, d4 = rates(x + dt * k3, then)
        x = x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return (x, log_change + dt / 6 * (d1 + 2 * d2 + 2 * d3 + d4)), None

    start = (x, jnp.zeros(x.shape[0], x.dtype))
    (end, log_change), _ = jax.lax.scan(step, start, (times[:-1], times[1:]))
    std = path.sigma(times[-1])
    size = np.prod(x.shape[1:])
    log_prior = -0.5 * jnp.sum((end / std) ** 2, axis=axes) - size * (
        jnp.log(std) + 0.5 * np.log(2 * np.pi)
    )
    # log p(x(0)) = log p(x(1)) + the integral of the divergence.
    return -(log_prior + log_change) / (size * np.log(2.0)) - np.log2(pixel)


def _nodes(path: Path, steps: int) -> Array:
    """(steps + 1,) times from t_min to t_max, cosine-spaced."""
    u = np.linspace(0.0, 1.0, steps + 1)
    bent = 0.5 * (1.0 - np.cos(np.pi * u))
    return jnp.asarray(path.t_min + (path.t_max - path.t_min) * bent)
