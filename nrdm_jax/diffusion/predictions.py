"""What a network predicts, and exact conversions between all of it.

Each prediction is a row (p, q) of a linear system: with a = alpha(t), s = sigma(t),

    x_t    = a x0 + s eps
    output = p x0 + q eps

so conversion is the solution of two equations in two unknowns, and a prediction can be used
wherever their determinant a q - s p does not vanish.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from nrdm_jax.diffusion.schedules import Path, broadcast
from nrdm_jax.signatures import Array

Row = Callable[[Path, Array], tuple[Array, Array]]

PREDICTIONS: dict[str, Row] = {
    # Ho et al. (arXiv 2006.11239)
    "eps": lambda path, t: (jnp.zeros_like(t), jnp.ones_like(t)),
    "x0": lambda path, t: (jnp.ones_like(t), jnp.zeros_like(t)),
    # Salimans & Ho (arXiv 2202.00512), appendix D: v = alpha eps - sigma x0
    "v": lambda path, t: (-path.sigma(t), path.alpha(t)),
    # dx_t/dt at fixed x0 and eps (arXiv 2209.03003, 2401.08740 eq. 5); rectified flow: eps - x0
    "velocity": lambda path, t: (path.alpha_dot(t), path.sigma_dot(t)),
    # grad log p(x_t | x0) (Song et al., arXiv 2011.13456)
    "score": lambda path, t: (jnp.zeros_like(t), -1.0 / path.sigma(t)),
    "edm": lambda path, t: _edm(path, t),
}


def _edm(path: Path, t: Array) -> tuple[Array, Array]:
    """F = (x0 - c_skip y) / c_out of y = x_t / alpha = x0 + s eps, s = sigma / alpha, with c_skip =
    d^2 / (s^2 + d^2), c_out = s d / sqrt(s^2 + d^2), d the data's standard deviation (Karras et
    al., arXiv 2206.00364, eq. 7 and table 1). For alpha^2 + sigma^2 = 1 and d = 1 it is -v.
    """
    alpha, sigma, d = path.alpha(t), path.sigma(t), path.sigma_data
    norm = jnp.sqrt(sigma**2 + (d * alpha) ** 2)
    return sigma / (d * norm), -d * alpha / norm


_SMALLEST_DETERMINANT = 1e-6


def check(path: Path, prediction: str) -> None:
    """Refuses what would divide by zero at some training time of the path.

    An x0 prediction is allowed to have sigma = 0 at t = 0 alone: no sampler evaluates a network
    there.

    Raises:
      ValueError: naming both fields.
    """
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"diffusion.prediction is {prediction!r}; choose one of {', '.join(PREDICTIONS)}"
        )
    t = jnp.linspace(path.t_min, path.t_max, 1001, dtype=jnp.float32)
    values = np.abs(np.asarray(determinant(path, prediction, t)))
    if prediction == "x0":
        values = values[1:]
    if not np.all(np.isfinite(values)) or values.min() < _SMALLEST_DETERMINANT:
        worst = float(t[int(np.argmin(np.where(np.isfinite(values), values, 0)))])
        allowed = [p for p in PREDICTIONS if p not in (prediction, "x0")]
        raise ValueError(
            f"diffusion.prediction={prediction} with diffusion.path={path.name} divides by zero at "
            f"t = {worst:.3g}; choose another prediction ({', '.join(allowed)}) or another path"
        )


def determinant(path: Path, prediction: str, t: Array) -> Array:
    p, q = PREDICTIONS[prediction](path, t)
    return path.alpha(t) * q - path.sigma(t) * p


def target(path: Path, prediction: str, x0: Array, eps: Array, t_B: Array) -> Array:
    """What the network should put out: p(t) x0 + q(t) eps, (B, *S, C)."""
    p, q = PREDICTIONS[prediction](path, t_B)
    return broadcast(p, x0) * x0 + broadcast(q, x0) * eps


def to_x0_eps(
    path: Path, prediction: str, output: Array, x_t: Array, t_B: Array
) -> tuple[Array, Array]:
    """The x0 and eps that an output (B, *S, C) at x_t, t means, by Cramer's rule."""
    p, q = (broadcast(value, x_t) for value in PREDICTIONS[prediction](path, t_B))
    a, s = broadcast(path.alpha(t_B), x_t), broadcast(path.sigma(t_B), x_t)
    determinant = a * q - s * p
    return (q * x_t - s * output) / determinant, (a * output - p * x_t) / determinant


def velocity_of(path: Path, x0: Array, eps: Array, t_B: Array) -> Array:
    """dx_t/dt = alpha'(t) x0 + sigma'(t) eps: the probability-flow ODE for estimates of x0 and eps
    (Song et al., arXiv 2011.13456, eq. 13, with score = -eps / sigma)."""
    return target(path, "velocity", x0, eps, t_B)
